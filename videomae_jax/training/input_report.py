"""Compares how fast videos are read with how fast the model takes them, and advises."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import jax

from videomae_jax.config import Config
from videomae_jax.data.pipeline import Batch
from videomae_jax.data.workers import WorkerPlan
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)

# The step whose duration is measured. The first two compile, or set up what is used for
# the first time.
MEASURED_STEP = 3
# Steps without advice: a run of fewer is a trial, and its workers have just started.
TRIAL_STEPS = 50
# Fraction of the time spent waiting for data above which advice is given.
MAX_DATA_WAIT = 0.1
# Workers that compute for less than this fraction of the time wait for files.
BUSY_WORKERS = 0.5


class InputReport:
    """Logs once how fast workers and model are, and once what would speed up a run."""

    def __init__(
        self,
        data: Config,
        plan: WorkerPlan,
        *,
        videos: Sequence[Record],
        model_on_cpu: bool,
    ):
        """Starts without measurements.

        Args:
            data: the config's `data`.
            plan: the workers of this process.
            videos: the videos that they read.
            model_on_cpu: whether the model runs on the cores of the workers.
        """
        self._data, self._plan, self._model_on_cpu = data, plan, model_on_cpu
        self._prepared = all(
            video.position is not None and not video.is_images for video in videos
        )
        self._steps = self._intervals = 0
        self._advised = False
        self._clips, self._cpu_seconds, self._interval_cpu_seconds = 0, 0.0, 0.0
        self._step_start = 0.0

    def before_step(self, batch: Batch, inputs: Any) -> None:
        """Adds a batch; waits for the devices before the one step that is measured.

        That is the only step where the host waits although it need not.

        Args:
            batch: the batch of the step, with the time that reading it took.
            inputs: arrays on the devices that the step takes.
        """
        self._clips += len(batch.ids)
        self._cpu_seconds += batch.cpu_seconds
        self._interval_cpu_seconds += batch.cpu_seconds
        self._steps += 1
        if self._steps == MEASURED_STEP:
            jax.block_until_ready(inputs)
            self._step_start = time.perf_counter()

    def after_step(self, outputs: Any) -> None:
        """Waits for `outputs` of the step that is measured, and logs both rates."""
        if self._steps == MEASURED_STEP:
            jax.block_until_ready(outputs)
            self._log_rates(time.perf_counter() - self._step_start)

    def _log_rates(self, step_seconds: float) -> None:
        """Logs the clips per second that this process can read, and that it trains."""
        cpu_seconds_per_clip = self._cpu_seconds / self._clips
        if not cpu_seconds_per_clip:
            return  # below the resolution of the clock
        # On a CPU, workers and model share the cores while training.
        condition = " with all cores" if self._model_on_cpu else ""
        log.info(
            "input%s: read=%s clips/s%s train=%s clips/s cpu_per_clip=%s ms (%s)",
            " of this process" if jax.process_count() > 1 else "",
            _rounded(self._plan.busy_cores / cpu_seconds_per_clip),
            condition,
            _rounded(self._clips / self._steps / step_seconds),
            _rounded(1000 * cpu_seconds_per_clip),
            self._plan.workers,
        )

    def advise(self, seconds: float, data_wait: float) -> None:
        """Logs the best remedy, once, if the steps since the last call waited for data.

        Calls within TRIAL_STEPS, and the first one, are ignored.

        Args:
            seconds: since the last call, without evaluations.
            data_wait: fraction of them in which the devices waited for a batch.
        """
        busy = self._interval_cpu_seconds / max(seconds, 1e-9) / self._plan.busy_cores
        self._intervals, self._interval_cpu_seconds = self._intervals + 1, 0.0
        is_early = self._intervals == 1 or self._steps <= TRIAL_STEPS
        if is_early or self._advised or data_wait <= MAX_DATA_WAIT:
            return
        self._advised = True
        log.info("data_wait=%.0f%%: %s", 100 * data_wait, self._best_remedy(busy))

    def _best_remedy(self, busy: float) -> str:
        """Returns the next remedy to try: free ones first, more hardware last.

        Args:
            busy: fraction of the time in which the workers were computing.
        """
        data, plan = self._data, self._plan
        if not self._model_on_cpu and plan.busy_cores < plan.max_workers:
            if data.num_workers is not None:
                return (
                    f"unset config.data.num_workers={data.num_workers}: there are "
                    f"cores for {plan.max_workers} workers"
                )
            return (
                f"memory limits reading to {plan.workers}, but there are cores for "
                f"{plan.max_workers} workers: raise config.data.memory_gb, or the "
                "memory or /dev/shm of this process"
            )
        if not self._prepared:
            return (
                "encode the videos once for fast reading, with `python -m "
                "videomae_jax prepare` (docs/data.md)"
            )
        if busy < BUSY_WORKERS and not self._model_on_cpu:
            return (
                f"the workers computed for only {busy:.0%} of the time and otherwise "
                "waited for files: put the videos on a faster disk, or raise "
                "config.data.num_threads"
            )
        if data.num_samples == 1:
            return (
                "set config.data.num_samples to 2 or 4, to cut so many clips from each "
                "decoded video (config.batch_size counts videos)"
            )
        return (
            "use a machine with more cores, or `prepare` the videos with a smaller "
            "--short-side, such as 256"
        )


def _rounded(number: float) -> str:
    """Returns two or three digits: more would be noise."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
