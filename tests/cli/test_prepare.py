"""Prepared data sets: the same frames, and the same bytes however they are made."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.frames import write_frames, write_tfds
from tests.helpers.prepared import (  # noqa: F401
    BAD,
    COUNT,
    RUN,
    contents,
    frames_of,
    made,
    prepare,
    serial,
    start,
    videos,
)
from tests.helpers.videos import moving_noise, write_folder, write_video
from videomae_jax.data import labels, pipeline, sources
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.data.sources import write_list
from videomae_jax.data.workers import WorkerConfig
from videomae_jax.datasets.encode import Settings, encode
from videomae_jax.errors import RecordError, UsageError
from videomae_jax.video import shards
from videomae_jax.video.open import open_video, read_bytes
from videomae_jax.video.record import LabelKind


def test_trimmed_data_sets(tmp_path, serial, capsys):
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 3)  # of 12, 13, 14 frames, 25 a second
    out = tmp_path / "tiny"
    prepare(tmp_path / "videos", out, "--trim=0.48:", "--max-bad-fraction=0.5")
    records = sources.load(f"tfds:{out}/train")
    assert [record.id for record in records] == ["1.mp4", "2.mp4"]
    lengths = []
    for record in records:
        with open_video(record) as video:
            lengths.append(video.num_frames)
    assert lengths == [1, 2]
    (bad,) = (out / "1.0.0/tiny-train.bad_videos.jsonl").read_text().splitlines()
    assert json.loads(bad)["reason"] == (
        "none of its 12 frames is within 0.48: s; the last is at 0.44 s"
    )
    for other in ((), ("--trim=0.48:2",), ("--trim=0.4:",)):
        with pytest.raises(RecordError, match="trim was .*0.48.* --overwrite"):
            prepare(tmp_path / "videos", out, *other)
    prepare(tmp_path / "videos", out, "--trim=:0.2", "--overwrite")
    assert len(sources.load(f"tfds:{out}/train")) == 3
    with pytest.raises(UsageError, match="--trim=0:0.2 cannot be combined"):
        prepare(tmp_path / "videos", tmp_path / "copied", "--copy", "--trim=:0.2")
    for trim, message in {
        "3:2": "START must be below END",
        "2:2": "START must be below END",
        ":0": "START must be below END",
        "-1:2": "expected START:END in seconds",
        ":": "expected START:END in seconds",
        "5": "expected START:END in seconds",
        "1:2:3": "expected START:END in seconds",
        "nan:": "expected START:END in seconds",
    }.items():
        with pytest.raises(SystemExit):
            prepare(tmp_path / "videos", out, f"--trim={trim}")
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "avi"])
def test_times_are_those_of_the_original(tmp_path, serial, container):
    folder = tmp_path / "videos"
    folder.mkdir()
    ticks = [*range(0, 40, 4), *range(40, 120, 16)] if container != "avi" else None
    write_video(folder / f"a.{container}", moving_noise(15, 48, 64), ticks=ticks)
    (original,) = sources.load(str(folder))
    with open_video(original) as video:
        times = video.frame_times
    for trim, kept in ((), slice(None)), (("--trim=0.16:",), slice(4, None)):
        out = tmp_path / ("trimmed" if trim else "tiny")
        prepare(folder, out, *trim)
        (record,) = sources.load(f"tfds:{out}/train")
        with open_video(record) as video:
            expected = times[kept] - times[kept][0]
            np.testing.assert_allclose(video.frame_times, expected, atol=1e-12)
            if not trim:
                np.testing.assert_array_equal(video.frame_times, times)
            assert video.read([9]).shape == (1, 48, 64, 3)


def test_older_data_sets_have_a_rate_but_no_times(videos, made, monkeypatch):
    read = shards.read_example

    def without_times(record):
        features = read(record)
        del features["time_base"]
        return features

    monkeypatch.setattr(shards, "read_example", without_times)
    record = sources.load(f"tfds:{made}/train")[0]
    with open_video(record) as video:
        assert video.frame_times.tolist() == [i / 25 for i in range(21)]


def test_frames_and_labels_are_those_that_were_encoded(videos, made):
    records = sources.load(f"tfds:{made}/train", label_kind=LabelKind.ONE)
    originals = [r for r in sources.load(str(videos)) if r.id != f"{BAD}.mp4"]
    assert [(r.id, r.labels) for r in records] == [(r.id, r.labels) for r in originals]
    for record, original in zip(records, originals, strict=True):
        encoded = encode(pathlib.Path(original.path).read_bytes(), Settings())
        assert read_bytes(record) == encoded.video
        with open_video(record) as video:
            frames = video.read([3, 0, 11])
            assert video.num_frames == encoded.num_frames
        np.testing.assert_array_equal(frames, frames_of(encoded.video)[[3, 0, 11]])
    (bad,) = (made / "1.0.0/tiny-train.bad_videos.jsonl").read_text().splitlines()
    assert json.loads(bad)["id"] == f"{BAD}.mp4"
    assert "not a video" in json.loads(bad)["reason"]


def test_tfds_reads_it_without_tensorflow(made):
    code = """
