"""Kinetics-710 from made-up lists of Kinetics-400, 600 and 700."""

import json

import pytest

from tests.cli import test_lists
from videomae_jax.data import sources
from videomae_jax.datasets.kinetics710 import (
    merge,
    read_aliases,
    read_classes,
    youtube_id,
)
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind

run = test_lists.run

DATA_SETS = {
    "k400": {
        "labels": ["balloon blowing", "dying", "running"],
        # c is also a validation video of k600, and e one of its own.
        "train": ["a_000001_000011 0", "b_000001_000011 1", "c_000001_000011 2"],
        "val": ["d_000001_000011 2"],
    },
    "k600": {
        "labels": ["Running", "inflating_balloons"],
        # The same video under another time and with the same class; d is in val.
        "train": ["a_000001_000011 1", "d_000001_000011 0", "e_000001_000011 0"],
        "val": ["c_000004_000014 0", "d_000001_000011 0"],
    },
    "k700": {
        "labels": ["archery", "dyeing hair", "inflating balloons"],
        # b has another class here, and one name is an id alone.
        "train": ["b_000001_000011 0", "f 2"],
        "val": ["g_000001_000011 1", "e_000001_000011 0"],
    },
}
ALIASES = {"balloon blowing": "inflating balloons", "dying": "dyeing hair"}
# Of a head: in no order.
CLASSES = ["running", "dyeing hair", "archery", "inflating balloons"]


@pytest.fixture
def folders(tmp_path):
    folders = []
    for name, files in DATA_SETS.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, lines in files.items():
            if file != "labels":
                for line in lines:
                    (folder / f"{line.split()[0]}.mp4").touch()
                lines = [line.replace(" ", ".mp4 ") for line in lines]
            (folder / f"{file}.txt").write_text("\n".join(lines))
        folders.append(folder)
    return folders


def rows(videos):
    return [(youtube_id(video.path), *video.labels) for video in videos]


def test_training_loses_all_validation_videos(folders):
    merged = merge(folders, classes=CLASSES, aliases=ALIASES)
    assert merged.classes == CLASSES
    # c, d and e are validation videos of one of the three.
    assert rows(merged.splits["train"]) == [("a", 3), ("b", 1), ("f", 3)]
    assert rows(merged.splits["val"]) == [("d", 0), ("c", 0), ("g", 1), ("e", 2)]
    first = merged.splits["train"][0]
    assert first.path == str(folders[0] / "a_000001_000011.mp4")
    assert merged.messages == [
        f"1 classes are only in {folders[2]}: archery",
        "train: 2 of 8 videos were there twice, 1 of them with another class",
        "val: 1 of 5 videos were there twice, 0 of them with another class",
        "train: removed 3 videos that are also in val",
    ]


def test_v2_removes_them_from_validation(folders):
    merged = merge(folders, classes=CLASSES, aliases=ALIASES, keep="train")
    train = [("a", 3), ("b", 1), ("c", 0), ("d", 0), ("e", 0), ("f", 3)]
    assert rows(merged.splits["train"]) == train
    assert rows(merged.splits["val"]) == [("g", 1)]
    assert merged.messages[-1] == "val: removed 3 videos that are also in train"


def test_names_are_merged_without_a_label_map(folders):
    merged = merge(folders, aliases=ALIASES)
    assert merged.classes == ["archery", "dyeing hair", "inflating balloons", "running"]
    assert rows(merged.splits["train"]) == [("a", 2), ("b", 1), ("f", 2)]
    # Names that differ are classes of their own, and reported.
    merged = merge(folders)
    assert len(merged.classes) == 6
    told = "\n".join(merged.messages)
    assert f"2 classes are only in {folders[0]}: balloon blowing, dying" in told
    assert f"2 classes are only in {folders[2]}: archery, dyeing hair" in told


def test_every_name_that_does_not_match_is_told(folders):
    with pytest.raises(RecordError) as error:
        merge(folders, classes=CLASSES[1:])
    text = str(error.value)
    assert "4 names are none of the 3 classes of --labels" in text
    for name in ("balloon blowing", "dying", "running"):
        assert f"  {folders[0]}: {name}" in text
    assert f"  {folders[1]}: Running" in text and str(folders[2]) not in text
    merged = merge(folders, classes=[*CLASSES, "surfing"], aliases=ALIASES)
    assert "1 classes are in no list: surfing" in merged.messages
    with pytest.raises(RecordError, match="occurs twice"):
        merge(folders, classes=[*CLASSES, "Running"], aliases=ALIASES)


