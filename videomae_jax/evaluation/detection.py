"""Mean average precision of detected actions, as the evaluators of AVA compute it.

In each key frame and for each class, detections take ground truth in the order of their
scores: each the one that it overlaps most, if their intersection over union is 0.5 or
more and no other detection has it. What takes none is wrong. Over all key frames, the
average precision of a class is the area under its precision as a function of recall,
where each precision is the largest at that or a higher recall (PASCAL VOC 2010).

Evaluators in use differ in more than rounding: see detection_rules.py.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Collection, Sequence

import numpy as np

from videomae_jax.data.detection.box_files import Boxes, KeyFrame
from videomae_jax.errors import RecordError
from videomae_jax.evaluation.detection_rules import HEAP_SIZE, VARIANTS, Rules

MIN_OVERLAP = 0.5
SIZES = ("small", "medium", "large")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMetrics:
    """Average precision of a class.

    Attributes:
        average_precision: in [0, 1]; None without ground truth, and under some rules
            without detections.
        worst: what it were if equal scores were ranked with wrong detections first.
        best: likewise, with right ones first.
        ground_truth: number of boxes to be found.
        detections: number of detections that count.
        precision: float64 [found], at the score of each right detection, best first;
            the recall there is 1, 2, ... over `ground_truth`.
    """

    average_precision: float | None
    worst: float | None
    best: float | None
    ground_truth: int
    detections: int
    precision: np.ndarray


@dataclasses.dataclass(frozen=True)
class SizeMetrics:
    """Metrics of the ground truth of one size: a third of the boxes, by area.

    Detections count that overlap such boxes or, if they overlap none, have such a size.

    Attributes:
        largest_area: of these boxes.
        mean_ap: as of all; None without ground truth.
        recall: share of the boxes that are found at any score.
        ground_truth: number of boxes.
    """

    largest_area: float
    mean_ap: float | None
    recall: float
    ground_truth: int


@dataclasses.dataclass(frozen=True)
class DetectionMetrics:
    """Metrics of detections.

    Attributes:
        classes: metrics by the id of the class.
        sizes: metrics by size, of SIZES.
        key_frames: number of those that the ground truth names, without excluded ones.
        ground_truth: number of boxes to be found.
        detections: number of detections that count.
        left_out: numbers of the others: "unlisted" (of other classes), of "excluded"
            key frames, and by rules, of "unannotated" ones, "over_limit" and "empty".
    """

    classes: dict[int, ClassMetrics]
    sizes: dict[str, SizeMetrics]
    key_frames: int
    ground_truth: int
    detections: int
    left_out: dict[str, int]

    @property
    def mean_ap(self) -> float:
        """The mean average precision, in [0, 1], over classes that have one."""
        return self._mean("average_precision")

    @property
    def tie_range(self) -> tuple[float, float]:
        """The worst and the best mAP over all rankings of equal scores."""
        return self._mean("worst"), self._mean("best")

    def _mean(self, name: str) -> float:
        values = [getattr(x, name) for x in self.classes.values()]
        return float(np.mean([x for x in values if x is not None]))


def evaluate(
    ground_truth: Boxes,
    detections: Boxes,
    classes: Sequence[int] | None = None,
    *,
    excluded: Collection[KeyFrame] = (),
    rules: Rules = VARIANTS["activitynet"],
) -> DetectionMetrics:
    """Compares detections with ground truth.

    Rows that several hosts have gathered must be sorted (`Boxes.sorted`): where equal
    scores matter, the order of rows decides.

    Args:
        ground_truth: the boxes to be found.
        detections: all detections.
        classes: the ids to evaluate; rows of others are left out. By default all that
            occur in one of the two.
        excluded: key frames to leave out.
        rules: one of VARIANTS.

    Raises:
        RecordError: no ground truth of these classes was found outside of excluded key
            frames, or the rules give no class a result.
    """
    if classes is None:
        classes = np.concatenate([ground_truth.classes, detections.classes]).tolist()
    ids = np.unique(np.array(classes, np.int64))
    number: dict[KeyFrame, int] = {}
    for frame in (*ground_truth.frames, *detections.frames):
        number.setdefault(frame, len(number))
    is_excluded = np.array([frame in excluded for frame in number], bool)
    is_named = np.arange(len(number)) < len(ground_truth.frames)

    truth = _Rows.of(ground_truth, number, ids, rules)
    truth = truth.select(truth.labels >= 0)
    findable = truth.select(~is_excluded[truth.frames])
    if not len(findable.labels):
        raise RecordError(
            f"{ground_truth.source or 'ground truth'}: no row has one of the "
            f"{len(ids)} evaluated classes and a key frame that is not excluded"
        )
    counted = truth if rules.counts_excluded else findable

    detected = _Rows.of(detections, number, ids, rules)
    detected, left_out = _in_order(detected, truth, is_named, is_excluded, rules)
    best = _largest_overlaps(detected, findable)
    is_right = np.zeros(len(best), bool)
    taken, takers = np.unique(best, return_index=True)  # the first of each
    is_right[takers[taken >= 0]] = True

    # Best scores first; of equal ones, the last first.
    ranked = np.lexsort((-np.arange(len(best)), -detected.scores))
    detected, is_right, best = detected.select(ranked), is_right[ranked], best[ranked]
    metrics = {}
    for index, label in enumerate(ids.tolist()):
        own = detected.labels == index
        metrics[label] = _class_metrics(
            detected.scores[own],
            is_right[own],
            int(np.sum(counted.labels == index)),
            rules,
        )
    has_ap = [x.average_precision is not None for x in metrics.values()]
    if not any(has_ap):
        raise RecordError(
            f"{detections.source or 'detections'}: no class with ground truth was "
            "detected in a key frame that counts, so the mAP is undefined"
        )

    limits = np.quantile(counted.areas(), [1 / 3, 2 / 3])
    truth_sizes = np.searchsorted(limits, counted.areas())
    # That of what a detection overlaps or, if it overlaps nothing, its own.
    areas = np.where(best >= 0, findable.areas()[best], detected.areas())
    sizes = np.searchsorted(limits, areas)
    by_size = {
        name: _size_metrics(
            counted.select(np.flatnonzero(truth_sizes == size)),
            detected.labels[sizes == size],
            is_right[sizes == size],
            has_ap,
        )
        for size, name in enumerate(SIZES)
    }
    return DetectionMetrics(
        metrics,
        by_size,
        key_frames=int((is_named & ~is_excluded).sum()),
        ground_truth=len(counted.labels),
        detections=len(best),
        left_out=left_out,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Rows with key frames and classes numbered alike in both tables."""

    frames: np.ndarray  # int [n]
    labels: np.ndarray  # int [n], indices into the evaluated ids, -1 for others
    boxes: np.ndarray  # float [n, 4]
    scores: np.ndarray  # float [n]

    @classmethod
    def of(
        cls, table: Boxes, number: dict[KeyFrame, int], ids: np.ndarray, rules: Rules
    ) -> "_Rows":
        numbers = np.array([number[frame] for frame in table.frames], np.int64)
        is_listed = np.isin(table.classes, ids)
        return cls(
            numbers[table.frame],
            np.where(is_listed, np.searchsorted(ids, table.classes), -1),
            table.boxes.astype(rules.dtype),
            table.scores.astype(rules.dtype),
        )

    def select(self, rows: np.ndarray) -> "_Rows":
        return _Rows(
            self.frames[rows], self.labels[rows], self.boxes[rows], self.scores[rows]
        )

    def areas(self) -> np.ndarray:
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return sides[:, 0] * sides[:, 1]


