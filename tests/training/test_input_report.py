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
from videomae_jax.data.pipeline import Batch
from videomae_jax.data.workers import WorkerConfig, WorkerPlan
from videomae_jax.training import input_report, loop
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
    plan = WorkerPlan(WorkerConfig(workers, 2, 4), 15, 16, 0, 0)
    return InputReport(config.data, plan, [video], on_cores)


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
    assert "memory limits reading to 4 workers" in line and "memory_gb" in line


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


def test_a_run_logs_its_workers_and_rates(folder, tmp_path, log):
    config = tiny(folder, **{"steps": 4})
    config.data.num_workers = None
    loop.train_and_evaluate(config, str(tmp_path))
    (workers,) = [line for line in log() if line.startswith("workers: ")]
    assert workers.startswith("workers: num_workers=0 num_threads=2 chunk_size=4 ")
    assert workers.endswith("(the model runs on the CPU)")
    (rates,) = [line for line in log() if line.startswith("input: ")]
    assert "clips/s (" in rates and "the model takes about" in rates
