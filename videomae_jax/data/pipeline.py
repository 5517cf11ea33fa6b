"""From records to batches of uint8 clips; with reading.py, all that knows Grain.

Randomness and order are functions of (seed, position in the stream) alone: everything
random happens before the stream is split over hosts and workers, so that any number of
them gives the same global batches, and resuming at a step is a slice.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from videomae_jax.data import labels
from videomae_jax.data.prefetch import read_ahead
from videomae_jax.errors import NoReadableVideoError, VideoError
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import open_video
from videomae_jax.video.record import LabelKind, Record

# Reads one opened video with the given randomness: uint8 [samples, T, H, W, 3].
ReadClips = Callable[[Video, np.random.Generator], np.ndarray]

# A stream where so many draws in a row fail holds hardly a readable video.
MAX_DRAWS = 50


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's part of a global batch.

    Attributes:
        arrays: "video" uint8 [clips, T, H, W, 3]; the samples of a video are adjacent.
            "label" int32 [clips] or [clips, K], if labels are used: see
            `labels.to_array`.
        ids: the records' ids, one for each clip.
        bad: the records that could not be read and were replaced: which video of the
            global batch they would have been, the record, and the reason.
        cpu_seconds: what reading it took of the readers' time on a core.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    bad: list[tuple[int, Record, str]]
    cpu_seconds: float


@contextlib.contextmanager
def batches(
    records: Sequence[Record],
    read_clips: ReadClips,
    batch_size: int,
    seed: int,
    steps: range,
    num_workers: int = 0,
    num_threads: int = 2,
    chunk_size: int = 4,
    local_indices: Sequence[int] | None = None,
    label_kind: LabelKind = LabelKind.UNUSED,
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
        chunk_size: videos that a thread reads at a time.
        local_indices: which videos of every global batch this process reads, of
            those that share it; by default all.
        label_kind: the labels that batches hold.

    Yields:
        An iterator over the Batch of each step.

    Raises:
        NoReadableVideoError: from the iterator, if nearly nothing can be read.
    """
    local_indices = range(batch_size) if local_indices is None else local_indices
    rows = (
        grain.MapDataset.range(len(records))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_ReadRecord(list(records), read_clips))
    )
    rows = _HostRows(rows, batch_size, local_indices)
    with read_ahead(
        rows, len(local_indices), steps, num_workers, num_threads, chunk_size
    ) as stream:
        label_array = labels.to_array(records, label_kind)
        yield _with_records(stream, records, local_indices, label_array)


@dataclasses.dataclass(frozen=True)
class Views:
    """One process's part of a batch of whole videos, to be evaluated.

    Attributes:
        video: uint8 [videos, views, T, H, W, 3], zeros where nothing was read.
        index: int32 [videos], which record; -1 for padding.
        readable: bool [videos].
        bad: index and reason of each record that could not be read.
    """

    video: np.ndarray
    index: np.ndarray
    readable: np.ndarray
    bad: list[tuple[int, str]]


@contextlib.contextmanager
def each_once(
    records: Sequence[Record],
    read_clips: ReadClips,
    clips_shape: tuple[int, ...],
    batch_size: int,
    num_workers: int = 0,
    num_threads: int = 2,
    chunk_size: int = 4,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Iterator[Views]]:
    """Opens a pass over all records, each exactly once and in order.

    Args:
        records: the videos.
        read_clips: what to take from each video; sent to the workers.
        clips_shape: shape of what it returns, for videos that cannot be read.
        batch_size: videos of a global batch; the last one is filled up with padding.
        num_workers: processes that read; 0 reads in threads of this process.
        num_threads: threads that read, in each worker.
        chunk_size: videos that a thread reads at a time.
        process: (index, count) of this host; it gets the index-th contiguous part of
            every batch, and all hosts get the same number of batches.

    Yields:
        An iterator over the batches.

    Raises:
        ValueError: if the batch does not divide over the hosts.
    """
    index, count = process
    if batch_size % count:
        raise ValueError(f"{batch_size} videos do not divide over {count} hosts")
    local = batch_size // count
    padded = -(-len(records) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map(
        _ReadViews(list(records), read_clips, clips_shape)
    )
    rows = _HostRows(rows, batch_size, range(index * local, (index + 1) * local))
    with read_ahead(rows, local, None, num_workers, num_threads, chunk_size) as stream:
        yield map(_views, stream)


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
        with contextlib.suppress(VideoError), open_video(record) as video:
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
                with open_video(self.records[index]) as video:
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


@dataclasses.dataclass
class _ReadViews(grain.transforms.Map):
    """Reads the record at an index; beyond the last, and if it is bad, zeros."""

    records: list[Record]
    read_clips: ReadClips
    clips_shape: tuple[int, ...]

    def map(self, index: int) -> dict:
        element = {
            "video": np.zeros(self.clips_shape, np.uint8),
            "index": index if index < len(self.records) else -1,
            "readable": False,
            "bad": [],
        }
        if index < len(self.records):
            try:
                with open_video(self.records[index]) as video:
                    clips = self.read_clips(video, np.random.default_rng(0))
                element |= {"video": clips, "readable": True}
            except VideoError as error:
                element["bad"].append((int(index), str(error)))
        return element


class _HostRows(grain.MapDataset):
    """The rows of every global batch that belong to one host."""

    def __init__(self, parent, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[row]]


def _views(read: tuple[np.ndarray, list[dict], float]) -> Views:
    video, rows, _ = read
    return Views(
        video=video,
        index=np.array([row["index"] for row in rows], np.int32),
        readable=np.array([row["readable"] for row in rows]),
        bad=[bad for row in rows for bad in row["bad"]],
    )


def _with_records(
    stream: Iterator[tuple[np.ndarray, list[dict], float]],
    records: Sequence[Record],
    local_indices: Sequence[int],
    label_array: np.ndarray | None,
) -> Iterator[Batch]:
    for video, rows, seconds in stream:
        index = np.repeat([row["record"] for row in rows], video.shape[1])
        arrays = {"video": video.reshape(-1, *video.shape[2:])}
        if label_array is not None:
            arrays["label"] = label_array[index]
        yield Batch(
            ids=[records[i].id for i in index],
            bad=[
                (int(place), records[i], reason)
                for place, row in zip(local_indices, rows, strict=True)
                for i, reason in row["bad"]
            ],
            arrays=arrays,
            cpu_seconds=seconds,
        )
