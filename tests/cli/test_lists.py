"""`python -m videomae_jax lists`, on small copies of the layout of each data set."""

import csv
import os
import subprocess
import sys

import pytest

from videomae_jax import __main__ as command_line
from videomae_jax.data import labels, sources
from videomae_jax.video.record import LabelKind


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in tmp_path; returns status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run_command(*args):
        status = command_line.main(["lists", *args])
        return status, *capsys.readouterr()

    return run_command


def make(folder, *paths, content=b"video"):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def one_label(record):
    """Returns the only label of a record, or None."""
    (label,) = record.labels or (None,)
    return label


def load(path, root, label_kind=LabelKind.ONE):
    """Returns the list as {path relative to root: label}; every path must exist."""
    loaded = sources.load(str(path), label_kind=label_kind)
    assert all(os.path.getsize(record.path) for record in loaded)
    rows = {os.path.relpath(record.path, root): one_label(record) for record in loaded}
    assert len(rows) == len(loaded)
    return rows


def row(output, split):
    [line] = [x for x in output.splitlines() if x.split()[:1] == [split]]
    return [int(number) for number in line.split()[1:]]


CLASSES = ["abseiling", "air drumming", "massaging person's head", "zumba"]
IDS = {
    "train": ["-aZ_0123456", "__NrybzYzUg", "bbbbbbbbbbb", "ccccccccccc"],
    "val": ["ddddddddddd", "eeeeeeeeeee"],
    "test": ["fffffffffff"],
}


