"""What a run says of its input: rates that were measured, advice that fits."""

import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests.training import test_loop
from tests.training.test_loop import tiny
from videomae_jax.data import resources
from videomae_jax.data.pipeline import Batch
from videomae_jax.data.resources import Resources
from videomae_jax.data.workers import WorkerConfig
from videomae_jax.distributed import sharding
from videomae_jax.training import input_report, loop
from videomae_jax.training import workers as readers
from videomae_jax.training.input_report import InputReport
from videomae_jax.video.record import Record

one_device = test_loop.one_device
folder = test_loop.folder
FILE = Record("a.mp4", "a")
SHARDED = Record("a.array_record", "a", position=0)
SHARDED_IMAGES = Record("a.array_record", "a", position=0, feature="video")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "videomae_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def batch(clips=8, cpu_seconds=0.4):
    arrays = {"video": np.zeros((clips, 1, 1, 1, 3), np.uint8)}
    return Batch(arrays, ["a"] * clips, [], cpu_seconds)


def report(video=SHARDED, workers=15, on_cores=False, **fields):
    config = common.pretrain()
    config.data.update(fields)
    chosen = WorkerConfig(workers, 2, 4, 15, 16, 0, 0)
    return InputReport(config.data, chosen, [video], on_cores)


def take_steps(inputs, count, seconds=0.05, **kwargs):
    def train_step(state, arrays, key):
        time.sleep(seconds)
        return state + 1, {"loss": state}

    state = jnp.zeros(())
    for _ in range(count):
        inputs.add(batch(**kwargs))
        state, metrics = inputs.step(train_step, state, {}, jax.random.key(0))
    assert state == count and metrics["loss"] == count - 1


def test_rates_are_told_once_both_are_known(log):
    inputs = report()
    take_steps(inputs, 2)
    assert log() == []
    take_steps(inputs, 3)
    (line,) = log()
    given, taken = line.split("; ")
    assert given == (
        "input: 15 workers with 2 threads can give about 300 clips/s (50 ms of CPU a "
        "clip)"
    )
    # 8 clips in 0.05 s, or more where the machine is busy.
    assert taken.startswith("the model takes about ") and taken.endswith(" clips/s")
    assert 0 < float(taken.split()[-2]) <= 160


def test_only_one_step_is_waited_for(monkeypatch):
    waits = []
    wait = jax.block_until_ready
    monkeypatch.setattr(
        input_report.jax, "block_until_ready", lambda x: waits.append(1) or wait(x)
    )
    take_steps(report(), 9, seconds=0)
    assert len(waits) == 2  # before it and after it


def test_rates_on_shared_cores_and_several_hosts(log, monkeypatch):
    take_steps(report(workers=0, on_cores=True), 3)
    given, taken = log()[-1].split("; ")
    assert "2 threads of this process can give about 40 clips/s" in given
    assert given.endswith(" on cores of their own")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    take_steps(report(), 3)
    assert "15 workers with 2 threads of this host can give about" in log()[-1]
    assert log()[-1].endswith(" clips/s of this host")


def test_what_was_not_measured_is_not_told(log):
    take_steps(report(), 3, cpu_seconds=0.0)
    assert log() == []


def advice(log, inputs, cpu_seconds=100.0):
    inputs.advise(10.0, 0.5)  # passed over
    inputs.add(batch(cpu_seconds=cpu_seconds))
    inputs.advise(10.0, 0.1)  # not too much
    inputs.add(batch(cpu_seconds=cpu_seconds))
    assert log() == []
    inputs.advise(10.0, 0.347)
    inputs.advise(10.0, 0.9)  # told already
    (line,) = log()
    assert line.startswith("the devices waited for data for 35 % of the time: ")
    return line


def test_advice_to_use_all_cores(log):
    line = advice(log, report(FILE, workers=4, num_workers=4))
    assert "config.data.num_workers is 4, but there are cores for 15" in line