import sys
import tensorflow_datasets as tfds
source = tfds.data_source("tiny", data_dir=sys.argv[1], split="train")
builder = tfds.builder_from_directory(sys.argv[1] + "/tiny/1.0.0")
assert len(builder.as_data_source("train")) == len(source) == 8
for example in source:
    print(*(example[key] for key in "id label num_frames height width fps".split()))
assert "tensorflow" not in sys.modules
sys.stdout.flush()
sys.stdout.buffer.write(source[7]["video"])
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, made.parent],
        check=True,
        capture_output=True,
    )
    *lines, content = result.stdout.split(b"\n", 8)
    expected = [
        f"b'{i}.mp4' {i % 3} {20 + i} 48 {64 + 2 * i} 25.0"
        for i in range(COUNT)
        if i != BAD
    ]
    assert [line.decode() for line in lines] == expected
    records = sources.load(f"tfds:{made}/train")
    assert content == read_bytes(records[7])


def test_training_sees_the_frames_of_what_was_encoded(videos, made, tmp_path):
    records = sources.load(f"tfds:{made}/train")
    paths = {record.id: record.path for record in sources.load(str(videos))}
    files = []  # the same videos as files, without a data set
    for record in records:
        path = tmp_path / record.id
        content = pathlib.Path(paths[record.id]).read_bytes()
        path.write_bytes(encode(content, Settings()).video)
        files.append(dataclasses.replace(record, path=str(path), position=None))
    read_clips = PretrainingClips(4, 2, 32, (1.0, 0.75), 0.5, 1)
    batches = []
    for source, workers in ((files, 0), (records, 0), (records, 1)):
        with pipeline.batches(
            [pipeline.VideoList(source)],
            read_clips,
            patch_shape=(2, 16),
            batch_size=4,
            label_array=labels.to_array(source, LabelKind.ONE),
            seed=0,
            steps=range(3),
            workers=WorkerConfig(workers),
        ) as stream:
            batches.append(list(stream))
    for expected, one, other in zip(*batches, strict=True):
        for batch in (one, other):
            assert batch.ids == expected.ids and not batch.bad
            for key in ("label", "patches"):
                np.testing.assert_array_equal(batch.arrays[key], expected.arrays[key])


def test_frames_that_are_images(tmp_path, serial):
    # Without details that 4:2:0 subsampling would lose.
    frames = [
        moving_noise(20 + i, 16, 24, seed=i).repeat(4, 1).repeat(4, 2) for i in range(3)
    ]
    lines = []
    for i, one in enumerate(frames):
        write_frames(tmp_path / str(i), one, "{:03}.png")
        lines.append(f"{i},{10 + i},{i}\n")
    text = "".join(["path,total,label\n", *lines])
    (tmp_path / "list.txt").write_text(text)
    classes = ["a", "b", "c"]
    made = write_tfds(
        tmp_path / "tfds", list(zip(frames, range(3), strict=True)), classes
    )
    for out, source, kept in [
        ("folders", tmp_path / "list.txt", 10),
        ("frames", f"tfds:{made}/train", 20),
    ]:
        out = tmp_path / out
        prepare(source, out, "--frame-name={:03}.png", "--fps=12")
        records = sources.load(f"tfds:{out}/train", label_kind=LabelKind.ONE)
        assert sorted(record.labels for record in records) == [(0,), (1,), (2,)]
        for record in records:
            with open_video(record) as video:
                assert video.num_frames == kept + record.labels[0]
                assert video.fps == pytest.approx(12)
                got = video.read(range(video.num_frames)).astype(int)
            expected = frames[record.labels[0]][: kept + record.labels[0]]
            assert (
                np.abs(got - expected).mean()
                < np.abs(got[1:] - expected[:-1]).mean() / 4
            )
            assert np.abs(got.mean((0, 1, 2)) - expected.mean((0, 1, 2))).max() < 2
    # Other images of the same folders are other videos.
    (tmp_path / "list.txt").write_text(text.replace(",10,", ",9,"))
    given = (tmp_path / "list.txt", tmp_path / "folders", "--frame-name={:03}.png")
    with pytest.raises(RecordError, match="other videos or labels"):
        prepare(*given, "--fps=12")
    trimmed = (given[0], tmp_path / "trimmed", *given[2:])
    prepare(*trimmed, "--trim=0.25:0.5", "--fps=12")
    records = sources.load(f"tfds:{tmp_path}/trimmed/train")
    with open_video(records[0]) as video:
        assert video.num_frames == 3
        got = video.read(range(3)).astype(int)
    errors = [np.abs(got - frames[0][i : i + 3]).mean() for i in range(7)]
    assert np.argmin(errors) == 3
    with pytest.raises(RecordError, match="--copy needs a video file, but the frames"):
        prepare(*given, "--copy", "--overwrite")
    (tmp_path / "parts.txt").write_text("path,start,total\na.mp4 2 3\n")
    for option in ("--copy", "--trim=:2"):
        with pytest.raises(RecordError, match="need whole videos, but the list names"):
            prepare(tmp_path / "parts.txt", tmp_path / "parts", option)


