"""Runs that are stopped by SIGTERM or Ctrl-C save their last step, and resume."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training import test_loop
from tests.training.test_loop import metrics, tiny
from videomae_jax import checkpointing
from videomae_jax.training import loop
from videomae_jax.training.preemption import Preempted
from videomae_jax.training.reporting import MetricBuffer
from videomae_jax.training.tasks.pretrain import Pretraining

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


def send_at(step, monkeypatch, number=signal.SIGTERM):
    add = MetricBuffer.add

    def add_and_send(self, at, *args):
        add(self, at, *args)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricBuffer, "add", add_and_send)


def send_sigterm_while_saving(monkeypatch):
    close = checkpointing.Checkpoints.close

    def send_and_close(self):
        # Arrays may still be being written.
        os.kill(os.getpid(), signal.SIGTERM)
        close(self)

    monkeypatch.setattr(checkpointing.Checkpoints, "close", send_and_close)


@pytest.mark.slow
def test_second_sigterm_does_not_interrupt_the_save(
    folder, undisturbed, tmp_path, monkeypatch, unhandled
):
    with monkeypatch.context() as patch:
        send_at(3, patch)
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


@pytest.mark.slow
@pytest.mark.parametrize("when", ["Ctrl-C in it", "while it is saved"])
def test_a_signal_in_the_last_step_prevents_the_test(
    folder, tmp_path, monkeypatch, unhandled, when
):
    before = signal.getsignal(signal.SIGINT)
    finished = []
    monkeypatch.setattr(Pretraining, "test", lambda self, *args: finished.append(args))
    if when == "Ctrl-C in it":
        send_at(8, monkeypatch, signal.SIGINT)
    else:
        send_sigterm_while_saving(monkeypatch)
    with pytest.raises(Preempted, match="saved step 8"):
        loop.train_and_evaluate(tiny(folder), str(tmp_path))
    assert (tmp_path / "checkpoints" / "8").exists()
    assert not finished and not unhandled
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1


# A long call of compiled code, such as a compilation: Python runs no handler in it.
LONG_CALL = """
import hashlib, logging
from videomae_jax.training import preemption, reporting

class Checkpoints:
    def reached_preemption(self, step):
        return False

reporting.start_log(logging.INFO)
preemption.Preemption(Checkpoints())
print("begins", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
print("ends", flush=True)
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", LONG_CALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.2)  # into the call
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if "press Ctrl-C again to end at once" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == ""
