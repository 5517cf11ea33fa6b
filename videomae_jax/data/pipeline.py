"""Makes batches of clips from records. Only this and prefetch.py use Grain.

Randomness and order are functions of (seed, position in the stream) alone: everything
random happens before the stream is split over hosts and workers. Any number of them
therefore gives the same global batches, and a run resumes at a step by slicing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from videomae_jax.data.prefetch import ReadBatch, read_ahead
from videomae_jax.data.workers import DEFAULT_WORKERS, WorkerConfig
from videomae_jax.errors import NoReadableVideoError, VideoError
from videomae_jax.models.sizes import PatchShape
from videomae_jax.video.open import open_video
from videomae_jax.video.record import Record
from videomae_jax.video.source import RGB, FrameSource, PixelFormat

# Cuts clips out of an opened video with the given randomness: [samples, T, H, W, C] of
# the video's pixel format.
ReadClips = Callable[[FrameSource, np.random.Generator], np.ndarray]

# Give up after this many unreadable videos in a row.
MAX_DRAWS = 50


@dataclasses.dataclass(frozen=True)
class Batch:
    """The part of a global batch that one process reads.

    Attributes:
        arrays: "patches", [clips, tokens, values], uint8 or uint16, ordered as by
            `vit.patchify`, where the samples of a video are adjacent; and, if labels
            are used, "label" for each clip.
        ids: the record id of each clip.
        bad: the records that could not be read and were replaced: index of the video
            in the global batch, record, and reason.
        cpu_seconds: CPU time that reading took.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    bad: list[tuple[int, Record, str]]
    cpu_seconds: float


@contextlib.contextmanager
def batches(
    records: Sequence[Record],
    read_clips: ReadClips,
    *,
    patch_shape: PatchShape,
    batch_size: int,
    seed: int,
    steps: range,
    workers: WorkerConfig = DEFAULT_WORKERS,
    local_indices: Sequence[int] | None = None,
    label_array: np.ndarray | None = None,
    pixels: PixelFormat = RGB,
) -> Iterator[Iterator[Batch]]:
    """Opens the stream of training batches, which is reshuffled every epoch.

    Args:
        records: the videos.
        read_clips: cuts clips out of each video; sent to the workers.
        patch_shape: (tubelet_size, patch_size) of the model.
        batch_size: videos of a global batch.
        seed: seed of the order and of all randomness in `read_clips`.
        steps: indices of the batches to read, in the endless stream.
        workers: the processes and threads that read.
        local_indices: indices, in every global batch, of the videos that this process
            reads; None for all.
        label_array: [records, ...], the labels that batches hold; None for none.
        pixels: what the frames of the videos are converted to.

    Raises:
        NoReadableVideoError: from the iterator, if MAX_DRAWS videos in a row cannot be
            read.
    """
    local_indices = range(batch_size) if local_indices is None else local_indices
    dataset = (
        grain.MapDataset.range(len(records))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(
            functools.partial(_read_random_clips, list(records), read_clips, pixels)
        )
    )
    dataset = _LocalElements(dataset, batch_size, local_indices)
    local = len(local_indices)
    with read_ahead(
        dataset, local, patch_shape=patch_shape, steps=steps, workers=workers
    ) as stream:
        yield (_to_batch(read, records, local_indices, label_array) for read in stream)


@dataclasses.dataclass(frozen=True)
class Views:
    """The part of an evaluation batch that one process reads."""

    patches: np.ndarray  # [videos, views, tokens, values]; zeros where not readable
    index: np.ndarray  # int32 [videos], index of the record; -1 for padding
    readable: np.ndarray  # bool [videos]; false for padding
    bad: list[tuple[int, str]]  # index of each record that cannot be read, and reason


