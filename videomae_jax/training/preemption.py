"""Stops a run on SIGTERM, or when the cluster announces that it needs the machines."""

import signal
import threading

import jax

from videomae_jax.checkpointing import Checkpoints

# What a shell reports for a program that SIGTERM has ended. Clusters take 0 for success
# and would not restart the job.
EXIT_CODE = 128 + signal.SIGTERM


class Preempted(Exception):
    """A run was stopped by SIGTERM after it saved its last step; it can be resumed."""

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
    """Listens for SIGTERM, or for the preemption notice of the cluster."""

    def __init__(self, checkpoints: Checkpoints):
        """Starts listening.

        Args:
            checkpoints: of the run; with several processes they ask JAX for the notice.
        """
        self._checkpoints, self._received_sigterm = checkpoints, False
        self._previous_handler = None
        # With several processes, JAX handles SIGTERM on any of them, and they agree on
        # a step at which all of them stop.
        single = jax.process_count() == 1
        if single and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_):
        self._received_sigterm = True

    def requested(self, step: int) -> bool:
        """Returns whether the run must save and stop after `step` steps."""
        return self._received_sigterm or self._checkpoints.reached_preemption(step)

    def close(self) -> None:
        """Restores the previous handler of SIGTERM."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