def test_advice_to_give_memory(log):
    line = advice(log, report(FILE, workers=4))
    assert "memory limits the readers to 4 workers" in line and "memory_gb" in line


@pytest.mark.parametrize("video", [FILE, SHARDED_IMAGES], ids=["file", "images"])
@pytest.mark.parametrize("on_cores", [False, True])
def test_advice_to_prepare(log, on_cores, video):
    inputs = report(video, workers=0 if on_cores else 15, on_cores=on_cores)
    assert "`python -m videomae_jax prepare`" in advice(log, inputs)


def test_advice_where_readers_wait_themselves(log):
    line = advice(log, report(), cpu_seconds=60.0)  # of the 150 that 15 workers had
    assert "computed in only 40% of theirs" in line and "faster disk" in line


def test_advice_to_cut_several_clips(log):
    assert "config.data.num_samples to 2 or 4" in advice(log, report())


def test_last_advice(log):
    line = advice(log, report(num_samples=2))
    assert "more cores" in line and "--short-side" in line


def test_a_run_tells_its_readers_and_rates(folder, tmp_path, log):
    config = tiny(folder, **{"steps": 4})
    config.data.num_workers = None
    loop.train_and_evaluate(config, str(tmp_path))
    (reading,) = [line for line in log() if line.startswith("reading: ")]
    assert reading.startswith("reading: 2 threads of this process, 4 video(s) at a ")
    assert reading.endswith("(the cores compute)")
    (rates,) = [line for line in log() if line.startswith("input: ")]
    assert "clips/s (" in rates and "the model takes about" in rates


@pytest.fixture
def machine(monkeypatch):
    """16 cores and 10 GB."""
    found = Resources(16, 10 * 10**9, 5 * 10**9)
    monkeypatch.setattr(resources, "measure", lambda: found)


class Mesh:
    """As of two accelerators."""

    def __init__(self):
        self.devices = np.array([self, self])

    platform = "tpu"


def choose(**fields):
    config = common.pretrain()
    config.data.update(fields)
    return readers.choose_workers(config.data, 1, 32, 1000, 1000, Mesh())


def test_choice_is_told_with_its_reason(machine, log):
    assert choose().num_workers == 11
    assert log()[-1] == (
        "reading: 11 workers with 1 thread, 1 video(s) at a time, at most about 2.4 GB "
        "(for 16 core(s) it would be 15 workers with 2 threads, but of memory there "
        "are 2.5 GB, of /dev/shm 5 GB)"
    )
    choose(memory_gb=60.0)
    assert log()[-1].endswith("(for 16 core(s))")
    choose(num_workers=3)
    assert log()[-1].endswith("(config.data.num_workers)")


def test_too_much_for_the_memory_is_a_warning(machine, log, caplog):
    assert choose(num_workers=100).chunk_size == 1
    assert "more than the 2.5 GB it may have" in log()[-1]
    assert caplog.records[-1].levelno == logging.WARNING


def test_too_much_for_shared_memory_is_a_warning(log, caplog, monkeypatch):
    little = Resources(16, 60 * 10**9, 64 << 20)
    monkeypatch.setattr(resources, "measure", lambda: little)
    choose(num_workers=8)
    assert "but /dev/shm has 0.067 GB" in log()[-1] and "--shm-size" in log()[-1]
    assert caplog.records[-1].levelno == logging.WARNING


def test_processes_of_a_host_share_it(machine, monkeypatch):
    """Four with all of its cores in common, and one on another host."""
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(
        readers.multihost_utils,
        "process_allgather",
        lambda mine: np.stack([mine] * 4 + [mine + 1]),
    )
    readers._processes_here.cache_clear()
    assert choose().num_workers == 2 and choose().cores == 4
    readers._processes_here.cache_clear()


def test_cpu_devices_are_cores():
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    config = common.pretrain()
    chosen = readers.choose_workers(config.data, 1, 32, 1000, 1000, mesh)
    assert chosen.num_workers == 0 and chosen.num_threads == 2
