"""Reads ahead in processes and threads, and assembles batches.

An element of the data set is what one video contributes to a batch. Workers return
chunks, a few elements of one batch, as whole batches would exceed the memory of a host;
this process copies chunks into batches. Clips become patches where they are copied into
a chunk: that costs hardly more than the copy, and on a TPU far more. The order and
content of batches depend neither on the chunks nor on the number of workers. Only this
module and pipeline.py use Grain.
"""

import contextlib
import logging
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import threading
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
from videomae_jax.models.sizes import PatchShape
from videomae_jax.processes import (
    describe_exit,
    exit_with_parent,
    set_up_worker,
    signals_blocked,
)

log = logging.getLogger(__name__)

# Open files of this process: per worker (pipes and chunks; 14 were counted), and other.
_FILES_PER_WORKER, _OTHER_FILES = 20, 512

# How long a worker may take to end before it is killed. It may be stopped, or hang.
_END_SECONDS = 10
_JOIN_SECONDS = 25  # of the thread that takes its chunks
# How long a worker keeps reading after SIGTERM, unless it is ended before.
_GRACE_SECONDS = 120
# Chunks per worker that must follow a death before the next one is replaced, too. More
# than CHUNKS_IN_FLIGHT: a video that kills its reader must not do so for ever.
_CHUNKS_BETWEEN_DEATHS = 50
# How long a batch may take. Far more than any does: each worker reads a few chunks.
_PATIENCE_SECONDS = 1800
# States of a process in /proc in which it does not work, and what helps.
_IDLE_STATES = {
    "T": "is stopped (continue it with kill -CONT)",
    "D": "waits for a disk or a network file system",
    "Z": "has ended",
}


class ReadBatch(NamedTuple):
    """A batch as it was read."""

    patches: np.ndarray  # [elements, samples, tokens, values], an array of its own
    elements: list[dict]  # the other fields of each element
    cpu_seconds: float  # CPU time that reading took


@contextlib.contextmanager
def read_ahead(
    dataset: grain.MapDataset,
    batch_size: int,
    *,
    patch_shape: PatchShape,
    steps: range | None = None,
    workers: WorkerConfig = DEFAULT_WORKERS,
) -> Iterator[Iterator[ReadBatch]]:
    """Starts the workers, yields the batches, and stops the workers at the end.

    Args:
        dataset: elements with "video", [samples, T, H, W, C], and small fields.
        batch_size: elements of a batch.
        patch_shape: of the patches into which clips are cut.
        steps: indices of the batches to read; None for all.
        workers: the processes and threads that read.
    """
    chunks = _Chunks(dataset, batch_size, workers.chunk_size, patch_shape)
    if steps is not None:
        per_batch = chunks.per_batch
        chunks = chunks.slice(slice(steps.start * per_batch, steps.stop * per_batch))
    with contextlib.ExitStack() as stack:
        # SIGTERM too, until a worker has its handler.
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            reader = _Reader(chunks, workers)
            stack.callback(_wait_for_shared_memory)
            stack.callback(reader.close)
            batches = stack.enter_context(
                iterate_ahead(
                    [_assemble_batches(reader, batch_size)],
                    size=BATCHES_AHEAD,
                    join_seconds=_JOIN_SECONDS,
                    watch=_watch,
                )
            )
            stack.callback(reader.stop)
        yield batches


class _Reader(Iterator[dict]):
    """Chunks in their order. A worker process that is killed is replaced.

    Its chunks are read again; the others lose what they have read ahead.
    """

    def __init__(self, chunks: grain.MapDataset, workers: WorkerConfig):
        """Starts the workers."""
        self._chunks, self._workers = chunks, workers
        self._first = self._next = 0  # chunk of these workers, and the one to return
        self._has_replaced = self._is_stopping = False
        self._killing = threading.Timer(_END_SECONDS, self._kill)
        self._killing.daemon = True
        if workers.num_workers:
            # Grain reads an absl flag, which absl refuses before main() has run.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            _raise_file_limit(_OTHER_FILES + workers.num_workers * _FILES_PER_WORKER)
        self._iterator = self._start()

    def _start(self) -> grain.DatasetIterator:
        threads = self._workers.num_threads
        stream = self._chunks.slice(slice(self._next, None)).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if self._workers.num_workers:
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers.num_workers),
                worker_init_fn=_start_worker,
            )
        return iter(stream)

    def __next__(self) -> dict:
        """Returns the next chunk.

        Raises:
            WorkerError: a worker has ended by itself, or was killed again.
        """
        while True:
            try:
                chunk = next(self._iterator)
            except RuntimeError as error:
                # Grain's error when a worker has ended: it was killed, or could not
                # import the main module of this program.
                ended = re.fullmatch(
                    r"Worker process .* exit code (-?\d+)\..*", str(error)
                )
                if ended is None:
                    raise
                self._replace(int(ended[1]), error)
            else:
                self._next += 1
                return chunk

    def _replace(self, exitcode: int, error: RuntimeError) -> None:
        read, count = self._next - self._first, self._workers.num_workers
        # Workers take turns.
        death = f"worker {read % count} of {count} {describe_exit(exitcode)}"
        is_repeated = self._has_replaced and read < _CHUNKS_BETWEEN_DEATHS * count
        if exitcode >= 0 or is_repeated or self._is_stopping:
            again = ", as one had shortly before" if is_repeated else ""
            raise WorkerError(
                f"{death}{again}. Its own error, if it had one, is in the lines above; "
                "if memory ran out, lower config.data.num_workers"
            ) from error
        log.warning(
            "%s; the workers start again. If memory ran out, lower "
            "config.data.num_workers",
            death,
        )
        self._iterator.close()
        self._first, self._has_replaced = self._next, True
        self._iterator = self._start()

    def stop(self) -> None:
        """Replaces no worker any more, and kills those that do not end in time."""
        self._is_stopping = True
        self._killing.start()

    def close(self) -> None:
        """Ends the workers."""
        self._iterator.close()
        self._killing.cancel()

    @staticmethod
    def _kill() -> None:
        # Also those of other readers, which replace them: hardly ever, and only one
        # that hangs brings it here.
        for child in multiprocessing.active_children():
            if child.name.startswith("grain-process-prefetch"):
                child.kill()


