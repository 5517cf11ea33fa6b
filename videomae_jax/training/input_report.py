"""How fast the videos come, how fast the model takes them, and what to do about it."""

import logging
import time
from collections.abc import Callable, Sequence

import jax
import ml_collections

from videomae_jax.data.pipeline import Batch
from videomae_jax.data.workers import WorkerPlan
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)

# The step of a run that is measured by itself. What is compiled or set up on first use
# is so in the first or second.
MEASURED_STEP = 3
# Share of the time spent waiting for data from which on advice is given.
TOO_MUCH_WAITING = 0.1
# Workers that compute less than this share of the time wait for something themselves.
BUSY = 0.5


class InputReport:
    """Says once what readers and model can do, and once what would help."""

    def __init__(
        self,
        data: ml_collections.ConfigDict,
        plan: WorkerPlan,
        videos: Sequence[Record],
        on_cores: bool,
    ):
        """Knows nothing yet.

        Args:
            data: the config's `data`.
            plan: the workers of this process.
            videos: the videos that they read.
            on_cores: whether the model runs on the cores that read.
        """
        self._data, self._plan, self._on_cores = data, plan, on_cores
        self._prepared = all(
            video.position is not None and not video.is_images for video in videos
        )
        self._steps = self._intervals = 0
        self._advised = False
        self._clips, self._seconds, self._interval_seconds = 0, 0.0, 0.0

    def add(self, batch: Batch) -> None:
        """Counts what reading a batch took."""
        self._clips += len(batch.ids)
        self._seconds += batch.cpu_seconds
        self._interval_seconds += batch.cpu_seconds

    def step(self, train_step: Callable, state, arrays: dict, key: jax.Array):
        """Takes a step; one of the first by itself, to see how long it takes.

        That is the only time when the host waits for the devices where it need not:
        their next step is not queued meanwhile.

        Returns:
            What `train_step(state, arrays, key)` returns.
        """
        self._steps += 1
        if self._steps != MEASURED_STEP:
            return train_step(state, arrays, key)
        jax.block_until_ready((state, arrays))
        start = time.perf_counter()
        result = jax.block_until_ready(train_step(state, arrays, key))
        self._compare(time.perf_counter() - start)
        return result

    def _compare(self, step_seconds: float) -> None:
        """Logs both rates, of this process: clips so far, and a step's."""
        each = self._seconds / self._clips
        if not each:
            return  # so small that the clock does not see it
        here = " of this host" if jax.process_count() > 1 else ""
        # Where the model runs on the same cores, the readers get what it leaves.
        alone = " on cores of their own" if self._on_cores else ""
        log.info(
            "input: %s%s can give about %s clips/s (%s ms of CPU a clip)%s; the model "
            "takes about %s clips/s%s",
            self._plan.workers,
            here,
            _shown(self._plan.busy_cores / each),
            _shown(1000 * each),
            alone,
            _shown(self._clips / self._steps / step_seconds),
            here,
        )

    def advise(self, seconds: float, wait_fraction: float) -> None:
        """Logs what would help, once, if the steps since the last call waited for data.

        The first call is passed over: starting takes time.

        Args:
            seconds: since the last call, without evaluations.
            wait_fraction: share of them in which the devices had nothing to do.
        """
        busy = self._interval_seconds / max(seconds, 1e-9) / self._plan.busy_cores
        self._intervals, self._interval_seconds = self._intervals + 1, 0.0
        if self._intervals == 1 or self._advised or wait_fraction <= TOO_MUCH_WAITING:
            return
        self._advised = True
        log.info(
            "the devices waited for data for %.0f %% of the time: %s",
            100 * wait_fraction,
            self._best_advice(busy),
        )

    def _best_advice(self, busy: float) -> str:
        """The next thing to do: first what costs nothing, last what costs money.

        Args:
            busy: share of the time in which the readers were computing.
        """
        data, plan = self._data, self._plan
        if not self._on_cores and plan.busy_cores < plan.max_workers:
            if data.num_workers is not None:
                return (
                    f"config.data.num_workers is {data.num_workers}, but there are "
                    f"cores for {plan.max_workers}; without it they are used"
                )
            return (
                f"memory limits reading to {plan.workers}, but there are "
                f"cores for {plan.max_workers} workers: raise config.data.memory_gb, or "
                "the memory or /dev/shm of this process"
            )
        if not self._prepared:
            return (
                "encode the videos once for fast reading, with `python -m "
                "videomae_jax prepare` (docs/data.md)"
            )
        if busy < BUSY and not self._on_cores:
            return (
                f"the readers computed in only {busy:.0%} of theirs, and else waited "
                "for files: put the videos on a faster disk, or raise "
                "config.data.num_threads"
            )
        if data.num_samples == 1:
            return (
                "set config.data.num_samples to 2 or 4: so many clips are then cut "
                "from each decoded video (config.batch_size counts videos)"
            )
        return (
            "reading needs more cores; or `prepare` the videos with a smaller "
            "--short-side, such as 256"
        )


def _shown(number: float) -> str:
    """Two or three digits: more would be noise."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
