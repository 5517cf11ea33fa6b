"""Metrics and files of a regression, against scipy and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomae_jax.evaluation import regression, results
from videomae_jax.evaluation.regression import PredictedValues


def two_values():
    """Valence and arousal of four readable videos, and an unreadable one."""
    return PredictedValues(
        ids=["a", "b", "c", "d"],
        targets=np.array([[1.0, 0], [2, 0], [3, 0], [4, 0]]),
        values=np.array([[1.5, 0], [1, 1], [3, 0], [6, -1]]),
        names=["valence", "arousal"],
        unreadable={"e": ((2.5, 0.5), "broken")},
        std=(10.0, 0.5),
    )


def one_value(targets, values):
    return PredictedValues(
        ids=[f"v{i}" for i in range(len(targets))],
        targets=np.array(targets, np.float64)[:, None],
        values=np.array(values, np.float32)[:, None],
        names=["value"],
        unreadable={},
    )


def test_metrics_by_hand():
    # Errors 0.5, -1, 0, 2; ranks 2, 1, 3, 4.
    metrics = regression.compute(one_value([1, 2, 3, 4], [1.5, 1, 3, 6]))
    assert metrics == {
        "videos": 4,
        "unreadable": 0,
        "mean_absolute_error": pytest.approx(3.5 / 4),
        "root_mean_square_error": pytest.approx(np.sqrt(5.25 / 4)),
        "rank_correlation": pytest.approx(0.8),
    }
    assert {type(x) for x in metrics.values()} == {int, float}


def test_several_values_have_metrics_each_and_their_means():
    # The targets of arousal are all equal: their rank correlation is undefined.
    metrics = two_values().metrics
    assert metrics == {
        "videos": 4,
        "unreadable": 1,
        "mean_absolute_error": pytest.approx((3.5 / 4 + 0.5) / 2),
        "root_mean_square_error": pytest.approx((np.sqrt(5.25 / 4) + 0.5**0.5) / 2),
        "rank_correlation": pytest.approx(0.8),
        # In deviations of the training, 10 and 0.5.
        "standardized_mean_absolute_error": pytest.approx((0.0875 + 1) / 2),
        "valence_mean_absolute_error": pytest.approx(3.5 / 4),
        "valence_root_mean_square_error": pytest.approx(np.sqrt(5.25 / 4)),
        "valence_rank_correlation": pytest.approx(0.8),
        "arousal_mean_absolute_error": 0.5,
        "arousal_root_mean_square_error": pytest.approx(0.5**0.5),
    }


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2))
@settings(deadline=None)
def test_rank_correlation_is_scipys(pairs):
    stats = pytest.importorskip("scipy.stats")
    a, b = np.array(pairs, float).T
    correlation = regression.rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(correlation)
    else:
        expected = stats.spearmanr(a, b).statistic
        assert correlation == pytest.approx(expected, abs=1e-12)


def test_files(tmp_path):
    results.write(two_values(), tmp_path, step=7)
    files = {"predictions.jsonl", "unreadable.jsonl", "metrics.json"}
    assert {path.name for path in tmp_path.iterdir()} == files
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "id": "b",
        "targets": {"valence": 2.0, "arousal": 0.0},
        "values": {"valence": 1.0, "arousal": 1.0},
    }
    assert json.loads((tmp_path / "unreadable.jsonl").read_text()) == {
        "id": "e",
        "targets": {"valence": 2.5, "arousal": 0.5},
        "reason": "broken",
    }
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == {"step": 7} | two_values().metrics


def test_written_values_are_as_exact_as_float32(tmp_path):
    value = np.float32(1234.5678e-7)
    results.write(one_value([0.5], [value]), tmp_path, step=0)
    row = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert np.float32(row["values"]["value"]) == value
    assert len(str(row["values"]["value"])) < 16


@pytest.mark.parametrize(
    "value, std, written",
    [
        (1600000123.456789, 30.0, 1600000123.45679),
        (123.45678901234, 31.6, 123.456789),
        (0.0, 1e-9, 0.0),
        (-2.0, 1e9, -2.0),
    ],
)
def test_written_values_have_the_digits_of_their_deviation(value, std, written):
    assert results._rounded(value, std) == written


@pytest.mark.parametrize("values", [[np.nan, 1], [np.inf, 1]])
def test_refuses_values_that_are_not_finite(values):
    with pytest.raises(ValueError, match="1 of 2 videos have values that are not"):
        one_value([0, 1], values)


def test_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match="2 videos with 1 values do not fit"):
        PredictedValues(["a", "b"], np.zeros((2, 2)), np.zeros((2, 1)), ["x"], {})
