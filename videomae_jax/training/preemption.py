"""Stops a run on SIGTERM or Ctrl-C, or when the cluster needs the machines."""

import logging
import os
import signal
import threading

import jax

from videomae_jax.checkpointing import Checkpoints

log = logging.getLogger(__name__)

# What a shell reports for a program that SIGTERM has ended. Clusters take 0 for success
# and would not restart the job.
EXIT_CODE = 128 + signal.SIGTERM


class Preempted(Exception):
    """A run was stopped after it saved its last step; it can be resumed."""

    def __init__(self, step: int):
        """Describes a run that has saved step `step`."""
        super().__init__(f"preempted: saved step {step}; run again to resume")


def leave_sigterm() -> None:
    """Lets SIGTERM end this process at once, as by default.

    With several processes JAX handles SIGTERM, and without a `Preemption` that asks JAX
    for it, the signal would have no effect.
    """
    multiprocess = jax.process_count() > 1
    if multiprocess and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Preemption:
    """Listens for SIGTERM, Ctrl-C (SIGINT), or the preemption notice of the cluster.

    A second Ctrl-C ends the process at once, with the exit code that shells report for
    SIGINT.
    """

    def __init__(self, checkpoints: Checkpoints):
        """Starts listening.

        Args:
            checkpoints: of the run; with several processes they ask JAX for the notice.
        """
        self._checkpoints, self._received_sigterm = checkpoints, False
        self._previous_handlers = {}
        self._pipe = None
        if threading.current_thread() is not threading.main_thread():
            return
        handlers = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
        # With several processes, JAX handles SIGTERM on any of them, and they agree on
        # a step at which all of them stop.
        if jax.process_count() == 1:
            handlers[signal.SIGTERM] = self._handle
        for number, handler in handlers.items():
            self._previous_handlers[number] = signal.signal(number, handler)
        # Python calls handlers only between two lines of Python. A thread sees Ctrl-C
        # also while a step is compiled, which takes minutes.
        self._pipe, writer = os.pipe()
        os.set_blocking(writer, False)
        self._previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(
            target=_count_interrupts, args=[self._pipe], daemon=True
        ).start()

    def _handle(self, *_):
        self._received_sigterm = True

    def requested(self, step: int) -> bool:
        """Returns whether the run must save and stop after `step` steps."""
        return self._received_sigterm or self._checkpoints.reached_preemption(step)

    def close(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            os.close(signal.set_wakeup_fd(self._previous_writer))


def _count_interrupts(pipe: int) -> None:
    """Answers SIGTERM and Ctrl-C with a line; ends this process at the second Ctrl-C.

    Args:
        pipe: where the numbers of signals arrive, a byte each, until it is closed.
    """
    count = 0
    while number := os.read(pipe, 1):
        if number[0] == signal.SIGTERM and not count:  # not raised by Ctrl-C
            log.info("SIGTERM: saves after this step")
        if number[0] != signal.SIGINT:
            continue
        count += 1
        if count == 2:
            os._exit(128 + signal.SIGINT)
        log.info(
            "interrupted: saves after this step; press Ctrl-C again to end at once"
        )
    os.close(pipe)
