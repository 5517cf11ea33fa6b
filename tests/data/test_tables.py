"""Lists as people have them: headers, seconds, names, JSON; the cases of users."""

import json
import logging

import pytest

from videomae_jax.data import labels, sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind

INF = float("inf")
ONE, MANY, HEADS, VALUES, UNUSED = (
    LabelKind.ONE,
    LabelKind.MANY,
    LabelKind.HEADS,
    LabelKind.VALUES,
    LabelKind.UNUSED,
)


@pytest.fixture
def load(tmp_path):
    """Writes a list and loads it."""

    def write_and_load(text, label_kind=ONE, name="train.csv", **kwargs):
        (tmp_path / name).write_text(text)
        return sources.load(str(tmp_path / name), label_kind=label_kind, **kwargs)

    return write_and_load


EPIC = "video_path,start,end,label\nP01.mp4,0,2,take knife\nP01.mp4,2.5,4,put plate\n"
SECONDS = "P01.mp4 0.0 2.0 0\nP01.mp4 2.5 4.0 1\n"
RANGES = [(0.0, 2.0), (2.5, 4.0)]


# The text of a list, and for each of its videos: label, and times or frames.
@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"path": "P01.mp4", "label": 1}\n', [(1, None)]),
        ('{"vid": "a", "label": 1}\n{"vid": "b", "label": 0}', [(1, None), (0, None)]),
        ('[{"video": "a.mp4", "label": 1}, {"video": "b"}]', None),
        ('{"a.mp4": 1, "b/c": 0}', [(1, None), (0, None)]),
        ('[["a.mp4", 1], ["b.mp4", 0]]', [(1, None), (0, None)]),
        ('{"a": {"label": 1, "fps": 25}, "b": {"label": 0}}', [(1, None), (0, None)]),
        ('{"split": "x", "videos": [{"file": "a.mp4", "class": 2}]}', [(2, None)]),
        (EPIC, [(1, RANGES[0]), (0, RANGES[1])]),
        (SECONDS, [(0, RANGES[0]), (1, RANGES[1])]),
        ("P01.mp4,0.5,2,run fast\nP01.mp4,3,4.5,sit\n", [(0, (0.5, 2)), (1, (3, 4.5))]),
        ("path,label,t_start,t_end\na,1,0,2\nb,0,1,3\n", [(1, (0, 2)), (0, (1, 3))]),
        (
            "path,start_timestamp,stop_timestamp,label\na,00:00:01.50,00:01:02.25,3\n",
            [(3, (1.5, 62.25))],
        ),
        ("path\tstart_frame\tstop_frame\tlabel\na.mp4\t10\t25\t1\n", [(1, (10, 15))]),
        ("path,label,start,total\na.mp4,1,10,15\nb,0,,\n", [(1, (10, 15)), (0, None)]),
        ("label,path,end_frame\n3,a.mp4,8\n", [(3, (0, 8))]),
        ("P01.mp4 take_knife\nP01.mp4 put_plate\n", [(1, None), (0, None)]),
        ("path,label\nP01.mp4,take knife\nabc_000001,run\n", [(1, None), (0, None)]),
        ('a.mp4 "take knife"\n"b c.gif" \'run\'\n', [(1, None), (0, None)]),
        ("a.mp4\ttake knife\nb.mp4\trun\n", [(1, None), (0, None)]),
        (",path,label\n0,P01.mp4,1\n1,b.mp4,0\n", [(1, None), (0, None)]),
        ("Unnamed: 0,Path,Label\n0,a.mp4,1.0\n", [(1, None)]),
        ("P01.mp4;1\nb.mkv;0\n", [(1, None), (0, None)]),
        ("P01.mp4;take knife\n", [(0, None)]),
        ("path;label\na b;1\n", [(1, None)]),
        ('path,label,notes\n"a, b.mp4",1,"say ""hi"""\n\n# no\n', [(1, None)]),
        ("path label fps\na.mp4 1 25\n", [(1, None)]),
        ("video_id,class_name,duration\nabc,run,3.5\n", [(0, None)]),
        # With an end, or without a start, a number of frames is metadata.
        ("path,start_frame,end_frame,frames,label\na.mp4,5,20,300,1\n", [(1, (5, 15))]),
        ("path,start,end_sec,total,label\na.mp4,5,20,300,1\n", [(1, (5, 20))]),
        ("path,label,num_frames\na.mp4,1,300\nabc,2,300\n", [(1, None), (2, None)]),
        ("video_path,label,fps,frames,duration\na.mp4,1,25,50,2\n", [(1, None)]),
        ("path,label,frames\na/,1,300\nb.mp4,0,9\n", [(1, (1, 300)), (0, None)]),
        # Below a comma header, a comma separates, and # does not begin a comment.
        ("path,label\nx1,stage 1\nx2,stage 2\n", [(0, None), (1, None)]),
        ("path,label\na.mp4,run #1\nb.mp4,run #2\n", [(0, None), (1, None)]),
        ('path,label\n"a",run #1\n# x\n"b","run #2"\n', [(0, None), (1, None)]),
        ('a.mp4 "run #1"\n"b.mp4" "run #2" # x\n', [(0, None), (1, None)]),
        # Cells that are empty.
        ("path\tlabel\tcomment\na.mp4\t1\t\nb\t0\tx\n", [(1, None), (0, None)]),
        ("\tpath\tlabel\n0\ta.mp4\t1\n", [(1, None)]),
        ("path,label,start_s,end_s\na,1,2,\nb,0,,3\n", [(1, (2, INF)), (0, (0, 3))]),
        # Both: seconds, but images are counted.
        (
            "path,start_frame,stop_frame,start_time,stop_time,label\n"
            "a,30,60,1,2,1\nb/,30,60,1,2,0\nc,3,6,,,0\n",
            [(1, (1, 2)), (0, (30, 30)), (0, (3, 3))],
        ),
        ('"a.mp4";0\n"b c.mp4";1\n', [(0, None), (1, None)]),
        ('{"path": "a.mp4", "label": " 3 "}\n', [(3, None)]),
    ],
)  # fmt: skip
def test_lists_that_people_have(load, text, expected):
    if expected is None:
        with pytest.raises(RecordError, match="item 2: the label is missing"):
            load(text)
        return
    loaded = load(text)
    found = [(x.labels[0], x.time_range or x.frame_range) for x in loaded]
    assert found == expected
    assert [(x.time_range or x.frame_range) for x in load(text, UNUSED)] == [
        part for _, part in expected
    ]


