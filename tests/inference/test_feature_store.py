"""Folders of features: what is written, and that they survive any kill."""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.helpers.frames import write_frames
from tests.helpers.models import apply
from tests.helpers.videos import moving_noise, write_video
from tests.inference.test_features import (
    LENGTHS,
    classifier,
    folder,  # noqa: F401
    pretrained,  # noqa: F401
)
from videomae_jax.cli import features as command
from videomae_jax.errors import RecordError, UsageError, VideoError
from videomae_jax.inference.feature_store import names
from videomae_jax.inference.features import Extractor
from videomae_jax.inference.features import features as extract
from videomae_jax.inference.windows import Windows
from videomae_jax.interop import loading
from videomae_jax.video.decoder import Video

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(pretrained, monkeypatch):
    """Runs the command, with the tiny model unless another is given."""
    monkeypatch.setattr(loading, "load_pretrained", load)

    def run(*args, **options):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        argv = [f"--{key.replace('_', '-')}={x}" for key, x in options.items()]
        command.run(parser.parse_args([*map(str, args), "--model=tiny", *argv]))

    return run


def load(source, revision=None, step="", strict=True, dtype="float32"):
    pretrained = classifier(seed=0 if source == "tiny" else 1)
    model = pretrained.model.clone(dtype=dtype)
    return dataclasses.replace(pretrained, model=model, source=source)


