"""Lists of any text: loaded as they were written, or refused with the line."""

import dataclasses
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzzed_lists
from tests.data.test_sources import one
from videomae_jax.data import sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record


@pytest.fixture(scope="module")
def list_path(tmp_path_factory):
    return tmp_path_factory.mktemp("lists") / "train.txt"


labels = st.integers(0, 10**6)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_written_records_load_as_they_were(list_path, data):
    parts = st.none() | st.tuples(st.integers(0, 10**6), st.integers(1, 10**6))
    label = data.draw(st.sampled_from([st.none(), labels, labels | st.none()]))
    stems = st.text(
        st.characters(codec="utf-8", exclude_characters="\0\n/"), min_size=1
    ).filter(lambda name: name not in (".", ".."))
    rows = data.draw(
        st.lists(st.tuples(stems, st.booleans(), parts, label), min_size=1, max_size=4)
    )
    expected = []
    for name, is_folder, frames, own in rows:
        path = f"{list_path.parent}/{name}{'' if is_folder else '.mp4'}"
        expected.append(
            Record(
                path,
                "",
                labels=() if own is None else (own,),
                frame_name="img_{:05}.jpg" if is_folder else "",
                frame_range=frames,
            )
        )
    sources.write_records(list_path, expected)
    loaded = sources.load(str(list_path))
    assert [dataclasses.replace(record, id="") for record in loaded] == expected


texts = st.text() | st.text(alphabet="ab1 0-,\t\n\r\"'#./\ufeff", max_size=60)
# What a shell or a spreadsheet throws at a list, a line at a time.
pieces = st.sampled_from(
    ["a.mp4", "a b", "3", "-1", "0", '"', "'", " ", ",", "\t", "#", "\n", "path", "é"]
)
texts |= st.lists(pieces, max_size=20).map("".join)


@settings(deadline=None, max_examples=400)
@given(text=texts, label_kind=st.sampled_from(LabelKind))
def test_any_text_loads_or_says_which_line(list_path, text, label_kind):
    list_path.write_bytes(text.encode("utf-8", "replace"))
    try:
        loaded = sources.load(str(list_path), label_kind=label_kind)
    except RecordError as error:
        if "names no videos" not in str(error):
            named = re.match(rf"{re.escape(str(list_path))}:(\d+): ", str(error))
            assert 1 <= int(named[1]) <= text.count("\n") + 1
        return
    assert len({r.id for r in loaded}) == len(loaded) <= text.count("\n") + 1
    for record in loaded:
        assert os.path.isabs(record.path)
        assert record.frame_name or "." in os.path.basename(record.path)
        assert min(record.labels, default=0) >= 0
        assert label_kind is not LabelKind.ONE or len(record.labels) == 1
        several = label_kind in (LabelKind.MANY, LabelKind.HEADS)
        assert several or len(record.labels) <= 1
        assert bool(record.values) == (label_kind is LabelKind.VALUES)


@settings(deadline=None, max_examples=100)
@given(data=st.binary())
def test_any_bytes_load_or_raise_a_record_error(list_path, data):
    list_path.write_bytes(data)
    try:
        sources.load(str(list_path))
    except RecordError:
        pass


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1
).filter(lambda name: not name.endswith("/"))


def quoted(name, quote):
    return quote + name.replace(quote, quote * 2) + quote


@settings(deadline=None, max_examples=300)
@given(
    expected=st.lists(
        st.tuples(names, st.none() | st.integers(0, 10**6)), min_size=1, max_size=5
    ),
    quote=st.sampled_from("\"'"),
    separator=st.sampled_from([" ", ",", "\t", "  ", " , "]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_quoted_round_trip(list_path, expected, quote, separator, end):
    lines = []
    for name, label in expected:
        tail = "" if label is None else f"{separator}{label}"
        lines.append(quoted(name, quote) + tail + end)
    list_path.write_bytes("".join(lines).encode())
    loaded = sources.load(str(list_path))
    assert [one(r) for r in loaded] == [label for _, label in expected]
    for record, (name, _) in zip(loaded, expected, strict=True):
        path = os.path.join(list_path.parent, name)
        assert record.path in (path, path + ".mp4")
        assert record.id.startswith(name)


plain = st.text(st.characters(codec="utf-8", categories="LN"), min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(
    words=st.lists(plain, min_size=1, max_size=4),
    join=st.sampled_from([" ", ",", ", ", "  ", "-", "#", "'", "/"]),
    extension=st.sampled_from(sources.EXTENSIONS),
    label=st.none() | st.integers(0, 10**6),
    separator=st.sampled_from([" ", ",", "\t", "  ", ", "]),
)
def test_unquoted_videos_round_trip(
    list_path, words, join, extension, label, separator
):
    name = join.join(words) + extension
    line = name if label is None else f"{name}{separator}{label}"
    list_path.write_bytes(line.encode())
    [record] = sources.load(str(list_path))
    assert (record.id, one(record)) == (name, label)


# By text of `fuzzed_lists.LONG`: the number of labels, or what the message says.
_ANSWERS = [
    1,
    "list.txt:1: 'x' is not a label",
    1,
    "list.txt:1: '\"' is not a label",
    100_000,
    2,
    f"list.txt:2: '{'9' * 40}' is not a label",
    f"list.txt:1: '{'1:' * 20}' is not a label",
    f"list.txt:1: '{'9' * 40}' is not a label",
    "list.txt: none of the columns x is a path",
    "list.txt:1: not valid JSON: Unterminated string",
    "list.txt:1: 'youtube_id' is not a label",
    "list.txt: its JSON is nested too deeply",
    "list.txt:1: not valid JSON: Exceeds the limit",
]


@pytest.mark.parametrize(
    "text, answer",
    list(zip(fuzzed_lists.LONG, _ANSWERS, strict=True)),
    ids=[text[:12] for text in fuzzed_lists.LONG],
)
def test_long_lines(tmp_path, text, answer):
    """How long they take is measured by the benchmark."""
    path = tmp_path / "list.txt"
    path.write_text(text)
    if isinstance(answer, int):
        [record] = sources.load(str(path), label_kind=LabelKind.MANY)
        assert len(record.labels) == answer and len(record.path) < 200
        return
    with pytest.raises(RecordError, match=re.escape(answer)) as info:
        sources.load(str(path), label_kind=LabelKind.MANY)
    assert len(str(info.value).replace(str(path), "")) < 500


@pytest.mark.slow
def test_fuzzed_lists():
    assert {fuzzed_lists.load(seed)[0] for seed in range(60)} == {"refused", "loaded"}
