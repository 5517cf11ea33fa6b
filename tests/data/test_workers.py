"""How many readers there are: within what a machine has, whatever it has."""

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomae_jax.data import resources
from videomae_jax.data import workers as readers
from videomae_jax.data.resources import Resources
from videomae_jax.data.workers import Task, WorkerConfig

GB = 10**9
CLIP = 16 * 224 * 224 * 3

tasks = st.builds(
    Task,
    row_bytes=st.integers(1, 40 * CLIP),
    batch_rows=st.integers(1, 512),
    rows=st.integers(1, 10**7),
    records=st.integers(1, 300_000),
    on_cores=st.booleans(),
)
machines = st.builds(
    Resources,
    cores=st.integers(1, 256),
    memory=st.integers(0, 500 * GB),
    shared_memory=st.integers(0, 250 * GB),
)
workers = st.none() | st.integers(0, 100)
threads = st.none() | st.integers(1, 16)
gigabytes = st.none() | st.floats(0.001, 500)


@given(tasks, machines, gigabytes)
def test_choice_is_within_its_budget_or_the_least_there_is(task, machine, memory_gb):
    chosen = readers.choose(task, machine, memory_gb=memory_gb)
    total = memory_gb * 1e9 if memory_gb else machine.memory / 2
    assert chosen.budget == pytest.approx(total / 2, abs=1)
    needs = readers.bytes_needed(
        task, chosen.num_workers, chosen.num_threads, chosen.chunk_size
    )
    assert chosen.needs == needs
    least = (chosen.num_workers, chosen.num_threads, chosen.chunk_size) == (0, 1, 1)
    assert needs <= chosen.budget or least
    shared = readers.shared_bytes(task, chosen.num_workers, chosen.chunk_size)
    assert shared <= 0.9 * machine.shared_memory


@given(tasks, machines, workers, threads, gigabytes)
def test_somebody_reads_and_what_was_said_holds(
    task, machine, num_workers, num_threads, memory_gb
):
    chosen = readers.choose(task, machine, num_workers, num_threads, memory_gb)
    assert chosen.num_threads >= 1 and 1 <= chosen.chunk_size <= task.batch_rows
    assert 1 <= chosen.parallel <= machine.cores
    if num_workers is not None:
        assert chosen.num_workers == num_workers
    elif task.on_cores:
        assert chosen.num_workers == 0
    else:
        assert chosen.num_workers <= min(machine.cores, task.rows)
    if num_threads is not None:
        assert chosen.num_threads == num_threads


@given(tasks, machines, st.integers(0, 100), st.integers(0, 500 * GB))
def test_more_of_anything_never_means_fewer_workers(task, machine, cores, memory):
    chosen = readers.choose(task, machine)
    for more in (
        {"cores": machine.cores + cores},
        {"memory": machine.memory + memory},
        {"shared_memory": machine.shared_memory + memory},
    ):
        other = readers.choose(task, dataclasses.replace(machine, **more))
        assert other.num_workers >= chosen.num_workers


def choose(batch, cores, gigabytes, clips=1, **kwargs):
    machine = Resources(cores, int(gigabytes * GB), int(gigabytes * GB / 2))
    task = Task(clips * CLIP, batch, 10**6, 240_000)
    return readers.choose(task, machine, **kwargs)


@pytest.mark.parametrize(
    "chosen, wanted",
    [
        # A TPU host: whole batches of 256 in each of 90 workers would take 380 GB.
        (choose(256, 96, 330), (90, 2, 3)),
        (choose(32, 96, 330, clips=15), (90, 2, 1)),
        (choose(32, 16, 60), (15, 2, 3)),
        (choose(16, 2, 12), (1, 2, 6)),
        (choose(16, 2, 12, num_workers=0), (0, 2, 6)),
        # What memory does to 16 cores.
        (choose(256, 16, 60, memory_gb=8), (4, 2, 3)),
        (choose(32, 16, 4), (2, 2, 1)),
        (choose(32, 16, 0.1), (0, 1, 1)),
    ],
)
def test_choices_for_machines(chosen, wanted):
    assert tuple(chosen.arguments.values()) == wanted


def test_little_shared_memory_is_enough_for_threads():
    """Docker's containers have 64 MB of it."""
    task = Task(CLIP, 32, 10**6, 1000)
    chosen = readers.choose(task, Resources(16, 60 * GB, 64 << 20))
    assert tuple(chosen.arguments.values()) == (5, 2, 1)
    chosen = readers.choose(task, Resources(16, 60 * GB, 0))
    assert tuple(chosen.arguments.values()) == (0, 8, 4)


@pytest.mark.parametrize(
    "wrong", [{"num_workers": -1}, {"num_threads": 0}, {"memory_gb": 0.0}]
)
def test_numbers_that_are_too_small_are_refused(wrong):
    with pytest.raises(ValueError, match=f"config.data.{next(iter(wrong))}"):
        choose(8, 2, 12, **wrong)


def test_readers_describe_themselves():
    assert (
        WorkerConfig(15, 2, 6, 15, 16, 0, 0).describe() == "15 workers with 2 threads"
    )
    assert WorkerConfig(1, 1, 6, 15, 16, 0, 0).describe() == "1 worker with 1 thread"
    assert WorkerConfig(0, 2, 6, 15, 16, 0, 0).describe() == "2 threads of this process"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder of 16 cores and 60 GB, to write control groups into."""
    monkeypatch.setattr(resources, "affinity", lambda: set(range(16)))
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
        return resources.measure(str(tmp_path))

    return write


def test_without_limits_the_whole_machine_counts(machine):
    assert machine().cores == 16 and machine().memory == 60_000_000 * 1024


def test_other_systems_tell_less(tmp_path, monkeypatch):
    """macOS has no /proc, and does not say what memory is free."""
    monkeypatch.delitem(os.sysconf_names, "SC_AVPHYS_PAGES", raising=False)
    found = resources.measure(str(tmp_path))
    assert found.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.cores >= 1 and found.shared_memory == found.memory


def test_limits_of_cgroup_version_2(machine):
    found = machine(
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
    assert found.cores == 3 and found.memory == 5 * GB
    assert found.shared_memory <= found.memory


def test_limits_of_cgroup_version_1_in_a_container(machine):
    """The path is the host's; what is mounted is the container's own group."""
    found = machine(
        "5:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n1:name=systemd:/x\n0::/\n",
        **{
            "cpu__cpu-cfs_quota_us": "-1\n",
            "cpu__docker__cpu-cfs_quota_us": "50000\n",
            "memory__memory-limit_in_bytes": f"{4 * GB}\n",
            "memory__memory-usage_in_bytes": f"{GB}\n",
        },
    )
    assert found.cores == 16 and found.memory == 3 * GB


def test_a_machine_is_shared_out():
    whole = Resources(96, 400 * GB, 200 * GB)
    assert whole.share(8, 8) == Resources(12, 50 * GB, 25 * GB)
    assert Resources(4, GB, GB).share(8, 1) == Resources(1, GB, GB)


def test_this_machine_can_be_measured():
    found = resources.measure()
    assert found.cores >= 1 and 0 <= found.shared_memory <= found.memory > 0
