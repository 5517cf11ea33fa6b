"""The state of a run besides its arrays: steps, best validation, metrics to report."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any

import jax

from videomae_jax.config import Config
from videomae_jax.data.pipeline import Batch
from videomae_jax.distributed import hosts
from videomae_jax.training.reporting import MetricBuffer

log = logging.getLogger(__name__)


def count_steps(config: Config, num_videos: int) -> tuple[int, int]:
    """Returns the steps of the run and of its warm-up, for so many training videos.

    An epoch has no incomplete batch, as in the official code.
    """
    steps_per_epoch = max(num_videos // config.batch_size, 1)
    total_steps = config.steps or int(config.epochs * steps_per_epoch)
    return total_steps, int(config.optimizer.warmup_epochs * steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best validation of a run.

    Attributes:
        metric: its name, such as "top1"; "-name" if lower is better.
        value: of the metric.
        step: steps done at the validation.
        since: later validations, none of which was better.
    """

    metric: str
    value: float
    step: int
    since: int = 0

    def after(self, value: float, step: int) -> "Best":
        """Returns the best after one more validation; of equal ones, the first."""
        sign = -1 if self.metric.startswith("-") else 1
        # Any number is better than NaN; NaN is never better.
        if sign * value > sign * self.value or (
            self.value != self.value and value == value
        ):
            return dataclasses.replace(self, value=value, step=step, since=0)
        return dataclasses.replace(self, since=self.since + 1)

    def __str__(self) -> str:
        """Returns the metric and the step, for log lines."""
        return f"{self.metric.removeprefix('-')}={self.value:.6g} at step={self.step}"


@dataclasses.dataclass
class Progress:
    """The state of a run besides its arrays; checkpoints keep it.

    Attributes:
        step: steps done.
        total_steps: of the whole run.
        metrics: of the steps since the last line of the log.
        patience: validations without improvement after which the run is complete; 0:
            it takes all steps.
        best: the best validation; None before the first.
        videos: read so far from each list of config.data.train, by its name, if there
            are several.
    """

    step: int
    total_steps: int
    metrics: MetricBuffer
    patience: int = 0
    best: Best | None = None
    videos: dict[str, int] = dataclasses.field(default_factory=dict)
    # Those of this process since the last `gather_videos`.
    _new_videos: dict[str, int] = dataclasses.field(default_factory=dict, init=False)

    @classmethod
    def start(cls, config: Config, total_steps: int) -> "Progress":
        """Returns the progress of a run that has done nothing."""
        metrics = MetricBuffer([], 0, config.max_nonfinite_steps)
        patience = config.get("evaluation", {}).get("patience", 0)
        return cls(0, total_steps, metrics, patience)

    @classmethod
    def resume(
        cls, config: Config, total_steps: int, step: int, meta: Mapping[str, Any]
    ) -> "Progress":
        """Returns the progress of a checkpoint, from the `meta` of its step."""
        progress = cls.start(config, total_steps)
        progress.metrics.rows = meta["rows"]
        progress.metrics.nonfinite = meta["nonfinite"]
        best = meta.get("best")
        best = Best(**best) if best else None
        videos = meta.get("videos", {})
        return dataclasses.replace(progress, step=step, best=best, videos=videos)

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps besides its step, a JSON object."""
        return {
            "rows": self.metrics.rows,
            "nonfinite": self.metrics.nonfinite,
            "best": self.best and dataclasses.asdict(self.best),
            "videos": self.videos,
            "total_steps": self.total_steps,
            "complete": self.is_complete,
        }

    @property
    def is_complete(self) -> bool:
        """True after the last step, or when validations no longer improve."""
        return self.step >= self.total_steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """True if `patience` validations in a row were not better."""
        return bool(self.patience and self.best and self.best.since >= self.patience)

    def add_step(self, step: int, metrics: Mapping[str, jax.Array], batch: Batch):
        """Counts a step with its batch, without waiting for its metrics.

        Args:
            step: number of the step, from 1.
            metrics: scalars on the devices, see `MetricBuffer.add`.
            batch: the part that this process has read.
        """
        self.metrics.add(step, metrics, batch.ids)
        self.step = step
        _add(self._new_videos, batch.videos)

    def gather_videos(self) -> dict[str, int]:
        """Adds the videos that all processes have read; every process must call it.

        Returns:
            `videos`, as metrics.
        """
        if self._new_videos:  # of no process, or of all
            for counts in hosts.gather(self._new_videos):
                _add(self.videos, counts)
            self._new_videos = {}
        return {f"videos/{name}": count for name, count in self.videos.items()}

    def add_validation(self, metric: str, value: float) -> bool:
        """Counts a validation after the current step; returns whether it is the best.

        Args:
            metric: its name, see Best.
            value: of the metric.
        """
        # Another metric is of an earlier release: the values do not compare.
        if self.best is None or self.best.metric != metric:
            self.best = Best(metric, value, self.step)
        else:
            self.best = self.best.after(value, self.step)
        return self.best.step == self.step

    def forget_lost_best(self, kept: Collection[int]) -> None:
        """Forgets a best validation whose checkpoint is gone: nothing could test it.

        Args:
            kept: the steps of all checkpoints.
        """
        if self.best and self.best.step not in kept:
            log.warning(
                "forgot the best validation, %s: its checkpoint was not kept "
                "(config.checkpoint.keep_best)",
                self.best,
            )
            self.best = None

    def tested_step(self, config: Config) -> int:
        """Returns the step whose parameters the final test takes."""
        if self.best and config.get("evaluation", {}).get("step") == "best":
            return self.best.step
        return self.step


def _add(totals: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0) + count
