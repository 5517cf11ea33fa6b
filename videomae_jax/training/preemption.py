"""Being asked to stop: by SIGTERM, or by a cluster that needs the machines."""

import signal
import threading

import jax

from videomae_jax.checkpointing import Checkpoints

# What a shell says of a program that SIGTERM has ended. Clusters take 0 for success and
# would not start the job again.
EXIT_CODE = 128 + signal.SIGTERM


class Preempted(Exception):
    """A run was asked to stop, has saved its last step, and can be continued."""

    def __init__(self, step: int):
        """Says after how many steps."""
        super().__init__(f"asked to stop: saved step {step}; run again to continue")


def leave_sigterm() -> None:
    """From here on SIGTERM ends this process at once, as it does any other.

    With several processes JAX has taken it, and nobody would ask whether it came.
    """
    several = jax.process_count() > 1
    if several and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Preemption:
    """Whether this run has been asked to stop (SIGTERM, or the cluster's notice)."""

    def __init__(self, checkpoints: Checkpoints):
        """Starts listening."""
        self._checkpoints, self._asked = checkpoints, False
        self._previous = None
        # With several hosts JAX agrees on a step at which all of them stop.
        self._lone = jax.process_count() == 1
        if self._lone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to save after this many steps, and stop."""
        return self._asked or self._checkpoints.reached_preemption(step)

    def close(self) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
