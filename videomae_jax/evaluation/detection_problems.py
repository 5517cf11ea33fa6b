"""Finds what is wrong with files of ground truth and detections that can be read.

An mAP near 0 is mostly a mistake in the files. Each kind has a name here.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from videomae_jax.data.detection.box_files import Boxes
from videomae_jax.errors import RecordError, nearest
from videomae_jax.evaluation import detection

# Boxes that leave the frame by its whole side are not fractions of the frame.
_LARGEST_FRACTION = 2.0
# Mistakes of all rows show in some key frames.
_SAMPLE = 1000
# By how much the mAP of a sample must rise for a mistake to be named.
_FACTOR, _GAIN = 2.0, 0.05
_SHOWN = 3  # names in a message


def check(ground_truth: Boxes, detections: Boxes) -> None:
    """Checks that the two files can have anything in common.

    Raises:
        RecordError: one has pixels and the other fractions, or no key frame is in both.
    """
    if not len(detections) or not len(ground_truth):
        return  # evaluation says so
    files = (detections, ground_truth)
    for table, other in zip(files, files[::-1], strict=True):
        far = np.flatnonzero(np.abs(table.boxes).max(axis=1) > _LARGEST_FRACTION)
        if 2 * len(far) > len(table) and _are_fractions(other):
            x1, y1, x2, y2 = table.boxes[far[0]]
            raise RecordError(
                f"{table.place(far[0])}: pixel coordinates: x1={x1:g} y1={y1:g} "
                f"x2={x2:g} y2={y2:g}, but {other.source} has fractions of the frame, "
                "0 to 1. Divide x by the width of the frames and y by their height"
            )
    if set(ground_truth.frames).isdisjoint(detections.frames):
        raise RecordError(_nothing_in_common(ground_truth, detections))


def _are_fractions(table: Boxes) -> bool:
    return bool(np.median(np.abs(table.boxes).max(axis=1)) <= _LARGEST_FRACTION)


def _nothing_in_common(ground_truth: Boxes, detections: Boxes) -> str:
    times = [_times(ground_truth), _times(detections)]
    shared = [video for video in times[1] if video in times[0]]
    if not shared:
        return (
            f"{detections.place(0)}: unknown videos: none of the {len(times[1])} "
            f"videos is in {ground_truth.source}, such as {_some(list(times[1]))}; "
            f"expected names like {_some(list(times[0]))}, without folder and extension"
        )
    theirs, own = (f"{min(x[shared[0]]):g} to {max(x[shared[0]]):g}" for x in times)
    return (
        f"{detections.place(0)}: unknown timestamps: no key frame is in "
        f"{ground_truth.source}. Of {shared[0]!r}, detections have the seconds {own}, "
        f"expected {theirs}. Timestamps are seconds from the beginning of the movie, "
        "neither frames nor seconds of a cut"
    )


def _times(table: Boxes) -> dict[str, list[float]]:
    """Returns the timestamps of each video."""
    times: dict[str, list[float]] = {}
    for video, time in table.frames:
        times.setdefault(video, []).append(time)
    return times


def find_problems(
    ground_truth: Boxes, detections: Boxes, classes: Sequence[int]
) -> dict[str, str]:
    """Returns what makes the metrics doubtful: a sentence, by the name of the problem.

    Args:
        ground_truth: the boxes to be found.
        detections: all detections.
        classes: the ids that are evaluated.
    """
    if not len(detections):
        return {"no detections": f"{detections.source} has no rows"}
    return dict(
        itertools.chain(
            _score_problems(detections),
            _unknown(ground_truth, detections, classes),
            _doubtful_rows(ground_truth, detections),
            _probable_mistakes(ground_truth, detections, classes),
        )
    )


def _score_problems(detections: Boxes) -> Iterator[tuple[str, str]]:
    scores, lines = detections.scores, detections.unscored
    if lines:
        yield (
            "missing scores",
            f"{len(lines)} of {len(scores)} rows have no score, the eighth column, and "
            f"count as 1, first {detections.source}:{lines[0]}: expected "
            "video,timestamp,x1,y1,x2,y2,class,score",
        )
    elif scores.max() > 1 and (scores == np.rint(scores)).all():
        yield (
            "person ids for scores",
            f"all scores are whole numbers, such as {scores.max():g} in "
            f"{detections.place(int(scores.argmax()))}. The eighth column must be the "
            "score; in ground truth it is the person",
        )


def _unknown(
    ground_truth: Boxes, detections: Boxes, classes: Sequence[int]
) -> Iterator[tuple[str, str]]:
    known = _times(ground_truth)
    is_unknown = np.array([video not in known for video, _ in detections.frames])
    rows = np.flatnonzero(is_unknown[detections.frame]).tolist()
    if rows:
        names = list(_times(detections).keys() - known.keys())
        video, _ = detections.frames[detections.frame[rows[0]]]
        yield (
            "unknown videos",
            f"{len(rows)} rows are of videos that {ground_truth.source} does not have "
            f"({len(names)}), first {video!r} in {detections.place(rows[0])}"
            f"{nearest(video, known)}",
        )
    with_boxes = {
        ground_truth.frames[i] for i in np.unique(ground_truth.frame).tolist()
    }
    missed = with_boxes.difference(detections.frames)
    if 2 * len(missed) > len(with_boxes):
        yield (
            "key frames without detections",
            f"{len(missed)} of {len(with_boxes)} key frames of {ground_truth.source} "
            f"have none, such as {_some([f'{x[0]},{x[1]:g}' for x in sorted(missed)])}",
        )
    listed = np.intersect1d(ground_truth.classes, classes)
    absent = np.setdiff1d(listed, detections.classes).tolist()
    if 2 * len(absent) > len(listed):
        yield (
            "classes without detections",
            f"{len(absent)} of {len(listed)} classes with ground truth have none: ids "
            f"{_some(absent)}",
        )


def _doubtful_rows(ground_truth: Boxes, detections: Boxes) -> Iterator[tuple[str, str]]:
    is_empty = (detections.boxes[:, :2] >= detections.boxes[:, 2:]).any(axis=1)
    empty = np.flatnonzero(is_empty).tolist()
    if empty:
        yield (
            "empty boxes",
            f"{len(empty)} of {len(detections)} rows have x1 >= x2 or y1 >= y2, first "
            f"{detections.place(empty[0])}. Most evaluators leave them out",
        )
    found = [(table, *_duplicates(table)) for table in (ground_truth, detections)]
    texts = [
        f"{count} rows of {table.source} repeat others, such as "
        f"{table.place(again)} the one of {table.place(row)}"
        for table, count, row, again in found
        if count
    ]
    if texts:
        yield (
            "duplicate rows",
            f"{'; '.join(texts)}. Each detection of a box and class but one is wrong",
        )


def _duplicates(table: Boxes) -> tuple[int, int, int]:
    """Returns how many rows repeat others, and the first two equal ones."""
    columns = (table.scores, *table.boxes.T, table.classes, table.frame)
    order = np.lexsort(columns)  # stable
    is_equal = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        is_equal &= np.diff(column[order]) == 0
    again = np.flatnonzero(is_equal)
    if not len(again):
        return 0, 0, 0
    first = again[np.argmin(order[again + 1])]
    return len(again), int(order[first]), int(order[first + 1])


def _probable_mistakes(
    ground_truth: Boxes, detections: Boxes, classes: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields the mistakes without which the mAP of a sample would be much higher."""
    is_listed = np.isin(ground_truth.classes, classes)
    frames = np.unique(ground_truth.frame[is_listed]).tolist()
    frames = frames[:: -(-len(frames) // _SAMPLE)]
    truth = ground_truth.select(is_listed & np.isin(ground_truth.frame, frames))
    sample = {ground_truth.frames[i] for i in frames}
    is_sampled = np.array([frame in sample for frame in detections.frames])
    found = detections.select(is_sampled[detections.frame])

    def mean_ap(**columns: np.ndarray) -> float:
        changed = dataclasses.replace(found, **columns)
        return detection.evaluate(truth, changed, classes).mean_ap

    x1, y1, x2, y2 = found.boxes.T
    offset = (
        "AVA's ids start at 1, outputs of a model at 0, and output 0 of MMAction2 is "
        "the background"
    )
    columns = "expected the columns x1,y1,x2,y2"
    mistakes = [
        ("label offset", "with classes one higher", {"classes": found.classes + 1}),
        ("label offset", "with classes one lower", {"classes": found.classes - 1}),
        (
            "widths and heights",
            "with x1,y1,width,height",
            {"boxes": np.stack([x1, y1, x1 + x2, y1 + y2], axis=1)},
        ),
        (
            "y before x",
            "with y1,x1,y2,x2",
            {"boxes": np.stack([y1, x1, y2, x2], axis=1)},
        ),
    ]
    present, was_found = mean_ap(), False
    for name, change, changed in mistakes:
        value = mean_ap(**changed)
        if value >= _FACTOR * present and value >= present + _GAIN:
            was_found = True
            remedy = offset if name == "label offset" else columns
            yield (
                name,
                f"{change} in {detections.source}, the mAP would be {100 * value:.2f}, "
                f"not {100 * present:.2f} (of {len(frames)} key frames): {remedy}",
            )
    if not present and not was_found:
        alike = (_without_classes(truth), _without_classes(found))
        if detection.evaluate(*alike).mean_ap:
            yield (
                "other classes",
                "detections overlap ground truth, but none that of its own class: do "
                "both files number the classes alike?",
            )
        else:
            yield (
                "other boxes",
                f"no detection overlaps ground truth by {detection.MIN_OVERLAP} or "
                "more, although key frames agree: are the boxes of these frames?",
            )


def _without_classes(table: Boxes) -> Boxes:
    return dataclasses.replace(table, classes=np.zeros_like(table.classes))


def _some(names: Sequence) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (", ..." if len(names) > _SHOWN else "")
