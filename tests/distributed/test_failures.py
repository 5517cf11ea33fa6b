"""When one process of a run fails, all end with its exit code."""

import logging
import os
import shutil
import time
import uuid

import jax
import pytest

import main
from configs import custom_finetune
from videomae_jax.distributed import failures, hosts
from videomae_jax.errors import CompleteRunError, ConfigError, RecordError
from videomae_jax.training import loop, reporting


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def two_processes(monkeypatch):
    """The state of process 0 of 2; returns the exit codes of the processes."""
    codes = []

    def end(code):
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gather", lambda value: [value] * 2)
    monkeypatch.setattr(hosts, "names", lambda: ["host-a", "host-b"])
    monkeypatch.setattr(failures, "_FAREWELL_SECONDS", 0)
    monkeypatch.setattr(failures, "_watch", None)  # is set, and restored
    # One run: `gather` would tell process 1 the number that process 0 has chosen.
    number = uuid.uuid4()
    monkeypatch.setattr(failures.uuid, "uuid4", lambda: number)
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    return codes


ERRORS = [
    (CompleteRunError("complete with other settings"), 2, False),
    (ConfigError("config.batch_size=3 must be 4\nand more"), 2, False),
    (RecordError("videos.txt: not found"), 1, False),
    (ZeroDivisionError("a mistake of the code"), 1, True),
]


@pytest.mark.parametrize("error, code, again", ERRORS)
def test_all_processes_end_with_the_exit_code_of_one(
    two_processes, tmp_path, caplog, error, code, again
):
    (tmp_path / "checkpoints" / "16").mkdir(parents=True)
    with pytest.raises(Ended), failures.ending_together(str(tmp_path)):
        raise error
    own = caplog.messages[-1]
    assert own.startswith(
        f"process 0 of 2 (host-a) failed: {type(error).__name__}: {error}\n"
        f"All processes end with exit code {code}."
    )
    assert ("Start the job again: it resumes from step 16." in own) == again
    # Another process reads the file that is left.
    failed = (tmp_path / "last_error.txt").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(failures, "_POLL_SECONDS", 0.01)
        patch.setattr(failures.threading, "excepthook", lambda _: None)
        watch = failures._Watch(tmp_path)
        watch._thread.join(10)
    assert two_processes == [code, code]
    assert caplog.messages[-1] == own
    assert failed.rstrip().splitlines()[-1].startswith(f"exit_code={code} run=")


def test_a_full_disk_does_not_hide_the_error(two_processes, tmp_path):
    """The report is written over a file that has its size already."""
    with pytest.raises(Ended), failures.ending_together(str(tmp_path)):
        size = (tmp_path / "last_error.txt").stat().st_size
        raise RecordError("é" * 10**6)
    assert (tmp_path / "last_error.txt").stat().st_size == size
    assert "failed: RecordError: éé" in (tmp_path / "last_error.txt").read_text()


@pytest.mark.parametrize(
    "report",
    [
        # A second run in the same work directory, started with a mistake.
        "a mistake\nexit_code=2 run=0ther\n",
        # Half of a report.
        "process 0 of 2 failed: two lines\n",
    ],
)
def test_other_reports_are_ignored(two_processes, tmp_path, monkeypatch, report):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(failures, "_POLL_SECONDS", 0.01)
    (tmp_path / "last_error.txt").write_text(report)
    watch = failures._Watch(tmp_path)
    time.sleep(0.1)
    assert watch._thread.is_alive() and not two_processes
    watch.close()


def test_all_end_when_the_work_directory_is_removed(
    two_processes, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(failures, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(failures.threading, "excepthook", lambda _: None)
    watch = failures._Watch(tmp_path / "run")
    (tmp_path / "run").mkdir()
    deadline = time.monotonic() + 10
    while not (tmp_path / "run" / "last_error.txt").exists():
        assert time.monotonic() < deadline
    time.sleep(0.1)
    shutil.rmtree(tmp_path / "run")
    watch._thread.join(10)
    assert two_processes == [1]
    assert "was removed" in caplog.messages[-1]


def test_a_default_that_fails_is_named_by_all_processes(
    two_processes, tmp_path, monkeypatch
):
    def run(config, workdir):
        raise RecordError(f"file or folder not found: {config.data.train!r}")

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(hosts, "initialize", lambda: None)
    monkeypatch.setattr(reporting, "start_log", lambda _: logging.getLogger("run"))
    monkeypatch.setattr(jax.config, "parse_flags_with_absl", lambda: None)
    recipe = "configs/custom_finetune.py"
    with pytest.raises(Ended):
        config = custom_finetune.get_config()
        main.train(config, str(tmp_path), recipe=recipe, verbose=True)
    failed = (tmp_path / "last_error.txt").read_text()
    assert f"This is the default of config.data.train of {recipe}" in failed
