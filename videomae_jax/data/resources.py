"""What this process may use of its machine: cores, memory, shared memory.

A container or a job of a cluster has fewer than the machine shows, by affinity or by
quotas of its control group (cgroup version 1 or 2); the least of all is what counts.
"""

import dataclasses
import os
import pathlib

_UNLIMITED = 1 << 60  # version 1 writes a number near 2**63 for "no limit"


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a process may use.

    Attributes:
        cores: how many it can keep busy at once, at least 1.
        memory: bytes that can be had before something has to give.
        shared_memory: bytes of it that processes can share (/dev/shm).
    """

    cores: int
    memory: int
    shared_memory: int

    def share(self, cores_among: int, memory_among: int) -> "Resources":
        """The part of one of several processes that use the same machine."""
        return Resources(
            max(self.cores // cores_among, 1),
            self.memory // memory_among,
            self.shared_memory // memory_among,
        )


def measure(root: str = "/") -> Resources:
    """Looks at what this process may use now.

    Args:
        root: where /proc, /sys and /dev are.
    """
    root = pathlib.Path(root)
    cores, memory = len(affinity()), _available(root)
    for kind, folder in _control_groups(root):
        if kind in ("cpu", "v2"):
            cores = min(cores, _quota(folder))
        if kind in ("memory", "v2"):
            memory = min(memory, _room(folder))
    try:
        disk = os.statvfs(root / "dev/shm")
        shared = disk.f_bavail * disk.f_frsize
    except OSError:
        shared = memory  # no Linux, where shared memory is no folder
    return Resources(max(int(cores), 1), max(memory, 0), min(shared, memory))


def affinity() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _control_groups(root: pathlib.Path):
    """("cpu", "memory" or "v2", folder) of each group that this process is in.

    The limit of every group on the way to the root holds. In a container the path is
    often the host's, and the container's own group is mounted as the root.
    """
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = [name for name in controllers.split(",") if name in ("cpu", "memory")]
        mounts = [(name, base / name) for name in names]
        if not controllers:
            mounts = [("v2", base), ("v2", base / "unified")]
        for kind, mount in mounts:
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield kind, folder


def _quota(folder: pathlib.Path) -> float:
    """Cores of a group's quota, infinity without one."""
    words = _text(folder / "cpu.max").split()  # version 2: "max 100000"
    if not words:
        words = [_text(folder / f"cpu.cfs_{x}_us").strip() for x in ("quota", "period")]
    if len(words) < 2 or not words[0].isdigit() or not words[1].isdigit():
        return float("inf")  # no such file, "max", or version 1's -1
    return int(words[0]) / int(words[1])


def _room(folder: pathlib.Path) -> int:
    """Bytes that a group may still take."""
    for limit, used, caches in (
        ("memory.max", "memory.current", ("inactive_file",)),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file",)),
    ):
        most = _text(folder / limit).strip()
        if most.isdigit() and int(most) < _UNLIMITED:
            now = int(_text(folder / used).strip() or 0)
            # Files that were read stay in memory only as long as nobody needs it.
            stat = dict(x.split() for x in _text(folder / "memory.stat").splitlines())
            return int(most) - now + sum(int(stat.get(name, 0)) for name in caches)
    return _UNLIMITED


def _available(root: pathlib.Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # No Linux: macOS does not tell what is free.
    name = "SC_AVPHYS_PAGES"
    pages = os.sysconf(name if name in os.sysconf_names else "SC_PHYS_PAGES")
    return os.sysconf("SC_PAGE_SIZE") * pages


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
