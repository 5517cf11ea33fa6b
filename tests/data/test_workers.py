"""The number of workers: within the limits of the machine, whatever they are."""

import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from videomae_jax import processes
from videomae_jax.data import clips, workers
from videomae_jax.data.workers import WorkerConfig, Workload, plan_workers
from videomae_jax.errors import ConfigError
from videomae_jax.processes import Resources

GB = 10**9
CLIP = 16 * 224 * 224 * 3

workloads = st.builds(
    Workload,
    video_bytes=st.integers(1, 40 * CLIP),
    batch_size=st.integers(1, 512),
    num_videos=st.integers(1, 10**7),
    num_records=st.integers(1, 300_000),
    model_on_cpu=st.booleans(),
)
machines = st.builds(
    Resources,
    cores=st.integers(1, 256),
    memory=st.integers(0, 500 * GB),
    shared_memory=st.integers(0, 250 * GB),
)
counts = st.none() | st.integers(0, 100)
threads = st.none() | st.integers(1, 16)
gigabytes = st.none() | st.floats(0.001, 500)


@given(workloads, machines, gigabytes)
def test_plan_is_within_its_budget_or_the_smallest(workload, machine, memory_gb):
    plan = plan_workers(workload, machine, memory_gb=memory_gb)
    total = memory_gb * 1e9 if memory_gb else machine.memory / 2
    assert plan.bytes_allowed == pytest.approx(total / 2, abs=1)
    needed = workers.bytes_needed(workload, plan.workers)
    assert plan.bytes_needed == needed
    smallest = plan.workers == WorkerConfig(0, 1, 1)
    assert needed <= plan.bytes_allowed or smallest
    shared = workers.shared_bytes(workload, plan.workers)
    assert shared <= 0.9 * machine.shared_memory


@given(workloads, machines, counts, threads, gigabytes)
def test_a_plan_reads_and_keeps_fixed_numbers(
    workload, machine, num_workers, num_threads, memory_gb
):
    plan = plan_workers(
        workload,
        machine,
        num_workers=num_workers,
        num_threads=num_threads,
        memory_gb=memory_gb,
    )
    chosen = plan.workers
    assert chosen.num_threads >= 1 and 1 <= chosen.chunk_size <= workload.batch_size
    assert 1 <= plan.busy_cores <= machine.cores
    if num_workers is not None:
        assert chosen.num_workers == num_workers
    elif workload.model_on_cpu:
        assert chosen.num_workers == 0
    else:
        assert chosen.num_workers <= min(machine.cores, workload.num_videos)
    if num_threads is not None:
        assert chosen.num_threads == num_threads


@given(workloads, machines, st.integers(0, 100), st.integers(0, 500 * GB))
def test_more_resources_never_mean_fewer_workers(workload, machine, cores, memory):
    chosen = plan_workers(workload, machine).workers
    for more in (
        {"cores": machine.cores + cores},
        {"memory": machine.memory + memory},
        {"shared_memory": machine.shared_memory + memory},
    ):
        other = plan_workers(workload, dataclasses.replace(machine, **more)).workers
        assert other.num_workers >= chosen.num_workers


def plan(batch_size, cores, memory, clips=1, **kwargs):
    machine = Resources(cores, int(memory * GB), int(memory * GB / 2))
    workload = Workload(clips * CLIP, batch_size, 10**6, 240_000)
    return plan_workers(workload, machine, **kwargs).workers


@pytest.mark.parametrize(
    "chosen, expected",
    [
        # A TPU host: whole batches of 256 in each of 90 workers would take 380 GB.
        (plan(256, 96, 330), (90, 2, 3)),
        (plan(32, 96, 330, clips=15), (90, 2, 1)),
        (plan(32, 16, 60), (15, 2, 3)),
        (plan(16, 2, 12), (1, 2, 6)),
        (plan(16, 2, 12, num_workers=0), (0, 2, 6)),
        # 16 cores with less and less memory.
        (plan(256, 16, 60, memory_gb=8), (4, 2, 3)),
        (plan(32, 16, 4), (2, 2, 1)),
        (plan(32, 16, 0.1), (0, 1, 1)),
    ],
)
def test_plans_for_machines(chosen, expected):
    assert chosen == WorkerConfig(*expected)


def test_little_shared_memory_is_enough_for_threads():
    """Docker's containers have 64 MB of it."""
    workload = Workload(CLIP, 32, 10**6, 1000)
    plan = plan_workers(workload, Resources(16, 60 * GB, 64 << 20))
    assert plan.workers == WorkerConfig(5, 2, 1)
    plan = plan_workers(workload, Resources(16, 60 * GB, 0))
    assert plan.workers == WorkerConfig(0, 8, 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_workers": -1}, "config.data.num_workers must be at least 0, got -1"),
        ({"num_threads": 0}, "config.data.num_threads must be at least 1, got 0"),
        ({"memory_gb": 0.0}, "config.data.memory_gb must be above 0, got 0"),
    ],
)
def test_numbers_that_are_too_small_are_errors(wrong, message):
    with pytest.raises(ConfigError, match=message):
        plan(8, 2, 12, **wrong)


def test_workers_as_text():
    assert str(WorkerConfig(15, 2, 6)) == "15 workers with 2 threads"
    assert str(WorkerConfig(1, 1, 6)) == "1 worker with 1 thread"
    assert str(WorkerConfig(0, 2, 6)) == "2 threads of this process"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "videomae_jax")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def machine(monkeypatch):
    """16 cores and 10 GB."""
    resources = Resources(16, 10 * GB, 5 * GB)
    monkeypatch.setattr(processes, "available_resources", lambda: resources)


def choose(batch_size=32, model_on_cpu=False, sharing=(1, 1), **fields):
    config = common.pretrain()
    config.data.update(fields)
    return workers.choose_workers(
        config.data,
        clip_bytes=clips.clip_bytes(config),
        clips_per_video=1,
        batch_size=batch_size,
        num_batches=1000,
        num_records=1000,
        model_on_cpu=model_on_cpu,
        sharing=sharing,
    )


def test_the_choice_is_logged_with_its_reason(machine, log):
    assert choose().workers.num_workers == 11
    assert log()[-1] == (
        "workers: num_workers=11 num_threads=1 chunk_size=1 memory_gb=2.4 (16 cores "
        "would allow 15 workers with 2 threads, but memory is limited to 2.5 GB, "
        "/dev/shm to 5 GB)"
    )
    choose(memory_gb=60.0)
    assert log()[-1].endswith("(16 cores)")
    choose(num_workers=3)
    assert log()[-1].endswith("(config.data.num_workers)")


def test_too_little_memory_is_a_warning(machine, log, caplog):
    assert choose(num_workers=100).workers.chunk_size == 1
    assert "but only 2.5 GB are allowed" in log()[-1]
    assert caplog.records[-1].levelno == logging.WARNING


def test_too_little_shared_memory_is_a_warning(log, caplog, monkeypatch):
    little = Resources(16, 60 * GB, 64 << 20)
    monkeypatch.setattr(processes, "available_resources", lambda: little)
    choose(num_workers=8)
    assert "but /dev/shm has 0.067 GB" in log()[-1] and "--shm-size" in log()[-1]
    assert caplog.records[-1].levelno == logging.WARNING


def test_processes_of_a_host_share_its_resources(machine):
    plan = choose(batch_size=7, sharing=(4, 4))
    assert plan.workers.num_workers == 2 and plan.cores == 4


def test_the_model_on_the_cpu_leaves_no_cores_to_workers():
    plan = choose(model_on_cpu=True)
    assert plan.workers.num_workers == 0 and plan.workers.num_threads == 2
