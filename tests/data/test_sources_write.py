"""Lists are read back as they were written."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomae_jax.data import sources
from videomae_jax.errors import RecordError

# Paths that a list can contain: UTF-8 without line breaks, with a file extension.
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n")
    | st.sampled_from(" ,\t\"'#/\\\r\ufeff-0123")
)
paths = st.builds("{}.{}".format, names, st.sampled_from(["mp4", "avi", "0", "3 #x"]))
paths = paths.filter(lambda path: os.path.splitext(path)[1])


@pytest.fixture(scope="module")
def list_path(tmp_path_factory):
    return tmp_path_factory.mktemp("lists") / "train.txt"


@settings(deadline=None, max_examples=400)
@given(
    rows=st.lists(
        st.tuples(paths, st.none() | st.integers(0, 10**9 - 1)), min_size=1, max_size=5
    )
)
def test_write_list_round_trip(list_path, rows):
    sources.write_list(list_path, rows)
    loaded = sources.load(str(list_path))
    assert [(record.path, record.labels) for record in loaded] == [
        (os.path.join(list_path.parent, path), () if label is None else (label,))
        for path, label in rows
    ]


@pytest.mark.parametrize(
    "path, label, message",
    [
        ("a\nb.mp4", 0, "line break"),
        ("a\0.mp4", 0, "line break or a NUL"),
        ("a\udcff.mp4", 0, "not UTF-8"),
        ("a", 0, "no extension"),
        ("a.mp4/", 0, "no extension"),
        ("a.mp4", -1, "label -1"),
        ("a.mp4", 10**9, "label"),
    ],
)
def test_write_list_refuses(tmp_path, path, label, message):
    with pytest.raises(RecordError, match=message):
        sources.write_list(tmp_path / "a.txt", [("good.mp4", 0), (path, label)])
    assert not list(tmp_path.iterdir())


def test_plain_paths_have_no_quotes(tmp_path):
    rows = [("a/b-c_d(1);&é.mp4", 3), ("v.mp4", None), ('a "b".mp4', 1)]
    sources.write_list(tmp_path / "a.txt", rows)
    lines = (tmp_path / "a.txt").read_text("utf-8").splitlines()
    assert lines == ["a/b-c_d(1);&é.mp4 3", "v.mp4", '"a ""b"".mp4" 1']
