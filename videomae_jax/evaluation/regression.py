"""The values that a regression predicts for a test, and their metrics."""

import dataclasses

import numpy as np

from videomae_jax.evaluation.metrics import check_finite, check_ids


@dataclasses.dataclass(frozen=True)
class PredictedValues:
    """Predicted values of every video of a set that could be read.

    Attributes:
        ids: unique names of the n readable videos, in data-set order.
        targets: float64 [n, K], the values of the list.
        values: float64 [n, K], the predicted ones.
        names: of the K values.
        unreadable: targets and reason of each video that could not be read, by id.
        std: of each value over the training videos; empty for ones.

    Raises:
        ValueError: if no video is readable, an id occurs twice, a value is not finite,
            or shapes do not agree.
    """

    ids: list[str]
    targets: np.ndarray
    values: np.ndarray
    names: list[str]
    unreadable: dict[str, tuple[tuple[float, ...], str]]
    std: tuple[float, ...] = ()

    def __post_init__(self):
        """Checks that the fields fit together."""
        check_ids(self.ids, self.unreadable)
        shape = (len(self.ids), len(self.names))
        if self.targets.shape != shape or self.values.shape != shape:
            raise ValueError(
                f"{shape[0]} videos with {shape[1]} values do not fit targets of shape "
                f"{self.targets.shape} and values of {self.values.shape}"
            )
        check_finite(self.ids, self.targets, "targets")
        check_finite(self.ids, self.values, "values")

    @property
    def metrics(self) -> dict[str, int | float]:
        """The metrics of the set, see `compute`."""
        return compute(self)


def compute(predictions: PredictedValues) -> dict[str, int | float]:
    """Computes the metrics of a regression, in the units of the list.

    Returns:
        videos: number of readable videos.
        unreadable: number of the others.
        mean_absolute_error, root_mean_square_error: over the readable videos.
        rank_correlation: `rank_correlation`; absent where it is undefined, because all
            targets or all predictions are equal.

    Several values have these metrics each, such as arousal_mean_absolute_error, besides
    their means over the values; and standardized_mean_absolute_error, the mean of the
    errors in units of the standard deviations of training: the others are dominated by
    the value of the largest numbers.
    """
    metrics: dict[str, int | float] = {
        "videos": len(predictions.ids),
        "unreadable": len(predictions.unreadable),
    }
    of_values = [
        _of_value(targets, values)
        for targets, values in zip(
            predictions.targets.T, predictions.values.T, strict=True
        )
    ]
    for name in ("mean_absolute_error", "root_mean_square_error", "rank_correlation"):
        defined = [of_value[name] for of_value in of_values if name in of_value]
        if defined:
            metrics[name] = float(np.mean(defined))
    if len(of_values) > 1:
        for value_name, of_value in zip(predictions.names, of_values, strict=True):
            metrics |= {f"{value_name}_{name}": x for name, x in of_value.items()}
        errors = [of_value["mean_absolute_error"] for of_value in of_values]
        scaled = np.divide(errors, predictions.std or 1.0)
        metrics["standardized_mean_absolute_error"] = float(scaled.mean())
    return metrics


def _of_value(targets: np.ndarray, values: np.ndarray) -> dict[str, float]:
    error = values.astype(np.float64) - targets
    metrics = {
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_square_error": float(np.sqrt(np.square(error).mean())),
    }
    correlation = rank_correlation(targets, values)
    if np.isfinite(correlation):
        metrics["rank_correlation"] = correlation
    return metrics


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Spearman's correlation of two arrays [n]; NaN if all of one are equal.

    Equal values share the mean of their ranks.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
        0.5
    """
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    squares = np.square(ranks).sum(axis=1)
    if not squares.all():
        return float("nan")
    return float(ranks[0] @ ranks[1] / np.sqrt(squares.prod()))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
