"""Resources of a process, within the limits of its control groups."""

import os

import pytest

from videomae_jax import processes
from videomae_jax.processes import Resources

GB = 10**9


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder of 16 cores and 60 GB, to write control groups into."""
    monkeypatch.setattr(processes, "available_cores", lambda: set(range(16)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "dev/shm").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal: 64000000 kB\nMemFree: 1000 kB\nMemAvailable: 60000000 kB\n"
    )

    def write(groups="", **files):
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name.replace("__", "/")
            path = path.parent / path.name.replace("-", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return processes.available_resources(str(tmp_path))

    return write


def test_all_of_the_machine_without_limits(machine):
    assert machine().cores == 16 and machine().memory == 60_000_000 * 1024


def test_systems_without_proc(tmp_path, monkeypatch):
    """macOS has no /proc, and does not report free memory."""
    monkeypatch.delitem(os.sysconf_names, "SC_AVPHYS_PAGES", raising=False)
    resources = processes.available_resources(str(tmp_path))
    assert resources.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert resources.cores >= 1 and resources.shared_memory == resources.memory


def test_limits_of_cgroup_version_2(machine):
    resources = machine(
        "0::/job/step\n",
        **{
            "job__step__cpu-max": "max 100000\n",
            "job__cpu-max": "350000 100000\n",
            "job__step__memory-max": f"{8 * GB}\n",
            "job__step__memory-current": f"{5 * GB}\n",
            "job__step__memory-stat": f"anon 7\ninactive_file {2 * GB}\n",
            "job__memory-max": "max\n",
        },
    )
    assert resources.cores == 3 and resources.memory == 5 * GB
    assert resources.shared_memory <= resources.memory


def test_limits_of_cgroup_version_1_in_a_container(machine):
    """The path is the host's; what is mounted is the container's own group."""
    resources = machine(
        "5:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n1:name=systemd:/x\n0::/\n",
        **{
            "cpu__cpu-cfs_quota_us": "-1\n",
            "cpu__docker__cpu-cfs_quota_us": "50000\n",
            "memory__memory-limit_in_bytes": f"{4 * GB}\n",
            "memory__memory-usage_in_bytes": f"{GB}\n",
        },
    )
    assert resources.cores == 16 and resources.memory == 3 * GB


def test_processes_share_a_machine():
    whole = Resources(96, 400 * GB, 200 * GB)
    assert whole.share(8, 8) == Resources(12, 50 * GB, 25 * GB)
    assert Resources(4, GB, GB).share(8, 1) == Resources(1, GB, GB)


def test_resources_of_this_machine():
    resources = processes.available_resources()
    assert resources.cores >= 1 and 0 <= resources.shared_memory <= resources.memory > 0
