"""Lets one run at a time write to a work directory.

Process 0 of a run holds `<workdir>/run.lock` and rewrites it every HEARTBEAT_SECONDS.
The file names the process: a dead one of the same machine is recognised at once. One of
another machine is alive if the content of the file changes, whatever the clocks say.
The lock needs only what network file systems offer, too: exclusive creation, renaming,
and new content whenever a file is opened.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import jax

from videomae_jax.distributed import failures, hosts
from videomae_jax.errors import OutputError, WorkdirInUseError
from videomae_jax.files import output_error, partial_path, writing

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5
# How often a process of another machine may be found silent before it counts as dead,
# and how long it has to end after a preemption. Counted in looks, as one may wait for
# its file server. gcsfuse shows content that is up to 60 s old.
STALE_LOOKS = 90
_LOOK_SECONDS = 1
# Of several processes that replace the lock of a dead one, the last holds it. Each
# waits this long before it looks whether that was itself.
_SETTLE_SECONDS = 2


@contextlib.contextmanager
def one_writer(workdir: pathlib.Path) -> Iterator[None]:
    """Makes this run the only one that writes to a work directory, in the body.

    Every process of the run must call it; process 0 holds the lock. If the lock is
    lost, because the folder was removed or another run took over, the run ends at once.

    Args:
        workdir: an existing folder.

    Raises:
        WorkdirInUseError: another run writes to the folder. One of another machine has
            some time to end: it may just have been preempted.
        OutputError: the lock cannot be written.
    """
    lock = _Lock(workdir) if jax.process_index() == 0 else None
    hosts.gather(None)  # If process 0 has failed, `failures` ends those that wait here.
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """The lock of this process, which it holds until `release`."""

    def __init__(self, workdir: pathlib.Path):
        """Takes the lock, if necessary from a dead process."""
        self._workdir, self._path = workdir, workdir / "run.lock"
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "machine": _machine(),
            "started": _start_of(os.getpid()),
            "token": uuid.uuid4().hex,
            "path": os.path.realpath(self._path),
        }
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _acquire(self) -> None:
        last, silent, looks = None, 0, 0
        while not self._create():
            content = self._read()
            if content is None:  # released between the two calls
                continue
            alive = _is_alive(content, self._path)
            changed = content != last
            if alive or (changed and looks >= STALE_LOOKS):
                raise WorkdirInUseError(
                    f"--workdir={self._workdir} is used by {_describe(content)}: wait "
                    "until that run has ended, end it, or use another --workdir"
                )
            if alive is None and not looks:  # no warning: these may be held back
                log.info(
                    "%s is of %s: waiting %d s until it ends or gives no sign of life",
                    self._path,
                    _describe(content),
                    STALE_LOOKS * _LOOK_SECONDS,
                )
            last, silent = content, 0 if changed else silent
            if alive is None and silent < STALE_LOOKS:
                silent, looks = silent + 1, looks + 1
                time.sleep(_LOOK_SECONDS)
            elif self._replace(content):
                log.warning("took over %s of %s", self._path, _describe(content))
                return

    def _create(self) -> bool:
        """Creates the file; returns whether it did not exist."""
        with writing(self._path):
            try:
                file = self._path.open("xb")
            except FileExistsError:
                return False
            try:
                with file:
                    file.write(self._content(beat=0))
            except OSError:
                self._path.unlink(missing_ok=True)
                raise
        return True

    def _replace(self, content: bytes) -> bool:
        """Replaces the lock of a dead process; returns whether this one now holds it.

        Args:
            content: what the dead process has left.
        """
        temporary = partial_path(self._path)
        with writing(self._path, temporary):
            try:
                temporary.write_bytes(self._content(beat=0))
                # As late as possible: another process may have replaced it by now.
                if self._read() != content:
                    return False
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        time.sleep(_SETTLE_SECONDS)
        return self._is_own(self._read())

    def _content(self, beat: int) -> bytes:
        # Of one length: no reader finds a mixture that looks whole.
        return json.dumps(self._owner | {"beat": f"{beat:010d}"}).encode() + b"\n"

    def _read(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self._path.read_bytes()

    def _is_own(self, content: bytes | None) -> bool:
        return content is not None and self._owner["token"].encode() in content

    def _keep(self) -> None:
        """Rewrites the file until `release`; ends the process if the lock is lost."""
        beat, last = 0, time.monotonic()
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                with self._path.open("r+b") as file:
                    if not self._is_own(content := file.read()):
                        failures.end(
                            WorkdirInUseError(
                                f"--workdir={self._workdir} was taken over by "
                                f"{_describe(content)}"
                            )
                        )
                    file.seek(0)
                    file.write(self._content(beat := beat + 1))
                last = time.monotonic()
            except FileNotFoundError:
                name = self._path if self._workdir.exists() else self._workdir
                failures.end(OutputError(f"{name} was removed while a run used it"))
            except OSError as error:  # the file server may answer again
                if time.monotonic() - last > STALE_LOOKS * _LOOK_SECONDS / 2:
                    failures.end(output_error(self._path, error.errno or errno.EIO))

    def release(self) -> None:
        """Removes the file: the next run can start at once."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_own(self._read()):
                self._path.unlink()


def _describe(content: bytes) -> str:
    """Returns the process that wrote a lock."""
    try:
        return "process {pid} on {host}, since {since}".format(**json.loads(content))
    except (ValueError, TypeError, KeyError):  # being written, or cut off by a kill
        return "an unknown process"


def _is_alive(content: bytes, path: pathlib.Path) -> bool | None:
    """Returns whether the process that wrote a lock is alive; None if not known."""
    try:
        owner = json.loads(content)
        if owner["machine"] is None or owner["machine"] != _machine():
            return None
        started = _start_of(owner["pid"])
        if started != owner["started"] and not (started is None and _is_hidden(owner)):
            return False
        return not _is_copy(owner, path)
    except (ValueError, TypeError, KeyError):
        return None


def _is_hidden(owner: dict) -> bool:
    """Returns whether the system hides a process of another user (hidepid)."""
    try:
        os.kill(owner["pid"], 0)
    except PermissionError:
        return not os.path.exists(f"/proc/{owner['pid']}")
    except OSError:
        pass
    return False


def _is_copy(owner: dict, path: pathlib.Path) -> bool:
    """Returns whether a lock came with a copy of the folder, and is not of this one."""
    try:
        original = pathlib.Path(owner["path"])
        same = original.samefile(path)
        return not same and owner["token"] in original.read_text()
    except OSError:
        return False


def _machine() -> str | None:
    """Returns what the numbers of processes are unique in: a boot and a namespace.

    Containers have namespaces of their own. None if the system does not tell.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """Returns when a process started, in ticks since the boot; None if it has ended.

    It tells a process from later ones of the same number.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name before ")" may contain anything (proc(5)).
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
