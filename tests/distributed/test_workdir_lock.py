"""One run at a time writes to a work directory."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import pytest

from videomae_jax.distributed import failures, workdir_lock
from videomae_jax.distributed.workdir_lock import one_writer
from videomae_jax.errors import OutputError, WorkdirInUseError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(workdir_lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(workdir_lock, "STALE_LOOKS", 15)
    monkeypatch.setattr(workdir_lock, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workdir_lock, "_SETTLE_SECONDS", 0.3)


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    """Collects errors in place of ending this process."""
    errors = []

    def end(error):
        errors.append(error)
        raise Ended

    monkeypatch.setattr(failures, "end", end)
    monkeypatch.setattr(workdir_lock.threading, "excepthook", lambda _: None)
    return errors


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def dead_process():
    """Returns the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lock(workdir, **values):
    """Writes the lock of another process; returns its content."""
    with one_writer(workdir):
        row = json.loads((workdir / "run.lock").read_text())
    row |= {"token": "another", "host": "elsewhere"} | values
    (workdir / "run.lock").write_text(json.dumps(row) + "\n")
    return row


def test_a_second_run_is_refused_in_one_sentence(tmp_path):
    with one_writer(tmp_path):
        start = time.monotonic()
        with pytest.raises(WorkdirInUseError) as caught, one_writer(tmp_path):
            pass
        assert time.monotonic() - start < 1  # it is of this machine: no need to wait
    message = str(caught.value)
    assert f"--workdir={tmp_path} is used by process {os.getpid()} on " in message
    assert "since 20" in message and "\n" not in message
    assert caught.value.exit_code == 1  # so that clusters start it again
    assert not list(tmp_path.iterdir())
    with one_writer(tmp_path):
        pass


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path):
    write_lock(tmp_path, pid=dead_process())
    start = time.monotonic()
    with one_writer(tmp_path):
        assert time.monotonic() - start < 1
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_zombie_is_dead(tmp_path):
    """As the parent of a killed run may not have asked for its exit code yet."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: workdir_lock._start_of(process.pid) is None)
    write_lock(tmp_path, pid=process.pid)
    with one_writer(tmp_path):
        pass
    process.wait()


def test_a_process_that_is_hidden_is_alive(tmp_path, monkeypatch):
    """/proc with hidepid does not show those of other users."""

    def refuse(pid, signal):
        raise PermissionError

    write_lock(tmp_path, pid=dead_process())
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(WorkdirInUseError), one_writer(tmp_path):
        pass


def test_a_later_process_of_the_same_number_is_another(tmp_path):
    write_lock(tmp_path, started="1")
    with one_writer(tmp_path):
        pass


@pytest.mark.parametrize("content", [None, b"", b'{"host": "cut o'])
def test_a_silent_lock_of_another_machine_is_replaced_after_a_while(
    tmp_path, caplog, monkeypatch, content
):
    """Container restarts have other process numbers; a kill may leave half a file."""
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    caplog.set_level("INFO", "videomae_jax")
    write_lock(tmp_path, machine="another")
    if content is not None:
        (tmp_path / "run.lock").write_bytes(content)
    start = time.monotonic()
    with one_writer(tmp_path):
        assert 1.5 < time.monotonic() - start < 10
    owner = "elsewhere" if content is None else "an unknown process"
    assert owner in caplog.messages[0] and "waiting" in caplog.messages[0]
    assert caplog.records[0].levelname == "INFO"  # warnings may be held back


@contextlib.contextmanager
def another_machine(workdir, *, beats):
    """Another machine holds the lock, gives signs of life, and releases it."""
    row = write_lock(workdir, machine="another", beat="0")
    stop = threading.Event()

    def beat():
        for i in range(beats):
            if stop.wait(0.3):
                return
            with (workdir / "run.lock").open("r+") as file:  # never empty
                file.write(json.dumps(row | {"beat": str(i)}))
            os.utime(workdir / "run.lock", (0, 0))
        (workdir / "run.lock").unlink()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_another_machine_that_writes_is_alive(tmp_path):
    """Whatever the time stamps of the file say."""
    with another_machine(tmp_path, beats=100):
        with pytest.raises(WorkdirInUseError, match="elsewhere"), one_writer(tmp_path):
            pass


def test_a_machine_that_is_about_to_end_is_waited_for(tmp_path):
    """After a preemption, the old process may outlive the start of the new one."""
    with another_machine(tmp_path, beats=4), one_writer(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_copy_of_a_work_directory_is_free(tmp_path):
    """A copy of a running one has its lock."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    with one_writer(original):
        shutil.copytree(original, copy)
        with one_writer(copy):
            pass
        link = tmp_path / "link"
        link.symlink_to(original)
        with pytest.raises(WorkdirInUseError), one_writer(link):
            pass


def test_a_lock_that_was_replaced_meanwhile_is_left(tmp_path, monkeypatch):
    """However long the disk takes to write the new one."""
    dead = json.dumps(write_lock(tmp_path, pid=dead_process())) + "\n"
    content = workdir_lock._Lock._content

    def slow(self, beat):
        (tmp_path / "run.lock").write_text(dead.replace("another", "the other winner"))
        return content(self, beat)

    lock = workdir_lock._Lock.__new__(workdir_lock._Lock)
    lock._path, lock._owner = tmp_path / "run.lock", {"token": "mine"}
    monkeypatch.setattr(workdir_lock._Lock, "_content", slow)
    assert not lock._replace(dead.encode())
    assert "the other winner" in (tmp_path / "run.lock").read_text()
    assert len(list(tmp_path.iterdir())) == 1


def compete(workdir, start, results):
    """Runs in a process: takes the lock, if it can, and holds it for a second."""
    workdir_lock._SETTLE_SECONDS = 0.3
    start.wait()
    try:
        with one_writer(pathlib.Path(workdir)):
            results.put("won")
            time.sleep(1)
    except WorkdirInUseError:
        results.put("refused")


@pytest.mark.slow
def test_of_several_starts_one_wins(tmp_path):
    """The lock does not exist, or a dead process has left it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for i in range(4):
        workdir = tmp_path / str(i)
        workdir.mkdir()
        if i % 2:
            write_lock(workdir, pid=dead_process())
        start, results = context.Barrier(4), context.Queue()
        processes = [
            context.Process(target=compete, args=(str(workdir), start, results))
            for _ in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(results.get() for _ in processes) == ["refused"] * 3 + ["won"]


@pytest.mark.parametrize(
    "lose, reason",
    [
        (lambda x: (x / "run.lock").unlink(), "run.lock was removed while"),
        (lambda x: x.rename(x.with_name("moved")), "/run was removed while"),
        (lambda x: write_over(x), "was taken over by process 7 on elsewhere"),
    ],
)
def test_a_run_that_loses_its_lock_ends(tmp_path, ended, lose, reason):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with one_writer(workdir):
        lose(workdir)
        wait_until(lambda: ended)
    assert reason in str(ended[0])
    # The lock of the other run stays.
    assert "taken" not in reason or (workdir / "run.lock").exists()


def write_over(workdir):
    row = json.loads((workdir / "run.lock").read_text())
    row |= {"token": "another", "host": "elsewhere", "pid": 7}
    temporary = workdir / "temporary"
    temporary.write_text(json.dumps(row))
    temporary.replace(workdir / "run.lock")


def test_a_lock_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    def full(self, beat):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(workdir_lock._Lock, "_content", full)
    with pytest.raises(OutputError, match="no space left on device"):
        with one_writer(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
