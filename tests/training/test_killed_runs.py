"""Runs in processes of their own, killed at any moment and started again."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.helpers.videos import write_folder
from tests.training.test_loop import metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 12)


# Runs main.py until it has read so many batches to evaluate.
KILLED_IN_EVALUATION = """
import os, runpy, signal
from videomae_jax.data import pipeline
left, to_views = [int(os.environ["BATCHES"])], pipeline._to_views
def count(batch):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_views(batch)
pipeline._to_views = count
runpy.run_path("main.py", run_name="__main__")
"""


@contextlib.contextmanager
def running(recipe, workdir, *flags, program=("main.py",)):
    command = [
        sys.executable,
        *program,
        *recipe,
        f"--workdir={workdir}",
        "--config.data.num_frames=4",
        "--config.data.stride=2",
        "--config.data.image_size=32",
        "--config.model.width=24",
        "--config.model.depth=1",
        "--config.batch_size=4",
        "--config.steps=60",
        "--config.checkpoint.every=7",
        *flags,
    ]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as process,
    ):

        def read_log():
            # From its start, without moving the place where the process writes.
            return os.pread(log.fileno(), 10**6, 0).decode()

        try:
            yield process, read_log
        finally:
            process.kill()


def kill(recipe, workdir, lines):
    """Starts a run and kills it some time after so many lines of metrics."""
    with running(recipe, workdir) as (process, read_log):
        file = workdir / "metrics.jsonl"
        wait_until(
            lambda: file.exists() and len(file.read_text().splitlines()) >= lines,
            process,
            read_log,
        )
        time.sleep(0.1 * lines)  # at no particular place
        process.kill()


def kill_in_evaluation(recipe, workdir, batches, monkeypatch):
    """Starts a run and kills it when it has read so many batches to evaluate."""
    monkeypatch.setenv("BATCHES", str(batches))
    program = ("-c", KILLED_IN_EVALUATION)
    with running(recipe, workdir, program=program) as (process, read_log):
        assert process.wait(timeout=300) == -signal.SIGKILL, read_log()


def finish(recipe, workdir):
    with running(recipe, workdir) as (process, read_log):
        assert process.wait(timeout=300) == 0, read_log()
        return read_log()


def wait_until(condition, process, read_log):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, read_log()[
            -2000:
        ]
        time.sleep(0.01)


def assert_same_run(workdir, other):
    assert metrics(workdir) == metrics(other)
    tests = [folder / "test" / "predictions.jsonl" for folder in (workdir, other)]
    if tests[0].exists() or tests[1].exists():  # of the averaged parameters
        assert tests[0].read_bytes() == tests[1].read_bytes()


# Nearly all time goes into starting processes: 12 s of a core each.


def test_a_pretraining_that_is_killed_again_and_again(folder, tmp_path):
    recipe = [
        "--config=configs/k400_vits_pretrain.py:debug",
        f"--config.data.train={folder}",
        "--config.mask.ratio=0.75",
        "--config.picture.every=0",
    ]
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    finish(recipe, whole)
    kill(recipe, workdir, lines=1)  # before its first checkpoint
    kill(recipe, workdir, lines=4)

    # SIGTERM loses no step, though nothing else would save any more.
    never = "--config.checkpoint.every=1000"
    with running(recipe, workdir, never) as (process, read_log):
        # Metrics of the processes before are there already.
        wait_until(lambda: " loss=" in read_log(), process, read_log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143, read_log()
        log = read_log()
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved >= metrics(workdir)[-1]["step"]
    assert f"saved step {saved}" in log
    assert f"at step={saved}" in finish(recipe, workdir)
    assert_same_run(workdir, whole)


def test_ctrl_c_of_a_terminal(folder, tmp_path):
    """It reaches all processes of the run."""
    recipe = [
        "--config=configs/k400_vits_pretrain.py:debug",
        f"--config.data.train={folder}",
        "--config.mask.ratio=0.75",
        "--config.data.num_workers=2",
    ]
    with running(recipe, tmp_path, "--config.steps=100000") as (process, read_log):
        wait_until(lambda: " loss=" in read_log(), process, read_log)
        children = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in [process.pid, *" ".join(x.read_text() for x in children).split()]:
            os.kill(int(pid), signal.SIGINT)
        assert process.wait(timeout=120) == 143, read_log()
        log = read_log()
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"saved step {saved}" in log and "press Ctrl-C again" in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def finetuned(folder, tmp_path_factory):
    """The flags of a fine-tuning, and the folder of a run that nobody disturbed."""
    videos = folder / "labelled.txt"
    videos.write_text("".join(f"{i}.mp4 {i % 3}\n" for i in range(12)))
    recipe = [
        "--config=configs/k400_vits_finetune.py:debug",
        *(f"--config.data.{x}={videos}" for x in ("train", "validation", "test")),
        "--config.data.labels=",
        "--config.data.num_workers=0",
        "--config.init.source=",
        "--config.model.position_size=32",
        "--config.ema.decay=0.9",
        "--config.evaluation.every=30",
    ]
    whole = tmp_path_factory.mktemp("finetuned") / "whole"
    finish(recipe, whole)
    return recipe, whole


def test_a_finetuning_that_is_killed_in_its_evaluations(
    finetuned, tmp_path, monkeypatch
):
    """It resumes with its averages; an evaluation is repeated."""
    recipe, whole = finetuned
    workdir = tmp_path / "killed"
    # Six batches each: the validations after steps 30 and 60, and the test.
    kill_in_evaluation(recipe, workdir, 3, monkeypatch)
    assert metrics(workdir)[-1]["step"] == 30
    kill_in_evaluation(recipe, workdir, 15, monkeypatch)
    assert not (workdir / "test").exists()
    assert "at step=60" in finish(recipe, workdir)
    assert_same_run(workdir, whole)


def test_a_test_that_is_killed(finetuned, tmp_path, monkeypatch):
    """config.mode=eval leaves nothing, and the next start all of the results."""
    recipe, whole = finetuned
    recipe = [*recipe, "--config.mode=eval"]
    workdir = shutil.copytree(whole, tmp_path / "killed")
    shutil.rmtree(workdir / "test")
    kill_in_evaluation(recipe, workdir, 3, monkeypatch)
    assert not (workdir / "test").exists()
    finish(recipe, workdir)
    results = [
        {file.name: file.read_bytes() for file in (run / "test").iterdir()}
        for run in (workdir, whole)
    ]
    assert results[0] == results[1] and "metrics.json" in results[0]