def contents(folder):
    """Returns the content of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_command_writes_features_and_an_index(
    run, pretrained, folder, tmp_path, capsys
):
    run(folder / "list.txt", "--json", out=tmp_path / "out", hop=3)
    summary = json.loads(capsys.readouterr().out)
    assert summary["extracted"] == 6 and summary["left"] == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["settings"]["hop"] == 3 and index["settings"]["frame_stride"] == 2
    assert index["settings"]["pixel_mean"] == [0.485, 0.456, 0.406]
    for i, row in enumerate(index["videos"]):
        path = folder / row["id"]
        features = np.load(tmp_path / "out" / row["file"])
        expected = extract(pretrained, path, windows=Windows.of(pretrained, hop=3))
        np.testing.assert_array_equal(features, expected)
        assert row["shape"] == list(features.shape) and row["dtype"] == "float32"
        assert row["label"] == i % 3 and row["fps"] == pytest.approx(25)
        assert row["video_frames"] == LENGTHS[i]
    assert [row["id"] for row in index["videos"]][:2] == ["a/0.mp4", "b/1.mp4"]

    before = contents(tmp_path / "out")
    run(folder / "list.txt", out=tmp_path / "out", hop=3)
    assert "0 extracted, 6 kept" in (output := capsys.readouterr().out)
    assert output.endswith("/index.json\n") and "\nwrote /" in output
    assert contents(tmp_path / "out") == before


def test_the_index_says_where_each_window_is(run, folder, tmp_path):
    # 25 frames a second, then 5: frame 10 + t is at 0.4 + 0.2 t seconds.
    ticks = [*range(0, 40, 4), *range(40, 400, 20)]
    write_video(tmp_path / "a.mp4", moving_noise(28, 48, 64), ticks=ticks)
    rows = "path,start,total\na.mp4,0,-1\na.mp4,6,12\na.mp4,0,3\n"
    (tmp_path / "list.csv").write_text(rows)
    run(tmp_path / "list.csv", out=tmp_path / "out", hop=5)
    index = json.loads((tmp_path / "out/index.json").read_text())
    whole, part, short = index["videos"]
    times = np.array([*ticks, 400]) / 100
    # Windows of 4 frames with stride 2 last 8 frames.
    assert whole["window_frames"] == [[i, i + 8] for i in range(0, 22, 5)]
    np.testing.assert_allclose(whole["window_seconds"], times[whole["window_frames"]])
    assert len(whole["window_frames"]) == whole["shape"][0]
    assert "path" not in whole and "first_frame" not in whole
    # Of a part, they are counted from its first frame.
    assert part["path"] == str(tmp_path / "a.mp4") and part["first_frame"] == 6
    assert part["window_frames"] == [[0, 8], [5, 12]]
    expected = times[[[6, 14], [11, 18]]] - times[6]
    np.testing.assert_allclose(part["window_seconds"], expected)
    assert short["window_frames"] == [[0, 3]] and short["first_frame"] == 0

    # Frames that are images have no times.
    write_frames(tmp_path / "images", moving_noise(9, 48, 64))
    (tmp_path / "images.txt").write_text("images/\n")
    run(tmp_path / "images.txt", out=tmp_path / "other", hop=5)
    (row,) = json.loads((tmp_path / "other/index.json").read_text())["videos"]
    assert row["window_frames"] == [[0, 8]] and "window_seconds" not in row


def test_files_equal_those_of_numpy_save(run, folder, tmp_path):
    run(folder / "a/4.mp4", "--tokens", "--float16", out=tmp_path / "out", hop=5)
    path = tmp_path / "out/4.npy"
    features = np.load(path)
    assert features.dtype == np.float16 and features.shape == (7, 2, 2, 2, 24)
    np.save(tmp_path / "saved.npy", features)
    assert (tmp_path / "saved.npy").read_bytes() == path.read_bytes()
    expected = extract(
        classifier(), folder / "a/4.mp4", windows=Windows(4, 2, 5, 32), tokens=True
    )
    np.testing.assert_array_equal(features, expected.astype(np.float16))


def script_of_v2(pretrained, path, *, window, hop):
    """Returns features by the rules of V2's script for temporal detection, in a loop.

    The resizing is written out, in float64.
    """
    with Video(path) as video:
        frames = video.read(range(video.num_frames))
    rows, columns = (
        (np.arange(size) + 0.5) * old / size - 0.5
        for size, old in zip(
            pretrained.preprocessing.image_size, frames.shape[1:3], strict=True
        )
    )

    def interpolate(values, at, axis):
        at = np.clip(at, 0, values.shape[axis] - 1)
        below = np.floor(at).astype(int)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        weight = (at - below).reshape([-1 if i == axis else 1 for i in range(4)])
        parts = (np.take(values, i, axis) for i in (below, above))
        return sum(x * w for x, w in zip(parts, (1 - weight, weight), strict=True))

    features = []
    for start in range(0, len(frames) - window + 1, hop):
        clip = frames[start : start + window] / 255
        clip = interpolate(interpolate(clip, rows, 1), columns, 2)
        clip = clip[None].astype(np.float32)
        features.append(
            apply(pretrained.model, pretrained.variables, clip, method="features")
        )
    return np.concatenate(features)


def test_preset_equals_the_script_of_v2(run, folder, tmp_path):
    video = folder / "a/4.mp4"
    run(video, out=tmp_path, like="videomaev2-tad", hop=3)
    settings = json.loads((tmp_path / "index.json").read_text())["settings"]
    assert (settings["frame_stride"], settings["raw"]) == (1, True)
    assert settings["pixel_mean"] is settings["pixel_std"] is None
    features = np.load(tmp_path / "4.npy")
    expected = script_of_v2(classifier(), video, window=4, hop=3)
    assert features.dtype == np.float32 and features.shape == (13, 24)
    np.testing.assert_allclose(features, expected, atol=5e-5)


def test_preset_with_the_pixels_of_training(run, folder, tmp_path):
    video, like = folder / "a/4.mp4", "videomaev2-tad-normalized"
    run(video, out=tmp_path / "like", like=like, hop=3)
    run(video, "--squash", out=tmp_path / "same", frame_stride=1, hop=3)
    assert contents(tmp_path / "like") == contents(tmp_path / "same")
    settings = json.loads((tmp_path / "like/index.json").read_text())["settings"]
    assert settings["pixel_mean"] == [0.485, 0.456, 0.406] and settings["raw"] is None
    script = script_of_v2(classifier(), video, window=4, hop=3)
    assert np.abs(np.load(tmp_path / "like/4.npy") - script).max() > 0.1


def test_shards_together_are_one_run(run, folder, tmp_path, capsys):
    run(folder / "list.txt", out=tmp_path / "one")
    capsys.readouterr()
    for shard in ("1/3", "0/3", "2/3"):
        assert not (tmp_path / "three/index.json").exists()
        run(folder / "list.txt", out=tmp_path / "three", shard=shard)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(";")[2] for line in lines[:3:2]] == [
        " 4 videos of other shards are still missing",
        " 2 videos of other shards are still missing",
    ]
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_processes_of_one_machine_share_the_list(run, folder, tmp_path, monkeypatch):
    run(folder / "list.txt", out=tmp_path / "one")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        run(folder / "list.txt", out=tmp_path / "two")
        assert (tmp_path / "two/index.json").exists() == (index == 1)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


PROCESS = """
import argparse, sys, time
from tests.inference import test_feature_store
from videomae_jax.cli import features
from videomae_jax.inference.windows import Windows
from videomae_jax.interop import loading
loading.load_pretrained = test_feature_store.load
read = Windows.read
def slowly(self, video):
    for window in read(self, video):
        time.sleep(0.1)
        yield window
