"""The best validation of a run, and when a run is complete."""

import json
import math

import pytest

from configs import common
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
