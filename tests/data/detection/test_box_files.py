"""AVA's csv files and label maps: what is read, refused, and written."""

import pathlib

import numpy as np
import pytest

from tests.helpers import detections as helper
from videomae_jax.data.detection import box_files
from videomae_jax.errors import RecordError

ROW = "a,0902,0.1,0.2,0.3,0.4,12,0.5\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(content):
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / "x.csv").write_bytes(content)
        return "x.csv"

    return to_file


def rows(boxes):
    """The rows as tuples, with the key frame written out."""
    return [
        (*boxes.frames[frame], *box, label, score)
        for frame, box, label, score in zip(
            boxes.frame.tolist(),
            boxes.boxes.tolist(),
            boxes.classes.tolist(),
            boxes.scores.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize(
    "content",
    [
        "a,0902,.1,.2,.3,.4,1,.5\nb,902.5,.5,.6,.7,.8,80,1e-5\n",
        "\n a , 902.0 ,.1,.2,.3,.4, 1 ,.5\n\n  \nb,902.5,.5,.6,.7,.8,80.0,1e-5",
        "\ufeffa,902,.1,.2,.3,.4,1,.5\r\nb,902.5,.5,.6,.7,.8,80,1e-5\r\n",
        'video,sec,x1,y1,x2,y2,class,score\n"a",902,.1,.2,.3,.4,1,.5\n'
        '"b",902.50,".5",.6,.7,.8,80,1e-5\n',
        "a\t902\t.1\t.2\t.3\t.4\t1\t.5\nb\t902.5\t.5\t.6\t.7\t.8\t80\t1e-5\n",
        "a;902;.1;.2;.3;.4;1;.5\nb;902.5;.5;.6;.7;.8;80;1e-5\n",
    ],
    ids=["plain", "blanks", "windows", "header and quotes", "tabs", "semicolons"],
)
def test_forms_of_the_same_rows(write, content):
    boxes = box_files.read_detections(write(content))
    assert rows(boxes) == [
        ("a", 902.0, 0.1, 0.2, 0.3, 0.4, 1, 0.5),
        ("b", 902.5, 0.5, 0.6, 0.7, 0.8, 80, 1e-5),
    ]
    assert not boxes.unscored


def test_forms_of_a_timestamp_are_one_key_frame(write):
    times = ["0902", "902", "902.0", "902.0000001"]
    content = "".join(f"a,{time},.1,.2,.3,.4,1\n" for time in times)
    boxes = box_files.read_ground_truth(write(content + "a,902.1,.1,.2,.3,.4,1\n"))
    assert boxes.frames == [("a", 902.0), ("a", 902.1)]
    assert boxes.frame.tolist() == [0, 0, 0, 0, 1]


def test_the_eighth_column_of_ground_truth_is_no_score(write):
    boxes = box_files.read_ground_truth(write("a,1,.1,.2,.3,.4,1,37\na,2\na,1\n"))
    assert boxes.scores.tolist() == [1]
    # Key frames without persons.
    assert boxes.frames == [("a", 1.0), ("a", 2.0)] and boxes.frame.tolist() == [0]


def test_lines_are_those_of_the_file(write, monkeypatch):
    monkeypatch.setattr(box_files, "_CHUNK", 2)
    content = "video,t,x1,y1,x2,y2,class,score\n" + f"{ROW}\n{ROW}{ROW}"
    content += "b,0902,0.1,0.2,0.3,0.4,12\n" + ROW
    boxes = box_files.read_detections(write(content))
    assert boxes.lines.tolist() == [2, 4, 5, 6, 7]
    assert boxes.unscored == [6] and boxes.scores.tolist() == [0.5, 0.5, 0.5, 1, 0.5]
    assert boxes.place(3) == "x.csv:6"
    assert boxes.select(boxes.frame == 1).place(0) == "x.csv:6"


@pytest.mark.parametrize(
    "bad, message",
    [
        ("a,0902,0.1,0.2,0.3,0.4,12,nan", "x.csv:3: score=nan must be finite"),
        ("a,0902,0.1,0.2,inf,0.4,12,1", "x.csv:3: x2=inf must be finite"),
        ("a,0902,0.1,0.2,0.3,0.4,12,", "x.csv:3: score is missing"),
        ("a,0902,0.1,,0.3,0.4,12,1", "x.csv:3: y1 is missing"),
        (",0902,0.1,0.2,0.3,0.4,12,1", "x.csv:3: the name of the video is empty"),
        ("a,00:15:02,0.1,0.2,0.3,0.4,12,1", "x.csv:3: timestamp='00:15:02' must be"),
        ("a,nan,0.1,0.2,0.3,0.4,12,1", "x.csv:3: timestamp=nan must be finite"),
        ("a,0902,0.1,0.2,0.3,0.4,0.9,12", "are class and score exchanged"),
        ("a,0902,0.1,0.2,0.3,0.4,-1,1", "x.csv:3: class=-1 must be a whole number"),
        ("a,0902,0.1,0.2,0.3,0.4,run,1", "x.csv:3: class='run' must be a number; ex"),
        ("a,0902,0.1,0.2,0.3,0.4", "x.csv:3: 6 columns, expected 7 or 8: `video,"),
        ("a,0902,0.1,0.2,0.3,0.4,1,1,1", "x.csv:3: 9 columns, expected 7 or 8"),
        ("a,0902", "x.csv:3: 2 columns, expected 7 or 8"),
        ("a 0902 0.1 0.2 0.3 0.4 1 1", "1 columns, expected 7 or 8"),
        ("video,time,x1,y1,x2,y2,class,score", "x.csv:3: timestamp='time' must be"),
    ],
)
def test_rows_that_are_refused(write, monkeypatch, bad, message):
    path = write(f"{ROW}{ROW}{bad}\n{ROW}")
    for size in (1000, 2):  # in the first chunk of rows, in the second
        monkeypatch.setattr(box_files, "_CHUNK", size)
        with pytest.raises(RecordError) as error:
            box_files.read_detections(path)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("a,1,.5,.2,.3,.4,1\n", "x.csv:1: inverted box: x1=0.5 y1=0.2 x2=0.3"),
        ("a,1,.1,.2,.3,.1,1\na,1,.1,.2,.1,.1,1\n", "also in 1 other rows"),
    ],
)
def test_ground_truth_that_is_refused(write, content, message):
    with pytest.raises(RecordError, match=message):
        box_files.read_ground_truth(write(content))
    assert len(box_files.read_detections(write(content)))  # these count as empty