def test_parts_of_videos(tmp_path, serial):
    # 100 frames a second, of which one is shown ten times as long.
    frames = moving_noise(16, 48, 64)
    ticks = [i + 10 * (i > 8) for i in range(16)]
    write_video(str(tmp_path / "a.mp4"), frames, ticks=ticks)
    rows = ["path,start_frame,end_frame,start_seconds,end_seconds,label"]
    rows += ["a.mp4,2,9,,,put plate", "a.mp4,,,0.06,0.2,take knife", "a.mp4,,,,,run"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    prepare(tmp_path / "list.csv", tmp_path / "parts", "--crf=5")
    with open_video(str(tmp_path / "a.mp4")) as video:
        whole = video.read(range(16))
    listed = sources.load(str(tmp_path / "list.csv"), label_kind=LabelKind.ONE)
    stored = sources.load(f"tfds:{tmp_path}/parts/train", label_kind=LabelKind.ONE)
    assert [record.labels for record in stored] == [(0,), (2,), (1,)]
    names = (tmp_path / "parts/1.0.0/label.labels.txt").read_text().split("\n")
    assert names[:3] == ["put plate", "run", "take knife"]
    for first, count, before, after in zip(
        (2, 6, 0), (7, 4, 16), listed, stored, strict=True
    ):
        with open_video(before) as direct, open_video(after) as prepared:
            assert direct.num_frames == prepared.num_frames == count
            got = prepared.read(range(count)).astype(int)
            expected = direct.read(range(count)).astype(int)
            np.testing.assert_array_equal(expected, whole[first : first + count])
            errors = [np.abs(got - np.roll(expected, i, 0)).mean() for i in range(3)]
            assert np.argmin(errors) == 0
            times = direct.frame_times[:-1], prepared.frame_times[:-1]
            np.testing.assert_allclose(*times, atol=1e-9)
    # Another part of the same video is another video.
    (tmp_path / "list.csv").write_text("\n".join(rows).replace("0.06", "0.05"))
    with pytest.raises(RecordError, match="other videos or labels"):
        prepare(tmp_path / "list.csv", tmp_path / "parts", "--crf=5")
    (tmp_path / "long.csv").write_text("path,start,total\na.mp4,10,9\n")
    with pytest.raises(RecordError, match="too short: the list asks for 9 frames"):
        prepare(tmp_path / "long.csv", tmp_path / "long")


def test_splits_share_a_folder(videos, made, tmp_path, serial):
    import tensorflow_datasets as tfds

    prepare(videos, tmp_path / "tiny", "--split=val", "--shard-videos=5")
    prepare(videos, tmp_path / "tiny")
    info = tfds.builder_from_directory(tmp_path / "tiny/1.0.0").info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 8,
        "val": 8,
    }
    assert info.splits["val"].shard_lengths == [4, 4]
    ids = [record.id for record in sources.load(f"tfds:{tmp_path}/tiny/val")]
    assert ids == [record.id for record in sources.load(f"tfds:{made}/train")]
    for name, content in contents(made).items():
        if "-train." in name:
            assert (tmp_path / "tiny/1.0.0" / name).read_bytes() == content
    with pytest.raises(RecordError, match="no complete split 'test', only .*val"):
        sources.load(f"tfds:{tmp_path}/tiny/test")
    with pytest.raises(RecordError, match="'val' has other classes|other classes"):
        prepare(videos, tmp_path / "tiny", "--split=test", "--multi-label")


