"""Lists, folders, and what a user reads when a line is wrong."""

import os
import re

import pytest

from videomae_jax.data import sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind


def one(record):
    """Returns the only label of a record, or None."""
    (label,) = record.labels or (None,)
    return label


@pytest.fixture
def load(tmp_path):
    """Writes a list and loads it; paths come back relative to the list's folder."""

    def write_and_load(text, **kwargs):
        path = tmp_path / "train.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        loaded = sources.load(str(path), **kwargs)
        return [(os.path.relpath(r.path, tmp_path), one(r)) for r in loaded]

    return write_and_load


@pytest.mark.parametrize(
    "line, path, label",
    [
        ("a.mp4 3", "a.mp4", 3),
        ("a.mp4   3  ", "a.mp4", 3),
        ("a.mp4\t3", "a.mp4", 3),
        ("a.mp4,3", "a.mp4", 3),
        ("a.mp4 , 3", "a.mp4", 3),
        ("a.mp4 0", "a.mp4", 0),
        ("a.mp4", "a.mp4", None),
        ("a.MKV 7", "a.MKV", 7),
        # spaces and separators in the path
        ("my video.mp4 3", "my video.mp4", 3),
        ("my video.mp4,3", "my video.mp4", 3),
        ("my, video.mp4\t3", "my, video.mp4", 3),
        ("my video 12\t3", "my video 12.mp4", 3),
        ("my, video.mp4 3", "my, video.mp4", 3),
        ("my, video.mp4", "my, video.mp4", None),
        ("riding a bike/abc_000012_000022 3", "riding a bike/abc_000012_000022.mp4", 3),
        ("take 2 of 3.webm", "take 2 of 3.webm", None),
        ('"my video 1.mp4" 3', "my video 1.mp4", 3),
        ("'my video 1.mp4',3", "my video 1.mp4", 3),
        ('"a 1"\t3', "a 1.mp4", 3),
        ('"a, b"', "a, b.mp4", None),
        ('"say ""hi"".mp4" 3', 'say "hi".mp4', 3),
        ("'it''s.mp4' 3", "it's.mp4", 3),
        ("it's.mp4 3", "it's.mp4", 3),
        # comments
        ("a.mp4 3 # good", "a.mp4", 3),
        ("a.mp4\t# good", "a.mp4", None),
        ("a#1.mp4 3", "a#1.mp4", 3),
        ('"a #1.mp4" 3 #x', "a #1.mp4", 3),
        # extensions
        ("k400/abc_000001_000011 3", "k400/abc_000001_000011.mp4", 3),
        ("78687 3", "78687.mp4", 3),
        ("v1.2/abc 3", "v1.2/abc.mp4", 3),
        ("a.gif 3", "a.gif", 3),
        ("....mp4 3", "....mp4", 3),
        (".mp4 3", ".mp4", 3),
        # VideoMAE V2: a whole video
        ("a.mp4 0 -1", "a.mp4", None),
        ("my video.mp4 0 -1", "my video.mp4", None),
        ('"my video.mp4"\t0\t-1', "my video.mp4", None),
        # not JSON
        ("[x] a.mp4 3", "[x] a.mp4", 3),
        ("{x}.mp4,3", "{x}.mp4", 3),
        ("[[x]] 7 a.mp4 3", "[[x]] 7 a.mp4", 3),
        # no separators: what other alphabets call a space or a line break
        ("a\u00a0b.mp4 3", "a\u00a0b.mp4", 3),
        ("a\u2028b\x0c.mp4 3", "a\u2028b\x0c.mp4", 3),
    ],
)
def test_lines(load, line, path, label):
    assert load(line) == [(path, label)]
    assert load(f"first.mp4 1\r\n{line}\r\n") == [("first.mp4", 1), (path, label)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("a.mp4 -1", "'-1' is not a label"),
        ("a.mp4 3.5", "'3.5' is not a label"),
        ("a.mp4 cat", "'cat' is not a label"),
        ("a.mp4,cat", "'cat' is not a label"),
        ("a.mp4\tcat", "'cat' is not a label"),
        ("a cat", "'cat' is not a label"),
        ('"a.mp4" cat', "'cat' is not a label"),
        ("a.mp4 99999999999999999999", "is not a label"),
        ("a.mp4\t" + "9" * 5000, "is not a label"),
        ("a.mp4 ", None),
        ("a.mp4,", "'' is not a label"),
        ("a.mp4 cat 3", "'cat' is not a label.*quotes"),
        ("a.mp4 b.mp4", "'b.mp4' is not a label.*quotes"),
        ("a.mp4,,3", "is not a label"),
        ("folder 9601 0", "total from 1 up"),
        ("a.mp4,0,300", "3 columns.*sigmoid.*path,start,total"),
        ("folder -1 300", "start from 0"),
        ("folder 3 -1", "`path 0 -1` for a whole video"),
        ('"folder" 3 cat', "'cat' is not a whole number"),
        ("my video 12 3", "3 columns.*quotes"),
        ("a.mp4\t1\t2\t3", "4 columns"),
        ('"a.mp4 3', "closing"),
        ("'tis.mp4 3", "closing.*quotes of the other kind"),
        ('"a"b.mp4 3', "after the closing"),
        ('"" 3', "one video file"),
        (", 3", "one video file"),
        ("/ 3", "one video file"),
        ("path,label", "'label' is not a label"),  # a header is the first line
    ],
)
def test_wrong_lines(load, line, message):
    text = f"\n# comment\nfirst.mp4 1\n{line}\nlast.mp4 2\n"
    if message is None:
        assert len(load(text)) == 3
        return
    with pytest.raises(RecordError, match=r"train\.txt:4: ") as raised:
        load(text)
    assert re.search(message, str(raised.value))
    assert line[:60] in str(raised.value) and len(str(raised.value)) < 600