def _in_order(
    detected: _Rows,
    truth: _Rows,
    is_named: np.ndarray,
    is_excluded: np.ndarray,
    rules: Rules,
) -> tuple[_Rows, dict[str, int]]:
    """Returns the detections that count, in the order in which they take ground truth.

    Args:
        detected: all detections.
        truth: the ground truth of evaluated classes.
        is_named: bool [key frames], those that the ground truth names.
        is_excluded: bool [key frames].
        rules: the rules.

    Returns:
        The detections, key frame by key frame; and how many do not count, by reason.
    """
    ordering = detected.frames[detected.labels >= 0]
    if rules.key_frames == "annotated":
        ordering = truth.frames
        is_named = np.zeros_like(is_named)
        is_named[ordering] = True
    rank = np.zeros(len(is_named), np.int64)
    # The last assignment to a key frame is that of its first row.
    rank[ordering[::-1]] = np.arange(len(ordering))[::-1]

    left_out, rows = {}, np.arange(len(detected.labels))
    reasons = {
        "unlisted": detected.labels < 0,
        "excluded": is_excluded[detected.frames],
    }
    if rules.key_frames != "detected":
        reasons["unannotated"] = ~is_named[detected.frames]
    for reason, is_out in reasons.items():
        left_out[reason] = int(is_out[rows].sum())
        rows = rows[~is_out[rows]]

    # Sorting is stable.
    found = detected.select(rows[::-1] if rules.order == "last" else rows)
    keys = [-found.scores] if rules.order in ("first", "last") else []
    found = found.select(np.lexsort((*keys, rank[found.frames])))
    if rules.order == "heap":
        found = _best_of_heaps(found)
        left_out["over_limit"] = len(rows) - len(found.labels)
    if not rules.keeps_empty:
        is_empty = (found.boxes[:, :2] >= found.boxes[:, 2:]).any(axis=1)
        left_out["empty"] = int(is_empty.sum())
        found = found.select(np.flatnonzero(~is_empty))
    return found, left_out


