"""The best validation of a run, and when a run is complete."""

import json
import math
from unittest import mock

import pytest

from configs import common
from videomae_jax.distributed import hosts
from videomae_jax.training import loop
from videomae_jax.training.progress import Progress


def start(total_steps=10, **evaluation):
    config = common.finetune()
    config.evaluation.update(evaluation)
    return config, Progress.start(config, total_steps)


def validate(progress, values, metric="top1"):
    """Adds a validation per step; returns the steps that were better."""
    better = []
    for value in values:
        progress.step += 1
        if progress.add_validation(metric, value):
            better.append(progress.step)
    return better


@pytest.mark.parametrize(
    "metric, values, better, shown",
    [
        ("top1", [50, 40, 60, 60, 55], [1, 3], "top1=60 at step=3"),
        ("-mean_absolute_error", [5, 7, 4, 4], [1, 3], "mean_absolute_error=4 at"),
        ("top1", [math.nan, 3, math.nan], [1, 2], "top1=3 at step=2"),
    ],
)
def test_the_first_of_the_best_counts(metric, values, better, shown):
    _, progress = start()
    assert validate(progress, values, metric) == better
    assert shown in str(progress.best)


def test_a_run_is_complete_after_its_steps_or_its_patience():
    _, progress = start(patience=2)
    validate(progress, [10, 20, 15])
    assert not progress.is_complete
    validate(progress, [20])  # not better
    assert progress.is_complete and progress.stopped_early
    _, progress = start(total_steps=4)
    validate(progress, [10, 20, 15])
    assert not progress.is_complete
    validate(progress, [14])
    assert progress.is_complete and not progress.stopped_early


def test_a_resumed_run_knows_all_that_the_checkpoint_knew():
    config, progress = start(patience=2, step="best")
    progress.metrics.rows.append({"loss": 1.0})
    validate(progress, [10, 20, 15])
    meta = json.loads(json.dumps(progress.meta))
    assert meta["total_steps"] == 10 and not meta["complete"]
    resumed = Progress.resume(config, 10, 3, meta)
    assert resumed.best == progress.best
    assert resumed.metrics.rows == [{"loss": 1.0}]
    assert resumed.tested_step(config) == 2
    validate(resumed, [12])
    assert resumed.stopped_early
    config.evaluation.step = "last"
    assert resumed.tested_step(config) == 4
    # With more patience, the same run goes on.
    config.evaluation.patience = 3
    assert not Progress.resume(config, 10, 4, resumed.meta).is_complete


def test_checkpoints_of_earlier_releases_have_no_best():
    config, _ = start()
    resumed = Progress.resume(config, 10, 3, {"rows": [], "nonfinite": 1})
    assert resumed.best is None and resumed.metrics.nonfinite == 1


def test_a_best_that_is_gone_is_forgotten(caplog, monkeypatch):
    """It was not kept, or deleted; the final test takes the best of those to come."""
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    config, progress = start(step="best", patience=3)
    validate(progress, [10, 20, 15])
    progress.forget_lost_best([2, 3])
    assert progress.best.step == 2 and not caplog.messages
    progress.forget_lost_best([1, 3])
    assert progress.best is None and not progress.is_complete
    assert caplog.messages == [
        "forgot the best validation, top1=20 at step=2: its checkpoint was not kept "
        "(config.checkpoint.keep_best)"
    ]
    assert validate(progress, [12, 11]) == [4]
    assert progress.tested_step(config) == 4
    progress.forget_lost_best([])  # nothing left to forget
    progress.forget_lost_best([])
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("own", [29.5, 30.5])
def test_the_first_process_says_what_is_best(own, monkeypatch):
    """Sums of floats differ between hosts; what they save must not."""
    _, progress = start(patience=1)
    run = mock.MagicMock()
    for first, is_best in ((30, True), (30, False)):
        progress.step += 1
        run.task.validate.return_value = ("top1", own + progress.step)
        monkeypatch.setattr(hosts, "gather", lambda x, y=first: [["top1", y], x])
        assert loop.validate(run, None, progress, None) == is_best
    assert progress.best.value == 30 and progress.stopped_early
    monkeypatch.setattr(hosts, "gather", lambda x: [x, x])
    run.task.validate.return_value = None  # of pretraining
    assert not loop.validate(run, None, progress, None)