def write_kinetics(folder, names, test_labels=True):
    """Writes annotations with a video of each class in turn; returns name -> label."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for split, name in names.items():
        label_column = ["label"] if split != "test" or test_labels else []
        columns = [*label_column, "youtube_id", "time_start", "time_end", "split"]
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "is_cc"])
            for i, video in enumerate(IDS[split]):
                label = len(CLASSES) - 1 - i  # not in the order of the classes
                shown = [CLASSES[label]] if label_column else []
                writer.writerow([*shown, video, 7 * i, 7 * i + 10, split, 0])
                expected[f"{video}_{7 * i:06d}_{7 * i + 10:06d}"] = (split, label)
    return expected


NAMES = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        NAMES | {"val": "validate.csv"},
        {split: f"kinetics-400_{split}.csv" for split in NAMES},
    ],
)
@pytest.mark.parametrize("layout", ["flat", "classes", "underscores"])
def test_kinetics(run, tmp_path, layout, names):
    videos = tmp_path / "my videos"
    expected = write_kinetics(videos / "annotations", names)
    path_of = {}
    for name, (split, label) in expected.items():
        folder = {
            "flat": split,
            "classes": f"{split}/{CLASSES[label]}",
            "underscores": f"{split}/{CLASSES[label].replace(' ', '_')}",
        }[layout]
        path_of[name] = f"{folder}/{name}.mp4"
    make(videos, *path_of.values())
    status, output, errors = run(
        "kinetics400", "--videos=my videos", "--annotations=my videos"
    )
    assert (status, errors) == (0, "")
    out = tmp_path / "data/kinetics400"
    for split, number in (("train", 4), ("val", 2), ("test", 1)):
        assert row(output, split) == [number, number, 0]
        assert load(out / f"{split}.txt", videos) == {
            path_of[name]: label for name, (s, label) in expected.items() if s == split
        }
    assert (out / "labels.txt").read_text().splitlines() == CLASSES
    assert "the annotations name 4 classes, not 400" in output
    # As the training run reads them.
    train = sources.load(str(out / "train.txt"), label_kind=LabelKind.ONE)
    assert labels.class_names(train, "train", str(out / "labels.txt")) == CLASSES


@pytest.mark.parametrize("data_set", ["kinetics600", "kinetics700"])
def test_other_kinetics(run, tmp_path, data_set):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "v", *(f"{name}.mkv" for name in expected))
    status, output, _ = run(data_set, "--videos=v", "--annotations=csv")
    assert status == 0 and row(output, "train") == [4, 4, 0]
    assert len(load(tmp_path / f"data/{data_set}/val.txt", tmp_path / "v")) == 2


def test_kinetics_replaced_and_unlabelled(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES, test_labels=False)
    videos = tmp_path / "k400"
    make(videos, *(f"{split}/{name}.mp4" for name, (split, _) in expected.items()))
    first, second, third = list(expected)[:3]
    replacement = "replacement/replacement_for_corrupted_k400"
    make(videos, f"{replacement}/{first}.mp4", f"{replacement}/{third}.mp4")
    make(videos, f"{replacement}/{third}.mp4", content=b"")
    make(videos, f"another/{second}.mp4")
    _, output, _ = run("kinetics400", "--videos=k400", "--annotations=csv")
    paths = list(load(tmp_path / "data/kinetics400/train.txt", videos))
    assert paths[0] == f"{replacement}/{first}.mp4"
    assert paths[1] == f"train/{second}.mp4"
    assert paths[2] == f"train/{third}.mp4"
    assert "test.txt has no labels" in output and "not in any list" not in output
    path = tmp_path / "data/kinetics400/test.txt"
    test = load(path, videos, label_kind=LabelKind.OPTIONAL)
    assert list(test.values()) == [None]


def test_missing_videos(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    names = list(expected)
    make(tmp_path / "v", *(f"{name}.mp4" for name in names[:3]), "other_1.mp4")
    make(tmp_path / "v", f"{names[1]}.mp4", content=b"")
    make(tmp_path / "v", f".{names[3]}.mp4", f"{names[3]}.mp4.part", "notes.txt")
    command = ["kinetics400", "--videos=v", "--annotations=csv"]
    status, output, errors = run(*command, "--strict")
    assert (status, output) == (1, "") and not (tmp_path / "data").exists()
    assert "train: 2 missing from" in errors and names[1] in errors
    status, output, _ = run(*command)
    assert status == 0 and row(output, "train") == [2, 2, 2]
    assert row(output, "val") == [0, 0, 2]
    assert f"empty files: {names[1]}, {names[3]}\n" in output
    assert "val.txt is not written" in output
    assert "1 of the 4 videos" in output and "for example other_1.mp4" in output
    assert not (tmp_path / "data/kinetics400/val.txt").exists()
    # A label is the class's, whichever videos are there.
    assert (tmp_path / "data/kinetics400/labels.txt").read_text().count("\n") == 4
    assert set(load(tmp_path / "data/kinetics400/train.txt", tmp_path / "v")) == {
        f"{names[0]}.mp4",
        f"{names[2]}.mp4",
    }


def test_relative(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "v", *(f"{name}.mp4" for name in expected))
    _, output, _ = run(
        "kinetics400", "--videos=v", "--annotations=csv", "--relative", "--out=a/b"
    )
    assert f"--config.data.root={tmp_path}/v" in output
    names = ("train", "val", "test", "labels")
    files = " ".join(f"a/b/{name}.txt" for name in names)
    assert output.splitlines()[-1] == f"wrote {files}"
    path, root = str(tmp_path / "a/b/train.txt"), str(tmp_path / "v")
    loaded = sources.load(path, root, label_kind=LabelKind.ONE)
    assert [record.id for record in loaded] == [f"{n}.mp4" for n in list(expected)[:4]]
    assert all(os.path.exists(record.path) for record in loaded)


def test_links(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "disk", *(f"{name}.mp4" for name in expected))
    (tmp_path / "v").mkdir()
    (tmp_path / "v/train").symlink_to(tmp_path / "disk")
    (tmp_path / "v/again").symlink_to(tmp_path / "v")
    _, output, _ = run("kinetics400", "--videos=v", "--annotations=csv")
    assert row(output, "train") == [4, 4, 0]


@pytest.mark.parametrize(
    "videos, annotations, message",
    [
        ("nowhere", "csv", "--videos: folder 'nowhere' not found"),
        ("empty", "csv", "--videos: no videos (.mp4 .mkv"),
        ("v", "nowhere", "--annotations: folder 'nowhere' not found"),
        ("v", "csv/train.csv", "--annotations: 'csv/train.csv' is a file"),
        ("v", "empty", "_train.csv... not found in empty or one folder below"),
        ("v", "two", "several folders contain such annotations"),
        ("v", "bad", "bad/train.csv: the first line must name the columns"),
        ("v", "time", "time/train.csv:2: time_start and time_end"),
        ("v", "csv", "none of the 7 annotated videos found in or below"),
    ],
)
def test_wrong_folders(run, tmp_path, videos, annotations, message):
    make(tmp_path / "v", "whatever.mp4")
    (tmp_path / "empty").mkdir()
    for folder in ("csv", "two/k400", "two/k600"):
        write_kinetics(tmp_path / folder, NAMES)
    make(tmp_path, "bad/train.csv", content=b"a.mp4 3\n")
    header = b"label,youtube_id,time_start,time_end,split\n"
    make(tmp_path, "time/train.csv", content=header + b"a,b,x,1,train\n")
    status, output, errors = run(
        "kinetics400", f"--videos={videos}", f"--annotations={annotations}"
    )
    assert (status, output) == (1, "") and errors.startswith("error: ")
    assert message in errors and not (tmp_path / "data").exists()
    if "none of" in message:
        assert "-aZ_0123456_000000_000010" in errors and "whatever.mp4" in errors


def test_command_line(capsys):
    assert command_line.main([]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in command_line.COMMANDS)
    for args, message in [
        (["list"], "list: unknown command; the nearest is lists"),
        (["lists"], "DATA_SET"),
        (["lists", "ucf101"], "--videos"),
        (["lists", "folder", "--videos=v", "--val-fraction=1"], "must be in [0, 1)"),
        (["lists", "folder", "--videos=v", "--val-fraction=x"], "must be in [0, 1)"),
        (["lists", "kinetics400", "--videos=v", "--split=1"], "--split: unknown flag"),
    ]:
        with pytest.raises(SystemExit) as raised:
            command_line.main(args)
        assert raised.value.code == 2 and message in capsys.readouterr().err


def test_help_brings_in_no_command():
    code = (
        "import sys; from videomae_jax import __main__ as m; m.main([]); "
        "sys.exit('videomae_jax.cli.lists' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