@pytest.mark.parametrize(
    "text, label_kind, message",
    [
        # Frames or seconds? The advice is followed below.
        (
            "video_path,start,end,label\nP01.mp4,0,60,0\nP01.mp4,75,120,1\n",
            ONE,
            ":1: are start, end frames or seconds.*start_frame,end_frame or "
            "start_seconds,end_seconds",
        ),
        ("path,start,end,frames,label\na.mp4,5,20,300,1\n", ONE, "frames or seconds"),
        ("path,label,fps\na.mp4,1 2,25\n", ONE, ":2: 3 columns"),
        ("path,label\na.mp4,[run]\n", ONE, r":2: '\[run\]' is not a label.*are a list"),
        ("path,label\na.mp4,\"['a' 'b']\"\n", MANY, ":2: .* is not a label"),
        ('{"run": ["x/a", "x/b"]}', ONE, "train.csv: 'run' holds a list of videos"),
        (
            '{"train": [{"path": "a"}], "val": [{"path": "b"}]}',
            UNUSED,
            "train.csv: 'train' holds a list of videos, expected an object",
        ),
        (
            '{"x": "a", "label": 1}\n{"x": "b", "label": 0}\n',
            ONE,
            "train.csv: none of the columns x, label is a path",
        ),
        ("path,score\na.mp4,7.25\n", ONE, ":1: .*score.*config.loss.kind=mse"),
        ("a.mp4 7.25\na.mp4 3.5\n", ONE, ":1: '7.25' is not a label.*loss.kind=mse"),
        ("video_path,verb,noun\na.mp4,3,17\n", ONE, ":1: .*data.heads=verb,noun"),
        ("path,verb,noun\na.mp4,3,17\n", MANY, ":1: .*data.heads=verb,noun"),
        ("a.mp4 3 17\n", ONE, ":1: 3 columns.*sigmoid.*config.data.heads=verb,noun"),
        ("id,label,x\n1,2,3\n", ONE, ":1: none of the columns id, label, x is a path"),
        ("path,label,start_sec\na,1,2\n", ONE, "start_sec needs a column end_seconds"),
        ("path,label,fps\na.mp4,1\n", ONE, ":2: 2 columns.*names 3: path, label, fps"),
        ('path,label,fps\na.mp4,1,"2\n', ONE, "not valid CSV"),
        ("path,label,path\na,1,b\n", ONE, ":1: the header names path twice"),
        ("path,label,split\na,1,train\nb,0,test\n", ONE, "several splits: test, train"),
        ("path,label,end_frame\na,1,x\n", ONE, ":2: 'x' is not a frame"),
        ("path,label,start_frame,end_frame\na,1,9,9\n", ONE, ":2: the part is empty"),
        ("path,label,start_s,end_s\na,1,2,1\n", ONE, ":2: .*2 to 1 seconds is empty"),
        ("path,label,start_s,end_s\na,1,x,1\n", ONE, ":2: 'x' is not a time"),
        ("path,label,start_s,end_s\na/,1,0,1\n", ONE, ":2: images have no times"),
        ("a.mp4 run\nb.mp4 3\n", ONE, ":2: the label 3 is a number.*'run', are names"),
        ("a.mp4 3\nb.mp4 run\n", ONE, ":2: 'run' is not a label"),
        ("a.mp4 take knife\n", ONE, ":1: 'take' is not a.*needs quotes or a comma"),
        ('{"path": "a.mp4", "label": 1}\n{"path": ', ONE, ":2: not valid JSON"),
        ('[{"path": "a", "label": 1}, 3]', ONE, ": item 2: expected an object"),
        ('[{"a": 1}]', ONE, "none of the columns a is a path"),
        ('{"path": "a.mp4", "label": [1, 2]}', ONE, ":1: 3 columns"),
        ("a.mp4 run\n", VALUES, ":1: 'run' is not a number.*config.loss.kind=mse"),
        ("a.mp4 nan\n", VALUES, ":1: 'nan' is not a number"),
        ("a.mp4\n", VALUES, ":1: the value is missing"),
    ],
)  # fmt: skip
def test_one_clear_sentence(load, text, label_kind, message):
    with pytest.raises(RecordError, match=message) as raised:
        load(text, label_kind)
    assert "train.csv:" in str(raised.value) and len(str(raised.value)) < 800


