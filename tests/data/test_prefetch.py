"""Chunks of batches: in order, copied once, and nothing is left behind at the end."""

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
from videomae_jax.data import pipeline, prefetch, sources, threads
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.data.workers import WorkerConfig
from videomae_jax.errors import WorkerError
from videomae_jax.models import vit

ROOT = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path("/dev/shm")


class Numbers(grain.MapDataset):
    """Elements whose video is their number."""

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        if index == 77:
            raise ValueError("element 77")
        return {"video": np.full((2, 1, 1, 1, 3), index, np.uint8), "number": index}


def read(batch_size, steps, num_workers=0, num_threads=2, chunk_size=4):
    workers = WorkerConfig(num_workers, num_threads, chunk_size)
    with prefetch.read_ahead(
        Numbers(), batch_size, patch_shape=(1, 1), steps=steps, workers=workers
    ) as batches:
        return list(batches)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 5, 6, 100])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_chunks_of_any_size_give_the_same_batches(chunk_size, num_threads):
    batches = read(5, range(2, 9), num_threads=num_threads, chunk_size=chunk_size)
    assert len(batches) == 7
    for step, (patches, elements, seconds) in enumerate(batches, start=2):
        expected = np.arange(5 * step, 5 * step + 5)
        assert [element["number"] for element in elements] == expected.tolist()
        assert patches.shape == (5, 2, 1, 3) and patches.dtype == np.uint8
        assert (patches == expected[:, None, None, None]).all()
        assert seconds >= 0


def test_chunks_of_workers_are_put_in_order():
    batches = read(5, range(9), num_workers=3, chunk_size=2)
    numbers = [element["number"] for batch in batches for element in batch.elements]
    assert numbers == list(range(45))
    assert [batch.patches[:, 0, 0, 0].tolist() for batch in batches] == [
        list(range(5 * step, 5 * step + 5)) for step in range(9)
    ]


def test_batches_have_memory_of_their_own():
    """JAX may use an array in place; it must not change afterwards."""
    arrays = [batch.patches for batch in read(4, range(8))]
    assert not any(
        np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i]
    )


class Clips(grain.MapDataset):
    """Elements with the clips of a list."""

    def __init__(self, clips):
        super().__init__()
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return {"video": self.clips[index]}


@pytest.mark.parametrize("channels, dtype", [(3, "u1"), (1, "u1"), (4, "u2")])
@pytest.mark.parametrize("patch_size", [8, 2])
def test_batches_hold_the_patches_of_the_clips(channels, dtype, patch_size):
    rng = np.random.default_rng(0)
    shape = 6, 2, 4, 16, 24, channels
    clips = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    # Views that are not contiguous, too.
    for elements in (clips, clips[:, :, :, :, ::-1]):
        with prefetch.read_ahead(
            Clips(list(elements)), 3, patch_shape=(2, patch_size)
        ) as batches:
            patches = np.concatenate([batch.patches for batch in batches])
        assert patches.dtype == clips.dtype
        for sample in range(2):
            expected = vit.patchify(elements[:, sample], patch_size, tubelet_size=2)
            np.testing.assert_array_equal(patches[:, sample], expected)


@pytest.mark.slow
def test_workers_survive_sigterm_until_the_parent_is_done():
    """The parent saves first, and needs more data until all hosts have agreed to."""
    workers = WorkerConfig(2, 1, 1)
    with prefetch.read_ahead(
        Numbers(), 1, patch_shape=(1, 1), steps=range(70), workers=workers
    ) as batches:
        for step in range(4):  # both have begun
            assert next(batches).elements[0]["number"] == step
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        time.sleep(2)  # Grain would notice
        numbers = [batch.elements[0]["number"] for batch in batches]
        assert numbers == list(range(4, 70))
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_are_raised_at_their_batch(num_workers):
    workers = WorkerConfig(num_workers, 1, 4)
    with prefetch.read_ahead(
        Numbers(), 4, patch_shape=(1, 1), steps=range(99), workers=workers
    ) as batches:
        for step in range(19):
            assert next(batches).elements[0]["number"] == 4 * step
        with pytest.raises(ValueError, match="element 77"):
            next(batches)


def test_threads_end_with_the_block():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        with prefetch.read_ahead(
            Numbers(), 4, patch_shape=(1, 1), steps=range(99)
        ) as batches:
            next(batches)
            raise KeyboardInterrupt
    wait_until(lambda: threading.active_count() <= before)


def test_file_limit_is_raised(monkeypatch):
    limits = []
    monkeypatch.setattr(
        prefetch.resource, "setrlimit", lambda _, new: limits.append(new)
    )
    for now in ((1024, 4096), (1024, 2000), (8192, 8192), (1024, -1), (-1, -1)):
        monkeypatch.setattr(prefetch.resource, "getrlimit", lambda _, now=now: now)
        prefetch._raise_file_limit(3000)
    assert limits == [(3000, 4096), (2000, 2000), (3000, -1)]


SCRIPT = """
import os, signal, sys, time
from multiprocessing import shared_memory
from videomae_jax.data import pipeline, sources
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.data.workers import WorkerConfig

shared_memory._SHM_NAME_PREFIX = sys.argv[3]  # also in the workers

if __name__ == "__main__":
    how, folder = sys.argv[1:3]
    if how == "terminated":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    clips = PretrainingClips(4, 2, 32, (1, 0.5), 0.5, 1)
    with pipeline.batches(
        [pipeline.VideoList(sources.load(folder))],
        clips,
        patch_shape=(2, 16),
        batch_size=8,
        seed=0,
        steps=range(10**6),
        workers=WorkerConfig(2, 2, 2),
    ) as batches:
        for step, batch in enumerate(batches):
            if step == 5:
                print("running", flush=True)
                if how == "ends":
                    break
                if how == "fails":
                    raise RuntimeError("on purpose")
                time.sleep(60)  # workers read as far ahead as they can
"""


