"""Reads ahead in processes and threads, and assembles batches.

An element of the data set is what one video contributes to a batch. Workers return
chunks, a few elements of one batch, as whole batches would exceed the memory of a host;
this process copies chunks into batches. The order and content of batches depend neither
on the chunks nor on the number of workers. Only this module and pipeline.py use Grain.
"""

import contextlib
import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from videomae_jax.data.threads import iterate_ahead
from videomae_jax.data.workers import (
    BATCHES_AHEAD,
    COPY_THREADS,
    DEFAULT_WORKERS,
    WorkerConfig,
)
from videomae_jax.errors import WorkerError
from videomae_jax.processes import (
    describe_exit,
    exit_with_parent,
    set_up_worker,
    signals_blocked,
)

# Open files of this process: per worker (pipes and chunks; 14 were counted), and other.
_FILES_PER_WORKER, _OTHER_FILES = 20, 512

# How long to wait for a worker before it is killed, as Grain does.
_JOIN_SECONDS = 25
# How long a worker keeps reading after SIGTERM, unless it is ended before.
_GRACE_SECONDS = 120


class ReadBatch(NamedTuple):
    """A batch as it was read."""

    video: np.ndarray  # [elements, samples, T, H, W, C], an array of its own
    elements: list[dict]  # the other fields of each element
    cpu_seconds: float  # CPU time that reading took


@contextlib.contextmanager
def read_ahead(
    dataset: grain.MapDataset,
    batch_size: int,
    *,
    steps: range | None = None,
    workers: WorkerConfig = DEFAULT_WORKERS,
) -> Iterator[Iterator[ReadBatch]]:
    """Starts the workers, yields the batches, and stops the workers at the end.

    Args:
        dataset: elements with "video", [samples, T, H, W, C], and small fields.
        batch_size: elements of a batch.
        steps: indices of the batches to read; None for all.
        workers: the processes and threads that read.
    """
    chunks = _Chunks(dataset, batch_size, workers.chunk_size)
    if steps is not None:
        per_batch = chunks.per_batch
        chunks = chunks.slice(slice(steps.start * per_batch, steps.stop * per_batch))
    threads = workers.num_threads
    stream = chunks.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers.num_workers:
        # Grain reads an absl flag here, which absl refuses before main() has run.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        _raise_file_limit(_OTHER_FILES + workers.num_workers * _FILES_PER_WORKER)
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers.num_workers),
            worker_init_fn=_start_worker,
        )
    with contextlib.ExitStack() as stack:
        # SIGTERM too, until a worker has its handler.
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            iterator = iter(stream)
            stack.callback(_wait_for_shared_memory)
            stack.callback(iterator.close)
            batches = stack.enter_context(
                iterate_ahead(
                    [_assemble_batches(iterator, batch_size)],
                    size=BATCHES_AHEAD,
                    join_seconds=_JOIN_SECONDS,
                )
            )
        try:
            yield batches
        except RuntimeError as error:
            # Grain's error when a worker has ended: it was killed, or could not import
            # the main module of this program.
            ended = re.fullmatch(r"Worker process .* exit code (-?\d+)\..*", str(error))
            if ended is None:
                raise
            raise WorkerError(
                f"a worker process {describe_exit(int(ended[1]))}. Its own error, if "
                "it had one, is in the lines above; if memory ran out, lower "
                "config.data.num_workers"
            ) from error


class _Chunks(grain.MapDataset):
    """The elements of a batch that one thread reads; the last chunk may be shorter."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, chunk_size: int):
        super().__init__(parent)
        self._batch_size, self._chunk_size = batch_size, min(chunk_size, batch_size)
        self.per_batch = -(-batch_size // self._chunk_size)

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self.per_batch

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = time.thread_time()
        step, chunk = divmod(index, self.per_batch)
        first = chunk * self._chunk_size
        count = min(self._chunk_size, self._batch_size - first)
        video, elements = None, []
        for i in range(count):
            element = dict(self._parent[step * self._batch_size + first + i])
            clips = element.pop("video")
            if video is None:
                video = np.empty((count, *clips.shape), clips.dtype)
            video[i] = clips
            elements.append(element)
        seconds = time.thread_time() - start
        return {"video": video, "elements": elements, "cpu_seconds": seconds}


def _assemble_batches(chunks: Iterator[dict], batch_size: int) -> Iterator[ReadBatch]:
    """Copies the chunks of each batch into one array.

    The array is always a new one: JAX may use it in place for as long as it likes.
    """
    with futures.ThreadPoolExecutor(COPY_THREADS) as threads:
        video, elements, seconds, copies = None, [], 0.0, []
        for chunk in chunks:
            if video is None:
                # No name for the chunk's array: it would keep shared memory alive.
                shape, dtype = chunk["video"].shape, chunk["video"].dtype
                video = np.empty((batch_size, *shape[1:]), dtype)
            start = len(elements)
            elements += chunk["elements"]
            # pop(): shared memory is released when nobody holds it.
            target = video[start : len(elements)]
            copies.append(threads.submit(np.copyto, target, chunk.pop("video")))
            if len(copies) == COPY_THREADS:
                copies.pop(0).result()
            seconds += chunk["cpu_seconds"]
            if len(elements) == batch_size:
                for copy in copies:
                    copy.result()
                yield ReadBatch(video, elements, seconds)
                video, elements, seconds, copies = None, [], 0.0, []


def _wait_for_shared_memory() -> None:
    """Waits for Grain's thread that releases shared memory.

    If this process ended before, Python would release the rest, but print warnings.
    """
    pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)  # an empty task; the pool has one thread, so it runs last


def _raise_file_limit(count: int) -> None:
    """Lets this process open `count` files; a common default is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < count:
        limit = count if hard == unlimited else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _start_worker(*_: int) -> None:
    # Ctrl-C and the SIGTERM of a cluster are for the parent, which needs data until it
    # has saved. Some clusters send SIGTERM to every process.
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    exit_with_parent()
    set_up_worker()
