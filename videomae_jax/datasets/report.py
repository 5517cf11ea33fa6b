"""Classifies the videos of a list and summarizes them in numbers and histograms."""

import collections
import dataclasses
import itertools
import math
import os
import pathlib
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from videomae_jax.datasets.probe import Job, ProbeResult
from videomae_jax.files import writing
from videomae_jax.video.record import LabelKind, Record
from videomae_jax.video.source import RGB, PixelFormat

# Each video has one status: the last of these that applies.
STATUSES = {
    "good": "no problem found",
    "no_index": "packets do not locate frames: reads decode from the beginning",
    "short": "fewer frames than a clip spans: training repeats frames",
    "duplicate": "same bytes, or pixels of images, as an earlier readable video",
    "frame_count_mismatch": "packets announce another number of frames than decoded",
    "unreadable": "cannot be opened or fully decoded, crashes the decoder, or hangs",
}
# Statuses of videos that training reports as bad.
BAD = ("frame_count_mismatch", "unreadable")

FEW_VIDEOS = 5  # classes with fewer are reported
# Crops are 224 pixels and smaller, so storing more than this wastes decoding time.
# VideoMAE's authors stored this short side.
_STORED_SIDE = 320  # pixels
_ADVICE_RATIO = 2  # excess of decoded pixels or frames that is worth re-encoding
_MAX_LISTED = 1000  # empty classes; a label may be any number below a billion
_BLUE, _RED = "#4c72b0", "#c44e52"


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedVideo:
    """A video of the list and its status, one of STATUSES."""

    record: Record
    size: int | None  # bytes; None if the file is missing or the size is unknown
    result: ProbeResult | str  # or the reason why it cannot be read
    status: str
    original: int | None = None  # index in the list of the video that it duplicates


def reason(record: Record, result: ProbeResult | str) -> str | None:
    """Returns why training cannot read all of a video; None if it can."""
    if isinstance(result, str):
        return result
    if result.frame_count_mismatch:
        return (
            f"{record.location}: its packets announce {result.num_frames} frames, but "
            f"the decoder returned {result.decoded_frames}"
        )
    return None


def probe_jobs(
    records: Sequence[Record],
    sizes: Sequence[int | None],
    *,
    decode: bool,
    format: PixelFormat = RGB,
) -> list[Job]:
    """Returns the jobs that find all duplicates with little hashing.

    Files are hashed only if another has the same size. Videos without a file of their
    own are hashed if they are decoded.
    """
    times = collections.Counter(sizes)
    return [
        Job(record, decode, decode if size is None else times[size] > 1, format)
        for record, size in zip(records, sizes, strict=True)
    ]


def classify(
    records: Sequence[Record],
    sizes: Sequence[int | None],
    results: Sequence[ProbeResult | str],
    *,
    clip_span: int,
) -> list[CheckedVideo]:
    """Assigns each video its status, in the order of the list.

    Args:
        records: the list.
        sizes: of the files, in bytes, if known.
        results: of `probe`, for each video.
        clip_span: frames from the first to the last one of a clip, both included.
    """
    videos = []
    originals: dict[tuple[int | None, str], int] = {}
    rows = zip(records, sizes, results, strict=True)
    for index, (record, size, result) in enumerate(rows):
        original = None
        if isinstance(result, str):
            status = "unreadable"
        elif result.frame_count_mismatch:
            status = "frame_count_mismatch"
        else:
            status = "good" if result.indexed else "no_index"
            if result.num_frames < clip_span:
                status = "short"
            if result.digest is not None:
                first = originals.setdefault((size, result.digest), index)
                if first != index:
                    status, original = "duplicate", first
            size = result.size if size is None else size
        videos.append(CheckedVideo(record, size, result, status, original))
    return videos


def _readable(videos: Iterable[CheckedVideo]) -> list[ProbeResult]:
    return [v.result for v in videos if isinstance(v.result, ProbeResult)]


def summarize(
    videos: Sequence[CheckedVideo], kept: Sequence[bool], *, clip_span: int
) -> dict[str, Any]:
    """Returns the statistics of all videos that `check-data --json` prints.

    `kept` says which of them are in the clean list; `clip_span` is as in `classify`.
    """
    readable = _readable(videos)
    clean = _readable(itertools.compress(videos, kept))
    statuses = collections.Counter(video.status for video in videos)
    reasons = collections.Counter(
        # Without paths and numbers, so that equal causes are counted together.
        re.sub(r"\d+", "N", text.removeprefix(f"{video.record.location}: "))
        for video in videos
        if (text := reason(video.record, video.result))
    )
    measured = {
        "num_frames": [result.num_frames for result in readable],
        "seconds": [result.seconds for result in readable if result.seconds],
        "fps": [result.fps for result in readable if result.fps],
        "short_side": [min(result.width, result.height) for result in readable],
        "keyframe_interval": [result.keyframe_interval for result in readable],
        "bytes": [video.size for video in videos if video.size is not None],
    }
    functions = {"min": min, "median": statistics.median, "max": max}
    ranges = {
        name: {key: function(values) for key, function in functions.items()}
        for name, values in measured.items()
        if values
    }
    return {
        "videos": len(videos),
        "clean": sum(kept),
        "statuses": {status: statuses[status] for status in STATUSES},
        "reasons": dict(reasons.most_common()),
        "conflicting_duplicates": sum(
            video.original is not None
            and videos[video.original].record.labels != video.record.labels
            for video in videos
        ),
        "hours": _hours(readable),
        "clean_hours": _hours(clean),
        "bytes": sum(measured["bytes"]),
        "codecs": _count(result.codec for result in readable),
        "containers": _count(result.container for result in readable),
        "ranges": ranges,
        "advice": _advice(readable, clip_span),
    }


