"""What an evaluation leaves behind where a video may have several labels."""

import csv
import dataclasses
import io
import json
import os
import pathlib

import numpy as np

from videomae_jax.evaluation.results import check, json_line, replacing


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class probabilities of every video of a set that could be read.

    Attributes:
        ids: a name for each readable video, all different, in data-set order.
        labels: bool [n, C], which classes each video belongs to.
        probabilities: float32 [n, C], of each class for itself.
        class_names: a name for each of the C classes.
        unreadable: labels and reason for each video that could not be read, by id.

    Raises:
        ValueError: if there is no readable video, an id occurs twice, a probability is
            not finite, sizes do not agree, or no video has a label.
    """

    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]
    unreadable: dict[str, tuple[tuple[int, ...], str]]

    def __post_init__(self):
        """Refuses what cannot be counted."""
        check(self, self.labels.shape)
        if not self.labels.any():
            raise ValueError("no readable video has a label: nothing can be counted")


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean precision over the positives, ranked by score, in [0, 1].

    The sum of precision times the gain in recall over all thresholds; equal scores are
    passed together, in no favourable order (as scikit-learn's
    average_precision_score).

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


def metrics(predictions: Predictions) -> dict[str, int | float]:
    """Mean average precision in percent, and the numbers of videos that it is of.

    Returns:
        videos: how many could be read.
        unreadable: how many could not.
        mean_average_precision: over the classes that a readable video belongs to.
    """
    found = [value for value in _per_class(predictions) if value is not None]
    return {
        "videos": len(predictions.ids),
        "unreadable": len(predictions.unreadable),
        "mean_average_precision": 100 * float(np.mean(found)),
    }


def write(predictions: Predictions, folder: str | os.PathLike, step: int) -> None:
    """Writes all that is known of an evaluation as files to read and to draw from.

    - predictions.jsonl: for each readable video, in data-set order, its id, labels and
      the probabilities of all classes, to 6 decimals;
    - unreadable.jsonl: id, labels and reason of each of the others;
    - per_class.csv: for each class its name, label, videos and average precision in
      percent (empty without videos);
    - metrics.json: the step and `metrics`; written last, so that where it is, the
      others are.

    Each file appears whole or not at all, and replaces an earlier one.

    Args:
        predictions: of one set.
        folder: where to; made if need be.
        step: steps of training of the model.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "predictions.jsonl") as file:
        for name, hot, values in zip(
            predictions.ids, predictions.labels, predictions.probabilities, strict=True
        ):
            row = {
                "id": name,
                "labels": np.flatnonzero(hot).tolist(),
                "probabilities": [round(float(value), 6) for value in values],
            }
            file.write(json_line(row))
    with replacing(folder / "unreadable.jsonl") as file:
        for name, (labels, reason) in predictions.unreadable.items():
            row = {"id": name, "labels": list(labels), "reason": reason}
            file.write(json_line(row))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "label", "videos", "average_precision"])
    for label, value in enumerate(_per_class(predictions)):
        videos = int(predictions.labels[:, label].sum())
        shown = "" if value is None else f"{100 * value:.2f}"
        rows.writerow([predictions.class_names[label], label, videos, shown])
    with replacing(folder / "per_class.csv") as file:
        # Folder names, which may be class names, need not be valid text.
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    with replacing(folder / "metrics.json") as file:
        values = {"step": step} | metrics(predictions)
        file.write(json.dumps(values, indent=2).encode() + b"\n")


def _per_class(predictions: Predictions) -> list[float | None]:
    """The average precision of each class, None for those of no video."""
    return [
        average_precision(scores, positive) if positive.any() else None
        for scores, positive in zip(
            predictions.probabilities.T, predictions.labels.T, strict=True
        )
    ]
