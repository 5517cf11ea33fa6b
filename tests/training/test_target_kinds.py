"""Runs with several heads and regressions, from the list to predictions."""

import json

import jax
import numpy as np
import pytest

from tests.training import test_finetune, test_loop
from tests.training.test_finetune import folder  # noqa: F401
from videomae_jax import __main__, load_pretrained, predict, save_pretrained
from videomae_jax.errors import CheckpointError, ConfigError, PretrainedError
from videomae_jax.inference.timeline import timeline
from videomae_jax.models.problem import REGRESSION, Problem
from videomae_jax.training import loop

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
