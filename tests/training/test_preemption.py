"""Runs that are asked to stop, and what they leave."""

import os
import signal
import time

import jax
import numpy as np
import pytest

from tests.training import test_loop
from tests.training.test_loop import metrics, tiny
from videomae_jax import checkpointing
from videomae_jax.training import loop
from videomae_jax.training import metrics as history
from videomae_jax.training.preemption import Preempted
from videomae_jax.training.reporting import Reporter

folder = test_loop.folder
one_device = test_loop.one_device
undisturbed = test_loop.undisturbed


@pytest.fixture
def unheard():
    """The SIGTERMs that come to this process when no run listens."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def ask_at(step, monkeypatch):
    add = history.MetricBuffer.add

    def add_and_ask(self, at, *args):
        add(self, at, *args)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(history.MetricBuffer, "add", add_and_ask)


def ask_while_saving(monkeypatch):
    close = checkpointing.Checkpoints.close

    def ask_and_close(self):
        # The arrays may still be on their way to the disk.
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(checkpointing.Checkpoints, "close", ask_and_close)


def test_asked_twice_a_run_saves_nevertheless(
    folder, undisturbed, tmp_path, monkeypatch, unheard
):
    with monkeypatch.context() as patch:
        ask_at(3, patch)
        ask_while_saving(patch)
        with pytest.raises(Preempted, match="saved step 3; run again"):
            loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert not unheard
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    state = loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert metrics(tmp_path) == metrics(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, undisturbed[1].params)
    os.kill(os.getpid(), signal.SIGTERM)
    assert unheard  # as before the run


@pytest.mark.parametrize("when", ["in it", "while it is saved"])
def test_asked_in_its_last_step_a_run_begins_no_test(
    folder, tmp_path, monkeypatch, unheard, when
):
    finished = []
    monkeypatch.setattr(
        loop.Pretraining, "test", lambda self, *args: finished.append(args)
    )
    if when == "in it":
        ask_at(8, monkeypatch)
    else:
        ask_while_saving(monkeypatch)
    with pytest.raises(Preempted, match="saved step 8"):
        loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert (tmp_path / "checkpoints" / "8").exists()
    assert not finished and not unheard


def test_curves_have_what_was_reported_before_a_kill(tmp_path):
    reporter = Reporter(tmp_path, 0, 10, 1.0)
    reporter.values(1, {"validation/top1": 50.0})
    [events] = (tmp_path / "tensorboard").iterdir()
    deadline = time.monotonic() + 30
    while b"validation/top1" not in events.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    reporter.close()
