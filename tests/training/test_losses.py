"""Kinds of targets: several heads and regressions, from the list to predictions."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from tests.training import test_finetune, test_loop
from tests.training.test_finetune import folder  # noqa: F401
from videomae_jax import __main__, load_pretrained, predict, save_pretrained
from videomae_jax import config as config_lib
from videomae_jax.errors import (
    CheckpointError,
    CompleteRunError,
    ConfigError,
    PretrainedError,
    RecordError,
)
from videomae_jax.evaluation.evaluator import Evaluator
from videomae_jax.inference.timeline import timeline
from videomae_jax.interop import workdir as workdir_module
from videomae_jax.models.problem import REGRESSION, Problem
from videomae_jax.training import finetune, loop, losses
from videomae_jax.video.record import LabelKind, Record

one_device = test_loop.one_device


def config_of(folder, path, **overrides):
    """A few steps of fine-tuning on a list at `path`, of the videos in `folder`."""
    config = test_finetune.tiny(folder, **{"steps": 2, "checkpoint.every": 2})
    config.data.update(train=str(path), validation=str(path), test=str(path))
    config.data.update(root=str(folder), labels="", max_bad_fraction=0.5)
    config.evaluation.update(every=2, segments=2, crops=1)
    # Outputs must differ by more than rounding.
    config.model.head_init_scale = 50.0
    config.update_from_flattened_dict(overrides)
    return config


def heads_config(folder, path, **overrides):
    return config_of(folder, path, **{"data.heads": "verb,noun"} | overrides)


def regression_config(folder, path, **overrides):
    return config_of(folder, path, **{"loss.kind": "mse"} | overrides)


def trained(config, workdir):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        loop.train_and_evaluate(config, str(workdir))


@pytest.fixture(scope="module")
def heads_run(folder, tmp_path_factory):
    """The config and the work directory of a model of verbs and nouns."""
    base = tmp_path_factory.mktemp("heads")
    verbs, nouns = ("take", "put", "cut"), ("egg", "pan")
    rows = [f"{i}.mp4,{verbs[i % 3]},{nouns[i % 2]}\n" for i in range(11)]
    (base / "list.csv").write_text("path,verb,noun\n" + "".join(rows))
    (base / "verbs.txt").write_text("\n".join(verbs))
    (base / "nouns.txt").write_text("\n".join(nouns))
    labels = f"{base / 'verbs.txt'},{base / 'nouns.txt'}"
    config = heads_config(folder, base / "list.csv", **{"data.labels": labels})
    config.data.validation = ""
    trained(config, base / "run")
    return config, base / "run"


@pytest.fixture(scope="module")
def regression_run(folder, tmp_path_factory):
    """The config and the work directory of a model of two values."""
    base = tmp_path_factory.mktemp("regression")
    lines = [f"{i}.mp4,{100 + 10 * i},{-i / 100}\n" for i in range(11)]
    (base / "list.txt").write_text("path,tilt,slope\n" + "".join(lines))
    # The columns of the test are in another order.
    lines = [f"{i}.mp4,{-i / 100},{100 + 10 * i}\n" for i in range(11)]
    (base / "test.txt").write_text("path,slope,tilt\n" + "".join(lines))
    config = regression_config(folder, base / "list.txt")
    config.data.test = str(base / "test.txt")
    trained(config, base / "run")
    return config, base / "run"


def evaluated_again(run):
    """Tests a run without its lists; the predictions must stay the same."""
    config, workdir = run
    before = (workdir / "test" / "predictions.jsonl").read_bytes()
    config = config.copy_and_resolve_references()
    config.data.update(train="", validation="", labels="")
    loop.evaluate(config, str(workdir))
    assert (workdir / "test" / "predictions.jsonl").read_bytes() == before
    return config, workdir


def rows_of(workdir):
    lines = (workdir / "test" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_run_with_several_heads(heads_run):
    _, workdir = heads_run
    metrics = json.loads((workdir / "test" / "metrics.json").read_text())
    assert metrics["videos"] == 10 and metrics["unreadable"] == 1
    names = {"verb_top1", "noun_top1", "all_top1", "all_top5", "verb_mean_class"}
    assert names <= metrics.keys()
    rows = rows_of(workdir)
    assert [row["label"] for row in rows[:3]] == [
        {"verb": 0, "noun": 0},
        {"verb": 1, "noun": 1},
        {"verb": 2, "noun": 0},
    ]
    assert rows[2]["label_name"] == {"verb": "cut", "noun": "egg"}
    for row in rows:
        for probabilities in row["probabilities"].values():
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_run_with_several_heads_predicts_as_it_tests(
    heads_run, folder, tmp_path, capsys
):
    _, workdir = heads_run
    loaded = load_pretrained(workdir)
    assert loaded.problem == Problem(heads=(("verb", 3), ("noun", 2)))
    assert loaded.labels == ("take", "put", "cut", "egg", "pan")
    video = folder / "1.mp4"
    views = {"segments": 2, "crops": 1}  # as in the test
    result = predict(loaded, video, **views, top_k=2)
    tested = rows_of(workdir)[1]
    for head in ("verb", "noun"):
        labels, values = zip(*result[head], strict=True)
        expected = tested["top_k"][head][:2]
        assert list(labels) == [label for label, _ in expected]
        assert values == pytest.approx([p for _, p in expected], abs=1e-4)

    save_pretrained(tmp_path / "export", loaded, format="jax")
    exported = load_pretrained(tmp_path / "export")
    assert exported.problem == loaded.problem
    assert predict(exported, video, **views, top_k=2) == result
    for format in ("huggingface", "official"):
        with pytest.raises(PretrainedError, match="does not support several heads"):
            save_pretrained(tmp_path / format, loaded, format=format)

    timelines = timeline(loaded, video, hop=0.2)
    assert timelines.keys() == {"verb", "noun"}
    assert timelines["noun"].labels == ("egg", "pan")
    sums = timelines["verb"].probabilities.sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-5)

    names = tmp_path / "names.txt"
    names.write_text("ei\npfanne")
    verbs = workdir.parent / "verbs.txt"
    wrong = f"--labels={names},{verbs}"
    arguments = [str(video), f"--model={tmp_path / 'export'}"]
    assert __main__.main(["predict", *arguments, wrong]) == 1
    assert "2 + 3 class names, but the head of" in capsys.readouterr().err
    arguments.append(f"--labels={verbs},{workdir.parent / 'nouns.txt'}")
    flags = [
        "--segments=2",
        "--crops=1",
        "--top-k=1",
        f"--overlays={tmp_path / 'overlays'}",
    ]
    __main__.main(["predict", *arguments, *flags])
    output = capsys.readouterr().out.splitlines()
    assert output[1] == "  verb" and output[2].endswith(f"%  {result['verb'][0][0]}")
    assert output[3] == "  noun" and output[4].endswith(f"%  {result['noun'][0][0]}")
    assert {path.name for path in (tmp_path / "overlays").iterdir()} == {
        f"1_{head}_activation.{x}" for head in ("verb", "noun") for x in ("gif", "png")
    }
    __main__.main(["predict", *arguments, "--timeline", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["verb"]["segments"] and printed["noun"]["windows"]


@pytest.mark.slow
def test_evaluation_of_several_heads_takes_the_trained_ones(heads_run, tmp_path):
    config, workdir = evaluated_again(heads_run)
    config.data.heads = "noun,verb"
    with pytest.raises(ConfigError, match="config.data.heads.*must be 'verb,noun'"):
        loop.evaluate(config, str(workdir))


@pytest.mark.slow
def test_run_of_a_regression(regression_run):
    _, workdir = regression_run
    metrics = json.loads((workdir / "test" / "metrics.json").read_text())
    assert metrics["videos"] == 10 and metrics["unreadable"] == 1
    names = {"mean_absolute_error", "tilt_mean_absolute_error", "rank_correlation"}
    assert names <= metrics.keys()
    rows = rows_of(workdir)
    assert rows[2]["targets"] == {"tilt": 120.0, "slope": -0.02}
    values = np.array([[*row["values"].values()] for row in rows])
    # In the units of the list: within some deviations of the training's mean.
    assert np.all(np.abs(values - [150, -0.05]) < 10 * np.array([31.6, 0.0316]))
    assert test_loop.metrics(workdir)[-1]["validation/mean_absolute_error"] > 0
    assert {path.name for path in (workdir / "test").iterdir()} == {
        "predictions.jsonl",
        "unreadable.jsonl",
        "metrics.json",
    }


@pytest.mark.slow
def test_a_regression_predicts_as_it_tests(regression_run, folder, tmp_path, capsys):
    _, workdir = regression_run
    loaded = load_pretrained(workdir)
    assert loaded.problem == Problem(REGRESSION)
    result = predict(loaded, folder / "1.mp4", segments=2, crops=1, top_k=1)
    tested = rows_of(workdir)[1]["values"]
    assert [name for name, _ in result] == ["tilt", "slope"]
    values = [value for _, value in result]
    np.testing.assert_allclose(values, [*tested.values()], rtol=1e-4)

    save_pretrained(tmp_path / "hf", loaded, format="huggingface")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["problem_type"] == "regression"
    again = load_pretrained(tmp_path / "hf")
    assert again.problem == loaded.problem and again.labels == ("tilt", "slope")
    with pytest.raises(PretrainedError, match="official code does not support regr"):
        save_pretrained(tmp_path / "official", loaded, format="official")
    with pytest.raises(PretrainedError, match="predicts values, but a timeline"):
        timeline(loaded, folder / "1.mp4")

    flags = ["--segments=2", "--crops=1", f"--overlays={tmp_path / 'overlays'}"]
    __main__.main(["predict", str(folder / "1.mp4"), f"--model={workdir}", *flags])
    output = capsys.readouterr().out.splitlines()
    assert output[1].split() == [f"{values[0]:.5g}", "tilt"]
    assert "%" not in "".join(output)
    assert (tmp_path / "overlays" / "1_tilt_activation.png").exists()


@pytest.mark.slow
def test_evaluation_of_a_regression_is_in_the_same_units(regression_run):
    config, workdir = evaluated_again(regression_run)
    config.loss.kind, config.data.labels = "softmax", ""
    with pytest.raises(CheckpointError, match="loss.kind='softmax'.*'mse'"):
        loop.evaluate(config, str(workdir))


@pytest.mark.slow
def test_a_resumed_regression_keeps_its_units(regression_run, tmp_path):
    """Another list has another mean: the head would predict in other units."""
    config, workdir = regression_run
    config = config.copy_and_resolve_references()
    (tmp_path / "longer.txt").write_text("path,tilt,slope\n0.mp4,100,0\n")
    config.data.train = str(tmp_path / "longer.txt")
    config.steps = 3
    with pytest.raises(CheckpointError, match="target_mean is .150.0, .* in the check"):
        loop.train_and_evaluate(config, str(workdir))


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