def _watch(seconds: float) -> None:
    """Warns that a batch takes long; raises WorkerError if it takes too long."""
    reasons = [
        f"worker process {child.pid} {_IDLE_STATES[state]}"
        for child in multiprocessing.active_children()
        if (state := _state(child.pid)) in _IDLE_STATES
    ]
    reason = "; ".join(reasons or ["no process is stopped"])
    if seconds >= _PATIENCE_SECONDS:
        raise WorkerError(f"no batch was read within {seconds:.0f} s: {reason}")
    log.warning("no batch for %.0f s: %s", seconds, reason)


def _state(pid: int | str | None) -> str:
    """Returns the letter of a process's state in Linux; empty if unknown."""
    try:
        return (
            pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        )
    except OSError:
        return ""


class _Chunks(grain.MapDataset):
    """The elements of a batch that one thread reads; the last chunk may be shorter."""

    def __init__(
        self,
        parent: grain.MapDataset,
        batch_size: int,
        chunk_size: int,
        patch_shape: PatchShape,
    ):
        super().__init__(parent)
        self._patch_shape = patch_shape
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
        patches, elements = None, []
        for i in range(count):
            element = dict(self._parent[step * self._batch_size + first + i])
            clips = element.pop("video")
            if patches is None:
                frames, side = self._patch_shape
                values = frames * side**2 * clips.shape[-1]
                tokens = clips[0].size // values
                patches = np.empty((count, len(clips), tokens, values), clips.dtype)
            copy_as_patches(clips, patches[i], self._patch_shape)
            elements.append(element)
        seconds = time.thread_time() - start
        return {"patches": patches, "elements": elements, "cpu_seconds": seconds}


def copy_as_patches(
    clips: np.ndarray, patches: np.ndarray, patch_shape: PatchShape
) -> None:
    """Copies clips [samples, T, H, W, C] into patches [samples, tokens, values].

    Tokens and values are ordered as by `vit.patchify`.
    """
    frames, side = patch_shape
    samples, time, height, width, channels = clips.shape
    t, h, w = time // frames, height // side, width // side
    # A row of pixels in a patch is one item: copying its values would take longer.
    row = np.dtype((np.void, side * channels * clips.itemsize))
    source = np.ascontiguousarray(clips)
    source = source.reshape(samples, t, frames, h, side, w, -1).view(row)
    target = patches.reshape(samples, t, h, w, frames, side, -1).view(row)
    target[...] = source.transpose(0, 1, 3, 5, 2, 4, 6)


def _assemble_batches(chunks: Iterator[dict], batch_size: int) -> Iterator[ReadBatch]:
    """Copies the chunks of each batch into one array.

    The array is always a new one: JAX may use it in place for as long as it likes.
    """
    with futures.ThreadPoolExecutor(COPY_THREADS) as threads:
        patches, elements, seconds, copies = None, [], 0.0, []
        for chunk in chunks:
            if patches is None:
                # No name for the chunk's array: it would keep shared memory alive.
                shape, dtype = chunk["patches"].shape, chunk["patches"].dtype
                patches = np.empty((batch_size, *shape[1:]), dtype)
            start = len(elements)
            elements += chunk["elements"]
            # pop(): shared memory is released when nobody holds it.
            target = patches[start : len(elements)]
            copies.append(threads.submit(np.copyto, target, chunk.pop("patches")))
            if len(copies) == COPY_THREADS:
                copies.pop(0).result()
            seconds += chunk["cpu_seconds"]
            if len(elements) == batch_size:
                for copy in copies:
                    copy.result()
                yield ReadBatch(patches, elements, seconds)
                patches, elements, seconds, copies = None, [], 0.0, []


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
