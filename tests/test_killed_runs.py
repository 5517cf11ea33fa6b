"""Runs in processes of their own, killed at any moment and started again."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.test_loop import metrics
from tests.videos import write_folder

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 12)


@contextlib.contextmanager
def running(recipe, workdir, *flags):
    command = [
        sys.executable,
        "main.py",
        *recipe,
        f"--workdir={workdir}",
        "--config.data.num_frames=4",
        "--config.data.stride=2",
        "--config.data.image_size=32",
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


def finish(recipe, workdir):
    with running(recipe, workdir) as (process, read_log):
        assert process.wait(timeout=300) == 0, read_log()
        return read_log()


def wait_for_lines(workdir, count, process, read_log):
    file = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline, read_log()[
            -2000:
        ]
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def recipe(request, folder):
    """The flags of a run."""
    if request.param == "pretrain":
        return [
            "--config=configs/k400_vits_pretrain.py:debug",
            f"--config.data.train={folder}",
            "--config.mask.ratio=0.75",
            "--config.picture.every=0",
        ]
    videos = folder / "labelled.txt"
    videos.write_text("".join(f"{i}.mp4 {i % 3}\n" for i in range(12)))
    return [
        "--config=configs/k400_vits_finetune.py:debug",
        *(f"--config.data.{x}={videos}" for x in ("train", "validation", "test")),
        "--config.data.labels=",
        "--config.init.source=",
        "--config.model.position_size=32",
        "--config.ema.decay=0.9",
        "--config.evaluation.every=30",
    ]


@pytest.fixture(scope="module")
def whole_run(recipe, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(recipe, workdir)
    return workdir


def assert_same_run(workdir, other):
    assert metrics(workdir) == metrics(other)
    tests = [folder / "test" / "predictions.jsonl" for folder in (workdir, other)]
    if tests[0].exists() or tests[1].exists():  # of the averaged parameters
        assert tests[0].read_bytes() == tests[1].read_bytes()


def test_sigkill_and_resume_equals_an_undisturbed_run(recipe, whole_run, tmp_path):
    for lines in (1, 4):
        with running(recipe, tmp_path) as (process, read_log):
            wait_for_lines(tmp_path, lines, process, read_log)
            time.sleep(0.1 * lines)  # at no particular place
            process.kill()
    finish(recipe, tmp_path)
    assert_same_run(tmp_path, whole_run)


@pytest.mark.parametrize("recipe", ["pretrain"], indirect=True)
def test_sigterm_loses_no_step(recipe, whole_run, tmp_path):
    never = "--config.checkpoint.every=1000"
    with running(recipe, tmp_path, never) as (process, read_log):
        wait_for_lines(tmp_path, 1, process, read_log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, read_log()
        log = read_log()
    (saved,) = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert saved >= metrics(tmp_path)[-1]["step"]
    assert f"saved step {saved}" in log
    assert f"at step {saved}" in finish(recipe, tmp_path)
    assert_same_run(tmp_path, whole_run)