@pytest.mark.parametrize(
    "content, message",
    [
        ("a,0902\0,1,1,1,1,1,1\n", "x.csv"),
        (b"\xff\xfea\0,\0", "x.csv: not UTF-8 text"),
        (ROW.encode() * 9999 + b"\xe9", "x.csv: not UTF-8 text"),
        ('"' + ROW * 5000, "x.csv:[0-9]+: field larger than"),
    ],
)
def test_files_that_are_no_text(write, content, message):
    with pytest.raises(RecordError, match=message):
        box_files.read_detections(write(content))


def test_a_missing_file():
    for read in (box_files.read_detections, box_files.read_label_map):
        with pytest.raises(FileNotFoundError):
            read("absent.csv")


def test_an_empty_file(write):
    boxes = box_files.read_detections(write(""))
    assert len(boxes) == 0 and boxes.boxes.shape == (0, 4)
    assert box_files.read_key_frames("x.csv") == set()


def test_key_frames(write):
    assert box_files.read_key_frames(write("a,0902\nb,7\na,902\n")) == {
        ("a", 902.0),
        ("b", 7.0),
    }
    with pytest.raises(RecordError, match="x.csv:2: timestamp='x' must be a number"):
        box_files.read_key_frames(write("a,0902\nb,x\n"))
    with pytest.raises(RecordError, match="x.csv:1: 8 columns, expected 2"):
        box_files.read_key_frames(write(ROW))


def test_label_maps(write):
    expected = {1: "bend/bow (at the waist)", 80: 'say "x"'}
    ava = """label {
      name: "bend/bow (at the waist)"
      label_id: 1
      label_type: PERSON_MOVEMENT
    }"""
    other = """item { id: 80 name: 'say "x"' display_name: "no" }"""
    assert box_files.read_label_map(write(f"{other}\n{ava}\n")) == expected
    names = box_files.read_label_map(f"{helper.FOLDER}/labels_60.pbtxt")
    assert len(names) == 60 and names[80] == "watch (a person)" and 2 not in names


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not a label map"),
        ("run\njump\n", "not a label map"),
        ('item { name: "run" }', "has no name or no id"),
        ("item { id: 3 }", "has no name or no id"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "occurs twice"),
    ],
)
def test_label_maps_that_are_refused(write, content, message):
    with pytest.raises(RecordError, match=message):
        box_files.read_label_map(write(content))


def test_files_are_written_as_they_are_read(write):
    truth, found, names, excluded = helper.read_case("large")
    box_files.write_boxes("truth.csv", truth, scores=False)
    box_files.write_boxes("found.csv", found, scores=True)
    box_files.write_key_frames("excluded.csv", excluded)
    box_files.write_label_map("labels.pbtxt", names)
    assert rows(box_files.read_ground_truth("truth.csv")) == rows(truth)
    assert rows(box_files.read_detections("found.csv")) == rows(found)
    assert box_files.read_key_frames("excluded.csv") == excluded
    assert box_files.read_label_map("labels.pbtxt") == names
    for copy, original in [
        ("found.csv", "large/detections.csv"),  # 5 decimals, timestamps of 4 digits
        ("labels.pbtxt", "labels_60.pbtxt"),
    ]:
        assert pathlib.Path(copy).read_text() == (helper.FOLDER / original).read_text()


def test_times_between_seconds_are_written(write):
    boxes = helper.table(("a", 12.345, 0.1, 0.2, 0.3, 0.4, 1, 0.5))
    box_files.write_boxes("x.csv", boxes, scores=True)
    assert rows(box_files.read_detections("x.csv")) == rows(boxes)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"boxes": np.zeros((2, 4))}, "do not fit"),
        ({"scores": np.array([np.nan])}, "must be finite"),
        ({"frames": [("a", 1.0), ("a", 1.0)]}, "must be distinct"),
    ],
)
def test_arrays_are_checked(fields, message):
    arrays = {
        "frames": [("a", 1.0)],
        "frame": np.zeros(1, int),
        "boxes": np.zeros((1, 4)),
        "classes": np.ones(1, int),
        "scores": np.ones(1),
    }
    with pytest.raises(ValueError, match=message):
        box_files.Boxes(**arrays | fields)
