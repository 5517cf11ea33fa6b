"""Ends all processes of a run when one of them fails; each says why.

An error raised in one process is written to `last_error.txt` in the work directory,
with its exit code. A thread of every other process polls that file and ends its process
with the same code. Without it the others would wait in a collective operation. The file
names the run: another one, started by mistake with the same work directory, reports its
errors there, too.

The file has its full size from the start: if the disk becomes full later, an error can
still be written over it.

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
import uuid
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from videomae_jax.distributed import hosts
from videomae_jax.errors import OutputError, UserError

log = logging.getLogger(__name__)

_POLL_SECONDS = 1
# How long process 0 stays after an error. When it is gone, JAX aborts the others; they
# must have read the file by then.
_FAREWELL_SECONDS = 4
_MAX_CHARACTERS = 4000
_FILE_BYTES = 4 * _MAX_CHARACTERS + 1000
# The last line of the report; without it the file is still being written.
_EXIT_CODE = re.compile(r"exit_code=(\d+) run=(\w+)\n\s*\Z")

_watch: "_Watch | None" = None  # of this process, while it runs with others


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
    global _watch
    _watch = watch = _Watch(pathlib.Path(workdir))
    try:
        yield
        # Process 0 must not leave first: the coordination service ends with it.
        multihost_utils.sync_global_devices("videomae_jax: end of the run")
    except BaseException as error:
        if not isinstance(error, UserError | KeyboardInterrupt):
            traceback.print_exception(error)
        watch.fail(error)
    watch.close()
    _watch = None


def end(error: UserError) -> NoReturn:
    """Ends this process, and with it the run, at once: for errors in other threads."""
    if _watch is not None:
        _watch.fail(error)
    log.error("%s", error)
    os._exit(error.exit_code)


class _Watch:
    """Polls for errors of other processes, and reports this one's."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir, self._file = workdir, workdir / "last_error.txt"
        self._is_first = jax.process_index() == 0
        self._run = hosts.gather(uuid.uuid4().hex)[0]
        if self._is_first:
            with contextlib.suppress(OSError):
                self._write("")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        # Process 0 creates the file once its folder exists. It must exist before an
        # error: NFS clients remember for up to a minute that a file is missing, but see
        # new content whenever they open an existing file.
        existed = False
        while not self._stop.wait(_POLL_SECONDS):
            try:
                error = self._file.read_text(encoding="utf-8", errors="replace")
                existed = True
            except FileNotFoundError:
                if existed and not self._workdir.exists():
                    self.fail(OutputError(f"{self._workdir} was removed during a run"))
                if self._is_first:
                    with contextlib.suppress(OSError):
                        self._write("")
                continue
            except OSError:
                continue
            code = _EXIT_CODE.search(error)
            if code and code[2] == self._run:
                self._end(error[: code.start()].rstrip(), int(code[1]))

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
        report = f"{summary}All processes end with exit code {code}."
        if not isinstance(error, UserError):  # which says itself what to do
            report += f" Start the job again: it {next_start(self._workdir)}."
        with contextlib.suppress(OSError):
            self._write(f"{report}\nexit_code={code} run={self._run}\n")
        self._end(report, code)

    def _write(self, text: str) -> None:
        """Writes over the file, which keeps its size; creates it if it is missing."""
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode(errors="replace").ljust(_FILE_BYTES) + b"\n")

    def _end(self, report: str, code: int) -> NoReturn:
        """Ends this process at once, without waiting for others or running threads."""
        if self._is_first:
            time.sleep(_FAREWELL_SECONDS)
        log.error("%s", report)
        os._exit(code)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_first:
            self._file.unlink(missing_ok=True)


def next_start(workdir: pathlib.Path) -> str:
    """Returns what the next start of a run does, such as "resumes from step 16"."""
    steps = [int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal()]
    return f"resumes from step {max(steps)}" if steps else "starts from step 0"


def _may_be_of_others(error: BaseException | None) -> bool:
    """Returns whether an error can come from a lost connection to another process."""
    while error is not None:
        # Errors of devices and services have one type; those of Gloo, which connects
        # CPUs, can be a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
