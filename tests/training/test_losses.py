"""Targets and losses of several heads and of regressions, and their units."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from tests.training import test_loop
from tests.training.test_finetune import folder  # noqa: F401
from tests.training.test_target_kinds import config_of, heads_config, regression_config
from videomae_jax import config as config_lib
from videomae_jax.errors import (
    CheckpointError,
    CompleteRunError,
    ConfigError,
    PretrainedError,
    RecordError,
)
from videomae_jax.evaluation.evaluator import Evaluator
from videomae_jax.interop import workdir as workdir_module
from videomae_jax.models.problem import Problem
from videomae_jax.training import losses
from videomae_jax.training.tasks import finetune
from videomae_jax.video.record import LabelKind, Record

one_device = test_loop.one_device


def make_objective(folder, records, **overrides):
    config = heads_config(folder, "unused", **overrides)
    return losses.make_objective(config, records)


def heads_records():
    pairs = [(0, 1), (2, 0), (0, 0), (1, 1)]
    return [Record(f"/{i}", str(i), labels=own) for i, own in enumerate(pairs)]


def test_each_head_has_its_own_cross_entropy(folder):
    overrides = {"loss.smoothing": 0.1, "loss.class_balance": 0.9}
    objective = make_objective(folder, heads_records(), **overrides)
    assert objective.problem.heads == (("verb", 3), ("noun", 2))
    labels = np.array([[0, 1], [2, 0]], np.int32)
    logits = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    targets = objective.targets(labels)
    np.testing.assert_allclose(targets.sum(axis=1), [2, 2], rtol=1e-6)
    expected = []
    for own, size, counts in (
        (slice(0, 3), 3, [2, 1, 1]),
        (slice(3, 5), 2, [2, 2]),
    ):
        head = len(expected)
        one_hot = np.eye(size)[labels[:, head]] * 0.9 + 0.1 / size
        np.testing.assert_allclose(targets[:, own], one_hot, rtol=1e-6)
        weighted = one_hot * losses.class_weights(np.array(counts), 0.9)
        expected.append(optax.softmax_cross_entropy(logits[:, own], weighted).mean())
    loss = objective.loss(logits, targets)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    probabilities = objective.problem.outputs(logits)
    np.testing.assert_allclose(
        probabilities[:, 3:], jax.nn.softmax(logits[:, 3:]), rtol=1e-6
    )


def test_values_are_standardized_and_back(folder):
    config = regression_config(folder, "unused")
    values = [(10.0, 5.0), (30.0, 5.0), (20.0, 5.0)]
    records = [Record(f"/{i}", str(i), values=x) for i, x in enumerate(values)]
    objective = losses.make_objective(config, records)
    assert objective.names == ("value 0", "value 1")
    targets = objective.targets(objective.standardize(np.array(values)))
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets[:, 0], [-1.2247, 1.2247, 0], atol=1e-4)
    np.testing.assert_allclose(targets[:, 1], 0)  # equal for all: only shifted
    loss = objective.loss(np.zeros((3, 2), np.float32), targets)
    assert loss == pytest.approx(0.5)
    meta = json.loads(json.dumps(objective.meta))
    saved = losses.saved_objective(config, meta)
    assert (saved.mean, saved.std) == (objective.mean, objective.std)


def test_held_out_values_are_those_of_the_training(folder):
    def records(*names):
        values = tuple(map(float, range(len(names))))
        return [Record("/a", "a.mp4", values=values, value_names=names)]

    config = regression_config(folder, "unused")
    objective = losses.make_objective(config, records("b", "c"))
    saved = losses.saved_objective(config, json.loads(json.dumps(objective.meta)))
    plain = [Record("/a", "a.mp4", values=(1.0, 2.0))]
    for trained in (objective, saved):
        trained.check(records("B", "c"), "test.csv")
        trained.check(plain, "test.txt")
        with pytest.raises(RecordError, match="test.csv: .*are b, c, but .* are x, y"):
            trained.check(records("x", "y"), "test.csv")
    objective = losses.make_objective(config, plain)
    for trained in (objective, losses.saved_objective(config, objective.meta)):
        trained.check(records("x", "y"), "test.csv")


def times(order=range(11)):
    """Seconds of the epoch, a minute apart, and a small value."""
    values = [(1.6e9 + 60 * i, 0.001 * i**2) for i in range(11)]
    return [Record(f"/{i}", f"{i}.mp4", values=values[i]) for i in order]


def test_values_that_float32_does_not_tell_apart(folder):
    """Batches have their standardized values, predictions their units."""
    task = object.__new__(finetune.Finetuning)
    task._label_kind, task.training_videos = LabelKind.VALUES, times()
    config = regression_config(folder, "unused")
    task.objective = losses.make_objective(config, task.training_videos)
    batch = task.label_array
    assert batch.dtype == np.float32
    values = np.array([x.values for x in task.training_videos])
    expected = (values - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=1e-6)

    evaluator = object.__new__(Evaluator)
    evaluator._problem, evaluator._records = task.objective.problem, times()
    evaluator._class_names = list(task.objective.names)
    evaluator._mean, evaluator._std = task.objective.mean, task.objective.std
    predicted = evaluator._predictions(batch, np.ones(11, bool), {})
    np.testing.assert_allclose(predicted.values, values, rtol=0, atol=1e-4)
    assert predicted.metrics["mean_absolute_error"] < 1e-4


def test_a_resumed_regression_keeps_the_last_digits(folder):
    """Sums depend on the order of the list."""
    config = regression_config(folder, "unused")
    saved = losses.make_objective(config, times())
    task = object.__new__(finetune.Finetuning)
    task.objective = losses.make_objective(config, times(range(10, -1, -1)))
    mean = tuple(np.nextafter(task.objective.mean, np.inf))
    task.objective = dataclasses.replace(task.objective, mean=mean)
    assert task.objective.mean != saved.mean
    task.resume("run", json.loads(json.dumps(saved.meta)))
    assert (task.objective.mean, task.objective.std) == (saved.mean, saved.std)
    for name in ("mean", "std"):
        change = np.array([1e-4, 0]) * saved.std
        other = tuple(getattr(saved, name) + change)
        task.objective = dataclasses.replace(saved, **{name: other})
        with pytest.raises(CheckpointError, match=f"run: target_{name} is"):
            task.resume("run", saved.meta)


def test_a_head_in_units_that_float32_rounds_is_refused(folder, tmp_path):
    check = functools.partial(workdir_module._check_units, tmp_path, ["year", "time"])
    check((2020.0, 1.6e5), (3.0, 60.0))
    with pytest.raises(PretrainedError, match="time has mean 1600000000 and deviation"):
        check((2020.0, 1.6e9), (3.0, 190.0))


def test_a_loaded_head_predicts_in_the_units_of_the_list():
    rng = np.random.default_rng(0)
    kernel, bias, features = (rng.normal(size=x) for x in ((3, 2), 2, (5, 3)))
    mean, std = (100.0, -3.0), (20.0, 0.5)
    params = {"encoder": {}, "head": {"kernel": kernel, "bias": bias}}
    head = workdir_module._in_units(params, mean, std)["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"],
        (features @ kernel + bias) * std + mean,
        rtol=1e-6,
    )


def test_older_checkpoints_name_classes_only(folder):
    config = config_of(folder, "unused", **{"loss.kind": "sigmoid"})
    saved = losses.saved_objective(config, {"class_names": ["a", "b"]})
    assert saved.problem == Problem("multi_label_classification")
    assert saved.names == ("a", "b")


@pytest.mark.parametrize(
    "kind, given, expected",
    [("softmax", None, 0.1), ("sigmoid", None, 0.1), ("softmax", 0.2, 0.2)],
)
def test_smoothing_is_for_classes(folder, kind, given, expected):
    fields = {"loss.kind": kind, "loss.smoothing": given}
    config = config_of(folder, "unused", **fields)
    records = [Record(f"/{i}", str(i), labels=(i,)) for i in range(2)]
    assert losses.make_objective(config, records).smoothing == expected
    # Earlier releases saved the number: this is the same run.
    saved = json.loads(config.to_json())
    saved["loss"]["smoothing"] = expected
    config_lib.check_same_run("run", saved, config)
    saved["loss"]["smoothing"] = 0.3
    with pytest.raises(CompleteRunError, match=f"smoothing={expected}, was 0.3"):
        config_lib.check_same_run("run", saved, config)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"loss.smoothing": 0.1}, "config.loss.smoothing=0.1 must be 0 with"),
        ({"loss.class_balance": 0.9}, "config.loss.class_balance=0.9 must be 0 with"),
        ({"data.heads": "a,b"}, "config.data.heads=a,b needs config.loss.kind=softmax"),
        ({"init.head": True}, "config.init.head=True is not supported with"),
    ],
)
def test_what_a_regression_cannot_have_is_named(folder, overrides, message):
    records = [Record("/a", "a", values=(1.0,))]
    config = regression_config(folder, "unused", **overrides)
    with pytest.raises(ConfigError, match=message):
        losses.make_objective(config, records)


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"data.heads": "verb,verb"}, ConfigError, "heads=verb,verb must be two"),
        ({"data.heads": "verb,all"}, ConfigError, "and not `all`"),
        ({"data.heads": "a,b,c"}, RecordError, "unused: 0 has 2 labels, .* 3 heads"),
        ({"data.labels": "a.txt"}, ConfigError, "must name a file for each of"),
        ({"data.num_classes": 3}, ConfigError, "num_classes=3 must be unset"),
        ({"loss.kind": "sigmoid"}, ConfigError, "needs config.loss.kind=softmax"),
    ],
)
def test_what_heads_cannot_have_is_named(folder, overrides, error, message):
    with pytest.raises(error, match=message):
        make_objective(folder, heads_records(), **overrides)


def test_held_out_videos_must_fit_the_training(folder):
    objective = make_objective(folder, heads_records())
    with pytest.raises(RecordError, match="val: a has label 2, but with 2 classes"):
        objective.check([Record("/a", "a", labels=(0, 2))], "val")
    with pytest.raises(RecordError, match="val: a has 1 labels"):
        objective.check([Record("/a", "a", labels=(0,))], "val")
    config = regression_config(folder, "unused")
    values = losses.make_objective(config, [Record("/a", "a", values=(1.0,))])
    with pytest.raises(RecordError, match="val: a has 2 values, expected 1"):
        values.check([Record("/a", "a", values=(1.0, 2.0))], "val")
    with pytest.raises(RecordError, match="must be finite"):
        values.check([Record("/a", "a", values=(float("nan"),))], "val")


def test_example_labels_are_as_in_batches(folder):
    heads = make_objective(folder, heads_records()).example_label
    assert (heads.shape, heads.dtype) == ((2,), np.int32)
    config = regression_config(folder, "unused")
    assert losses.label_kind(config) is LabelKind.VALUES
    value = losses.make_objective(config, [Record("/a", "a", values=(1.0,))])
    label = value.example_label
    assert (label.shape, label.dtype) == ((1,), np.float32)
