"""The processes of a run end together, and each says because of which.

JAX finds out who is gone: every process sends heartbeats to the coordination service,
which is part of process 0. When they stop, or process 0 itself is gone, JAX aborts all
the others, with a long message that names no host. What is added here:

- Last words. A handler of SIGABRT names the process that is missing, and its host, and
  says what to do. To know them, every process counts up in the key-value store of the
  service, and looks at the counts of the others.
- An error of one process ends all of them at once: it is written to a key of that store
  which the others wait for. They would wait in a collective operation otherwise.
"""

import contextlib
import ctypes
import functools
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from jax._src import distributed  # the one way to the key-value store
from jax.experimental import multihost_utils

# For how long the processes wait for each other at the start; JAX's default.
PATIENCE_SECONDS = 300
# After how many seconds without a heartbeat JAX takes a process for dead. It sends them
# from a thread that needs no Python, so a busy process is not mistaken for a dead one;
# two in this time, so that half of it may have passed when it finds out.
HEARTBEAT_SECONDS = 30
# Between two counts; and what makes a process the missing one, less than that half.
_COUNT_SECONDS = 2
_SILENT_SECONDS = 8
# What process 0 gives the others to learn the reason, which they have from it.
_FAREWELL_SECONDS = 4

_HOSTS, _COUNTS = "videomae_jax/hosts/", "videomae_jax/counts/"
_ERROR = "videomae_jax/error"


def coordinator() -> str:
    """The address of the coordination service, HOST:PORT."""
    return distributed.global_state.coordinator_address


class _Watch:
    """What a process knows of the others, from a thread of its own."""

    def __init__(self, workdir: pathlib.Path):
        self._checkpoints = workdir / "checkpoints"
        self._client = distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._client.key_value_set(f"{_HOSTS}{self._index}", socket.gethostname())
        self._hosts = [
            self._client.blocking_key_value_get(f"{_HOSTS}{i}", 1000 * PATIENCE_SECONDS)
            for i in range(self._count)
        ]
        self._looked = time.monotonic()
        self._last = {i: ("", self._looked) for i in range(self._count)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        count = 0
        while not self._stop.is_set():
            count += 1
            try:
                key = f"{_COUNTS}{self._index}"
                self._client.key_value_set(key, str(count), allow_overwrite=True)
                self._look(self._client.key_value_dir_get(_COUNTS))
                error = self._client.blocking_key_value_get(
                    _ERROR, 1000 * _COUNT_SECONDS
                )
            except Exception as problem:
                # Nothing to wait for, as it should be; or the service is gone, and JAX
                # is about to abort this process. Whatever it is, the others would take
                # a process that counts no more for missing.
                if "DEADLINE_EXCEEDED" not in str(problem):
                    self._stop.wait(_COUNT_SECONDS)
                continue
            index, _, text = error.partition(" ")
            if int(index) != self._index:
                name = self._name(int(index))
                self.end(f"{name} ended with an error; this one ends too:\n{text}")
            return  # this process is about to end by itself

    def _look(self, entries):
        self._looked = time.monotonic()
        for key, value in entries:
            index = int(key.rpartition("/")[2])
            if self._last[index][0] != value:
                self._last[index] = value, self._looked

    def _name(self, index):
        return f"process {index} of {self._count} ({self._hosts[index]})"

    def missing(self) -> str:
        """The processes that are silent, in words; empty if none is."""
        silence = {i: self._looked - changed for i, (_, changed) in self._last.items()}
        # Others may have been busy for a while, but not for as long.
        enough = max(_SILENT_SECONDS, max(silence.values()) / 2)
        silent = [i for i, x in silence.items() if x > enough and i != self._index]
        if not silent and self._index:
            # Everything is known through process 0, but not that it is gone.
            deaf = time.monotonic() - self._looked > _SILENT_SECONDS
            silent = [0] if deaf or not _reachable(coordinator()) else []
        return " and ".join(map(self._name, silent))

    def fail(self, error: BaseException) -> None:
        """Ends this process for its error, and the others with it."""
        if _may_be_of_others(error):
            # If so, JAX or the thread above ends this process meanwhile, and says why.
            time.sleep(1.5 * HEARTBEAT_SECONDS)
        text = f"{self._index} {type(error).__name__}: {error}"[:4000]
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            # Only the first error of all is kept.
            self._client.key_value_set(_ERROR, text)
        name = self._name(self._index)
        self.end(f"{name}, this one, ended with an error; the others end too.")

    def end(self, reason: str) -> None:
        """Says why, and ends this process without waiting for any other."""
        if self._index == 0:
            time.sleep(_FAREWELL_SECONDS)
        steps = [int(x.name) for x in self._checkpoints.glob("*") if x.name.isdigit()]
        newest = f"continues from step {max(steps)}" if steps else "starts anew"
        _say(f"{reason}\nStart the job again: it {newest}.")
        os._exit(1)

    def close(self):
        self._stop.set()
        self._thread.join()


_watch: _Watch | None = None


@contextlib.contextmanager
def ending_together(
    workdir: str, explained: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Ends this process when another fails, and the others if what is inside does.

    Every process has to come to the end of what is inside. A lone one is left alone.

    Args:
        workdir: folder of the run, to say which checkpoint is the newest.
        explained: errors that are shown without a trace.
    """
    global _watch
    if jax.process_count() == 1:
        yield
        return
    _watch = _Watch(pathlib.Path(workdir))
    try:
        yield
        # Nobody leaves before: the service ends with process 0.
        multihost_utils.sync_global_devices("videomae_jax: the end")
    except BaseException as error:
        if isinstance(error, explained):
            _say(str(error))
        else:
            traceback.print_exception(error)
        _watch.fail(error)
    _watch.close()
    leave_aborts()


def leave_aborts() -> None:
    """Undoes `explain_aborts`, for a process that is alone, or at its end."""
    _libc().signal(signal.SIGABRT, signal.SIG_DFL)


def explain_aborts() -> None:
    """Lets this process say why when JAX aborts it.

    JAX does so from a thread of its own, at once, and has no working hook for Python
    (0.10 to 0.12). A handler of Python's would run in the main thread, too late.
    """
    _libc().signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


def _say(text: str) -> None:
    sys.stderr.flush()
    # Past all locks: this is the last that is heard.
    os.write(2, f"{time.strftime('%H:%M:%S')} {text}\n".encode())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_):
    # Should anything here get stuck, the process ends nevertheless.
    signal.alarm(20)
    if _watch is None:
        _say(
            f"The processes of this run did not all come to {coordinator()} within "
            f"{PATIENCE_SECONDS} s, or one ended meanwhile, perhaps this one, for what "
            "the lines above say. Check that as many were "
            "started as there should be, that every host reaches this address "
            "(firewall, proxy variables), and what the other logs say."
        )
        os._exit(1)
    missing = _watch.missing()
    if missing:
        _watch.end(f"{missing} stopped answering; this one ends too.")
    # Nobody is missing: it is this process that has failed. It ends as it would have.


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    return library


def _reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _may_be_of_others(error: BaseException | None) -> bool:
    """Whether it is what a broken connection to another process looks like."""
    while error is not None:
        # JAX wraps what devices and services say in the one, and now and then the
        # words of the library that connects CPUs in a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
