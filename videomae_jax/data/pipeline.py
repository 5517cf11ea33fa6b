"""Makes batches of clips from records. Only this and prefetch.py use Grain.

Randomness and order are functions of (seed, position in the stream) alone: everything
random happens before the stream is split over hosts and workers. Any number of them
therefore gives the same global batches, and a run resumes at a step by slicing.
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
class VideoList:
    """One of the lists that a run trains on.

    Attributes:
        records: its videos.
        name: in metrics.
        stride: frames of the video from one frame of a clip to the next; None for that
            of `read_clips`.
        weight: how often its videos are drawn, see `epoch_draws`. All lists of a run
            have one, or none has.
    """

    records: Sequence[Record]
    _: dataclasses.KW_ONLY
    name: str = ""
    stride: int | None = None
    weight: float | None = None


def all_records(lists: Sequence[VideoList]) -> list[Record]:
    """Returns the videos of lists, one after another."""
    return [record for own in lists for record in own.records]


def epoch_draws(lists: Sequence[VideoList]) -> list[int]:
    """Returns how many videos an epoch draws from each list.

    An epoch has as many draws as the lists have videos. Without weights, it draws each
    video once. With weights, the draws are in their proportion, rounded; the sum stays.
    """
    counts = [len(own.records) for own in lists]
    if lists[0].weight is None:
        return counts
    weights = [own.weight or 0.0 for own in lists]
    ends = [
        round(sum(counts) * part / sum(weights))
        for part in itertools.accumulate(weights, initial=0.0)
    ]
    return [end - start for start, end in itertools.pairwise(ends)]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The part of a global batch that one process reads.

    Attributes:
        arrays: "patches", [clips, tokens, values], uint8 or uint16, ordered as by
            `vit.patchify`, where the samples of a video are adjacent; and, if labels
            are used, "label" for each clip.
        ids: the record id of each clip.
        videos: the number of videos from each list, by its name; {} if there is one.
        bad: the records that could not be read and were replaced: index of the video
            in the global batch, record, and reason.
        cpu_seconds: CPU time that reading took.
    """

    arrays: dict[str, np.ndarray]
    ids: list[str]
    videos: dict[str, int]
    bad: list[tuple[int, Record, str]]
    cpu_seconds: float


@contextlib.contextmanager
def batches(
    lists: Sequence[VideoList],
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

    Several lists are shuffled as one. A video that cannot be read is replaced by
    another of its list.

    Args:
        lists: the videos.
        read_clips: cuts clips out of each video; sent to the workers. A dataclass, if
            a list has a stride of its own.
        patch_shape: (tubelet_size, patch_size) of the model.
        batch_size: videos of a global batch.
        seed: seed of the order and of all randomness in `read_clips`.
        steps: indices of the batches to read, in the endless stream.
        workers: the processes and threads that read.
        local_indices: indices, in every global batch, of the videos that this process
            reads; None for all.
        label_array: [videos, ...], the labels that batches hold, of the videos of all
            lists, one after another; None for none.
        pixels: what the frames of the videos are converted to.

    Raises:
        NoReadableVideoError: from the iterator, if MAX_DRAWS videos in a row cannot be
            read.
    """
    local_indices = range(batch_size) if local_indices is None else local_indices
    clips: list[Any] = [
        read_clips
        if own.stride is None
        else dataclasses.replace(read_clips, stride=own.stride)  # pyright: ignore
        for own in lists
    ]
    ends = list(itertools.accumulate(len(own.records) for own in lists))
    parts = list(zip([0, *ends], ends, clips, strict=False))
    records = all_records(lists)
    names = [own.name for own in lists]
    dataset = draw_order(lists, seed).random_map(
        functools.partial(_read_random_clips, records, parts, pixels)
    )
    dataset = _LocalElements(dataset, batch_size, local_indices)
    local = len(local_indices)
    with read_ahead(
        dataset, local, patch_shape=patch_shape, steps=steps, workers=workers
    ) as stream:
        yield (
            _to_batch(read, records, names, ends, local_indices, label_array)
            for read in stream
        )


def draw_order(lists: Sequence[VideoList], seed: int) -> grain.MapDataset:
    """Returns the endless order of the videos, as indices of all, list after list.

    Every epoch is shuffled. With weights, each list goes through its own videos, in an
    order that changes with every pass; its passes end where its draws do, not with an
    epoch. So all of its videos are drawn equally often.
    """
    draws = epoch_draws(lists)
    order = grain.MapDataset.range(sum(draws)).seed(seed).shuffle().repeat()
    if lists[0].weight is None:
        return order
    orders: list[Any] = [
        grain.MapDataset.range(len(own.records)).seed(seed + 1 + i).shuffle().repeat()
        for i, own in enumerate(lists)
    ]
    starts = [0, *itertools.accumulate(len(own.records) for own in lists)]
    ends = list(itertools.accumulate(draws))

    def pick(position: int, draw: int) -> int:
        i = bisect.bisect_right(ends, draw)
        earlier = position // ends[-1] * draws[i]  # draws of the list in other epochs
        return starts[i] + orders[i][earlier + draw - (ends[i] - draws[i])]

    return order.map_with_index(pick)


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
    parts: list[tuple[int, int, ReadClips]],
    pixels: PixelFormat,
    index: int,
    rng: np.random.Generator,
) -> dict:
    """Reads the record at an index, or a substitute drawn from the same randomness.

    Args:
        records: of all lists, one after another.
        parts: of each list, the index of its first record, that after its last, and
            how its videos are read.
    """
    first, end, read_clips = next(part for part in parts if index < part[1])
    bad = []
    for _ in range(MAX_DRAWS):
        try:
            with open_video(records[index], pixels) as video:
                return {"video": read_clips(video, rng), "record": index, "bad": bad}
        except VideoError as error:
            bad.append((int(index), str(error)))
        index = first + int(rng.integers(end - first))
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
    names: Sequence[str],
    ends: Sequence[int],
    local_indices: Sequence[int],
    label_array: np.ndarray | None,
) -> Batch:
    patches, elements, cpu_seconds = read
    videos = np.array([element["record"] for element in elements])
    index = np.repeat(videos, patches.shape[1])
    arrays = {"patches": patches.reshape(-1, *patches.shape[2:])}
    if label_array is not None:
        arrays["label"] = label_array[index]
    bad = [
        (int(position), records[i], reason)
        for position, element in zip(local_indices, elements, strict=True)
        for i, reason in element["bad"]
    ]
    ids = [records[i].id for i in index]
    lists = np.searchsorted(ends, videos, "right")
    counts = np.bincount(lists, minlength=len(ends)).tolist()
    by_name = dict(zip(names, counts, strict=True)) if len(names) > 1 else {}
    return Batch(arrays, ids, by_name, bad, cpu_seconds)
