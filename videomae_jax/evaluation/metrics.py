"""The predictions of a test, and the numbers computed from them."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from videomae_jax.models.problem import Problem


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Class probabilities of every video of a set that could be read.

    Attributes:
        ids: unique names of the n readable videos, in data-set order.
        labels: int64 [n], the class of each video; bool [n, C], if a video may have
            several; or int64 [n, H], the class of each of H heads.
        probabilities: float32 [n, C]. Those of a video, or of each head, sum to one
            unless it may have several labels.
        class_names: of the C classes.
        unreadable: labels and reason of each video that could not be read, by id.
        heads: as in `Problem`.

    Raises:
        ValueError: if no video is readable, an id occurs twice, a probability is not
            finite, shapes and labels do not agree, or no video of several labels has
            any.
    """

    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]
    unreadable: dict[str, tuple[tuple[int, ...], str]]
    heads: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        """Checks that the fields fit together."""
        check_ids(self.ids, self.unreadable)
        shape = (len(self.ids), len(self.class_names))
        labels_shape = shape if self.is_multi_label else shape[:1]
        if self.heads:
            labels_shape += (len(self.heads),)
        if self.labels.shape != labels_shape or self.probabilities.shape != shape:
            raise ValueError(
                f"{shape[0]} videos and {shape[1]} classes do not fit labels of shape "
                f"{self.labels.shape} and probabilities of {self.probabilities.shape}"
            )
        check_finite(self.ids, self.probabilities, "probabilities")
        if self.heads:
            self.by_head()  # checks the labels
        else:
            self._check_labels()

    @property
    def is_multi_label(self) -> bool:
        """True if a video may have several labels."""
        return self.labels.dtype == bool

    @property
    def metrics(self) -> dict[str, int | float]:
        """The metrics of the set, see `compute`."""
        return compute(self)

    def by_head(self) -> "dict[str, Predictions]":
        """Returns the predictions of each head, by name: one class per video."""
        split = Problem(heads=self.heads).split
        probabilities, names = split(self.probabilities), split(self.class_names)
        return {
            head: Predictions(
                self.ids,
                self.labels[:, i],
                probabilities[head],
                names[head],
                {
                    id: (labels[i : i + 1], reason)
                    for id, (labels, reason) in self.unreadable.items()
                },
            )
            for i, (head, _) in enumerate(self.heads)
        }

    def _check_labels(self) -> None:
        if self.is_multi_label:
            if not self.labels.any():
                raise ValueError("no readable video has a label: metrics are undefined")
            return
        labels = dict(zip(self.ids, self.labels, strict=True))
        labels |= {name: label for name, ((label,), _) in self.unreadable.items()}
        for name, label in labels.items():
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"{name} has label {label}, but labels must be in 0 to "
                    f"{len(self.class_names) - 1}"
                )


def check_ids(ids: Sequence[str], unreadable: Mapping[str, tuple[tuple, str]]) -> None:
    """Raises ValueError if no video is readable, or an id occurs twice."""
    if not ids:
        reason = "the list holds no videos"
        if unreadable:
            name, (_, reason) = next(iter(unreadable.items()))
            reason = (
                f"none of {len(unreadable)} videos could be read; the first, {name}: "
                f"{reason}"
            )
        raise ValueError(f"nothing was evaluated: {reason}")
    name, count = collections.Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"ids must be unique, but {name!r} occurs {count} times")
    for name in ids:
        if name in unreadable:
            raise ValueError(f"{name!r} is both a readable and an unreadable video")


def check_finite(ids: Sequence[str], outputs: np.ndarray, name: str) -> None:
    """Raises ValueError, with the name of outputs [n, C], unless all are finite."""
    finite = np.all(np.isfinite(outputs), axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(finite)} videos have {name} that are not "
            f"finite; the first is {ids[int(np.argmin(finite))]}"
        )


