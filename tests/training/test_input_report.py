"""The rates of reading and training in the log, and the advice."""

import logging
import re
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
    arrays = {"patches": np.zeros((clips, 1, 3), np.uint8)}
    return Batch(arrays, ["a"] * clips, {}, [], cpu_seconds)


def report(video=SHARDED, workers=15, model_on_cpu=False, **fields):
    config = common.pretrain()
    config.data.update(fields)
    plan = WorkerPlan(WorkerConfig(workers, 2, 4), 15, 16, 0, 0)
    return InputReport(config.data, plan, videos=[video], model_on_cpu=model_on_cpu)


def take_steps(inputs, count, seconds=0.05, **kwargs):
    def train_step(state, arrays, key):
        time.sleep(seconds)
        return state + 1, {"loss": state}

    state = jnp.zeros(())
    for _ in range(count):
        inputs.before_step(batch(**kwargs), (state, {}))
        state, metrics = train_step(state, {}, jax.random.key(0))
        inputs.after_step(state)
    assert state == count and metrics["loss"] == count - 1


def test_rates_are_logged_once_both_are_known(log):
    inputs = report()
    take_steps(inputs, 2)
    assert log() == []
    take_steps(inputs, 3)
    (line,) = log()
    match = re.fullmatch(
        r"input: read=300 clips/s train=(\S+) clips/s cpu_per_clip=50 ms "
        r"\(15 workers with 2 threads\)",
        line,
    )
    # 8 clips in 0.05 s, or longer if the machine is busy.
    assert 0 < float(match[1]) <= 160


def test_only_one_step_is_waited_for(monkeypatch):
    waits = []
    wait = jax.block_until_ready
    monkeypatch.setattr(
        input_report.jax, "block_until_ready", lambda x: waits.append(1) or wait(x)
    )
    take_steps(report(), 9, seconds=0)
    assert len(waits) == 2  # before it and after it


def test_rates_on_shared_cores_and_of_several_processes(log, monkeypatch):
    take_steps(report(workers=0, model_on_cpu=True), 3)
    assert log()[-1].startswith("input: read=40 clips/s with all cores train=")
    assert log()[-1].endswith("(2 threads of this process)")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    take_steps(report(), 3)
    assert log()[-1].startswith("input of this process: read=300 clips/s train=")


def test_unmeasured_rates_are_not_logged(log):
    take_steps(report(), 3, cpu_seconds=0.0)
    assert log() == []


def advice(log, inputs, cpu_seconds=100.0):
    for _ in range(input_report.TRIAL_STEPS):
        inputs.before_step(batch(cpu_seconds=0.0), ())
        inputs.advise(10.0, 0.5)  # ignored
    inputs.before_step(batch(cpu_seconds=cpu_seconds), ())
    inputs.advise(10.0, 0.1)  # not too much
    inputs.before_step(batch(cpu_seconds=cpu_seconds), ())
    assert log() == []
    inputs.advise(10.0, 0.347)
    inputs.advise(10.0, 0.9)  # advice was given already
    (line,) = log()
    assert line.startswith("data_wait=35%: ")
    return line


def test_a_trial_gets_no_advice(log):
    inputs = report()
    for _ in range(input_report.TRIAL_STEPS):
        inputs.before_step(batch(), ())
        inputs.advise(10.0, 0.9)
    assert log() == []


def test_advice_to_use_all_cores(log):
    line = advice(log, report(FILE, workers=4, num_workers=4))
    assert "config.data.num_workers=4: there are cores for 15 workers" in line


def test_advice_to_allow_more_memory(log):
    line = advice(log, report(FILE, workers=4))
    assert "memory limits reading to 4 workers" in line and "memory_gb" in line


@pytest.mark.parametrize("video", [FILE, SHARDED_IMAGES], ids=["file", "images"])
@pytest.mark.parametrize("model_on_cpu", [False, True])
def test_advice_to_prepare(log, model_on_cpu, video):
    workers = 0 if model_on_cpu else 15
    inputs = report(video, workers, model_on_cpu=model_on_cpu)
    assert "`python -m videomae_jax prepare`" in advice(log, inputs)


def test_advice_if_workers_wait_for_files(log):
    line = advice(log, report(), cpu_seconds=60.0)  # of the 150 that 15 workers had
    assert "computed for only 40% of the time" in line and "faster disk" in line


def test_advice_to_cut_several_clips(log):
    assert "config.data.num_samples to 2 or 4" in advice(log, report())


def test_last_advice(log):
    line = advice(log, report(num_samples=2))
    assert "more cores" in line and "--short-side" in line


@pytest.mark.slow
def test_a_run_logs_its_workers_and_rates(folder, tmp_path, log):
    config = tiny(folder, **{"steps": 4})
    config.data.num_workers = None
    loop.train_and_evaluate(config, str(tmp_path))
    (workers,) = [line for line in log() if line.startswith("workers: ")]
    assert workers.startswith("workers: num_workers=0 num_threads=2 chunk_size=4 ")
    assert workers.endswith("(the model runs on the CPU)")
    (rates,) = [line for line in log() if line.startswith("input: ")]
    assert re.search("read=.* clips/s with all cores train=.* clips/s", rates)