def _best_of_heaps(found: _Rows) -> _Rows:
    """Returns the rows that stay in a heap for each key frame, best first.

    AVA's evaluation orders equal scores as its heaps do, which depends on the order of
    rows.

    Args:
        found: rows, key frame by key frame.
    """
    x1, y1, x2, y2 = found.boxes.T.tolist()
    scores, labels = found.scores.tolist(), found.labels.tolist()
    rows = zip(scores, labels, y1, x1, y2, x2, strict=True)
    bounds = np.flatnonzero(np.diff(found.frames, prepend=-1, append=-1))
    best, kept = [], []
    for size in np.diff(bounds).tolist():
        heap = []
        for row in itertools.islice(rows, size):
            if len(heap) < HEAP_SIZE:
                heapq.heappush(heap, row)
            elif row[0] > heap[0][0]:
                heapq.heapreplace(heap, row)
        best += sorted(heap, key=lambda row: -row[0])
        kept.append(len(heap))
    columns = np.array(best).reshape(-1, 6)
    return _Rows(
        np.repeat(found.frames[bounds[:-1]], kept),
        columns[:, 1].astype(np.int64),
        columns[:, [3, 2, 5, 4]],
        columns[:, 0],
    )


def _largest_overlaps(detected: _Rows, truth: _Rows) -> np.ndarray:
    """Returns the ground truth that each detection overlaps most.

    Returns:
        int [n], the row of `truth` in the same key frame and of the same class, the
        first of several; -1 where the overlap is below MIN_OVERLAP.
    """
    best = np.full(len(detected.labels), -1)
    count = 1 + max(detected.labels.max(initial=0), truth.labels.max())
    group = truth.frames * count + truth.labels
    in_groups = np.argsort(group, kind="stable")
    group = group[in_groups]
    own = detected.frames * count + detected.labels
    begin = np.searchsorted(group, own)
    sizes = np.searchsorted(group, own, side="right") - begin
    rows = np.flatnonzero(sizes)
    if not len(rows):
        return best
    # All pairs of a detection with ground truth of its group, one after another.
    begin, sizes = begin[rows], sizes[rows]
    starts = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    others = in_groups[np.repeat(begin, sizes) + within]
    overlaps = _overlaps(detected.boxes[np.repeat(rows, sizes)], truth.boxes[others])
    largest = np.maximum.reduceat(overlaps, starts)
    is_best = overlaps == np.repeat(largest, sizes)
    pairs = np.flatnonzero(is_best & (overlaps >= MIN_OVERLAP))[::-1]
    # The last assignment to a detection is that of the first ground truth.
    best[np.repeat(rows, sizes)[pairs]] = others[pairs]
    return best


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each pair of boxes, [n, 4] -> [n].

    The operations are those of the evaluators, in their order: an overlap of exactly
    one half may come out on either side of it.
    """
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    sides = np.maximum(sides, 0)
    common = sides[:, 0] * sides[:, 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):  # of two empty boxes
        return common / (area_a + area_b - common)


def _class_metrics(
    scores: np.ndarray, is_right: np.ndarray, ground_truth: int, rules: Rules
) -> ClassMetrics:
    """Returns the metrics of a class from its detections, best first."""
    if not ground_truth or not (rules.counts_undetected or len(scores)):
        none = np.zeros(0)
        return ClassMetrics(None, None, None, ground_truth, len(scores), none)
    precision = _precision(is_right)
    worst, best = (
        _precision(is_right[np.lexsort((key, -scores))]).sum() / ground_truth
        for key in (is_right, ~is_right)
    )
    return ClassMetrics(
        float(precision.sum() / ground_truth),
        float(worst),
        float(best),
        ground_truth,
        len(scores),
        precision,
    )


def _size_metrics(
    truth: _Rows, labels: np.ndarray, is_right: np.ndarray, has_ap: Sequence[bool]
) -> SizeMetrics:
    """Returns the metrics of one size from its ground truth and detections, ranked."""
    positives = np.bincount(truth.labels, minlength=len(has_ap))
    precisions = [
        _precision(is_right[labels == label]).sum() / positives[label]
        for label in np.flatnonzero(positives * has_ap)
    ]
    return SizeMetrics(
        largest_area=float(truth.areas().max(initial=0)),
        mean_ap=float(np.mean(precisions)) if precisions else None,
        recall=int(is_right.sum()) / max(len(truth.labels), 1),
        ground_truth=len(truth.labels),
    )


def _precision(is_right: np.ndarray) -> np.ndarray:
    """Returns the precision at each right detection, or the largest at a later one."""
    ranks = 1 + np.flatnonzero(is_right)
    precision = np.arange(1, 1 + len(ranks)) / ranks
    return np.maximum.accumulate(precision[::-1])[::-1]