# What a line without a header means, in a list without and with required labels: path,
# whether it is a frame folder, first frame and number of them, label.
@pytest.mark.parametrize(
    "line, unlabelled, labelled",
    [
        (
            "a/b 9601 300",
            ("a/b", True, (9601, 300), None),
            ("a/b", True, (1, 9601), 300),
        ),
        ("a/b\t0\t58", ("a/b", True, (0, 58), None), None),
        ("a/b 117 3", ("a/b", True, (117, 3), None), ("a/b", True, (1, 117), 3)),
        ('"a b" 117 3', ("a b", True, (117, 3), None), ("a b", True, (1, 117), 3)),
        ("a b/ 117 3", ("a b", True, (117, 3), None), ("a b", True, (1, 117), 3)),
        ("v1.5 117 3", ("v1.5", True, (117, 3), None), ("v1.5", True, (1, 117), 3)),
        ("a/ 3", ("a", True, None, 3), ("a", True, None, 3)),
        ("a b/", ("a b", True, None, None), None),
        ("a.mp4/ 3", ("a.mp4", True, None, 3), ("a.mp4", True, None, 3)),
        ("a 0 -1", ("a.mp4", False, None, None), None),
    ],
)
def test_folders_and_parts(tmp_path, line, unlabelled, labelled):
    path = tmp_path / "train.txt"
    path.write_text(line)
    for label_kind, expected in (
        (LabelKind.OPTIONAL, unlabelled),
        (LabelKind.ONE, labelled),
    ):
        if expected is None:
            with pytest.raises(RecordError, match=":1: "):
                sources.load(str(path), label_kind=label_kind)
            continue
        [record] = sources.load(
            str(path), label_kind=label_kind, frame_name="{:06}.png"
        )
        name, is_folder, frames, label = expected
        assert record.path == str(tmp_path / name)
        assert record.frame_name == ("{:06}.png" if is_folder else "")
        assert (record.frame_range, one(record)) == (frames, label)
        assert record.id in (name, name.removesuffix(".mp4"))


@pytest.mark.parametrize("label_kind", [LabelKind.OPTIONAL, LabelKind.ONE])
@pytest.mark.parametrize(
    "header, line, frames, label",
    [
        ("path,total,label", "a 117 3", (1, 117), 3),
        ("path total label", "a/,117,3", (1, 117), 3),
        ("path\tnum_frames\tclass", "a.mp4 -1 3", None, 3),
        ("path,total,label", "a/ -1 3", None, 3),
        ("path,start,total,label", "a 0 117 3", (0, 117), 3),
        ("path,start,total,label", "a.mp4 25 300 3", (25, 300), 3),
        ("path,start,total", "a 117 3", (117, 3), None),
        ("path,start,total", "my a.mp4,0,1", (0, 1), None),
        ("path,start_idx,total_frames", "a.mp4 0 -1", None, None),
    ],
)
def test_a_header_decides(tmp_path, header, line, frames, label, label_kind):
    path = tmp_path / "train.txt"
    path.write_text(f"{header}\n{line}\n")
    if label_kind is LabelKind.ONE and label is None:
        with pytest.raises(RecordError, match=":2: the label is missing"):
            sources.load(str(path), label_kind=LabelKind.ONE)
        return
    [record] = sources.load(str(path), label_kind=label_kind)
    assert (record.frame_range, one(record)) == (frames, label)
    if label is not None:
        [record] = sources.load(str(path), label_kind=LabelKind.MANY)
        assert (record.frame_range, record.labels) == (frames, (label,))


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,start,total\na.mp4 3\n", "2 columns.*`path start total`"),
        ("path,total,label\na 1 117 3\n", "4 columns.*`path total label`"),
        ("path,total,label\na.mp4 117 3\n", "needs a start.*path,start,total,label"),
        ("path,total,label\na\tx\t3\n", "'x' is not a whole number"),
    ],
)
def test_lines_that_do_not_fit_the_header(load, text, message):
    with pytest.raises(RecordError, match=rf":2: .*({message})"):
        load(text)


