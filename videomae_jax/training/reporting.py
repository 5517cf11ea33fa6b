"""What a run says of itself: progress, metrics.jsonl, TensorBoard, pictures."""

import contextlib
import logging
import pathlib
import sys
import time
from collections.abc import Iterator

import numpy as np
import tensorboardX
import tqdm

from videomae_jax.files import JsonLines
from videomae_jax.inference import visualize

log = logging.getLogger(__name__)


def start_log(detailed: bool) -> logging.Logger:
    """Sends this package's log lines to stderr: all of them, or only warnings."""
    logger = logging.getLogger("videomae_jax")
    logger.addHandler(_AboveProgressBar())
    logger.setLevel(logging.INFO if detailed else logging.WARNING)
    logger.propagate = False
    return logger


class _AboveProgressBar(logging.Handler):
    """Writes lines to stderr without tearing the progress bar."""

    def emit(self, record):
        now = time.strftime("%H:%M:%S", time.localtime(record.created))
        tqdm.tqdm.write(f"{now} {record.getMessage()}", file=sys.stderr)


class Reporter:
    """Reports of one process; every process but the first only keeps time."""

    def __init__(
        self,
        workdir: pathlib.Path,
        start_step: int,
        total_steps: int,
        clips_per_step: float,
        active: bool = True,
    ):
        """Continues the reports of a run at a step, forgetting what came after it.

        Args:
            workdir: where the files go.
            start_step: steps already done.
            total_steps: steps of the whole run.
            clips_per_step: clips that each device takes per step.
            active: whether to write and print.
        """
        self._active, self._workdir = active, workdir
        self._total, self._clips = total_steps, clips_per_step
        self._last_step = start_step
        self._last_time = time.perf_counter()
        self._waited = self._paused = 0.0
        if not active:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._metrics.truncate(start_step)
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=start_step + 1,
            # Two minutes by default, and so long a gap in the curves after a kill.
            flush_secs=2,
        )
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            # Lines that are rewritten make a mess of a log file.
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as time spent waiting for the next batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Counts the time inside neither as training nor as waiting."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def metrics(self, step: int, values: dict[str, float]) -> tuple[float, float]:
        """Reports values after `step` steps, with speed since the last report.

        Returns:
            The seconds since then, without pauses, and the share of them spent waiting
            for data.
        """
        now = time.perf_counter()
        elapsed = max(now - self._last_time - self._paused, 1e-9)
        steps = step - self._last_step
        row = {"step": step} | values
        row["clips_per_second_per_device"] = steps * self._clips / elapsed
        row["data_wait_fraction"] = self._waited / elapsed
        self._last_step, self._last_time = step, now
        self._waited = self._paused = 0.0
        if not self._active:
            return elapsed, row["data_wait_fraction"]
        self._write(row)
        line = (
            f"loss {row['loss']:.4f} | lr {row['learning_rate']:.2e} | "
            f"grad norm {row['grad_norm']:.3f} | "
            f"{row['clips_per_second_per_device']:.1f} clips/s/device | "
            f"data wait {row['data_wait_fraction']:.0%}"
        )
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(line)
            return elapsed, row["data_wait_fraction"]
        left = (self._total - step) * elapsed / steps
        log.info("step %d/%d | %s | %s left", step, self._total, line, _clock(left))
        return elapsed, row["data_wait_fraction"]

    def values(self, step: int, values: dict[str, float]) -> None:
        """Writes values other than training's after `step` steps."""
        if self._active:
            self._write({"step": step} | values)

    def _write(self, row: dict) -> None:
        self._metrics.append([row])
        for name, value in row.items():
            if name != "step":
                self._tensorboard.add_scalar(name, value, row["step"])

    def picture(self, step: int, rows: list[np.ndarray]) -> None:
        """Writes clips, a list of uint8 [B, T, H, W, 3], as PNG and animated GIF."""
        if not self._active:
            return
        folder = self._workdir / "pictures"
        folder.mkdir(exist_ok=True)
        image = visualize.frame_strip(rows)
        visualize.save_png(folder / f"{step:08d}.png", image)
        visualize.save_gif(folder / f"{step:08d}.gif", rows)
        self._tensorboard.add_image("clips", image, step, dataformats="HWC")
        log.info("picture: %s", folder / f"{step:08d}.png")

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._active:
            self._bar.close()
            self._tensorboard.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
