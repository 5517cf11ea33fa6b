"""Processes that read videos: the resources they may use, and their setup.

A container or a cluster job may use less than the machine has. Affinity and the quotas
of control groups (cgroup version 1 or 2) limit it; the lowest limit counts.
"""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

import cv2

# Freed memory that a worker keeps: more than a video's frames and clips usually take.
KEPT_BYTES = 2**27
# Larger blocks are returned all the same; this is the maximum that the C library takes.
_LARGEST_BLOCK = 2**25

# Constants of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# The usual causes of signals that end a process.
_CAUSES = {
    "SIGKILL": " (possibly out of memory)",
    "SIGBUS": " (possibly because /dev/shm is full)",
}

_UNLIMITED = 1 << 60  # cgroup version 1 writes a number near 2**63 for "no limit"


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources that a process may use."""

    cores: int  # that it can keep busy at once, at least 1
    memory: int  # free bytes
    shared_memory: int  # free bytes of /dev/shm, at most `memory`

    def share(self, cores_among: int, memory_among: int) -> "Resources":
        """Returns the share of one process, where several use the same machine."""
        return Resources(
            max(self.cores // cores_among, 1),
            self.memory // memory_among,
            self.shared_memory // memory_among,
        )


def available_resources(root: str = "/") -> Resources:
    """Measures what this process may use now; `root` holds /proc, /sys and /dev."""
    base = pathlib.Path(root)
    cores: float = len(available_cores())
    memory = _free_memory(base)
    for folder in _control_groups(base):
        cores = min(cores, _cpu_quota(folder))
        memory = min(memory, _memory_left(folder))
    try:
        disk = os.statvfs(base / "dev/shm")
        shared_memory = disk.f_bavail * disk.f_frsize
    except OSError:
        shared_memory = memory  # not Linux: shared memory is not a folder
    return Resources(max(int(cores), 1), max(memory, 0), min(shared_memory, memory))


def available_cores() -> set[int]:
    """Returns the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def set_up_worker() -> None:
    """Tunes this process for reading videos, at the expense of other work.

    It reuses KEPT_BYTES of freed memory instead of returning it. Frames and clips are
    blocks of megabytes with short lives. The GNU C library returns such blocks to the
    system when they are freed, and the system then has to map and clear every page
    again. Other C libraries are left as they are.
    """
    # There are as many workers as cores: threads of OpenCV would only contend.
    cv2.setNumThreads(0)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)


@contextlib.contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals in this thread, and in all threads and processes started in it.

    Those inherit the mask for their whole life. A terminal sends Ctrl-C to all
    processes, and each would print a traceback; the one that started them handles it.
    """
    resource_tracker.ensure_running()  # starting it later would reset the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Makes this process of `multiprocessing` end as soon as its parent has ended."""
    parent = multiprocessing.parent_process()

    def watch():
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def describe_exit(exitcode: int | None) -> str:
    """Returns how a process of `multiprocessing` ended, from its exit code."""
    if exitcode is None or exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}{_CAUSES.get(name, '')}"


def _control_groups(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folder of each group of this process.

    The limits of all groups up to the root apply. In a container, the path is often the
    host's, while the container's own group is mounted as the root.
    """
    base = root / "sys/fs/cgroup"
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = [base / name for name in controllers.split(",") if name]
        if not controllers:  # version 2
            mounts = [base, base / "unified"]
        for mount in mounts:
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield folder


def _cpu_quota(folder: pathlib.Path) -> float:
    """Returns the cores of a group's quota, infinity without one."""
    words = _read_text(folder / "cpu.max").split()  # version 2: "max 100000"
    if not words:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [_read_text(folder / name).strip() for name in names]
    if len(words) < 2 or not words[0].isdigit() or not words[1].isdigit():
        return float("inf")  # no such file, "max", or -1 in version 1
    return int(words[0]) / int(words[1])


def _memory_left(folder: pathlib.Path) -> int:
    """Returns the bytes that a group may still allocate."""
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _read_text(folder / limit_name).strip()
        if limit.isdigit() and int(limit) < _UNLIMITED:
            used = int(_read_text(folder / used_name).strip() or 0)
            # The system drops cached files as soon as memory is needed.
            lines = _read_text(folder / "memory.stat").splitlines()
            cached = dict(line.split() for line in lines).get(cache_name, 0)
            return int(limit) - used + int(cached)
    return _UNLIMITED


def _free_memory(root: pathlib.Path) -> int:
    for line in _read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # Not Linux. macOS does not report free memory, only the total.
    name = "SC_AVPHYS_PAGES"
    pages = os.sysconf(name if name in os.sysconf_names else "SC_PHYS_PAGES")
    return os.sysconf("SC_PAGE_SIZE") * pages


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