def test_several_labels_of_frame_folders(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a/ 3 17 3\nb/\n")
    loaded = sources.load(str(path), label_kind=LabelKind.MANY)
    assert [(record.id, record.labels) for record in loaded] == [
        ("a", (3, 17)),
        ("b", ()),
    ]
    assert all(record.frame_name for record in loaded)


@pytest.mark.parametrize("name", ["img.jpg", "{}{}.jpg", "{:05", "{x}.jpg", "a/{}.jpg"])
def test_a_frame_name_that_is_no_template(tmp_path, name):
    (tmp_path / "train.txt").write_text("a/")
    with pytest.raises(RecordError, match="frame_name.*template.*img_{:05}"):
        sources.load(str(tmp_path / "train.txt"), frame_name=name)


@pytest.mark.parametrize(
    "header",
    [
        "path label",
        "path,label",
        "video label",
        '"path","label"',
        "Path\tClass",
        "path",
    ],
)
def test_header(load, header):
    text = f"\ufeff# made by hand\r\n\r\n{header}\r\na.mp4 3\r\n"
    assert load(text) == [("a.mp4", 3)]


def test_a_first_line_that_is_no_header(load):
    assert load("video.mp4 3\n") == [("video.mp4", 3)]
    assert load("video 3\n") == [("video.mp4", 3)]
    assert load('"video"\n') == [("video.mp4", None)]


def test_labels_required(load):
    assert load("a.mp4 3\nb.mp4\n") == [("a.mp4", 3), ("b.mp4", None)]
    for line in ("b.mp4", "b.mp4 0 -1", '"b.mp4"'):
        with pytest.raises(RecordError, match=r":2: the label is missing"):
            load(f"a.mp4 3\n{line}\n", label_kind=LabelKind.ONE)


def test_root(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "train.txt"
    path.write_text("a.mp4 1\n/b.mp4 2\n")
    monkeypatch.chdir(tmp_path)
    for root, start in [
        ("", tmp_path / "lists"),
        ("videos", tmp_path / "videos"),
        ("/videos", "/videos"),
    ]:
        first, second = sources.load("lists/train.txt", root)
        assert (first.path, second.path) == (f"{start}/a.mp4", "/b.mp4")
        assert (first.id, second.id) == ("a.mp4", "/b.mp4")


def test_ids_are_unique(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\n" * 3 + "a#2\nb#2\nb\nb\n")
    loaded = sources.load(str(path))
    names = ["a", "a#2", "a#3", "a#2#2", "b#2", "b", "b#3"]
    assert [r.id for r in loaded] == names
    assert len({r.path for r in loaded}) == 4


def test_folder(tmp_path, monkeypatch):
    names = ["z.mp4", "b/2.AVI", "b/10.webm", "b.mov", "b/c/x y.ts"]
    for name in [*names, "notes.txt", ".hidden.mp4", ".cache/x.mp4", "mp4"]:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    monkeypatch.chdir(tmp_path)
    for source in ("videos", "videos/", str(tmp_path / "videos")):
        loaded = sources.load(source)
        assert [r.id for r in loaded] == sorted(names)
        assert [r.path for r in loaded] == [f"{tmp_path}/videos/{r.id}" for r in loaded]
        assert {r.labels for r in loaded} == {()}
    with pytest.raises(RecordError, match="no labels"):
        sources.load("videos", label_kind=LabelKind.ONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="'empty' holds no videos"):
        sources.load("empty")


@pytest.mark.parametrize("source", ["", "missing.txt", "missing/"])
def test_missing_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError) as raised:
        sources.load(source)
    message = str(raised.value)
    assert source in message and "find /videos -name '*.mp4' > train.txt" in message
    assert "abseiling/a1.mp4 0" in message and "digits:train" in message


def test_the_example_of_the_message_loads(load):
    lines = [x for x in sources._HELP.split("\n") if x.startswith("    ")]
    assert load("\n".join(lines), label_kind=LabelKind.ONE) == [
        ("abseiling/a1.mp4", 0),
        ("juggling balls/b 2.mp4", 1),
    ]


@pytest.mark.parametrize(
    "data, line",
    [
        (b"\0\0\0\x20ftypisom" + b"\xff" * 9999, 1),
        ("a.mp4 1\nb.mp4 2\n".encode("utf-16"), 1),  # PowerShell's >
        ("a.mp4 1\ncafé.mp4 2\n".encode("latin-1"), 2),
        (b"a.mp4 1\n" * 9999 + b"\0", 10000),
    ],
)
def test_not_text(load, data, line):
    with pytest.raises(RecordError, match=rf":{line}: .*not a UTF-8 text file"):
        load(data)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "path,label\n", "\ufeff"])
def test_empty_list(load, text):
    with pytest.raises(RecordError, match="names no videos"):
        load(text)
