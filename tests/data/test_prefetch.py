"""Parts of batches: in order, copied once, and nothing left behind, however it ends."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest

from tests.helpers.videos import write_folder
from videomae_jax.data import pipeline, prefetch, sources
from videomae_jax.data.clips import PretrainingClips

ROOT = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path("/dev/shm")


class Numbers(grain.MapDataset):
    """Rows whose video is their number."""

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        if index == 77:
            raise ValueError("row 77")
        return {"video": np.full((2, 1, 1, 1, 3), index, np.uint8), "number": index}


def read(batch_rows, steps, workers=0, threads=2, rows=4):
    with prefetch.read_ahead(
        Numbers(), batch_rows, steps, workers, threads, rows
    ) as batches:
        return list(batches)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 6, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_of_any_size_give_the_same_batches(rows, threads):
    found = read(5, range(2, 9), threads=threads, rows=rows)
    assert len(found) == 7
    for step, (video, others, seconds) in enumerate(found, start=2):
        wanted = np.arange(5 * step, 5 * step + 5)
        assert [row["number"] for row in others] == wanted.tolist()
        assert video.shape == (5, 2, 1, 1, 1, 3) and video.dtype == np.uint8
        assert (video == wanted[:, None, None, None, None, None]).all()
        assert seconds >= 0


def test_parts_of_workers_are_put_in_order():
    found = read(5, range(9), workers=3, rows=2)
    numbers = [row["number"] for _, others, _ in found for row in others]
    assert numbers == list(range(45))
    assert [video[:, 0, 0, 0, 0, 0].tolist() for video, _, _ in found] == [
        list(range(5 * step, 5 * step + 5)) for step in range(9)
    ]


def test_batches_have_memory_of_their_own():
    """JAX may use an array in place; it must not change afterwards."""
    found = [video for video, _, _ in read(4, range(8))]
    assert not any(
        np.shares_memory(a, b) for i, a in enumerate(found) for b in found[:i]
    )


def test_no_more_than_one_batch_is_put_together_ahead():
    taken = []

    def batches():
        for i in range(9):
            taken.append(i)
            yield i

    with prefetch._one_ahead(batches()) as ahead:
        for i in range(4):
            assert next(ahead) == i
            deadline = time.monotonic() + 30
            while taken[-1] <= i and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # in which it might go on
            assert taken[-1] == i + 1


def test_workers_outlive_a_warning_to_all():
    """The parent saves first; it needs more data until all hosts have agreed to."""
    with prefetch.read_ahead(Numbers(), 1, range(70), 2, 1, 1) as batches:
        for step in range(4):  # both have begun
            assert next(batches)[1][0]["number"] == step
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        time.sleep(2)  # Grain would notice
        assert [rows[0]["number"] for _, rows, _ in batches] == list(range(4, 70))
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_readers_come_at_their_batch(workers):
    with prefetch.read_ahead(Numbers(), 4, range(99), workers, 1, 4) as batches:
        for step in range(19):
            assert next(batches)[1][0]["number"] == 4 * step
        with pytest.raises(ValueError, match="row 77"):
            next(batches)


def test_threads_end_with_the_block():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        with prefetch.read_ahead(Numbers(), 4, range(99), 0, 2, 4) as batches:
            next(batches)
            raise KeyboardInterrupt
    wait_until(lambda: threading.active_count() <= before)


def test_open_files_are_allowed(monkeypatch):
    limits = []
    monkeypatch.setattr(
        prefetch.resource, "setrlimit", lambda _, new: limits.append(new)
    )
    for now in ((1024, 4096), (1024, 2000), (8192, 8192), (1024, -1), (-1, -1)):
        monkeypatch.setattr(prefetch.resource, "getrlimit", lambda _, now=now: now)
        prefetch._allow_files(3000)
    assert limits == [(3000, 4096), (2000, 2000), (3000, -1)]


SCRIPT = """
import os, signal, sys, time
from multiprocessing import shared_memory
from videomae_jax.data import pipeline, records
from videomae_jax.data.clips import PretrainingClips

shared_memory._SHM_NAME_PREFIX = sys.argv[3]  # also in the workers

if __name__ == "__main__":
    how, folder = sys.argv[1:3]
    if how == "terminated":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    clips = PretrainingClips(4, 2, 32, (1, 0.5), 0.5, 1)
    with pipeline.batches(
        records.load(folder), clips, 8, 0, range(10**6), 2, 2, 2
    ) as batches:
        for step, batch in enumerate(batches):
            if step == 5:
                print("running", flush=True)
                if how == "ends":
                    break
                if how == "fails":
                    raise RuntimeError("on purpose")
                time.sleep(60)  # readers fill what they can
"""


def children_of(parent):
    """Ids of the processes that any thread of `parent` started."""
    files = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


@pytest.mark.parametrize(
    "how, send, status",
    [
        ("ends", None, 0),
        ("fails", None, 1),
        ("terminated", signal.SIGTERM, 15),
        ("killed", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(tmp_path, how, send, status):
    """No process, and no shared memory."""
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 4)
    (tmp_path / "script.py").write_text(SCRIPT)
    # Unlike that of other tests at the same time.
    prefix = f"v{os.getpid() % 10**4}{how[:1]}"
    script = [str(tmp_path / "script.py"), how, str(tmp_path / "videos"), f"/{prefix}"]
    with subprocess.Popen(
        [sys.executable, *script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "running\n"
            children = children_of(process.pid)
            if send:
                assert len(children) >= 3  # two workers, and what keeps count of memory
                wait_until(lambda: list(SHARED.glob(f"{prefix}*")))
                process.send_signal(send)
            assert process.wait(timeout=60) == status
        finally:
            process.kill()
        wait_until(
            lambda: (
                not (list(SHARED.glob(f"{prefix}*")) or any(map(is_alive, children)))
            )
        )
        if how == "ends":
            assert process.stderr.read() == ""


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_clips_cost_time_on_a_core(tmp_path):
    videos = sources.load(str(write_folder(tmp_path, 4)))
    clips = PretrainingClips(4, 2, 32, (1, 0.5), 0.5, 1)
    for workers in (0, 1):
        with pipeline.batches(videos, clips, 4, 0, range(2), workers) as batches:
            for batch in batches:
                assert 1e-4 < batch.cpu_seconds < 5
