"""Judges the videos of a list, one by one and together."""

import collections
import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from videomae_jax.datasets.probe import Job, ProbeResult
from videomae_jax.video import open as video_open
from videomae_jax.video.record import Record

# Each video has one status: the last of these that applies.
STATUSES = {
    "good": "nothing is wrong",
    "no_index": "its packets do not tell which frame is where: each read decodes from "
    "its beginning",
    "short": "fewer frames than a clip spans: frames are repeated",
    "duplicate": "same content as a readable video before it in the list",
    "frame_count_mismatch": "other frames come out of the decoder than its packets "
    "announce: some reads are refused",
    "unreadable": "it cannot be opened or decoded to its end, or crashes or hangs",
}
# What training reports as bad when it meets them.
BAD = ("frame_count_mismatch", "unreadable")

FEW_VIDEOS = 5  # of a class; fewer are reported
# Videos stored larger than this are decoded at a cost that pays for nothing: crops are
# of 224 pixels and smaller. VideoMAE's authors stored this short side.
_STORED_SIDE = 320  # pixels
_WORTH_IT = 2  # times the pixels, or the frames, that have to be decoded
_LISTED = 1000  # empty classes at most: a label may be anything below a billion


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """A video of the list, and what is to be thought of it.

    Attributes:
        size: bytes; None if there is no file, or it is not known.
        found: what is known, or why it cannot be read.
        status: one of STATUSES.
        original: position in the list of the video that this one duplicates.
    """

    record: Record
    size: int | None
    found: ProbeResult | str
    status: str
    original: int | None = None


def reason(record: Record, found: ProbeResult | str) -> str | None:
    """Why training could not read a video, or some of it; None if it can."""
    if isinstance(found, str):
        return found
    if found.frame_count_mismatch:
        return (
            f"{record.place}: its packets announce {found.num_frames} frames, but "
            f"{found.decoded_frames} come out of the decoder"
        )
    return None


def file_sizes(records: Iterable[Record]) -> list[int | None]:
    """The bytes of each file; None if there is none, or it holds more than a video."""
    return [video_open.file_size(record) for record in records]


def jobs(
    records: Sequence[Record], sizes: Sequence[int | None], decode: bool
) -> list[Job]:
    """What to examine: content is hashed only where two files have the same size.

    Where there is no file of its own, it is hashed if it is decoded anyway.
    """
    times = collections.Counter(sizes)
    return [
        Job(record, decode, decode if size is None else times[size] > 1)
        for record, size in zip(records, sizes, strict=True)
    ]


def judge(
    records: Sequence[Record],
    sizes: Sequence[int | None],
    found: Sequence[ProbeResult | str],
    clip_span: int,
) -> list[Checked]:
    """Gives each video its status, in the order of the list.

    Args:
        records, sizes, found: of each video.
        clip_span: frames from the first to the last of a clip.
    """
    videos = []
    originals: dict[tuple[int | None, str], int] = {}
    for i, (record, size, one) in enumerate(zip(records, sizes, found, strict=True)):
        original = None
        if isinstance(one, str):
            status = "unreadable"
        elif one.frame_count_mismatch:
            status = "frame_count_mismatch"
        else:
            if one.digest is not None:
                original = originals.setdefault((size, one.digest), i)
                original = None if original == i else original
            if original is not None:
                status = "duplicate"
            elif one.num_frames < clip_span:
                status = "short"
            else:
                status = "good" if one.indexed else "no_index"
            size = one.size if size is None else size
        videos.append(Checked(record, size, one, status, original))
    return videos


