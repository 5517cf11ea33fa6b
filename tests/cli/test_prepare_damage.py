"""Prepared data sets: failures are reported, and no damage goes unnoticed."""

import dataclasses
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from tests.helpers.prepared import RUN, contents, made, prepare, serial, start, videos  # noqa: F401
from tests.helpers.videos import (
    CORRUPTIONS,
    corrupted,
    moving_noise,
    video_bytes,
    write_folder,
)
from videomae_jax.data import pipeline, sources
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.datasets import encode
from videomae_jax.datasets.encode import encode_record
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.video.open import open_video, read_bytes
from videomae_jax.video.record import Record


def encode_or_misbehave(record, **kwargs):
    """Stands in for a decoder that crashes, hangs or runs out of memory."""
    match record.id:
        case "1.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "3.mp4":
            time.sleep(1000)
        case "4.mp4":
            raise MemoryError
    return encode_record(record, **kwargs)


@pytest.mark.slow
def test_videos_that_crash_hang_or_use_up_memory(monkeypatch, tmp_path, capfd):
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 6)
    monkeypatch.setattr(encode, "encode_record", encode_or_misbehave)
    options = ("--workers=2", "--timeout=3", "--max-bad-fraction=0.5")
    prepare(tmp_path / "videos", tmp_path / "tiny", *options)
    records = sources.load(f"tfds:{tmp_path}/tiny/train")
    assert [record.id for record in records] == ["0.mp4", "2.mp4", "5.mp4"]
    path = tmp_path / "tiny/1.0.0/tiny-train.bad_videos.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # The reasons depend neither on chance nor on the time limit.
    assert {row["id"]: row["reason"] for row in rows} == {
        "1.mp4": "crashes the process that encodes it",
        "3.mp4": "hangs, or takes longer to encode than --timeout allows",
        "4.mp4": "MemoryError",
    }
    errors = capfd.readouterr().err
    assert "1.mp4: crashes: its process was killed by SIGSEGV" in errors
    assert "3.mp4: hangs: no result within 3 s" in errors


def test_corrupted_videos_are_each_accounted_for(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = moving_noise(20, 48, 64)
    for container in ("mp4", "matroska", "mpegts"):
        options = {"options": {"g": "8"}, "audio": container == "mp4"}
        content = video_bytes(frames, container=container, **options)
        for kind in CORRUPTIONS * 2:
            path = folder / f"{len(list(folder.iterdir()))}.{kind}.mp4"
            path.write_bytes(corrupted(content, rng, kind))
    options = ("--workers=2", "--timeout=60", "--max-bad-fraction=1")
    prepare(folder, tmp_path / "one/tiny", *options)
    records = sources.load(f"tfds:{tmp_path}/one/tiny/train")
    for record in records:
        with open_video(record) as video:
            assert len(video.read(range(video.num_frames))) == video.num_frames
    path = tmp_path / "one/tiny/1.0.0/tiny-train.bad_videos.jsonl"
    bad = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["reason"] for row in bad)
    assert len(bad) > 10 and len(records) > 5
    ids = [record.id for record in sources.load(str(folder))]
    assert sorted([record.id for record in records] + [row["id"] for row in bad]) == ids
    # Decoding damaged videos is deterministic.
    prepare(folder, tmp_path / "other/tiny", "--workers=1", *options[1:])
    assert contents(tmp_path / "one/tiny") == contents(tmp_path / "other/tiny")


def test_full_disk_is_reported_and_leaves_no_data_set(videos, tmp_path, serial):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50000,) * 2)"
    args = (videos, tmp_path / "tiny", "--copy")
    process = start(*args, "--split=train", code=limited + RUN)
    output, _ = process.communicate(timeout=60)
    assert process.returncode
    assert "File too large" in output and "tiny-train.array_record-00000" in output
    assert not list((tmp_path / "tiny/1.0.0").iterdir())
    prepare(*args)
    assert len(sources.load(f"tfds:{tmp_path}/tiny/train")) == 8


def test_changed_bytes_are_detected(videos, tmp_path, serial):
    out = tmp_path / "tiny"
    prepare(videos, out)
    records = sources.load(f"tfds:{out}/train")
    shard = pathlib.Path(records[2].path)
    content = shard.read_bytes()
    begin = content.index(b"ftyp")
    for position in range(begin, begin + 4000, 97):
        changed = bytearray(content)
        changed[position] ^= 16
        other = tmp_path / f"{shard.name}.{position}"
        other.write_bytes(changed)
        with pytest.raises(VideoError, match=rf"{other.name}: video 0 \(2.mp4\).*hash"):
            read_bytes(Record(str(other), "2.mp4", position=0))
    shard.write_bytes(changed)

    read_clips = PretrainingClips(4, 2, 32, (1.0,), 0.0, 1)
    with pipeline.batches(
        [pipeline.VideoList(records)],
        read_clips,
        patch_shape=(2, 16),
        batch_size=8,
        seed=0,
        steps=range(1),
    ) as stream:
        (batch,) = stream
    assert "2.mp4" not in batch.ids
    assert {record.id for _, record, _ in batch.bad} == {"2.mp4"}
    shard.write_bytes(content[:-1])
    with pytest.raises(RecordError, match="its size is not"):
        sources.load(f"tfds:{out}/train")


def test_a_damaged_shard_never_gives_other_bytes(made, tmp_path):
    records_of = {}
    for record in sources.load(f"tfds:{made}/train"):
        records_of.setdefault(record.path, []).append(record)
    (path, records), *_ = records_of.items()
    content = pathlib.Path(path).read_bytes()
    originals = [read_bytes(record) for record in records]
    rng = np.random.default_rng(0)
    # The index and its position are at the end; blocks are padded with zeros.
    nonzero = np.flatnonzero(np.frombuffer(content, np.uint8))
    positions = [*rng.choice(nonzero, 100), *rng.choice(nonzero[-500:], 100)]
    damaged = []
    for position in [*positions, *range(32), len(content) - 1]:
        damaged.append(bytearray(content))
        damaged[-1][position] ^= int(rng.integers(1, 256))
    damaged += [corrupted(content, rng, kind) for kind in CORRUPTIONS * 8]
    refused = 0
    for i, data in enumerate(damaged):
        shard = tmp_path / f"{i}.array_record"  # a new name: open shards are cached
        shard.write_bytes(data)
        for record, original in zip(records, originals, strict=True):
            record = dataclasses.replace(record, path=str(shard))
            try:
                assert read_bytes(record) == original
            except VideoError as error:
                assert str(error).startswith(f"{shard}: video {record.position} (")
                refused += 1
        shard.unlink()
    assert refused > len(damaged)  # more than half of the reads


def test_shards_of_another_data_set_are_detected(made):
    first, second = sources.load(f"tfds:{made}/train")[:2]
    swapped = Record(first.path, second.id, position=first.position)
    with pytest.raises(VideoError, match="video 0 is 0.mp4, not 1.mp4"):
        open_video(swapped)
