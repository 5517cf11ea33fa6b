"""Runs that are stopped by SIGTERM save their last step and can be resumed."""

import os
import signal

import jax
import numpy as np
import pytest

from tests.training import test_loop
from tests.training.test_loop import metrics, tiny
from videomae_jax import checkpointing
from videomae_jax.training import loop
from videomae_jax.training.preemption import Preempted
from videomae_jax.training.reporting import MetricBuffer

folder = test_loop.folder
one_device = test_loop.one_device
undisturbed = test_loop.undisturbed


@pytest.fixture
def unhandled():
    """The SIGTERMs that this process receives while no run listens."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def send_sigterm_at(step, monkeypatch):
    add = MetricBuffer.add

    def add_and_send(self, at, *args):
        add(self, at, *args)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricBuffer, "add", add_and_send)


def send_sigterm_while_saving(monkeypatch):
    close = checkpointing.Checkpoints.close

    def send_and_close(self):
        # Arrays may still be being written.
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(checkpointing.Checkpoints, "close", send_and_close)


def test_second_sigterm_does_not_interrupt_the_save(
    folder, undisturbed, tmp_path, monkeypatch, unhandled
):
    with monkeypatch.context() as patch:
        send_sigterm_at(3, patch)
        send_sigterm_while_saving(patch)
        with pytest.raises(Preempted, match="saved step 3; run again"):
            loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert not unhandled
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    state = loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert metrics(tmp_path) == metrics(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, undisturbed[1].params)
    os.kill(os.getpid(), signal.SIGTERM)
    assert unhandled  # as before the run


@pytest.mark.parametrize("when", ["in it", "while it is saved"])
def test_sigterm_in_the_last_step_prevents_the_test(
    folder, tmp_path, monkeypatch, unhandled, when
):
    finished = []
    monkeypatch.setattr(
        loop.Pretraining, "test", lambda self, *args: finished.append(args)
    )
    if when == "in it":
        send_sigterm_at(8, monkeypatch)
    else:
        send_sigterm_while_saving(monkeypatch)
    with pytest.raises(Preempted, match="saved step 8"):
        loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert (tmp_path / "checkpoints" / "8").exists()
    assert not finished and not unhandled