def compute(predictions: Predictions) -> dict[str, int | float]:
    """Computes the metrics of a set, in percent.

    A video counts as correct in the top k if fewer than k other classes have a
    probability at least as high as its own class. Equal probabilities so count against
    the model, and predicting the same for all classes scores 0.

    Returns:
        videos: number of readable videos.
        unreadable: number of the others.
        mean_average_precision, only of several labels a video: over the classes of the
            readable videos.
        top1, top5, only of one label a video: share of the readable videos that is
            correct in the top 1 and in the top 5; top5 only of more than 5 classes.
        mean_class, likewise: recall in the top 1, averaged over the classes of the
            readable videos (MMAction2's mean1).
        top1_counting_unreadable_wrong, top5_counting_unreadable_wrong, likewise: as
            top1 and top5, as a share of all videos.

    Of several heads, those of one label for each head, such as verb_top1; and all_top1,
    all_top5 and their shares of all videos, where a class is a combination of classes,
    one of each head, whose probability is the product of theirs (EPIC-Kitchens'
    accuracy of actions).
    """
    readable, unreadable = len(predictions.ids), len(predictions.unreadable)
    metrics: dict[str, int | float] = {"videos": readable, "unreadable": unreadable}
    if predictions.is_multi_label:
        precisions = average_precisions(predictions)
        precisions = precisions[~np.isnan(precisions)]
        return metrics | {"mean_average_precision": 100 * float(precisions.mean())}
    for head, part in predictions.by_head().items():
        values = compute(part)
        metrics |= {f"{head}_{x}": values[x] for x in values if x not in metrics}
    sizes = [size for _, size in predictions.heads] or [len(predictions.class_names)]
    ranks = (1, 5) if math.prod(sizes) > 5 else (1,)
    correct = {f"top{k}": is_correct(predictions, k) for k in ranks}
    prefix = "all_" if predictions.heads else ""
    for name, hits in correct.items():
        metrics[prefix + name] = 100 * float(hits.sum()) / readable
    if not predictions.heads:
        occurs = np.bincount(predictions.labels)
        recall = np.bincount(predictions.labels, correct["top1"])[occurs > 0]
        recall /= occurs[occurs > 0]
        metrics["mean_class"] = 100 * float(recall.mean())
    for name, hits in correct.items():
        share = 100 * float(hits.sum()) / (readable + unreadable)
        metrics[f"{prefix}{name}_counting_unreadable_wrong"] = share
    return metrics


def is_correct(predictions: Predictions, k: int) -> np.ndarray:
    """Returns which videos are correct in the top k, bool [n]; see `compute`."""
    if predictions.heads:
        return _is_combination_correct(predictions, k)
    values = predictions.probabilities
    own = np.take_along_axis(values, predictions.labels[:, None], axis=1)
    others_ahead = np.sum(values >= own, axis=1) - 1
    return others_ahead < min(k, values.shape[1])


def _is_combination_correct(predictions: Predictions, k: int) -> np.ndarray:
    """Returns which videos have their combination of classes in the top k, bool [n].

    Of all combinations, only the k + 1 most probable count. They consist of the k + 1
    most probable classes of each head, so heads are combined one after another.
    """
    best = own = np.ones((len(predictions.ids), 1))
    for part in predictions.by_head().values():
        values = part.probabilities.astype(np.float64)
        own = own * np.take_along_axis(values, part.labels[:, None], axis=1)
        top = -np.sort(-values, axis=1)[:, : k + 1]
        products = (best[:, :, None] * top[:, None, :]).reshape(len(own), -1)
        best = -np.sort(-products, axis=1)[:, : k + 1]
    return np.sum(best >= own, axis=1) - 1 < k


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Counts readable videos by true class (rows) and predicted one, int64 [C, C].

    The predicted class is the most probable one. Of equally probable ones it is never
    the video's own, otherwise the first, so that the diagonal holds the videos that
    `compute` counts as correct in the top 1.
    """
    others = predictions.probabilities.copy()
    others[np.arange(len(others)), predictions.labels] = -np.inf
    predicted = np.where(
        is_correct(predictions, 1), predictions.labels, others.argmax(axis=1)
    )
    matrix = np.zeros((others.shape[1],) * 2, np.int64)
    np.add.at(matrix, (predictions.labels, predicted), 1)
    return matrix


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean precision over the positives, ranked by score, in [0, 1].

    This is the sum, over all thresholds, of precision times the gain in recall. Equal
    scores pass a threshold together (as in scikit-learn's average_precision_score).

    Args:
        scores: float [n].
        positive: bool [n], at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    thresholds = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    precision = hits[thresholds] / (thresholds + 1)
    gains = np.diff(hits[thresholds], prepend=0) / hits[-1]
    return float(np.sum(precision * gains))


def average_precisions(predictions: Predictions) -> np.ndarray:
    """Returns the average precision of each class, float64 [C], NaN without videos."""
    classes = zip(predictions.probabilities.T, predictions.labels.T, strict=True)
    return np.array(
        [
            average_precision(scores, positive) if positive.any() else np.nan
            for scores, positive in classes
        ]
    )