Windows.read = slowly
parser = argparse.ArgumentParser()
features.add_arguments(parser)
features.run(parser.parse_args(sys.argv[1:]))
"""


def test_killed_and_started_again_gives_the_same_bytes(run, folder, tmp_path):
    run(folder / "list.txt", out=tmp_path / "undisturbed", hop=1)
    out = tmp_path / "killed"
    args = [folder / "list.txt", "--model=tiny", f"--out={out}", "--hop=1"]
    # One device, while the other run has eight: the results are the same.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, *args, "--threads=2"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        # Kill in the middle of a file, when another one is complete.
        while not (list(out.rglob("*.part")) and list(out.rglob("*.npy.json"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    left = contents(out)
    assert "index.json" not in left and any(name.endswith(".part") for name in left)
    assert len(left) < 12
    run(folder / "list.txt", out=out, hop=1)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_interruption_leaves_nothing_half_done(run, folder, tmp_path, monkeypatch):
    chunks_of = Extractor._chunks
    batches = []

    def interrupted(self, *batch):
        batches.append(batch)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return chunks_of(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder / "list.txt", out=tmp_path / "out", hop=1)
    left = contents(tmp_path / "out")
    assert left and not any(name.endswith(".part") for name in left)
    assert sum(name.endswith(".npy") for name in left) * 2 == len(left) < 12
    run(folder / "list.txt", out=tmp_path / "out", hop=1)
    run(folder / "list.txt", out=tmp_path / "undisturbed", hop=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"hop": 4}, "hop was 3, and is now 4"),
        ({"frame_stride": 1}, "frame_stride was 2, and is now 1"),
        ({"like": "videomaev2-tad", "frame_stride": 2}, "squash was"),
        ({"dtype": "bfloat16"}, "computed_in was float32, and is now bfloat16"),
        ({"model": "other"}, "weights was"),
    ],
)
def test_other_settings_are_refused(run, folder, tmp_path, option, reason):
    run(folder / "a", out=tmp_path / "out", hop=3)
    before = contents(tmp_path / "out")
    options = {"out": tmp_path / "out", "hop": 3} | option
    for videos in (folder / "a", folder / "b"):
        with pytest.raises(RecordError, match=f"{reason}.*--overwrite"):
            run(videos, **options)
    assert contents(tmp_path / "out") == before
    # Without the index, the metadata of each file shows it.
    (tmp_path / "out/index.json").unlink()
    with pytest.raises(RecordError, match=f"0.npy: .*{reason}.*--overwrite"):
        run(folder / "a", **options)


def test_overwriting_leaves_nothing_of_other_settings(run, folder, tmp_path):
    run(folder / "a", out=tmp_path / "out", hop=3)
    run(folder / "a", "--overwrite", out=tmp_path / "out", hop=4)
    run(folder / "a", out=tmp_path / "new", hop=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_overwriting_resumes_after_the_files_already_replaced(
    run, folder, tmp_path, capsys
):
    run(folder / "a", out=tmp_path / "out", hop=3)
    run(folder / "a", "--overwrite", out=tmp_path / "out", hop=4, shard="0/2")
    assert not (tmp_path / "out/index.json").exists()
    capsys.readouterr()
    run(folder / "a", "--overwrite", out=tmp_path / "out", hop=4)
    assert "1 extracted, 2 kept" in capsys.readouterr().out


def test_other_videos_of_the_same_name_are_refused(run, folder, tmp_path):
    write_video(tmp_path / "0.mp4", moving_noise(30, 48, 64))
    run(folder / "a", out=tmp_path / "out")
    with pytest.raises(RecordError, match="the video had .* bytes"):
        run(tmp_path, out=tmp_path / "out")
    with pytest.raises(RecordError, match="they are of 0.mp4, not of"):
        run(tmp_path / "0.mp4", out=tmp_path / "out")


def test_missing_and_truncated_features_are_extracted_again(
    run, folder, tmp_path, capsys
):
    run(folder / "a", out=tmp_path)
    expected = contents(tmp_path)
    (tmp_path / "0.npy").unlink()
    (tmp_path / "2.npy").write_bytes(expected["2.npy"][:-1])
    (tmp_path / "4.npy.json").write_bytes(expected["4.npy.json"][:-9])
    capsys.readouterr()
    run(folder / "a", out=tmp_path)
    assert "3 extracted, 0 kept" in capsys.readouterr().out
    assert contents(tmp_path) == expected


def test_files_left_by_killed_runs_are_removed(run, folder, tmp_path):
    # Of this version, and of earlier ones.
    partial = [".0.npy.{}.part", "0.npy.{}.part", "0.npy.json.{}.part"]
    for name in partial:
        (tmp_path / name.format("01234567")).touch()
    other = tmp_path / "10.npy.01234567.part"
    other.touch()
    run(folder / "a/0.mp4", out=tmp_path)
    assert list(tmp_path.rglob("*.part")) == [other]


def test_unreadable_videos_are_reported_and_do_not_stop_others(
    run, folder, tmp_path, capsys
):
    lines = (folder / "list.txt").read_text().splitlines()
    whole = (folder / "a/4.mp4").read_bytes()
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    text = [f"{folder}/{line}\n" for line in lines]
    (tmp_path / "list.txt").write_text("".join([f"{tmp_path}/bad.mp4 1\n", *text]))
    out = tmp_path / "out"
    for _ in range(2):  # they are tried again
        with pytest.raises(RecordError, match="1 of 7 videos could not be read"):
            run(tmp_path / "list.txt", out=out)
        assert "unreadable: " in capsys.readouterr().err
    row = json.loads((out / "bad_videos.jsonl").read_text())
    assert row["path"] == str(tmp_path / "bad.mp4") and "not a video" in row["reason"]
    assert len(json.loads((out / "index.json").read_text())["videos"]) == 6
    (tmp_path / "bad.mp4").write_bytes(whole)
    run(tmp_path / "list.txt", out=out)
    assert "1 extracted, 6 kept" in capsys.readouterr().out
    assert not (out / "bad_videos.jsonl").exists()
    assert len(json.loads((out / "index.json").read_text())["videos"]) == 7


def test_a_video_damaged_late_leaves_no_file(run, folder, tmp_path, monkeypatch):
    read = Windows.read

    def damaged(self, video):
        yield from list(read(self, video))[:-1]
        raise VideoError("damaged late")

    monkeypatch.setattr(Windows, "read", damaged)
    with pytest.raises(RecordError, match="1 of 1 videos"):
        run(folder / "a/4.mp4", out=tmp_path, hop=1)
    assert sorted(contents(tmp_path)) == [
        "4.npy.json",
        "bad_videos.jsonl",
        "index.json",
    ]


def test_names_are_unique_and_inside_the_folder():
    ids = ["../../etc/a.mp4", "./b.mp4", "b.mkv", "b.mp4", "c.d/e", "f.v2", "g.mp4#2"]
    assert names(ids) == ["etc/a", "b", "b.mkv", "b.mp4", "c.d/e", "f.v2", "g.mp4#2"]
    assert names(["/x/../a.mp4"]) == ["a"]
    assert names(["/x/a.mp4", "/x/y/a.mp4", "a.mp4"]) == ["a", "y/a", "a.mp4"]


def test_invalid_arguments_are_refused(run, folder, tmp_path, capsys):
    with pytest.raises(UsageError, match="one list or folder"):
        run(folder / "a", folder / "b", out=tmp_path)
    with pytest.raises(RecordError, match="file or folder not found"):
        run(tmp_path / "none", out=tmp_path)
    for option in ({"shard": "2/2"}, {"shard": "1"}, {"hop": "0"}, {"hop": "x"}):
        with pytest.raises(SystemExit):
            run(folder, out=tmp_path, **option)
        assert next(iter(option)) in capsys.readouterr().err
