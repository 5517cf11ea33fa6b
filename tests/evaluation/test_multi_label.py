"""Several labels a video: average precision, targets, files."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomae_jax.data import labels, sources
from videomae_jax.errors import RecordError
from videomae_jax.evaluation import multi_label
from videomae_jax.training import losses
from videomae_jax.video.record import LabelKind


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positive = np.array([True, False, True, False])
    # Found at rank 1 with precision 1, and at rank 3 with precision 2 / 3.
    assert multi_label.average_precision(scores, positive) == pytest.approx(5 / 6)
    assert multi_label.average_precision(-scores, positive) == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )


def test_ties_are_passed_together():
    positive = np.array([True, False, False, False])
    assert multi_label.average_precision(np.zeros(4), positive) == 0.25


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_does_not_depend_on_the_order(pairs):
    scores, positive = (np.array(x) for x in zip(*pairs, strict=True))
    positive = positive.astype(bool)
    positive[0] = True
    value = multi_label.average_precision(scores.astype(float), positive)
    assert positive.mean() * (1 / len(positive)) <= value <= 1 + 1e-12
    turned = multi_label.average_precision(scores[::-1].astype(float), positive[::-1])
    assert turned == pytest.approx(value)


@pytest.fixture
def found():
    return multi_label.Predictions(
        ids=["a", "b", "c"],
        labels=np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], bool),
        probabilities=np.array(
            [[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.4, 0.7, 0.5]], np.float32
        ),
        class_names=["run", "jump", "never"],
        unreadable={"d": ((0, 2), "broken")},
    )


def test_files(found, tmp_path):
    multi_label.write(found, tmp_path, 7)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    # run: found at ranks 1 and 3; jump: at 1 and 2; never: does not count.
    assert metrics == {
        "step": 7,
        "videos": 3,
        "unreadable": 1,
        "mean_average_precision": pytest.approx(100 * (5 / 6 + 1) / 2),
    }
    rows = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(rows[1]) == {
        "id": "b",
        "labels": [0, 1],
        "probabilities": [0.2, 0.8, 0.5],
    }
    row = json.loads((tmp_path / "unreadable.jsonl").read_text())
    assert row == {"id": "d", "labels": [0, 2], "reason": "broken"}
    with (tmp_path / "per_class.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [row["average_precision"] for row in classes] == ["83.33", "100.00", ""]


def test_shapes_must_agree(found):
    with pytest.raises(ValueError, match="3 videos and 3 classes"):
        multi_label.Predictions(
            found.ids, found.labels[:, :2], found.probabilities, found.class_names, {}
        )


def test_lists_with_several_labels(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text('a.mp4 3 1\n"b c.mp4",2\nd.mp4\t0\t0\t5 # comment\n')
    videos = sources.load(str(path), label_kind=LabelKind.MANY)
    assert [video.labels for video in videos] == [(1, 3), (2,), (0, 5)]
    assert labels.counts(videos, 6).tolist() == [1, 1, 1, 1, 0, 1]
    assert labels.multi_hot(videos, 6)[2].tolist() == [1, 0, 0, 0, 0, 1]
    assert len(labels.class_names(videos, "list.txt")) == 6
    with pytest.raises(RecordError, match="a.mp4 has label 3"):
        labels.check(videos, "list.txt", 3)
    path.write_text("e.mp4 1 -2\n")
    with pytest.raises(RecordError, match="'-2' is not a label"):
        sources.load(str(path), label_kind=LabelKind.MANY)
    path.write_text("e.mp4\nf.mp4 0 1\n")  # of no class, and of two
    videos = sources.load(str(path), label_kind=LabelKind.MANY)
    assert labels.multi_hot(videos, 2).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(RecordError, match="config.loss.kind=sigmoid"):
        sources.load(str(path), label_kind=LabelKind.OPTIONAL)


def test_targets_of_several_labels():
    targets = losses.soft_targets(jnp.array([[2, 0], [1, -1]]), 3, 0.0)
    np.testing.assert_array_equal(targets, [[1, 0, 1], [0, 1, 0]])