def test_aliases_of_no_class_are_told(folders):
    aliases = {"Balloon_Blowing": "inflating balloons", "diing": "dyeing hair"}
    messages = merge(folders, aliases=aliases).messages
    assert "1 names of --aliases are in no list: diing" in messages
    told = "\n".join(merge(folders, aliases=ALIASES).messages)
    assert "--aliases" not in told


def test_folders_of_frames_stay_what_they_are(run, folders, tmp_path):
    for i in range(3):
        (tmp_path / f"frames/{i}_000001_000011").mkdir(parents=True)
    rows = ["../frames/0_000001_000011 20 1\n", "../frames/1_000001_000011/ 0\n"]
    (folders[0] / "train.txt").write_text("".join(rows))
    (folders[0] / "val.txt").write_text("../frames/2_000001_000011 9 0\n")
    assert run("k710", "--lists", str(folders[0]))[::2] == (0, "")
    for split in ("train", "val"):
        before, after = (
            sources.load(str(folder / f"{split}.txt"), label_kind=LabelKind.ONE)
            for folder in (folders[0], tmp_path / "data/k710")
        )
        assert [(x.frame_name, x.frame_range, x.labels) for x in after] == [
            (x.frame_name, x.frame_range, x.labels) for x in before
        ]


def test_missing_lists_and_videos_are_errors(folders, tmp_path):
    with pytest.raises(
        RecordError, match=r"--lists: .*none/labels\.txt not found: exp"
    ):
        merge([*folders, tmp_path / "none"], aliases=ALIASES)
    (folders[1] / "val.txt").unlink()
    with pytest.raises(RecordError, match=r"not found: .*k600/val\.txt"):
        merge(folders, aliases=ALIASES)
    (folders[1] / "val.txt").write_text("gone.mp4 0\n")
    with pytest.raises(RecordError, match=r"k600/val\.txt: videos not found"):
        merge(folders, aliases=ALIASES)
    (folders[1] / "val.txt").write_text("c_000004_000014.mp4 2\n")
    with pytest.raises(RecordError, match="has label 2, but with 2 classes"):
        merge(folders, aliases=ALIASES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/v/-_Abc012345_000012_000022.mp4", "-_Abc012345"),
        ("train/a b/0123456789_.webm", "0123456789_"),
        ("x_000012.mp4", "x_000012"),
    ],
)
def test_ids_of_videos(name, expected):
    assert youtube_id(name) == expected


def test_label_maps_are_text_csv_and_json(tmp_path, monkeypatch):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    assert read_classes(file("a.txt", "b\na\n")) == ["b", "a"]
    assert read_classes(file("a.csv", 'id,name\n1,"a, b"\n0,c\n')) == ["c", "a, b"]
    with pytest.raises(
        RecordError, match=r"b\.csv: expected rows `number,name` with 0"
    ):
        read_classes(file("b.csv", "1,a\n2,b\n"))
    with pytest.raises(RecordError, match=r"c\.csv: row 2: expected two columns, got"):
        read_classes(file("c.csv", "0,a\n1\n"))
    with pytest.raises(RecordError, match=r"d\.csv: No such file"):
        read_classes(str(tmp_path / "d.csv"))
    assert read_aliases(file("a.json", json.dumps(ALIASES))) == ALIASES
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_aliases("~/a.json") == ALIASES and read_classes("~/a.csv")[0] == "c"
    assert read_aliases(file("e.csv", "dying,dyeing hair\n")) == {
        "dying": "dyeing hair"
    }
    with pytest.raises(RecordError, match=r"--aliases: file not found: .*c\.json"):
        read_aliases(str(tmp_path / "c.json"))
    with pytest.raises(RecordError, match="expected a JSON object from names"):
        read_aliases(file("b.json", "[1]"))


def test_the_command_writes_lists_and_tells_what_it_removed(run, folders, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(ALIASES))
    (tmp_path / "k710.txt").write_text("\n".join(CLASSES))
    lists = ["--lists", *map(str, folders)]
    status, output, errors = run(
        "k710", "--labels=k710.txt", "--aliases=names.json", *lists
    )
    assert (status, errors) == (0, "")
    out = tmp_path / "data/k710"
    assert (out / "labels.txt").read_text().splitlines() == CLASSES
    for split, count in (("train", 3), ("val", 4)):
        file = str(out / f"{split}.txt")
        videos = sources.load(file, label_kind=LabelKind.ONE)
        merged = merge(folders, classes=CLASSES, aliases=ALIASES).splits[split]
        assert rows(videos) == rows(merged) and len(videos) == count
    assert "train: removed 3 videos that are also in val" in output
    assert run("k710", "--keep=train", *lists)[0] == 0
    assert len((out / "val.txt").read_text().splitlines()) == 1