def test_advice_works_when_it_is_followed(load):
    rows = "P01.mp4,0,60,0\nP01.mp4,75,120,1\n"
    for unit, parts in (
        ("frame", [(0, 60), (75, 45)]),
        ("seconds", [(0, 60), (75, 120)]),
    ):
        loaded = load(f"video_path,start_{unit},end_{unit},label\n{rows}")
        assert [x.frame_range or x.time_range for x in loaded] == parts

    # A folder of images, its first image, their number, a label.
    with pytest.raises(
        RecordError, match="a line path,start,total,label or "
    ) as raised:
        load("img_dir 2 5 127\n")
    header = str(raised.value).partition(" a line ")[2].partition(" or ")[0]
    for label_kind in (ONE, UNUSED):
        [record] = load(f"{header}\nimg_dir 2 5 127\n", label_kind)
        assert (record.id, record.frame_range, record.labels) == (
            "img_dir",
            (2, 5),
            (127,),
        )
        assert record.frame_name
    with pytest.raises(RecordError, match="a line path,total,label\n"):
        load("my v 5 127\n")
    [record] = load("path,total,label\nmy v 5 127\n")
    assert (record.id, record.frame_range, record.labels) == ("my v", (1, 5), (127,))
    with pytest.raises(RecordError, match="needs a comma or a tab|quotes or a comma"):
        load("a.mp4 take knife\n")
    assert load("a.mp4,take knife\n")[0].label_names == ("take knife",)


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 7.25\nb.mp4 cat 3\n",
        "a.mp4 3 17\nb.mp4 0.5 2.0 1\n",
        "a.mp4 take the knife\nb.mp4,,\n",
        "path,label\na.mp4,-1\nb.mp4,x y\n",
        "path,verb,noun\na.mp4,1,x\nb.mp4,,\n",
        "path,score,split\na.mp4,x,1\nb.mp4,,1\n",
        '[{"path": "a.mp4", "label": {"x": 1}}, {"path": "b.mp4", "label": [1, "y"]}]',
    ],
)
def test_pretraining_ignores_labels(load, text):
    loaded = load(text, UNUSED)
    assert [record.id for record in loaded] == ["a.mp4", "b.mp4"]
    assert not any(x.label_names or x.is_part for x in loaded)