def summarize(
    videos: Sequence[Checked], kept: Sequence[bool], span: int
) -> dict[str, Any]:
    """What is told of all videos together."""
    readable = [v.found for v in videos if isinstance(v.found, ProbeResult)]
    statuses = collections.Counter(video.status for video in videos)
    reasons = collections.Counter(
        # Without the path, and alike for all numbers.
        re.sub(r"\d+", "N", why.removeprefix(f"{video.record.place}: "))
        for video in videos
        if (why := reason(video.record, video.found))
    )
    measured = {
        "num_frames": [found.num_frames for found in readable],
        "seconds": [found.seconds for found in readable if found.seconds],
        "fps": [found.fps for found in readable if found.fps],
        "short_side": [min(found.width, found.height) for found in readable],
        "keyframe_interval": [found.keyframe_interval for found in readable],
        "bytes": [video.size for video in videos if video.size is not None],
    }
    ranges = {
        name: {
            "min": min(values),
            "median": statistics.median(values),
            "max": max(values),
        }
        for name, values in measured.items()
        if values
    }
    clean = [v.found for v, keep in zip(videos, kept, strict=True) if keep]
    return {
        "videos": len(videos),
        "clean": len(clean),
        "statuses": {status: statuses[status] for status in STATUSES},
        "reasons": dict(reasons.most_common()),
        "conflicting_duplicates": sum(
            video.original is not None
            and videos[video.original].record.label != video.record.label
            for video in videos
        ),
        "hours": _hours(readable),
        "clean_hours": _hours(clean),
        "bytes": sum(measured["bytes"]),
        "codecs": dict(collections.Counter(f.codec for f in readable).most_common()),
        "containers": dict(
            collections.Counter(found.container for found in readable).most_common()
        ),
        "ranges": ranges,
        "advice": _advice(readable, span),
    }


def _hours(found: Sequence[ProbeResult]) -> float:
    return math.fsum(one.seconds or 0 for one in found) / 3600


def _advice(readable: Sequence[ProbeResult], span: int) -> list[str]:
    """What would make training read faster, a line each."""
    if not readable:
        return []
    advice = []
    prepare = "`python -m videomae_jax prepare`"
    areas = [(min(found.width, found.height) / _STORED_SIDE) ** 2 for found in readable]
    pixels = statistics.fmean(max(area, 1) for area in areas)
    if pixels >= _WORTH_IT:
        advice.append(
            f"frames have {pixels:.1f} times the pixels of a short side of "
            f"{_STORED_SIDE}, and decoding takes as much longer: {prepare} shrinks them"
        )
    # A clip begins anywhere between two keyframes.
    ahead = statistics.fmean(found.keyframe_interval / 2 for found in readable)
    if (ahead + span) / span >= _WORTH_IT:
        advice.append(
            f"keyframes are so far apart that about {ahead:.0f} frames are decoded "
            f"before a clip's {span}: {prepare} sets more of them"
        )
    no_index = sum(
        not (found.indexed or found.frame_count_mismatch) for found in readable
    )
    if no_index:
        advice.append(
            f"no_index videos ({no_index}) are decoded from their beginning at each "
            f"read: {prepare} mends them"
        )
    return advice


@dataclasses.dataclass(frozen=True, slots=True)
class LabelStatistics:
    """How the labels of a list cover the classes.

    Attributes:
        num_classes: of the file of names, or as the highest label asks for.
        counts: videos left of each class that has any, by label.
        num_empty: classes without any.
        empty: their labels, the first 1000.
        few: those of classes with 1 to 4.
        beyond: ids of videos with a label that the file does not name.
        unlabelled: videos without a label, in a list where others have one.
    """

    num_classes: int
    counts: dict[int, int]
    num_empty: int
    empty: list[int]
    few: list[int]
    beyond: list[str]
    unlabelled: int


def label_statistics(
    records: Sequence[Record], kept: Sequence[bool], num_classes: int | None = None
) -> LabelStatistics | None:
    """Counts labels; None for a list without any.

    Args:
        records: the whole list, whose labels tell which classes there are.
        kept: which of them are left: only these count as a class's videos.
        num_classes: how many there are, if it is known.
    """
    labels = [_labels(record) for record in records]
    every = set(itertools.chain.from_iterable(labels))
    if not every:
        return None
    limit = max(every) + 1 if num_classes is None else num_classes
    counts = collections.Counter(
        label
        for own, left in zip(labels, kept, strict=True)
        if left
        for label in own
        if label < limit
    )
    empty = (label for label in range(limit) if label not in counts)
    return LabelStatistics(
        num_classes=limit,
        counts=dict(sorted(counts.items())),
        num_empty=limit - len(counts),
        empty=list(itertools.islice(empty, _LISTED)),
        few=[label for label in sorted(counts) if counts[label] < FEW_VIDEOS],
        beyond=[
            record.id
            for record, own in zip(records, labels, strict=True)
            if max(own, default=-1) >= limit
        ],
        unlabelled=sum(record.label is None for record in records),
    )


def _labels(record: Record) -> tuple[int, ...]:
    if record.label is None:
        return ()
    return record.label if isinstance(record.label, tuple) else (record.label,)
