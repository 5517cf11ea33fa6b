"""Every video of a list gets exactly one status, and bad ones a reason."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import (
    CORRUPTIONS,
    change_packets,
    corrupted,
    moving_noise,
    video_bytes,
    write_folder,
)
from videomae_jax.__main__ import main
from videomae_jax.cli import check_data
from videomae_jax.data import sources
from videomae_jax.datasets import probe
from videomae_jax.datasets.probe import Job, ProbeResult
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import Video
from videomae_jax.video.record import LabelKind

SIZE = (48, 64)


@pytest.fixture
def check(capsys):
    """Runs the command; returns exit status, output, errors."""

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["check-data", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def in_process(monkeypatch):
    """Probes in this process: worker processes take seconds to start."""

    def plain_map(function, items, *, num_workers, timeout):
        for index, item in enumerate(items):
            yield index, function(item)

    monkeypatch.setattr(check_data, "process_map", plain_map)


def report(folder: Path) -> tuple[dict, dict]:
    """Returns the summary and the rows by id; checks that the files agree."""
    summary = json.loads((folder / "report.json").read_text())
    rows = summary.pop("records")
    assert len({row["id"] for row in rows}) == len(rows) == summary["videos"]
    assert sum(summary["statuses"].values()) == summary["videos"]
    kept = [row["path"] for row in rows if row["clean"]]
    if kept:
        clean = sources.load(str(folder / "clean.txt"))
        assert [record.path for record in clean] == kept
    lines = (folder / "bad_videos.jsonl").read_text().splitlines()
    bad = [json.loads(line) for line in lines]
    assert {row["id"]: row["reason"] for row in bad} == {
        row["id"]: row["reason"] for row in rows if row["reason"]
    }
    assert len(bad) == len({row["id"] for row in bad})
    with Image.open(folder / "check.png") as image:
        assert min(image.size) > 500
    return summary, {row["id"]: row for row in rows}


def _x264(params: str, **settings) -> dict:
    return {"options": {"x264-params": params}, **settings}


def _lost_frame() -> bytes:
    content = video_bytes(
        moving_noise(64, *SIZE),
        codec="libx265",
        options={"x265-params": "keyint=12:log-level=none:pools=1"},
    )
    delimiter = bytes.fromhex("00000003460150")  # instead of a coded frame
    return change_packets(
        content, "mp4", lambda at, data: delimiter if at == 25 else data
    )


def _damaged(content: bytes) -> bytes:
    """Overwrites a packet in the middle; only decoding reveals it."""
    return change_packets(
        content,
        "mp4",
        lambda at, data: data[:4] + b"\xff" * (len(data) - 4) if at == 30 else data,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos with each kind of problem, and a list of them."""
    folder = tmp_path_factory.mktemp("videos")
    frames = moving_noise(70, *SIZE)
    good = video_bytes(frames, **_x264("keyint=10"))
    cut = video_bytes(frames, container_options={"movflags": "faststart"})
    contents = {
        "text.mp4": b"hello\n" * 99,
        "good.mp4": good,
        "short.mp4": video_bytes(frames[:60]),
        "just enough.mp4": video_bytes(frames[:61]),
        "copy.mp4": good,
        "relabelled.mp4": good,
        "empty.mp4": b"",
        "cut.mp4": cut[: len(cut) * 2 // 3],
        "damaged.mp4": _damaged(good),
        "lost_frame.mp4": _lost_frame(),
        "no_index.avi": video_bytes(
            frames, container="avi", **_x264("keyint=12:bframes=3")
        ),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    names = [*contents, "missing.mp4", "good.mp4"]
    labels = {"relabelled.mp4": 1, "short.mp4": 2, "empty.mp4": 3, "missing.mp4": 7}
    lines = [f'"{name}" {labels.get(name, 0)}\n' for name in names]
    (folder / "train.txt").write_text("".join(lines))
    (folder / "names.txt").write_text("walk\nrun\njump\nswim\n")
    return folder


_STATUSES = {
    "text.mp4": "unreadable",
    "good.mp4": "good",
    "short.mp4": "short",
    "just enough.mp4": "good",
    "copy.mp4": "duplicate",
    "relabelled.mp4": "duplicate",
    "empty.mp4": "unreadable",
    "cut.mp4": "unreadable",
    "damaged.mp4": "unreadable",
    "lost_frame.mp4": "unreadable",
    "no_index.avi": "no_index",
    "missing.mp4": "unreadable",
    "good.mp4#2": "duplicate",
}


def test_every_kind_of_problem(folder, check):
    status, output, errors = check(
        folder / "train.txt", f"--labels={folder}/names.txt", "--workers=2"
    )
    assert status == 0
    summary, rows = report(folder / "train_check")
    assert {name: row["status"] for name, row in rows.items()} == _STATUSES
    assert list(rows) == list(_STATUSES)
    kept = [row["id"] for row in rows.values() if row["clean"]]
    assert kept == ["good.mp4", "short.mp4", "just enough.mp4", "no_index.avi"]
    clean = sources.load(str(folder / "train_check/clean.txt"))
    assert [record.labels for record in clean] == [(0,), (2,), (0,), (0,)]

    for name, reason in {
        "text.mp4": "not a video",
        "empty.mp4": "empty file (0 bytes)",
        "cut.mp4": "cut off: ",
        "damaged.mp4": "damaged near frame ",
        "lost_frame.mp4": "damaged near frame ",
        "missing.mp4": "no such file",
    }.items():
        assert rows[name]["reason"].startswith(f"{folder / name}: {reason}")
        assert f"unreadable: {folder / name}: {reason}" in errors
    originals = {name: row["duplicate_of"] for name, row in rows.items()}
    for name in ("copy.mp4", "relabelled.mp4", "good.mp4#2"):
        assert originals.pop(name) == "good.mp4"
    assert not any(originals.values())
    # Only files of equal size are hashed.
    assert {name for name, row in rows.items() if row.get("digest")} == {
        *("good.mp4", "copy.mp4", "relabelled.mp4", "good.mp4#2")
    }

    good = rows["good.mp4"]
    assert (good["num_frames"], good["decoded_frames"], good["indexed"]) == (
        70,
    ) * 2 + (True,)
    assert (good["width"], good["height"]) == (64, 48)
    assert (good["fps"], good["seconds"]) == pytest.approx((25, 2.8))
    assert (good["codec"], good["container"]) == ("h264", "mp4")
    assert good["keyframe_interval"] == 10
    assert good["bytes"] == (folder / "good.mp4").stat().st_size

    assert summary["clean"] == 4 and summary["conflicting_duplicates"] == 1
    assert summary["codecs"] == {"h264": 7}
    assert summary["containers"] == {"mp4": 6, "avi": 1}
    assert summary["ranges"]["num_frames"] == {"min": 60, "median": 70, "max": 70}
    assert summary["labels"] == {
        "num_classes": 4,
        "counts": {"0": 3, "2": 1},
        "num_empty": 2,
        "empty": [1, 3],
        "few": [0, 2],
        "beyond": ["missing.mp4"],
        "unlabelled": 0,
    }
    for line in (
        "4 classes",
        "2 without a video that is left: run, swim",
        "1 videos have labels that are not a class (4 or above): missing.mp4",
        "advice: no_index videos (1) are decoded from their beginning",
        "1 of the duplicates have another label",
    ):
        assert line in output


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_options(folder, check, tmp_path):
    arguments = (folder / "train.txt", f"--out={tmp_path}")

    def statuses() -> dict:
        return {name: row["status"] for name, row in report(tmp_path)[1].items()}

    status, output, _ = check(*arguments, "--json", "--drop-short", "--num-frames=15")
    assert status == 0
    assert statuses() == _STATUSES | {"short.mp4": "good"}
    assert json.loads(output) == report(tmp_path)[0]

    check(*arguments, "--drop-short", "--keep-duplicates")
    clean = sources.load(str(tmp_path / "clean.txt"))
    left_out = ("unreadable", "frame_count_mismatch", "short")
    assert [Path(record.path).name for record in clean] == [
        name.partition("#")[0]
        for name, status in _STATUSES.items()
        if status not in left_out
    ]

    # These need a decode.
    check(*arguments, "--fast")
    assert statuses() == _STATUSES | dict.fromkeys(
        ("damaged.mp4", "lost_frame.mp4"), "good"
    )

    status, _, errors = check(*arguments, "--strict")
    assert status == 1 and (tmp_path / "clean.txt").exists()
    assert "--strict: 1 short, 3 duplicate, 6 unreadable" in errors
    status, _, errors = check(tmp_path / "clean.txt", f"--out={tmp_path}")
    assert status == 2 and "contains the list to check" in errors
    # A clean list has no problems.
    again = tmp_path / "again"
    assert check(tmp_path / "clean.txt", "--drop-short", f"--out={again}")[0] == 0
    assert check(again / "clean.txt", "--strict")[0] == 0
    status, _, errors = check(arguments[0], "--labels=nowhere.txt")
    assert status == 1 and "file not found: 'nowhere.txt'" in errors


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_folders_and_several_labels(check, tmp_path):
    write_folder(tmp_path, 3)
    clip = ("--num-frames=4", "--stride=2")
    status, output, _ = check(tmp_path, "--strict", *clip, f"--out={tmp_path}/out")
    assert status == 0
    summary, rows = report(tmp_path / "out")
    assert list(rows) == ["0.mp4", "1.mp4", "2.mp4"]
    assert summary["statuses"]["good"] == 3 and summary["labels"] is None

    text = "'0.mp4' 3 1\n1.mp4\n2.mp4 1\n"
    (tmp_path / "many.txt").write_text(text)
    assert check(tmp_path / "many.txt")[0] == 1  # needs --multi-label
    status, *_ = check(tmp_path / "many.txt", "--multi-label", *clip)
    assert status == 0
    path = tmp_path / "many_check/clean.txt"
    records = sources.load(str(path), label_kind=LabelKind.MANY)
    assert [record.labels for record in records] == [(1, 3), (), (1,)]

    # A name that a list cannot contain makes only that video unreadable.
    os.rename(tmp_path / "1.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    status, _, errors = check(tmp_path, f"--out={tmp_path}/out", *clip)
    assert status == 0 and "is not UTF-8" in errors
    summary, rows = report(tmp_path / "out")
    assert summary["clean"] == 2 and summary["statuses"]["unreadable"] == 1


@pytest.mark.usefixtures("in_process")
def test_no_video_is_left(check, tmp_path):
    (tmp_path / "a.mp4").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / "clean.txt").write_text("of an earlier run.mp4\n")
    status, _, errors = check(tmp_path, f"--out={out}")
    assert status == 1 and "none of the 1 videos is left" in errors
    assert report(out)[0]["reasons"] == {"empty file (N bytes)": 1}
    assert not (out / "clean.txt").exists()
    assert check(tmp_path / "nowhere.txt")[0] == 1


_probe = probe.probe


def _probe_or_misbehave(job: Job) -> ProbeResult | str:
    """Stands in for a decoder that crashes, hangs or runs out of memory."""
    name = os.path.basename(job.record.path)
    if name == "1.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "3.mp4":
        time.sleep(1000)
    if name == "4.mp4":
        raise MemoryError
    return _probe(job)


@pytest.mark.slow
def test_workers_that_crash_hang_or_run_out_of_memory(monkeypatch, check, tmp_path):
    write_folder(tmp_path, 6)
    monkeypatch.setattr(probe, "probe", _probe_or_misbehave)
    status, _, errors = check(
        *(tmp_path, f"--out={tmp_path}/out", "--timeout=3", "--workers=2"),
        *("--num-frames=2", "--stride=1"),
    )
    assert status == 0
    summary, rows = report(tmp_path / "out")
    assert summary["statuses"]["good"] == 3
    for name, reason in {
        "1.mp4": "crashes: its process was killed by SIGSEGV",
        "3.mp4": "hangs: no result within 3 s",
        "4.mp4": "MemoryError",
    }.items():
        assert rows[name]["reason"] == f"{tmp_path / name}: {reason}"
        assert f"unreadable: {rows[name]['reason']}" in errors


def test_corrupted_videos_are_each_accounted_for(check, tmp_path):
    rng = np.random.default_rng(0)
    frames = moving_noise(20, *SIZE)
    contents = {
        "mp4": video_bytes(frames, options={"g": "8"}, audio=True),
        "mkv": video_bytes(frames, container="matroska", options={"g": "8"}),
        "ts": video_bytes(frames, container="mpegts", options={"g": "8"}),
    }
    for i in range(15):
        kind = CORRUPTIONS[i % len(CORRUPTIONS)]
        for extension, content in contents.items():
            path = tmp_path / f"{i}.{extension}"
            path.write_bytes(corrupted(content, rng, kind))
    (tmp_path / "whole.mp4").write_bytes(contents["mp4"])
    status, _, _ = check(
        tmp_path, f"--out={tmp_path}/out", "--workers=2", "--timeout=60"
    )
    assert status == 0
    summary, rows = report(tmp_path / "out")
    # About half; containers have random ids, so the position of the damage varies.
    assert summary["videos"] == 46 and summary["statuses"]["unreadable"] > 10
    assert rows["whole.mp4"]["clean"]
    for row in rows.values():
        if row["clean"]:
            with Video(row["path"]) as video:
                video.read(range(video.num_frames))
        elif row["status"] == "frame_count_mismatch":
            with Video(row["path"]) as video, pytest.raises(VideoError):
                video.read(range(video.num_frames))