def test_other_lists_and_settings_are_refused(videos, tmp_path, serial):
    out = tmp_path / "tiny"
    prepare(videos, out)
    before = contents(out)
    with pytest.raises(RecordError, match="encoding was .*'crf': 18.* --overwrite"):
        prepare(videos, out, "--crf=30")
    with pytest.raises(RecordError, match="the number of shards differs"):
        prepare(videos, out, "--shard-videos=3")
    other = videos.with_name("other.txt")
    other.write_text(videos.read_text().replace("7.mp4 1", "7.mp4 2"))
    with pytest.raises(RecordError, match="00003-of-00005.*other videos or labels"):
        prepare(other, out)
    assert contents(out) == before
    prepare(videos, out, "--shard-videos=3", "--overwrite")
    assert len(list((out / "1.0.0").glob("*-of-*[0-9]"))) == 3
    assert len(sources.load(f"tfds:{out}/train")) == 8
    prepare(videos, out, "--overwrite")
    assert contents(out) == before


def test_too_many_bad_videos_make_no_data_set(videos, tmp_path, serial):
    out = tmp_path / "tiny"
    with pytest.raises(RecordError, match="1 of 9 videos could not be read"):
        prepare(videos, out, "--max-bad-fraction=0.01")
    assert not (out / "1.0.0/dataset_info.json").exists()
    with pytest.raises(RecordError, match="no complete split"):
        sources.load(f"tfds:{out}/train")
    prepare(videos, out)
    assert len(sources.load(f"tfds:{out}/train")) == 8


def test_only_changed_or_missing_shards_are_rewritten(videos, tmp_path, serial):
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in videos.parent.glob("*.mp4"):
        (copies / path.name).write_bytes(path.read_bytes())
    (copies / "list.txt").write_bytes(videos.read_bytes())
    out = tmp_path / "tiny"
    prepare(copies / "list.txt", out)
    before = contents(out)
    shards = sorted((out / "1.0.0").glob("*-of-00005"))
    times = [shard.stat().st_mtime_ns for shard in shards]

    shards[0].unlink()
    with pytest.raises(RecordError, match="00000-of-00005 is missing"):
        sources.load(f"tfds:{out}/train")
    prepare(copies / "list.txt", out)
    assert contents(out) == before

    (copies / f"{BAD}.mp4").write_bytes((copies / "0.mp4").read_bytes())
    prepare(copies / "list.txt", out)
    assert len(sources.load(f"tfds:{out}/train")) == COUNT
    assert not list((out / "1.0.0").glob("*bad*"))
    changed = [
        shard.stat().st_mtime_ns != then
        for shard, then in zip(shards, times, strict=True)
    ]
    assert changed == [True, False, True, False, False]


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    # Enough videos that work is left at each kill.
    for i in range(24):
        write_video(tmp_path / f"{i}.mp4", moving_noise(60, 96, 130, seed=i))
    write_list(tmp_path / "list.txt", [(f"{i}.mp4", None) for i in range(24)])
    killed = (tmp_path / "list.txt", tmp_path / "killed/tiny", "--workers=2")
    folder = tmp_path / "killed/tiny/1.0.0"
    for num_complete in (1, 2):
        with start(*killed, "--split=train", "--shard-videos=2") as process:
            while len(list(folder.glob("*-of-00012.json"))) < num_complete:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.005)
            process.kill()
        assert not (folder / "dataset_info.json").exists()
        with pytest.raises(RecordError, match="no complete split"):
            sources.load(f"tfds:{tmp_path}/killed/tiny/train")
    kept = min(folder.glob("*-of-00012"))
    then = kept.stat().st_mtime_ns
    prepare(*killed)
    assert kept.stat().st_mtime_ns == then
    prepare(tmp_path / "list.txt", tmp_path / "whole/tiny", "--workers=1")
    assert contents(tmp_path / "killed/tiny") == contents(tmp_path / "whole/tiny")


def test_beam_makes_the_same_data_set(videos, made, tmp_path):
    pytest.importorskip("apache_beam")
    code = "import warnings; warnings.simplefilter('ignore')" + RUN
    process = start(
        videos,
        tmp_path / "tiny",
        *("--split=train", "--shard-videos=2", "--max-bad-fraction=0.2"),
        "--beam-options=--runner=DirectRunner",
        code=code,
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert contents(tmp_path / "tiny") == contents(made)