def test_class_names(load):
    names = ["take knife", "put plate", "wash"]
    text = "path,label\na.mp4,put plate\nb.mp4,take knife\n"
    assert [x.labels for x in load(text)] == [(0,), (1,)]
    loaded = load(text, class_names=names)
    assert [x.labels for x in loaded] == [(1,), (0,)]
    assert [x.label_names for x in loaded] == [("put plate",), ("take knife",)]
    assert labels.class_names(loaded, "train.csv") == ["take knife", "put plate"]
    with pytest.raises(
        RecordError,
        match=":2: 'put plate' is none of the 1 classes; the nearest is 'put plates':",
    ):
        load(text, class_names=["put plates"])
    with pytest.raises(
        RecordError, match=r":3: 'take knife' is none of the 1 classes:"
    ):
        load(text, class_names=["put plate"])
    assert [x.labels for x in load(text, UNUSED, class_names=names)] == [(), ()]
    # Several labels: JSON lists, or a cell of them.
    for several in ('[{"path": "a.mp4", "label": ["wash", "put plate"]}]',
                    'path,label,fps\na.mp4,"wash, put plate",1\n',
                    "a.mp4,wash,put plate\n"):  # fmt: skip
        [record] = load(several, MANY, class_names=names)
        assert (record.labels, record.label_names) == ((1, 2), ("put plate", "wash"))
    assert load("a.mp4 1 0 1\n", MANY)[0].labels == (0, 1)


def test_a_label_with_decimals_is_not_a_class(load):
    with pytest.raises(RecordError, match=":2: '1.05' is not a label"):
        load("path,label\na.mp4,1.05\n")


@pytest.mark.parametrize(
    "cells, expected",
    [
        (["[1, 2]", "[0]", "[]"], [(1, 2), (0,), ()]),
        (["1 2", "0", "2;1"], [(1, 2), (0,), (1, 2)]),
        (["[1 2]", "[1.0, 2.0]", "[ ]"], [(1, 2), (1, 2), ()]),
        (["['run', 'jump']", '[""jump""]', "['a, b']"], [(1, 2), (1,), (0,)]),
        (["['a b']", "[Something] falls, now", "run"], [(1,), (0,), (2,)]),
    ],
)
@pytest.mark.parametrize("more", ["", ",x"])
def test_lists_in_cells(load, cells, expected, more):
    header = f"path,label{more and ',fps'}\n"
    rows = [f'{x}.mp4,"{cell}"{more}\n' for x, cell in zip("abc", cells, strict=True)]
    assert [x.labels for x in load(header + "".join(rows), MANY)] == expected


def test_pretraining_on_values(load):
    text = "a.mp4 0.1 0.5 0.3\nb.mp4 0.2 0.7 0.1\n"
    assert not any(x.is_part for x in load(text, UNUSED))
    assert all(x.is_part for x in load("a.mp4 0.1 0.5 3\nb.mp4,.1,.5,run\n", UNUSED))


def test_held_out_values_have_the_columns_of_the_training(load):
    columns = load("path,b,c\nx.mp4,2,3\n", VALUES)[0].value_names
    text = "path,a,b,c\nx.mp4,1,2,3\n"
    assert load(text, VALUES, label_columns=columns)[0].values == (2, 3)
    with pytest.raises(
        RecordError, match="to predict are b,c, but the columns are .*a"
    ):
        load("path,a,b\nx.mp4,1,2\n", VALUES, label_columns=columns)
    # Names of config.data.labels, which are none of columns.
    [record] = load("path,a,b\nx.mp4,1,2\n", VALUES, label_columns=("x", "y"))
    assert (record.values, record.value_names) == ((1, 2), ("a", "b"))


@pytest.mark.parametrize(
    "text, ids",
    [
        ('{"a.mp4": {"name": "Running", "label": 3}}', ["a.mp4"]),
        ('{"x/a": {"video": "b", "label": 3}}', ["x/a"]),
        ('{"a": {"name": "Running", "label": 3}}', ["a"]),
        ('{"0": {"name": "b.mp4", "label": 3}}', ["b.mp4"]),
        ('{"0": {"video_id": "b", "label": 3}}', ["b"]),
        ("video_id\na\nb\n", ["a", "b"]),
        ("clip\na 1\nb 2\n", ["a", "b"]),
    ],
)
def test_paths(load, text, ids):
    assert [record.id for record in load(text, UNUSED)] == ids


