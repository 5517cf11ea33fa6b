"""From records to batches of uint8 clips; nothing else knows Grain.

Randomness and order are functions of (seed, position in the stream) alone: everything
random happens before the stream is split over hosts and workers, so that any number of
them gives the same global batches, and resuming at a step is a slice.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from videomae_jax.data import augmentation, sampling
from videomae_jax.data.decoding import Video, VideoError
from videomae_jax.data.records import Record

# Reads one opened video with the given randomness: uint8 [samples, T, H, W, 3].
ReadClips = Callable[[Video, np.random.Generator], np.ndarray]

# A stream where so many draws in a row fail holds hardly a readable video.
MAX_DRAWS = 50


class NoReadableVideoError(RuntimeError):
    """Draw after draw could not be read; the message names the last ones."""


@dataclasses.dataclass(frozen=True)
class PretrainingClips:
    """Reads a video for pretraining: one decode, several crops (VideoMAE V2, 3.3).

    Attributes:
        num_frames: frames of a clip; stride: frames between two of them.
        size: height and width of the crops in pixels.
        scales: crop sizes relative to the shorter side.
        flip: probability of a horizontal flip.
        num_samples: clips cut from the same decoded frames.
    """

    num_frames: int
    stride: int
    size: int
    scales: tuple[float, ...]
    flip: float
    num_samples: int

    def __call__(self, video: Video, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [num_samples, T, size, size, 3]."""
        indices = sampling.sample_pretrain(
            rng, video.num_frames, self.num_frames, self.stride
        )
        frames = video.read(indices)
        shape = (self.num_samples, self.num_frames, self.size, self.size, 3)
        clips = np.empty(shape, np.uint8)
        for clip in clips:
            crop = augmentation.multi_scale_crop(rng, frames, self.size, self.scales)
            clip[:] = augmentation.horizontal_flip(rng, crop, self.flip)
        return clips


@dataclasses.dataclass(frozen=True)
class CenterClips:
    """Reads the clip in the middle of a video, without randomness.

    Attributes:
        num_frames: frames of a clip; stride: frames between two of them.
        size: height and width of the central crop in pixels.
    """

    num_frames: int
    stride: int
    size: int

    def __call__(self, video: Video, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [1, T, size, size, 3]."""
        span = self.num_frames * self.stride
        start = max(video.num_frames - span, 0) // 2
        indices = sampling.pretrain_indices(
            video.num_frames, self.num_frames, self.stride, start
        )
        return augmentation.center_crop(video.read(indices), self.size)[None]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's part of a global batch.

    Attributes:
        arrays: "video" uint8 [clips, T, H, W, 3]; the samples of a video are adjacent.
        ids: the records' ids, one for each clip.
        bad: the records that could not be read and were replaced, with the reason.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    bad: list[tuple[Record, str]]


@contextlib.contextmanager
def batches(
    records: Sequence[Record],
    read_clips: ReadClips,
    batch_size: int,
    seed: int,
    steps: range,
    num_workers: int = 0,
    num_threads: int = 2,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Iterator[Batch]]:
    """Opens the stream of training batches, reshuffled every epoch.

    Args:
        records: the videos.
        read_clips: what to take from each video; sent to the workers.
        batch_size: videos of a global batch.
        seed: of the order and of all randomness in `read_clips`.
        steps: which batches of the endless stream to give.
        num_workers: processes that read; 0 reads in threads of this process.
        num_threads: threads that read, in each worker.
        process: (index, count) of this host among the hosts that share the batch;
            it gets the index-th contiguous part of every global batch.

    Yields:
        An iterator over the Batch of each step.

    Raises:
        ValueError: if the batch does not divide over the hosts.
        NoReadableVideoError: from the iterator, if nearly nothing can be read.
    """
    index, count = process
    if batch_size % count:
        raise ValueError(
            f"config.batch_size {batch_size} does not divide over {count} hosts"
        )
    local = batch_size // count
    stream = (
        grain.MapDataset.range(len(records))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_ReadRecord(list(records), read_clips))
    )
    stream = (
        _HostRows(stream, batch_size, index * local, local)
        .batch(local, batch_fn=_collate)[steps.start : steps.stop]
        .to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2)
        )
    )
    if num_workers:
        # Grain reads an absl flag here, and absl refuses before main() has run.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_start_worker,
        )
    iterator = iter(stream)
    try:
        yield _with_records(iterator, records)
    finally:
        iterator.close()


def read_all(
    records: Sequence[Record], read_clips: ReadClips, count: int
) -> tuple[np.ndarray, list[str]]:
    """Reads clips of the first `count` readable videos, in this process.

    Returns:
        uint8 [n, T, H, W, 3] and the n records' ids, n <= count.
    """
    clips, ids = [], []
    for record in records:
        if len(ids) == count:
            break
        with contextlib.suppress(VideoError), Video(record.path) as video:
            clips.append(read_clips(video, np.random.default_rng(0))[0])
            ids.append(record.id)
    return np.stack(clips) if clips else np.empty(0, np.uint8), ids


@dataclasses.dataclass
class _ReadRecord(grain.transforms.RandomMap):
    """Reads the record at an index, or a substitute drawn from the same randomness."""

    records: list[Record]
    read_clips: ReadClips

    def random_map(self, index: int, rng: np.random.Generator) -> dict:
        bad = []
        for _ in range(MAX_DRAWS):
            try:
                with Video(self.records[index].path) as video:
                    clips = self.read_clips(video, rng)
                return {"video": clips, "record": index, "bad": bad}
            except VideoError as error:
                bad.append((int(index), str(error)))
            index = int(rng.integers(len(self.records)))
        reasons = dict(bad)
        raise NoReadableVideoError(
            f"{MAX_DRAWS} videos drawn in a row could not be read:\n"
            + "\n".join(f"  {reason}" for reason in list(reasons.values())[:10])
        )


class _HostRows(grain.MapDataset):
    """The rows of every global batch that belong to one host."""

    def __init__(self, parent, batch_size: int, first: int, rows: int):
        super().__init__(parent)
        self._sizes = (batch_size, first, rows)

    def __len__(self) -> int:
        batch_size, _, rows = self._sizes
        return len(self._parent) // batch_size * rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch_size, first, rows = self._sizes
        step, row = divmod(index, rows)
        return self._parent[step * batch_size + first + row]


def _collate(elements: Sequence[dict]) -> dict:
    samples = len(elements[0]["video"])
    return {
        "video": np.concatenate([element["video"] for element in elements]),
        "record": np.repeat([element["record"] for element in elements], samples),
        "bad": [bad for element in elements for bad in element["bad"]],
    }


def _with_records(
    elements: Iterator[dict], records: Sequence[Record]
) -> Iterator[Batch]:
    for element in elements:
        # Popped: arrays from workers lie in shared memory until nobody holds them.
        yield Batch(
            ids=[records[index].id for index in element.pop("record")],
            bad=[(records[index], reason) for index, reason in element.pop("bad")],
            arrays={"video": element.pop("video")},
        )


def _start_worker(worker: int, count: int) -> None:
    del worker, count
    # Ctrl-C and a cluster's warning are for the parent, which needs its data until it
    # has saved.
    os.setpgrp()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
