"""Metrics: counted by hand, and of any predictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomae_jax.evaluation import metrics
from videomae_jax.evaluation.metrics import Predictions

NAMES = ["run", "jump, high", "sit\ndown", "never", "wave", "clap", "bow"]


def single_label(labels, probabilities, class_names, unreadable=None):
    """Predictions of videos v0, v1, ... with one label each."""
    return Predictions(
        ids=[f"v{i}" for i in range(len(labels))],
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float32),
        class_names=class_names,
        unreadable=unreadable or {},
    )


def example():
    """7 classes; 3 of 5 videos correct in the top 1, 4 in the top 5; 3 unreadable."""
    probabilities = [
        [0.50, 0.20, 0.10, 0.05, 0.05, 0.05, 0.05],  # run: correct
        [0.30, 0.40, 0.10, 0.05, 0.05, 0.05, 0.05],  # run: second, after jump
        [0.05, 0.60, 0.10, 0.10, 0.05, 0.05, 0.05],  # jump: correct
        [0.20, 0.20, 0.01, 0.20, 0.20, 0.14, 0.05],  # sit: last
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.25, 0.75],  # bow: correct
    ]
    unreadable = {
        "a/b": ((4,), "no such file"),
        "c": ((0,), "empty"),
        "d": ((3,), "broken"),
    }
    return single_label([0, 0, 1, 2, 6], probabilities, NAMES, unreadable)


def multi_label_example():
    """3 classes, one without videos; 3 readable videos and an unreadable one."""
    return Predictions(
        ids=["a", "b", "c"],
        labels=np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], bool),
        probabilities=np.array(
            [[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.4, 0.7, 0.5]], np.float32
        ),
        class_names=["run", "jump", "never"],
        unreadable={"d": ((0, 2), "broken")},
    )


def test_metrics_by_hand():
    # The recalls are 1/2, 1, 0 and 1; the other classes have no videos.
    assert metrics.compute(example()) == pytest.approx(
        {
            "videos": 5,
            "unreadable": 3,
            "top1": 60,
            "top5": 80,
            "mean_class": 62.5,
            "top1_counting_unreadable_wrong": 37.5,
            "top5_counting_unreadable_wrong": 50,
        }
    )
    values = metrics.compute(example())
    assert {type(x) for x in values.values()} == {int, float}
    assert type(values["videos"]) is int and type(values["unreadable"]) is int


def test_confusion_matrix_by_hand():
    expected = np.zeros((7, 7), np.int64)
    expected[0, 0] = expected[0, 1] = expected[1, 1] = expected[6, 6] = 1
    expected[2, 0] = 1  # the first of four equally probable ones
    matrix = metrics.confusion_matrix(example())
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


def test_equal_probabilities_for_all_classes_score_zero():
    constant = single_label(range(6), np.full((6, 6), 1 / 6), list("abcdef"))
    values = metrics.compute(constant)
    assert values["top1"] == values["top5"] == values["mean_class"] == 0
    assert np.trace(metrics.confusion_matrix(constant)) == 0


def test_equal_probabilities_count_against():
    tied = single_label([0, 1], [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]], ["a", "b", "c"])
    values = metrics.compute(tied)
    assert values["top1"] == 0
    assert "top5" not in values  # of three classes, all are among the first five
    matrix = metrics.confusion_matrix(tied)
    assert matrix.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_equal_probabilities_at_rank_five():
    # Four are more probable, and one is as probable as the label: it may be sixth.
    row = [0.2, 0.2, 0.2, 0.2, 0.08, 0.08, 0.04]
    assert metrics.compute(single_label([4], [row], NAMES))["top5"] == 0
    row = [0.2, 0.2, 0.2, 0.2, 0.09, 0.07, 0.04]
    assert metrics.compute(single_label([4], [row], NAMES))["top5"] == 100


@given(st.data(), st.integers(1, 9), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_metrics_of_any_predictions(data, classes, videos):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few different values, so that many are equal.
    probabilities = rng.integers(0, 4, (videos, classes)) / 4
    labels = rng.integers(classes, size=videos)
    predictions = single_label(labels, probabilities, [str(c) for c in range(classes)])
    values = metrics.compute(predictions)
    matrix = metrics.confusion_matrix(predictions)
    assert values["top1"] == pytest.approx(100 * np.trace(matrix) / videos)
    assert (
        matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=classes).tolist()
    )
    recalls = [matrix[c, c] / matrix[c].sum() for c in set(labels.tolist())]
    assert values["mean_class"] == pytest.approx(100 * np.mean(recalls))
    assert ("top5" in values) == (classes > 5)
    assert metrics.is_correct(predictions, 5).all() or classes > 5
    assert values["top1"] <= values.get("top5", 100)
    for name in {"top1", "top5"} & values.keys():
        assert values[f"{name}_counting_unreadable_wrong"] == values[name]


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positive = np.array([True, False, True, False])
    # At rank 1 with precision 1, and at rank 3 with precision 2 / 3.
    assert metrics.average_precision(scores, positive) == pytest.approx(5 / 6)
    assert metrics.average_precision(-scores, positive) == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )


def test_equal_scores_pass_a_threshold_together():
    positive = np.array([True, False, False, False])
    assert metrics.average_precision(np.zeros(4), positive) == 0.25


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_does_not_depend_on_the_order(pairs):
    scores, positive = (np.array(x) for x in zip(*pairs, strict=True))
    positive = positive.astype(bool)
    positive[0] = True
    value = metrics.average_precision(scores.astype(float), positive)
    assert positive.mean() * (1 / len(positive)) <= value <= 1 + 1e-12
    reversed_value = metrics.average_precision(
        scores[::-1].astype(float), positive[::-1]
    )
    assert reversed_value == pytest.approx(value)


def test_metrics_of_several_labels_by_hand():
    # run: at ranks 1 and 3; jump: at 1 and 2; never: does not count.
    assert metrics.compute(multi_label_example()) == {
        "videos": 3,
        "unreadable": 1,
        "mean_average_precision": pytest.approx(100 * (5 / 6 + 1) / 2),
    }


def test_refuses_an_empty_set():
    with pytest.raises(
        ValueError, match="nothing was evaluated: the list holds no videos"
    ):
        single_label([], np.zeros((0, 2)), ["a", "b"])
    message = "nothing was evaluated: none of 2 videos could be .*, x: empty"
    with pytest.raises(ValueError, match=message):
        single_label(
            [],
            np.zeros((0, 2)),
            ["a", "b"],
            {"x": ((0,), "empty"), "y": ((1,), "broken")},
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_probabilities_that_are_not_finite(bad):
    message = "2 of 4 videos have .* not finite; the first is v1"
    with pytest.raises(ValueError, match=message):
        single_label([0] * 4, [[1, 0], [0, bad], [bad, bad], [0, 1]], ["a", "b"])


def test_refuses_an_id_twice():
    values = np.zeros((3, 2), np.float32)
    labels = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="ids must be unique, but 'x' occurs 2 times"):
        Predictions(["x", "y", "x"], labels, values, ["a", "b"], {})
    with pytest.raises(ValueError, match="'y' is both a readable and an unreadable"):
        Predictions(["x", "y", "z"], labels, values, ["a", "b"], {"y": ((0,), "?")})


def test_refuses_labels_out_of_range():
    with pytest.raises(
        ValueError, match="v1 has label 2, but labels must be in 0 to 1"
    ):
        single_label([0, 2], [[1, 0], [1, 0]], ["a", "b"])
    with pytest.raises(ValueError, match="bad has label -1"):
        single_label([0], [[1, 0]], ["a", "b"], {"bad": ((-1,), "empty")})


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2,)])
def test_refuses_shapes_that_differ(shape):
    with pytest.raises(ValueError, match="2 videos and 2 classes do not fit"):
        single_label([0, 1], np.zeros(shape), ["a", "b"])


def test_refuses_several_labels_of_another_shape_or_without_any():
    example = multi_label_example()
    fields = example.ids, example.labels, example.probabilities, example.class_names
    with pytest.raises(ValueError, match="3 videos and 3 classes do not fit"):
        Predictions(fields[0], fields[1][:, :2], *fields[2:], {})
    with pytest.raises(ValueError, match="no readable video has a label"):
        Predictions(fields[0], np.zeros((3, 3), bool), *fields[2:], {})


def heads_example(unreadable=None):
    """Verbs take, put, cut and nouns egg, pan of four videos."""
    return Predictions(
        ids=["a", "b", "c", "d"],
        labels=np.array([[0, 1], [1, 0], [2, 1], [0, 0]], np.int64),
        probabilities=np.array(
            [
                [0.6, 0.3, 0.1, 0.2, 0.8],  # both correct
                [0.3, 0.6, 0.1, 0.4, 0.6],  # the verb is correct
                [0.5, 0.3, 0.2, 0.1, 0.9],  # the noun is correct
                [0.1, 0.1, 0.8, 0.3, 0.7],  # none is correct
            ],
            np.float32,
        ),
        class_names=["take", "put", "cut", "egg", "pan"],
        unreadable=unreadable or {},
        heads=(("verb", 3), ("noun", 2)),
    )


def test_metrics_of_several_heads_by_hand():
    values = metrics.compute(heads_example({"e": ((1, 1), "broken")}))
    # Of a combination, five of six have a probability of at least
    # 0.48, 0.24, 0.18 and 0.03.
    expected = {
        "videos": 4,
        "unreadable": 1,
        "verb_top1": 50,
        "verb_mean_class": 100 * (1 / 2 + 1 + 0) / 3,
        "verb_top1_counting_unreadable_wrong": 40,
        "noun_top1": 50,
        "noun_mean_class": 50,
        "noun_top1_counting_unreadable_wrong": 40,
        "all_top1": 25,
        "all_top5": 75,
        "all_top1_counting_unreadable_wrong": 20,
        "all_top5_counting_unreadable_wrong": 60,
    }
    assert values == pytest.approx(expected)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 6), st.data()
)
@settings(deadline=None, max_examples=60)
def test_combinations_are_ranked_as_if_all_were_listed(sizes, k, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    videos = 7
    # Few different values, so that many products are equal.
    parts = [rng.integers(1, 4, (videos, size)) / 4 for size in sizes]
    labels = np.stack([rng.integers(size, size=videos) for size in sizes], axis=1)
    predictions = Predictions(
        [str(i) for i in range(videos)],
        labels,
        np.concatenate(parts, axis=1).astype(np.float32),
        [str(i) for i in range(sum(sizes))],
        {},
        tuple((f"head{i}", size) for i, size in enumerate(sizes)),
    )
    listed = parts[0]
    index = labels[:, 0]
    for part, own in zip(parts[1:], labels.T[1:], strict=True):
        index = index * part.shape[1] + own
        listed = (listed[:, :, None] * part[:, None]).reshape(videos, -1)
    names = [str(i) for i in range(listed.shape[1])]
    expected = metrics.is_correct(single_label(index, listed, names), k)
    np.testing.assert_array_equal(metrics.is_correct(predictions, k), expected)


def test_refuses_labels_of_heads_out_of_range():
    example = heads_example()
    labels = example.labels.copy()
    labels[2, 1] = 2
    fields = example.probabilities, example.class_names, {}, example.heads
    with pytest.raises(ValueError, match="c has label 2, but labels must be in 0 to 1"):
        Predictions(example.ids, labels, *fields)
    with pytest.raises(ValueError, match="4 videos and 5 classes do not fit"):
        Predictions(example.ids, labels[:, 0], *fields)
