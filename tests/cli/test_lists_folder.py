"""`python -m videomae_jax lists folder`: videos in one folder per class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli import test_lists
from tests.cli.test_lists import load, make, row
from videomae_jax.cli import lists

run = test_lists.run


def test_folder(run, tmp_path):
    videos = tmp_path / "v"
    names = {
        "wave": [f"wave/{i}.mp4" for i in range(40)],
        "clap hands": [f"clap hands/day 1/{i}.webm" for i in range(5)],
        "rare": ["rare/0.mp4"],
    }
    make(videos, *sum(names.values(), []), "loose.mp4", "wave/notes.txt")
    make(videos, "wave/empty.mp4", content=b"")
    (videos / "nothing").mkdir()
    command = ["folder", "--videos=v", "--val-fraction=0.2"]
    status, output, errors = run(*command)
    assert (status, errors) == (0, "")
    out = tmp_path / "data/folder"
    classes = ["clap hands", "rare", "wave"]
    assert (out / "labels.txt").read_text().splitlines() == classes
    train, val = (load(out / f"{name}.txt", videos) for name in ("train", "val"))
    assert train | val == {p: classes.index(c) for c in names for p in names[c]}
    assert not train.keys() & val.keys() and not (out / "test.txt").exists()
    assert [list(val.values()).count(label) for label in (0, 1, 2)] == [1, 0, 8]
    assert row(output, "train") == [37, 3, 1] and "wave/empty.mp4" in output
    assert "for example loose.mp4" in output
    assert "3 classes: clap hands, rare, wave" in output
    # The same again; other videos with another seed; few move with a new video.
    before = (out / "val.txt").read_bytes()
    run(*command)
    assert (out / "val.txt").read_bytes() == before
    run(*command, "--seed=1", "--out=other")
    assert load(tmp_path / "other/val.txt", videos) != val
    make(videos, "wave/new.mp4")
    run(*command)
    assert len(load(out / "val.txt", videos).keys() & val.keys()) >= 8
    run(*command[:2], "--val-fraction=0", "--out=all")
    assert len(load(tmp_path / "all/train.txt", videos)) == 47
    assert not (tmp_path / "all/val.txt").exists()


@pytest.mark.parametrize("val", ["val", "validation"])
def test_folder_that_is_split(run, tmp_path, val):
    expected = {
        "train": {"train/a b/1.mp4": 0, "train/c/1.mp4": 1, "train/d/1.mp4": 2},
        "val": {f"{val}/a b/2.mp4": 0, f"{val}/d/2.mp4": 2},
        "test": {"test/c/deep/3.mp4": 1},
    }
    make(tmp_path / "v", *sum((list(x) for x in expected.values()), []), "old/a/9.mp4")
    status, output, _ = run("folder", "--videos=v", "--out=out")
    assert status == 0 and "for example old/a/9.mp4" in output
    for split, rows in expected.items():
        assert load(tmp_path / f"out/{split}.txt", tmp_path / "v") == rows
    assert (tmp_path / "out/labels.txt").read_text() == "a b\nc\nd\n"


def test_folder_without_classes(run, tmp_path):
    make(tmp_path / "v", "a.mp4", "b.mp4", "UCF-101/a/1.mp4", "UCF-101/b/1.mp4")
    status, _, errors = run("folder", "--videos=v")
    assert status == 1 and "expected one folder per class, at least two" in errors
    make(tmp_path / "w", " a/1.mp4", "b/1.mp4")
    assert "Rename its folder" in run("folder", "--videos=w")[2]
    make(tmp_path / "x", "train/1.mp4", "bus/1.mp4")  # a class of its own
    run("folder", "--videos=x", "--out=x")
    assert (tmp_path / "x/labels.txt").read_text() == "bus\ntrain\n"


@given(count=st.integers(1, 60), fraction=st.floats(0, 1, exclude_max=True))
def test_both_sides_get_a_video(count, fraction):
    paths = [f"{i}.mp4" for i in range(count)]
    parts = lists._divide(paths, fraction, 0)
    assert sorted(parts["train"] + parts["val"]) == sorted(paths)
    if count > 1:
        assert parts["train"] and bool(parts["val"]) == (fraction > 0)
        assert abs(len(parts["val"]) - fraction * count) <= 1