def _hours(results: Sequence[ProbeResult]) -> float:
    return math.fsum(result.seconds or 0 for result in results) / 3600


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(collections.Counter(names).most_common())


def _advice(readable: Sequence[ProbeResult], clip_span: int) -> list[str]:
    """Returns what would make training read faster, one line each."""
    if not readable:
        return []
    advice = []
    prepare = "`python -m videomae_jax prepare`"
    areas = [(min(r.width, r.height) / _STORED_SIDE) ** 2 for r in readable]
    pixels = statistics.fmean(max(area, 1) for area in areas)
    if pixels >= _ADVICE_RATIO:
        advice.append(
            f"frames have {pixels:.1f} times the pixels of a short side of "
            f"{_STORED_SIDE}, and take as much longer to decode: {prepare} shrinks them"
        )
    # A clip starts anywhere between two keyframes.
    skipped = statistics.fmean(result.keyframe_interval / 2 for result in readable)
    if (skipped + clip_span) / clip_span >= _ADVICE_RATIO:
        advice.append(
            f"keyframes are so far apart that about {skipped:.0f} frames are decoded "
            f"before the {clip_span} of a clip: {prepare} inserts more keyframes"
        )
    no_index = sum(not (r.indexed or r.frame_count_mismatch) for r in readable)
    if no_index:
        advice.append(
            f"no_index videos ({no_index}) are decoded from their beginning at each "
            f"read: {prepare} adds an index"
        )
    return advice


@dataclasses.dataclass(frozen=True, slots=True)
class LabelStatistics:
    """How the labels of a list cover the classes."""

    num_classes: int  # as the file of names says, or the highest label implies
    counts: dict[int, int]  # kept videos by label, of the classes that have any
    num_empty: int  # classes without a kept video
    empty: list[int]  # their labels, the first 1000
    few: list[int]  # labels of classes with 1 to 4 kept videos
    beyond: list[str]  # ids of videos with a label that is not below num_classes
    unlabelled: int  # videos without a label, in a list where others have one


def label_statistics(
    records: Sequence[Record],
    kept: Sequence[bool],
    *,
    num_classes: int | None = None,
    label_kind: LabelKind = LabelKind.OPTIONAL,
) -> LabelStatistics | None:
    """Counts the videos of each class; returns None for a list without labels.

    Args:
        records: the whole list, whose labels determine the classes.
        kept: which of them are kept; only these are counted.
        num_classes: number of classes, if known.
        label_kind: with MANY, a video without labels does not count as unlabelled.
    """
    labels = [record.labels for record in records]
    every = set(itertools.chain.from_iterable(labels))
    if not every:
        return None
    limit = max(every) + 1 if num_classes is None else num_classes
    kept_labels = itertools.chain.from_iterable(itertools.compress(labels, kept))
    counts = collections.Counter(label for label in kept_labels if label < limit)
    empty = (label for label in range(limit) if label not in counts)
    return LabelStatistics(
        num_classes=limit,
        counts=dict(sorted(counts.items())),
        num_empty=limit - len(counts),
        empty=list(itertools.islice(empty, _MAX_LISTED)),
        few=[label for label in sorted(counts) if counts[label] < FEW_VIDEOS],
        beyond=[r.id for r in records if max(r.labels, default=-1) >= limit],
        unlabelled=0 if label_kind is LabelKind.MANY else labels.count(()),
    )


def plot(
    target: pathlib.Path,
    summary: dict[str, Any],
    videos: Sequence[CheckedVideo],
    *,
    label_stats: LabelStatistics | None,
) -> None:
    """Plots histograms of the videos to an image file; needs matplotlib.

    `summary` is as `summarize` returns it, with "list" and "clip_span".
    """
    # Imported here: --help does without. Not pyplot, which has global state.
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    readable = _readable(videos)
    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    name = os.path.basename(summary["list"].rstrip("/"))
    name = name.encode(errors="replace").decode()
    statuses = [f"{n:,} {status}" for status, n in summary["statuses"].items() if n]
    title = f"{name}: {summary['videos']:,} videos, {summary['hours']:,.2f} hours\n"
    title += ", ".join(statuses)
    figure.suptitle(title.replace("$", r"\$"))  # "$" would start a formula
    panels = iter(figure.subplots(2, 3).flat)

    def histogram(
        title: str,
        numbers: Iterable[float | None],
        unit: str = "videos",
        mark: float | None = None,
    ) -> None:
        axes = next(panels)
        axes.set_title(title, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        values = np.array([number for number in numbers if number], float)
        if not len(values):
            axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
            return
        low, high = values.min(), values.max()
        if mark is not None:
            low, high = min(low, mark), max(high, mark)
        logarithmic = high > 20 * low
        low, high = (low / 1.2, high * 1.2) if logarithmic else (0, high * 1.1)
        edges = (np.geomspace if logarithmic else np.linspace)(low, high, 41)
        axes.hist(values, edges, color=_BLUE)
        axes.set_xscale("log" if logarithmic else "linear")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlim(low, high)
        if mark is not None:
            axes.axvline(mark, color=_RED, linestyle="--", linewidth=1)

    span = summary["clip_span"]
    frames = [r.num_frames for r in readable]
    histogram(f"frames (dashed: a clip, {span})", frames, mark=span)
    histogram("seconds", [r.seconds for r in readable])
    histogram("short side (pixels)", [min(r.width, r.height) for r in readable])
    histogram("file size (MB)", [(video.size or 0) / 1e6 for video in videos])
    histogram("frames per keyframe", [r.keyframe_interval for r in readable])
    if label_stats:
        histogram("videos of a class", label_stats.counts.values(), "classes")
    else:
        histogram("frames per second", [r.fps for r in readable])
    with writing(target):
        figure.savefig(target)