def children_of(parent):
    """Ids of the processes that any thread of `parent` started."""
    files = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


@pytest.mark.parametrize(
    "how, send, status",
    [
        pytest.param("ends", None, 0, marks=pytest.mark.slow),
        pytest.param("fails", None, 1, marks=pytest.mark.slow),
        pytest.param("terminated", signal.SIGTERM, 15, marks=pytest.mark.slow),
        ("killed", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(tmp_path, how, send, status):
    """Neither a process nor shared memory."""
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 4)
    (tmp_path / "script.py").write_text(SCRIPT)
    # Differs from that of tests that run at the same time.
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
                assert len(children) >= 3  # two workers, and Python's resource tracker
                # Until the workers wait. A kill between the two lines of Python that
                # create and register shared memory leaves it behind.
                wait_until(lambda: stays_the_same(prefix))
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


def stays_the_same(prefix):
    before = set(SHARED.glob(f"{prefix}*"))
    time.sleep(0.5)
    return before and before == set(SHARED.glob(f"{prefix}*"))


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
    for num_workers in (0, 1):
        with pipeline.batches(
            [pipeline.VideoList(videos)],
            clips,
            patch_shape=(2, 16),
            batch_size=4,
            seed=0,
            steps=range(2),
            workers=WorkerConfig(num_workers),
        ) as batches:
            for batch in batches:
                assert 1e-4 < batch.cpu_seconds < 5


class Deadly(Numbers):
    """Sends signals to the processes that read its elements, each once."""

    def __init__(self, folder, signals):
        super().__init__()
        self.folder, self.signals = folder, signals

    def __getitem__(self, index):
        file = self.folder / str(index)
        if index in self.signals and not file.exists():
            file.write_text(f"{os.getpid()} {os.environ['WORKER']}")
            os.kill(os.getpid(), self.signals[index])
        return super().__getitem__(index)


def remember_index(index, count):
    os.environ["WORKER"] = str(index)
    START_WORKER(index, count)


START_WORKER = prefetch._start_worker


@pytest.fixture
def read_numbers(monkeypatch, tmp_path):
    """Returns a function that reads elements in workers that signals are sent to."""
    monkeypatch.setattr(prefetch, "_start_worker", remember_index)

    def read(signals, num_workers):
        workers = WorkerConfig(num_workers, 1, 2)
        numbers = Deadly(tmp_path, signals)
        with prefetch.read_ahead(
            numbers, 2, patch_shape=(1, 1), steps=range(35), workers=workers
        ) as batches:
            for batch in batches:
                yield from (element["number"] for element in batch.elements)

    return read


def test_a_worker_that_is_killed_is_replaced(read_numbers, tmp_path, caplog):
    """Not if it happens again soon: then the run ends, and says which one."""
    numbers = []
    prefetch.log.addHandler(caplog.handler)
    with pytest.raises(WorkerError) as raised:
        for number in read_numbers({10: signal.SIGKILL, 60: signal.SIGSEGV}, 2):
            numbers.append(number)
    prefetch.log.removeHandler(caplog.handler)
    assert numbers == list(range(len(numbers))) and 20 < len(numbers) <= 60
    first, second = ((tmp_path / x).read_text().split()[1] for x in ("10", "60"))
    assert caplog.messages[0].startswith(
        f"worker {first} of 2 was killed by SIGKILL (possibly out of memory); the work"
    )
    assert str(raised.value).startswith(
        f"worker {second} of 2 was killed by SIGSEGV, as one had shortly before. Its "
    )


@pytest.mark.slow
def test_workers_may_be_killed_now_and_then(read_numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "_CHUNKS_BETWEEN_DEATHS", 5)
    numbers = read_numbers({4: signal.SIGKILL, 60: signal.SIGKILL}, 1)
    assert list(numbers) == list(range(70))
    assert {path.name for path in tmp_path.iterdir()} == {"4", "60"}


@pytest.mark.slow
def test_a_worker_that_hangs_is_not_waited_for(read_numbers, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(prefetch, "_END_SECONDS", 1)
    watch, file = prefetch._watch, tmp_path / "10"

    def impatient(_):
        pid = file.read_text().partition(" ")[0] if file.exists() else ""
        if prefetch._state(pid) == "T":
            watch(prefetch._PATIENCE_SECONDS)

    monkeypatch.setattr(prefetch, "_watch", impatient)
    with pytest.raises(WorkerError) as raised:
        list(read_numbers({10: signal.SIGSTOP}, 1))
    pid = file.read_text().split()[0]
    assert f"within 1800 s: worker process {pid} is stopped" in str(raised.value)
    wait_until(lambda: not is_alive(int(pid)))


def test_a_batch_that_takes_long_is_explained(monkeypatch, caplog):
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: prefetch._state(process.pid) == "T")
        monkeypatch.setattr(multiprocessing, "active_children", lambda: [process])
        monkeypatch.setattr(prefetch.log, "parent", None)
        prefetch.log.addHandler(caplog.handler)
        prefetch._watch(60)
        prefetch.log.removeHandler(caplog.handler)
        (message,) = caplog.messages
        stopped = (
            f"worker process {process.pid} is stopped (continue it with kill -CONT)"
        )
        assert message == f"no batch for 60 s: {stopped}"
        with pytest.raises(WorkerError, match=f"within 1800 s: .* {process.pid} is st"):
            prefetch._watch(1800)
        process.kill()
