"""The checkpoint of the best validation: kept, tested, and the end of patience."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from tests.evaluation import test_metrics, test_regression
from tests.training import test_loop
from tests.training.test_finetune import best_of, folder, tiny  # noqa: F401
from videomae_jax import checkpointing
from videomae_jax.errors import CompleteRunError, ConfigError
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.training import loop
from videomae_jax.training.tasks import finetune

one_device = test_loop.one_device
SCORES = [10, 30, 20, 30, 40]


@pytest.fixture
def scored(monkeypatch):
    """Validations after each step whose top-1 is that of SCORES."""
    monkeypatch.setattr(
        finetune.Finetuning,
        "validate",
        lambda self, step, *_: ("top1", SCORES[step - 1]),
    )


def steps(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.slow
def test_the_best_is_kept_and_tested_and_patience_ends(
    folder, tmp_path, scored, caplog, monkeypatch
):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    caplog.set_level("INFO", "videomae_jax")
    config = best_of(folder, **{"evaluation.patience": 2, "log_every": 3})
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert state.step == 4 and steps(tmp_path) == {2, 4}
    # The last step is reported, although it came between two lines of the log.
    assert [row["step"] for row in test_loop.metrics(tmp_path)] == [3, 4]
    assert caplog.messages[-2:] == [
        "best validation top1=30 at step=2, kept",
        f"{tmp_path} is complete: 4 of 8 steps",
    ]
    saved = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert saved["step"] == 2
    predictions = (tmp_path / "test" / "predictions.jsonl").read_bytes()

    # The same from the command line's point of view, and in the API.
    shutil.rmtree(tmp_path / "test")
    config.mode = "eval"
    loop.run(config, str(tmp_path))
    assert (tmp_path / "test" / "predictions.jsonl").read_bytes() == predictions
    best, last = (load_pretrained(tmp_path, step=x) for x in ("best", "last"))
    jax.tree.map(np.testing.assert_array_equal, last.params, state.ema)
    assert np.any(best.params["head"]["kernel"] != last.params["head"]["kernel"])

    # It is complete: other settings would change nothing.
    config = best_of(folder, **{"evaluation.patience": 2, "optimizer.base_lr": 0.1})
    message = (
        f"nothing was trained: the run in {tmp_path} is complete with other settings "
        r"\(config.optimizer.base_lr=0.1, was 0.0005\); give a new --workdir"
    )
    with pytest.raises(CompleteRunError, match=message) as error:
        loop.train_and_evaluate(config, str(tmp_path))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "predictions, name",
    [
        (test_metrics.example, "top1"),
        (test_metrics.heads_example, "all_top1"),
        (test_metrics.multi_label_example, "mean_average_precision"),
        (test_regression.two_values, "-standardized_mean_absolute_error"),
        (lambda: test_regression.one_value([1, 2], [1, 3]), "-mean_absolute_error"),
    ],
)
def test_each_kind_of_target_has_a_score(folder, monkeypatch, predictions, name):
    task = finetune.Finetuning(tiny(folder))
    monkeypatch.setattr(task, "_evaluate", lambda *_: predictions())
    reporter = mock.MagicMock()
    score = task.validate(4, None, None, reporter)
    expected = predictions().metrics[name.removeprefix("-")]
    assert score == (name, expected)
    step, values = reporter.values.call_args.args
    assert step == 4 and values[f"validation/{name.removeprefix('-')}"] == expected


@pytest.mark.slow
def test_a_complete_run_goes_on_with_more_patience(folder, tmp_path, scored):
    fields = {"evaluation.patience": 2, "steps": 5}
    loop.train_and_evaluate(best_of(folder, **fields), str(tmp_path))
    config = best_of(folder, **fields, log_every=1)  # which changes no result
    assert loop.train_and_evaluate(config, str(tmp_path)).step == 4
    config = best_of(folder, **fields | {"evaluation.patience": 3})
    assert loop.train_and_evaluate(config, str(tmp_path)).step == 5
    assert steps(tmp_path) == {5}  # 40 is better than 30


@pytest.mark.slow
def test_a_stopped_run_knows_its_best(folder, tmp_path, scored):
    config = best_of(folder, **{"steps": 4, "evaluation.patience": 3})
    config.checkpoint.every = 3
    loop.train_and_evaluate(config, str(tmp_path / "whole"))
    test_loop.run_until(config, tmp_path / "stopped", 3)
    loop.train_and_evaluate(config, str(tmp_path / "stopped"))
    assert steps(tmp_path / "whole") == steps(tmp_path / "stopped") == {2, 4}
    whole, stopped = (
        checkpointing.Checkpoints(str(tmp_path / name), read_only=True)
        for name in ("whole", "stopped")
    )
    assert whole.meta(4) == stopped.meta(4)
    name = "test/predictions.jsonl"
    ours, theirs = (tmp_path / x / name for x in ("whole", "stopped"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"evaluation.step": "3"}, "evaluation.step=3 must be last or best"),
        (
            {"evaluation.patience": 3, "data.validation": ""},
            "patience=3 needs validations: set config.data.validation",
        ),
        ({"evaluation.every": 0}, "evaluation.step=best needs validations"),
        ({"checkpoint.keep_best": False}, "needs config.checkpoint.keep_best=True"),
    ],
)
def test_fields_that_need_validations(folder, overrides, message):
    with pytest.raises(ConfigError, match=message):
        loop.set_up(best_of(folder, **overrides), folder).__enter__()
