"""`check-data` of folders of images, arrays and data sets of TFDS."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli import test_check_data
from tests.cli.test_check_data import SIZE, report
from tests.helpers.frames import encode, write_frames, write_tfds
from tests.helpers.videos import moving_noise, write_folder, write_video
from videomae_jax.__main__ import main
from videomae_jax.data import sources
from videomae_jax.datasets import probe
from videomae_jax.datasets.probe import Job
from videomae_jax.video.source import PixelFormat

check, in_process = test_check_data.check, test_check_data.in_process


def _frame_folders(folder: Path) -> np.ndarray:
    """Writes folders of 20 frames: a good one, a copy, bad ones; returns the frames."""
    frames = moving_noise(20, *SIZE)
    for name in ("good", "copy", "gap", "cut"):
        write_frames(folder / name, frames)
    write_frames(folder / "other", frames[::-1])
    (folder / "gap" / "img_00007.jpg").unlink()
    cut = folder / "cut" / "img_00009.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    write_video(str(folder / "a.mp4"), moving_noise(30, *SIZE, seed=1))
    return frames


_SHORT = ("--num-frames=2", "--stride=1")


@pytest.mark.parametrize(
    "text, clean",
    [
        (
            "path,start,total\ngood 1 20\ncopy 1 20\ngap 1 20\ncut 1 20\nother 2 10\n"
            "a.mp4 5 9\nno 1 2\ncut 1 8\na.mp4 25 6\na.mp4 0 -1\n",
            ["good 1 20", "other 2 10", "a.mp4 5 9", "cut 1 8", "a.mp4 0 -1"],
        ),
        (
            "path,total,label\ngood,20,1\ncopy,20,1\ngap,20,0\ncut,20,2\na.mp4,-1,3\n",
            ["good 20 1", "a.mp4 -1 3"],
        ),
        ("good/ 1\ncopy/ 1\ngap/\ncut/ 2\na.mp4 0\n", ["good/ 1", "a.mp4 0"]),
    ],
)
def test_frame_folders(in_process, check, tmp_path, text, clean):
    _frame_folders(tmp_path)
    (tmp_path / "list.txt").write_text(text)
    status, output, _ = check(tmp_path / "list.txt", *_SHORT)
    assert status == 0 and "jpeg" in output
    summary, rows = report(tmp_path / "list_check")
    assert summary["statuses"]["duplicate"] == 1 and summary["statuses"]["short"] == 0
    lines = (tmp_path / "list_check" / "clean.txt").read_text().splitlines()
    if "," in lines[0]:
        assert lines.pop(0) in ("path,start,total", "path,total,label")
    assert lines == [f"{tmp_path}/{line}" for line in clean]
    assert rows["good"]["num_frames"] == rows["good"]["decoded_frames"] == 20
    assert (rows["good"]["width"], rows["good"]["height"]) == (64, 48)
    files = (tmp_path / "good").iterdir()
    assert rows["good"]["bytes"] == sum(path.stat().st_size for path in files)
    assert rows["good"]["container"] == "frame folder"
    assert "img_00007.jpg is missing" in rows["gap"]["reason"]
    assert "img_00009.jpg is damaged" in rows["cut"]["reason"]
    if "a.mp4#2" in rows:
        assert rows["a.mp4"]["num_frames"] == 9 and rows["a.mp4"]["seconds"] < 1
        assert "too short" in rows["a.mp4#2"]["reason"]


def test_fast_finds_missing_images(in_process, check, tmp_path):
    _frame_folders(tmp_path)
    (tmp_path / "list.txt").write_text("good 1 20\ngap 1 20\ncut 1 20\n")
    assert check(tmp_path / "list.txt", *_SHORT, "--fast")[0] == 0
    _, rows = report(tmp_path / "list_check")
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"good": "good", "gap": "unreadable", "cut": "good"}


def test_tfds_data_set_of_frames(in_process, check, tmp_path, monkeypatch):
    frames = moving_noise(20, *SIZE)
    cut = [encode(image) for image in frames]
    cut[3] = cut[3][:-100]
    folder = write_tfds(
        tmp_path / "tfds", [(frames, 0), (cut, 1), (frames, 1)], ["a", "b"]
    )
    monkeypatch.chdir(tmp_path)
    status, output, _ = check(f"tfds:{folder}/train", *_SHORT)
    assert status == 0 and "no clean list: a list cannot" in output
    out = tmp_path / "clips_train_check"
    assert not (out / "clean.txt").exists()
    statuses = json.loads((out / "report.json").read_text())["statuses"]
    assert statuses | {"good": 1, "duplicate": 1, "unreadable": 1} == statuses
    [line] = (out / "bad_videos.jsonl").read_text().splitlines()
    assert "frame 3 is damaged" in json.loads(line)["reason"]


def test_prepared_shards(in_process, check, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 3)
    assert (
        main(
            ["prepare", f"{tmp_path}/videos", f"{tmp_path}/tfds/some", "--split=train"]
        )
        == 0
    )
    monkeypatch.chdir(tmp_path)
    status, output, _ = check(f"tfds:{tmp_path}/tfds/some/train", *_SHORT, "--strict")
    assert status == 0 and "no clean list" in output
    summary = json.loads((tmp_path / "some_train_check" / "report.json").read_text())
    rows = summary["records"]
    assert summary["statuses"]["good"] == summary["videos"] == 3
    assert [row["num_frames"] for row in rows] == [12, 13, 14]
    assert all(row["codec"] == "h264" and row["bytes"] for row in rows)


def test_arrays_and_16_bits_need_their_channels_and_range(in_process, check, tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (9, 8, 12, 1)).astype(np.uint16)
    np.save(tmp_path / "a.npy", deep)
    np.save(tmp_path / "copy.npy", deep)
    np.save(tmp_path / "colour.npy", np.zeros((9, 8, 12, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.npy\ncopy.npy\ncolour.npy\n")
    out = tmp_path / "out"
    arguments = (f"--out={out}", "--channels=1", "--value-range=0,4095")
    status, _, _ = check(tmp_path / "list.txt", *arguments)
    assert status == 0
    _, rows = report(out)
    assert [rows[name]["status"] for name in ("a.npy", "copy.npy", "colour.npy")] == [
        *("short", "duplicate", "unreadable")
    ]
    assert (rows["a.npy"]["num_frames"], rows["a.npy"]["container"]) == (9, "npy")
    assert "expected [time, height, width, 1]" in rows["colour.npy"]["reason"]
    record = sources.load(str(tmp_path / "list.txt"))[0]
    reason = probe.probe(Job(record, True, False, PixelFormat(1)))
    assert isinstance(reason, str) and "config.data.value_range" in reason
