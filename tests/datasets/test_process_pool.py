"""Whatever a worker process does, every item gets exactly one result."""

import functools
import multiprocessing
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
from unittest import mock

import cv2
import pytest

from videomae_jax.datasets import process_pool
from videomae_jax.datasets.process_pool import TaskFailure, process_map


def _act(item):
    """Misbehaves in a worker as the item says."""
    match item:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit("bye")
        case "memory":
            return bytearray(1 << 60)
        case "lambda":
            return lambda: None
        case "sleep":
            time.sleep(1000)
        case "hold the GIL":  # so that no thread of the process can do anything
            re.match("(a+)+b", "a" * 60)
        case "threads of OpenCV":
            return cv2.getNumThreads()
        case pathlib.Path():
            (item / str(os.getpid())).touch()
            time.sleep(1000)
        case int():
            return item**2
    return None


def test_each_item_is_yielded_once_with_its_outcome():
    crash = "crashes: its process"
    hang = TaskFailure("timeout", "hangs: no result within 3 s")
    expected = {
        "segfault": TaskFailure("crash", f"{crash} was killed by SIGSEGV"),
        "exit": TaskFailure("crash", f"{crash} ended with exit code 3"),
        "sys.exit": TaskFailure("error", "SystemExit: bye"),
        "memory": TaskFailure("error", "MemoryError"),
        "sleep": hang,
        "hold the GIL": hang,
        "threads of OpenCV": 1,  # there are as many processes as cores
        "nothing": None,
    }
    items = ["lambda", *expected, *range(20)]
    results = list(process_map(_act, items, num_workers=2, timeout=3))
    assert sorted(index for index, _ in results) == list(range(len(items)))
    outcomes = {items[index]: outcome for index, outcome in results}
    failure = outcomes.pop("lambda")
    assert failure.kind == "error" and "lambda" in failure.reason
    assert outcomes == expected | {i: i**2 for i in range(20)}


def _die_first(folder: pathlib.Path, item: int) -> int:
    if item == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -item


def test_an_item_whose_process_died_is_retried_once(tmp_path):
    function = functools.partial(_die_first, tmp_path)
    results = process_map(function, range(3), num_workers=1, timeout=60)
    assert list(results) == [(0, 0), (1, -1), (2, -2)]
    assert (tmp_path / "died").exists()


def test_no_items_start_no_process():
    assert list(process_map(_act, [], num_workers=4, timeout=60)) == []
    assert list(process_map(_act, [], num_workers=4, timeout=60, ahead=1)) == []


def _record_start(folder: pathlib.Path, item: int) -> bytes:
    (folder / str(item)).touch()
    if item == 0:
        while len(list(folder.iterdir())) < 4:  # as many as may be started
            time.sleep(0.02)
        time.sleep(0.5)
    if item == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return bytes([item]) * 2_000_000  # more than a pipe holds


def test_results_in_order_with_bounded_read_ahead(tmp_path):
    function = functools.partial(_record_start, tmp_path)
    results = process_map(function, range(16), num_workers=2, timeout=60, ahead=4)
    outcomes = []
    for index, outcome in results:
        started = max(int(path.name) for path in tmp_path.iterdir())
        if index == 0:  # meanwhile each of the two workers has started another item
            assert started < 4 + 2
        outcomes.append(outcome)
    assert outcomes.pop(5).kind == "crash"
    assert outcomes == [bytes([i]) * 2_000_000 for i in range(16) if i != 5]


def test_a_process_that_stops_in_the_middle_of_a_result_is_killed(monkeypatch):
    monkeypatch.setattr(process_pool, "_EXIT_SECONDS", 0.2)
    worker = object.__new__(process_pool._Worker)
    worker.pipe, child_pipe = multiprocessing.Pipe()
    os.write(child_pipe.fileno(), struct.pack("!i", 1000) + b"the beginning")
    worker._process = mock.Mock(kill=child_pipe.close)
    worker._set_timeout(0.1)
    hang = TaskFailure("timeout", "hangs: no result within 0.1 s")
    assert worker.receive() == hang
    worker.pipe.close()


class _ExitsOnUnpickling:
    def __reduce__(self):
        return os._exit, (5,)


def test_processes_that_do_not_start():
    function = functools.partial(_act, _ExitsOnUnpickling())
    with pytest.raises(RuntimeError, match="do not start: .* exit code 5"):
        list(process_map(function, range(9), num_workers=1, timeout=60))


def _runs(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie has ended


def _wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_closing_ends_the_processes(tmp_path):
    results = process_map(_act, [1, tmp_path], num_workers=2, timeout=60)
    assert next(results) == (0, 1)
    _wait_until(lambda: list(tmp_path.iterdir()))
    (pid,) = (int(path.name) for path in tmp_path.iterdir())
    assert _runs(pid)
    results.close()
    assert not _runs(pid)


_SCRIPT = """
import pathlib, signal, sys
from tests.datasets.test_process_pool import _act
from videomae_jax.datasets.process_pool import process_map

if __name__ == "__main__":
    # A shell's background jobs, and what they start, ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    items = [pathlib.Path(sys.argv[1])] * 2
    list(process_map(_act, items, num_workers=2, timeout=500))
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path, ending):
    script, folder = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(_SCRIPT)
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, script, folder],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        process_group=0,
    )
    try:
        _wait_until(lambda: len(list(folder.iterdir())) == 2)
        pids = [int(path.name) for path in folder.iterdir()]
        if ending == signal.SIGINT:  # a terminal sends it to all
            os.killpg(parent.pid, ending)
        else:
            parent.send_signal(ending)
        _, errors = parent.communicate(timeout=30)
        assert parent.returncode == -ending
        _wait_until(lambda: not any(map(_runs, pids)))
        # The workers print no traceback of their own.
        tracebacks = errors.count("Traceback")
        assert tracebacks == (ending == signal.SIGINT), errors
    finally:
        parent.kill()
        parent.wait()
        parent.stderr.close()
