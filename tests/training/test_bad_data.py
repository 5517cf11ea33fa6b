"""Runs with videos that cannot be read, or with losses that are not finite."""

import contextlib
import json

import jax
import numpy as np
import pytest

from tests.helpers.videos import moving_noise, write_video
from tests.training import test_loop
from tests.training.test_loop import folder, metrics, run_until, tiny  # noqa: F401
from videomae_jax.errors import NonFiniteLossError, RecordError, TooManyBadVideosError
from videomae_jax.training import loop

one_device = test_loop.one_device


@pytest.fixture
def explosive(monkeypatch):
    """Training in which video 3 makes the loss NaN."""
    to_devices = loop.sharding.to_devices

    def poisoned(arrays, mesh):
        patches = arrays["patches"].astype(np.float32) / 255
        if poisoned.now:
            patches[0] = np.nan
        return to_devices({"patches": patches}, mesh)

    poisoned.now = False
    monkeypatch.setattr(loop.sharding, "to_devices", poisoned)
    batches = loop.pipeline.batches

    @contextlib.contextmanager
    def watched(*args, **kwargs):
        def watch(stream):
            for batch in stream:
                poisoned.now = "3.mp4" in batch.ids
                yield batch

        with batches(*args, **kwargs) as stream:
            yield watch(stream)

    monkeypatch.setattr(loop.pipeline, "batches", watched)


def test_loss_that_is_not_finite_stops_the_run(folder, tmp_path, explosive):
    with pytest.raises(NonFiniteLossError) as error:
        loop.train_and_evaluate(tiny(folder, **{"checkpoint.every": 1}), str(tmp_path))
    message = str(error.value)
    assert "loss=nan" in message and "3.mp4" in message
    bad_step = int(message.split("step=")[1].split()[0])
    # The last good checkpoint is named, and nothing after the bad step was saved.
    last = max((int(p.name) for p in (tmp_path / "checkpoints").iterdir()), default=0)
    assert last == bad_step - 1
    assert f"step {last}" in message.split("checkpoint:")[1] or bad_step == 1


@pytest.mark.slow
def test_some_steps_that_are_not_finite_may_be_skipped(folder, tmp_path, explosive):
    config = tiny(folder, max_nonfinite_steps=8)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert state.step == 8
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert any(np.isfinite(row["loss"]) for row in metrics(tmp_path))


@pytest.mark.slow
def test_list_of_good_and_bad_videos_trains_through(folder, tmp_path):
    good = sorted(folder.glob("*.mp4"))[:8]
    write_video(tmp_path / "one.mp4", moving_noise(1, 48, 64))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(good[0].read_bytes()[:700])
    only_audio(tmp_path / "audio.mp4")
    bad = {"missing.mp4", "empty.mp4", "text.mp4", "cut.mp4", "audio.mp4"}
    lines = [*map(str, good), *sorted(bad), "one.mp4"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    config = tiny(tmp_path / "train.txt", **{"data.max_bad_fraction": 0.5})
    state = loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert state.step == 8
    rows = (tmp_path / "run" / "bad_videos.jsonl").read_text().splitlines()
    reasons = {row["id"]: row["reason"] for row in map(json.loads, rows)}
    assert reasons.keys() == bad
    assert "no such file" in reasons["missing.mp4"]
    assert "empty" in reasons["empty.mp4"]
    assert "audio" in reasons["audio.mp4"]
    config.data.max_bad_fraction = 0.1
    for _ in range(2):  # a second start fails with the same error
        with pytest.raises(TooManyBadVideosError, match="max_bad_fraction"):
            loop.train_and_evaluate(config, str(tmp_path / "strict"))


def test_bad_videos_are_noted_before_a_checkpoint(folder, tmp_path):
    lines = [*sorted(map(str, folder.glob("*.mp4")))[:3], "missing.mp4"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    changes = {"data.max_bad_fraction": 0.5, "log_every": 100}
    run_until(tiny(tmp_path / "train.txt", **changes), tmp_path / "run", 4)
    # Who goes on from this checkpoint does not read the first steps again.
    (row,) = (tmp_path / "run" / "bad_videos.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "missing.mp4"


def only_audio(path):
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def test_missing_list_is_explained(tmp_path):
    with pytest.raises(RecordError, match="train.txt") as error:
        loop.train_and_evaluate(tiny(tmp_path / "train.txt"), str(tmp_path / "run"))
    assert "find" in str(error.value)
    assert not (tmp_path / "run").exists()
