"""When one process of a run fails, all end with its exit code."""

import logging
import os
import time

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
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    return codes


ERRORS = [
    (CompleteRunError("complete with other settings"), 2, False),
    (ConfigError("config.batch_size=3 must be 4\nand more"), 1, True),
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
    assert caplog.messages[-1] == own and failed.endswith(f"\nexit_code={code}\n")


def test_half_a_report_is_not_taken_for_the_whole(two_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(failures, "_POLL_SECONDS", 0.01)
    (tmp_path / "last_error.txt").write_text("process 0 of 2 failed: two lines\n")
    watch = failures._Watch(tmp_path)
    time.sleep(0.1)
    assert watch._thread.is_alive() and not two_processes
    watch.close()


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