def test_several_heads(load):
    assert load("a.mp4 3 17\n", HEADS)[0].labels == (3, 17)
    assert load("a.mp4 17 3\n", HEADS)[0].labels == (17, 3)  # in order, also if equal
    assert load("a.mp4 3 3\n", HEADS)[0].labels == (3, 3)
    text = "narration,video_path,verb,noun\nx,a.mp4,cut,egg\ny,b.mp4,mix,cut\n"
    first, second = load(text, HEADS)
    assert (first.labels, second.labels) == ((0, 1), (1, 0))
    assert second.label_names == ("mix", "cut")
    heads = [["mix", "cut"], ["egg", "cut"]]
    first, _ = load(text, HEADS, class_names=heads, label_columns=("verb", "noun"))
    assert first.labels == (1, 0)
    first, _ = load(text, HEADS, label_columns=("noun", "verb"))
    assert first.label_names == ("egg", "cut")
    with pytest.raises(RecordError, match="data.heads=verb,tool, but the columns are"):
        load(text, HEADS, label_columns=("verb", "tool"))
    with pytest.raises(RecordError, match=":3: 'cut' is none of the 1 classes"):
        load(text, HEADS, class_names=[["mix", "cut"], ["egg"]])
    assert load('{"path": "a.mp4", "label": [4, 2]}', HEADS)[0].labels == (4, 2)
    # More columns than heads are for the caller to refuse.
    [record] = load(
        "a.mp4 x y z\n".replace(" ", ","), HEADS, class_names=[["x"], ["y"]]
    )
    assert record.labels == (0, 0, 0)
    # As is advised for EPIC-KITCHENS and Charades.
    text = "path,start_timestamp,stop_timestamp,verb,noun\nP01_01.MP4,00:00:01.5,00:02,"
    [record] = load(text + "wash,mug\n", HEADS, label_columns=("verb", "noun"))
    assert (record.time_range, record.label_names) == ((1.5, 2.0), ("wash", "mug"))
    [record] = load("path,label\na,c092,c147\n", MANY)
    assert record.label_names == ("c092", "c147")


@pytest.mark.parametrize(
    "text, values",
    [
        ("a.mp4 7.25\n", (7.25,)),
        ("a.mp4,-1,2.5e1\n", (-1.0, 25.0)),
        ("path,score\na.mp4,7.25\n", (7.25,)),
        ("path,label\na.mp4,3\n", (3.0,)),
        ("path,valence,arousal,fps\na.mp4,0.5,-2,25\n", (0.5, -2.0)),
        ("path,start_frame,end_frame,score,comment\na.mp4,0,9,7,good\n", (7.0,)),
        ('{"path": "a.mp4", "value": [1, 2.5]}', (1.0, 2.5)),
    ],
)
def test_values(load, text, values):
    [record] = load(text, VALUES)
    assert (record.values, record.labels) == (values, ())


def test_columns_that_are_ignored_are_logged(load, caplog):
    caplog.set_level(logging.INFO)
    load("path,label,fps,mood\na.mp4,1,25,good\n")
    assert "train.csv:1: columns=path,label ignored=fps,mood" in caplog.text
    load("path,label,start_frame,end_frame,start_s,end_s\na,1,3,6,1,2\n")
    assert "train.csv:1: seconds are used where frames are given too" in caplog.text
    load("path,label,num_frames\na.mp4,1,25\n")
    assert "columns=path,label ignored=num_frames" in caplog.text
    caplog.clear()
    load(",path,label\n0,a.mp4,1\n")
    assert not caplog.text
    load("a.mp4 0 30\n", UNUSED)
    assert "begin the list with a line such as path,start_seconds" in caplog.text


def test_records_with_names_times_and_values_are_read_back(load, tmp_path):
    rows = [
        {"label": 'take, "knife"', "start_seconds": 0.5, "end_seconds": 2.0},
        {"label": "#1 run", "start_seconds": 1 / 3, "end_seconds": 4},
        {"label": "b\tc", "start_frame": 3, "end_frame": 9},
        {"label": "b", "start_seconds": 2, "end_seconds": None},
    ]
    paths = ("a.mp4", "b 2", 'c "#3".mp4', "d")
    lines = (json.dumps({"path": x} | y) for x, y in zip(paths, rows, strict=True))
    assert [x.time_range for x in load("\n".join(lines))] == [
        (0.5, 2),
        (1 / 3, 4),
        None,
        (2, INF),
    ]
    for kind, text in (
        (ONE, (tmp_path / "train.csv").read_text()),
        (VALUES, "path,x,y,start,total\na.mp4,1.5,2,3,4\nb/,0,0,1,2\n"),
        (HEADS, "path,verb,noun\na.mp4,x,z\nb.mp4,y,z\n"),
        (MANY, '[{"path": "a.mp4", "label": ["x, y", "z"]}, {"path": "b.mp4"}]'),
    ):
        expected = load(text, kind)
        sources.write_records(tmp_path / "clean.txt", expected)
        again = sources.load(str(tmp_path / "clean.txt"), label_kind=kind)
        fields = "path labels label_names values frame_range time_range frame_name"
        for before, after in zip(expected, again, strict=True):
            for field in fields.split():
                assert getattr(after, field) == getattr(before, field), field