@contextlib.contextmanager
def each_once(
    records: Sequence[Record],
    read_clips: ReadClips,
    *,
    clips_shape: tuple[int, ...],
    patch_shape: PatchShape,
    batch_size: int,
    workers: WorkerConfig = DEFAULT_WORKERS,
    process: tuple[int, int] = (0, 1),
    pixels: PixelFormat = RGB,
) -> Iterator[Iterator[Views]]:
    """Opens a pass over all records, each exactly once and in order.

    Args:
        records, read_clips, patch_shape, workers, pixels: see `batches`.
        clips_shape: shape of the array that `read_clips` returns.
        batch_size: videos of a global batch; the last one is padded.
        process: (index, count) of this process; it reads the index-th contiguous part
            of every batch. All processes get the same number of batches.

    Raises:
        ValueError: `batch_size` is not divisible by the number of processes.
    """
    index, count = process
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} must be divisible by {count} hosts")
    local = batch_size // count
    padded = -(-len(records) // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded).map(
        functools.partial(_read_views, list(records), read_clips, clips_shape, pixels)
    )
    local_indices = range(index * local, (index + 1) * local)
    dataset = _LocalElements(dataset, batch_size, local_indices)
    with read_ahead(dataset, local, patch_shape=patch_shape, workers=workers) as stream:
        yield map(_to_views, stream)


def read_all(
    records: Sequence[Record],
    read_clips: ReadClips,
    count: int,
    pixels: PixelFormat = RGB,
) -> tuple[np.ndarray, list[str]]:
    """Reads a clip of each of the first `count` readable videos, in this process.

    Returns:
        [n, T, H, W, C] and the n record ids, n <= count.
    """
    clips, ids = [], []
    for record in records:
        if len(ids) == count:
            break
        with contextlib.suppress(VideoError), open_video(record, pixels) as video:
            clips.append(read_clips(video, np.random.default_rng(0))[0])
            ids.append(record.id)
    return np.stack(clips) if clips else np.empty(0, pixels.dtype), ids


def _read_random_clips(
    records: list[Record],
    read_clips: ReadClips,
    pixels: PixelFormat,
    index: int,
    rng: np.random.Generator,
) -> dict:
    """Reads the record at an index, or a substitute drawn from the same randomness."""
    bad = []
    for _ in range(MAX_DRAWS):
        try:
            with open_video(records[index], pixels) as video:
                return {"video": read_clips(video, rng), "record": index, "bad": bad}
        except VideoError as error:
            bad.append((int(index), str(error)))
        index = int(rng.integers(len(records)))
    reasons = list(dict(bad).values())
    raise NoReadableVideoError(
        f"{MAX_DRAWS} videos drawn in a row could not be read:\n"
        + "\n".join(f"  {reason}" for reason in reasons[:10])
    )


def _read_views(
    records: list[Record],
    read_clips: ReadClips,
    clips_shape: tuple[int, ...],
    pixels: PixelFormat,
    index: int,
) -> dict:
    """Reads the record at an index; zeros beyond the last, and if it is unreadable."""
    element = {"video": np.zeros(clips_shape, pixels.dtype), "index": -1, "bad": []}
    if index < len(records):
        element["index"] = index
        try:
            with open_video(records[index], pixels) as video:
                element["video"] = read_clips(video, np.random.default_rng(0))
        except VideoError as error:
            element["bad"] = [(int(index), str(error))]
    return element


class _LocalElements(grain.MapDataset):
    """The elements of every global batch that one process reads."""

    def __init__(
        self, parent: grain.MapDataset, batch_size: int, local_indices: Sequence[int]
    ):
        super().__init__(parent)
        self._batch_size = batch_size
        self._local_indices = [int(index) for index in local_indices]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._local_indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, position = divmod(index, len(self._local_indices))
        return self._parent[step * self._batch_size + self._local_indices[position]]


def _to_views(read: ReadBatch) -> Views:
    index = np.array([element["index"] for element in read.elements], np.int32)
    bad = [bad for element in read.elements for bad in element["bad"]]
    readable = (index >= 0) & ~np.isin(index, [i for i, _ in bad])
    return Views(read.patches, index, readable, bad)


def _to_batch(
    read: ReadBatch,
    records: Sequence[Record],
    local_indices: Sequence[int],
    label_array: np.ndarray | None,
) -> Batch:
    patches, elements, cpu_seconds = read
    index = np.repeat([element["record"] for element in elements], patches.shape[1])
    arrays = {"patches": patches.reshape(-1, *patches.shape[2:])}
    if label_array is not None:
        arrays["label"] = label_array[index]
    bad = [
        (int(position), records[i], reason)
        for position, element in zip(local_indices, elements, strict=True)
        for i, reason in element["bad"]
    ]
    return Batch(arrays, [records[i].id for i in index], bad, cpu_seconds)
