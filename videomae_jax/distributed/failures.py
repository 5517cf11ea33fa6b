"""Ends all processes of a run when one of them fails; each says why.

An error raised in one process is written to `last_error.txt` in the work directory,
with its exit code. A thread of every other process polls that file and ends its process
with the same code. Without it the others would wait in a collective operation.

A process that is killed, or loses its host, cannot write the file. JAX's coordination
service, a part of process 0, then misses its heartbeats and aborts the others. JAX's
message has the numbers of dead processes; the first lines of each log have their hosts
(`hosts.initialize`).
"""

import contextlib
import logging
import os
import pathlib
import re
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from videomae_jax.distributed import hosts
from videomae_jax.errors import UserError

log = logging.getLogger(__name__)

_POLL_SECONDS = 1
# How long process 0 stays after an error. When it is gone, JAX aborts the others; they
# must have read the file by then.
_FAREWELL_SECONDS = 4
_MAX_CHARACTERS = 4000
# The last line of the file; without it the file is still being written.
_EXIT_CODE = re.compile(r"exit_code=(\d+)\n\Z")


@contextlib.contextmanager
def ending_together(workdir: str) -> Iterator[None]:
    """Ends all processes, with one exit code, if the body raises in one of them.

    It is the `exit_code` of a UserError, and 1 for every other error.

    Every process must leave the body. A process that is the only one is not affected.

    Args:
        workdir: shared folder of the run; need not exist yet.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(pathlib.Path(workdir))
    try:
        yield
        # Process 0 must not leave first: the coordination service ends with it.
        multihost_utils.sync_global_devices("videomae_jax: end of the run")
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            traceback.print_exception(error)
        watch.fail(error)
    watch.close()


class _Watch:
    """Polls for errors of other processes, and reports this one's."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir, self._file = workdir, workdir / "last_error.txt"
        self._is_first = jax.process_index() == 0
        if self._is_first:
            with contextlib.suppress(OSError):
                self._file.write_text("")
        hosts.gather(None)  # From here on the file is not that of an earlier run.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        # "a+" creates the file once its folder exists. It must exist before an error:
        # NFS clients remember for up to a minute that a file is missing, but see new
        # content whenever they open an existing file.
        mode = "a+" if self._is_first else "r"
        while not self._stop.wait(_POLL_SECONDS):
            error = ""
            with (
                contextlib.suppress(OSError),
                self._file.open(mode, encoding="utf-8", errors="replace") as file,
            ):
                file.seek(0)
                error = file.read()
            if code := _EXIT_CODE.search(error):
                self._end(error[: code.start()], int(code[1]))

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process because of its error, and the others with it."""
        if _may_be_of_others(error):
            log.error(
                "Another process may have caused this. If it is dead, JAX reports its "
                "number within %d s; this is %s",
                hosts.HEARTBEAT_TIMEOUT_SECONDS,
                hosts.describe_processes(),
            )
            time.sleep(1.5 * hosts.HEARTBEAT_TIMEOUT_SECONDS)
        self._stop.set()
        index = jax.process_index()
        process = f"process {index} of {jax.process_count()} ({hosts.names()[index]})"
        summary = f"{process} failed: {type(error).__name__}: {error}"
        summary = summary[:_MAX_CHARACTERS] + "\n"
        code = error.exit_code if isinstance(error, UserError) else 1
        with contextlib.suppress(OSError):
            text = f"{summary}exit_code={code}\n"
            self._file.write_text(text, encoding="utf-8")
        self._end(summary, code)

    def _end(self, error: str, code: int) -> NoReturn:
        """Ends this process at once, without waiting for others or running threads."""
        if self._is_first:
            time.sleep(_FAREWELL_SECONDS)
        # Other codes say that the same command would fail again.
        remedy = f" Start the job again: it {self._resumes()}." if code == 1 else ""
        log.error("%sAll processes end with exit code %d.%s", error, code, remedy)
        os._exit(code)

    def _resumes(self) -> str:
        folder = self._workdir / "checkpoints"
        steps = [int(x.name) for x in folder.glob("*") if x.name.isdigit()]
        return f"resumes from step {max(steps)}" if steps else "starts from step 0"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_first:
            self._file.unlink(missing_ok=True)


def _may_be_of_others(error: BaseException | None) -> bool:
    """Returns whether an error can come from a lost connection to another process."""
    while error is not None:
        # Errors of devices and services have one type; those of Gloo, which connects
        # CPUs, can be a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
