"""Reads a stream of rows ahead, in parts of a batch, and puts the batches together.

A row is what one video gives. A worker that made whole batches would hold several, and
with many workers that is more memory than a host has; so a worker's element is a part,
a few rows of one batch, and this process copies the parts into the batch they belong
to. Order and content are those of the rows, whatever the parts and whoever reads them.

This file and pipeline.py are what knows Grain.
"""

import contextlib
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from videomae_jax.processes import exit_with_parent, set_up

# What is kept in memory at the same time, which data/readers.py counts with.
# Parts of each worker, besides one for each of its threads: one that it copies into
# shared memory, its copy, one in the pipe to this process, and here two in line.
CHUNKS_IN_FLIGHT = 5
# Those of them in shared memory: all but the first.
CHUNKS_SHARED = 4
# Threads that copy parts into a batch. One copies about 1,000 clips of 16x224x224 a
# second, of memory that is new to it.
COPYING_THREADS = 4
# A batch that is put together while the caller has the one before.
BATCHES_AHEAD = 1

# Open files of this process for each worker (pipes, parts; 14 were counted) and else.
_FILES_PER_WORKER, _OTHER_FILES = 20, 512

# How long to wait for a reader before it is ended by force; Grain's own patience.
_PATIENCE_SECONDS = 25
# For how long a reader goes on after SIGTERM, should nobody end it before.
_REPRIEVE_SECONDS = 120


@contextlib.contextmanager
def read_ahead(
    rows: grain.MapDataset,
    batch_rows: int,
    steps: range | None,
    num_workers: int,
    num_threads: int,
    chunk_size: int,
) -> Iterator[Iterator[tuple[np.ndarray, list[dict], float]]]:
    """Starts the threads or processes that read, and stops them.

    Args:
        rows: dictionaries with "video", uint8 [samples, T, H, W, 3], and small things.
        batch_rows: rows of a batch.
        steps: which batches to read; None for all.
        num_workers: processes that read; 0 reads in threads of this process.
        num_threads: threads that read, in each worker.
        chunk_size: rows that a thread reads at a time.

    Yields:
        An iterator over the batches: their "video" [rows, samples, T, H, W, 3], in
        memory of its own; the rows without it; and the CPU seconds that reading took.
    """
    parts = _Chunks(rows, batch_rows, chunk_size)
    if steps is not None:
        per_batch = parts.per_batch
        parts = parts[steps.start * per_batch : steps.stop * per_batch]
    stream = parts.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    )
    if num_workers:
        # Grain reads an absl flag here, and absl refuses before main() has run.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        _allow_files(_OTHER_FILES + num_workers * _FILES_PER_WORKER)
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_start_worker,
        )
    iterator = iter(stream)
    try:
        with _one_ahead(_assemble_batches(iterator, batch_rows)) as batches:
            yield batches
    finally:
        iterator.close()
        _finish_freeing()


class _Chunks(grain.MapDataset):
    """Rows of a batch that one thread reads; the last part of a batch may be short."""

    def __init__(self, parent, batch_rows: int, chunk_size: int):
        super().__init__(parent)
        self._batch_rows, self._rows = batch_rows, min(chunk_size, batch_rows)
        self.per_batch = -(-batch_rows // self._rows)

    def __len__(self) -> int:
        return len(self._parent) // self._batch_rows * self.per_batch

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = time.thread_time()
        step, part = divmod(index, self.per_batch)
        first = part * self._rows
        count = min(self._rows, self._batch_rows - first)
        video, rows = None, []
        for i in range(count):
            row = dict(self._parent[step * self._batch_rows + first + i])
            read = row.pop("video")
            if video is None:
                video = np.empty((count, *read.shape), np.uint8)
            video[i] = read
            rows.append(row)
        seconds = time.thread_time() - start
        return {"video": video, "rows": rows, "cpu_seconds": seconds}


def _assemble_batches(
    parts: Iterator[dict], batch_rows: int
) -> Iterator[tuple[np.ndarray, list[dict], float]]:
    """Copies the parts of each batch into one array.

    Always a new one: JAX may use it in place for as long as it likes.
    """
    with futures.ThreadPoolExecutor(COPYING_THREADS) as threads:
        video, rows, seconds, copies = None, [], 0.0, []
        for part in parts:
            if video is None:
                shape = (batch_rows, *part["video"].shape[1:])
                video = np.empty(shape, np.uint8)
            place = video[len(rows) : len(rows) + len(part["rows"])]
            # Popped: shared memory is given back when nobody holds it.
            copies.append(threads.submit(np.copyto, place, part.pop("video")))
            if len(copies) == COPYING_THREADS:
                copies.pop(0).result()
            rows += part["rows"]
            seconds += part["cpu_seconds"]
            if len(rows) == batch_rows:
                for copy in copies:
                    copy.result()
                yield video, rows, seconds
                video, rows, seconds, copies = None, [], 0.0, []


@contextlib.contextmanager
def _one_ahead(batches: Iterator) -> Iterator[Iterator]:
    """Takes one item more than was asked for, in a thread of its own."""
    wanted, ready = threading.Semaphore(), queue.SimpleQueue()
    stopped = threading.Event()

    def work():
        while True:
            wanted.acquire()
            if stopped.is_set():
                return
            try:
                ready.put((next(batches), None))
            except BaseException as error:
                ready.put((None, error))
                return

    def take():
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.release()
            yield batch

    # A daemon: if a reader hangs, the end of this process does not wait for it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        wanted.release()
        thread.join(_PATIENCE_SECONDS)


def _finish_freeing() -> None:
    """Waits for the thread in which Grain frees shared memory.

    The end of this process would cut it short; Python frees the rest, but complains.
    """
    pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)  # nothing; after all else, for it has one thread


def _allow_files(count: int) -> None:
    """Lets this process have so many open files; 1,024 is a common default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < count:
        most = count if hard == unlimited else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _start_worker(worker: int, count: int) -> None:
    del worker, count
    # Ctrl-C and a cluster's warning are for the parent, which needs its data until it
    # has saved. Some send the warning to every process.
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_REPRIEVE_SECONDS))
    exit_with_parent()
    set_up()
