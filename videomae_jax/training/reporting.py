"""Reports of a run: the log, metrics.jsonl, TensorBoard, Weights & Biases, pictures."""

import contextlib
import json
import logging
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from clu import parameter_overview
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

from videomae_jax.config import Config
from videomae_jax.errors import ConfigError, NonFiniteLossError, printable
from videomae_jax.files import JsonLines, atomic_write, read_json, writing
from videomae_jax.inference import visualize

log = logging.getLogger(__name__)

# How many steps the host may be ahead of the devices: enough that they never wait for
# the host, few enough that queued batches do not fill their memory.
STEPS_AHEAD = 2

# Dense bfloat16 operations per second of a device, by the start of
# `jax.Device.device_kind`. A device is a chip, but half a chip of v2, v3 and TPU7x.
# Sources: the pages of the TPU versions in the Cloud TPU documentation, and NVIDIA's
# data sheets (without sparsity).
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns the PEAK_FLOPS of a device; None for CPUs and unlisted kinds."""
    matches = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def start_log(level: int) -> logging.Logger:
    """Sends this package's log lines from a level of `logging` on to stderr."""
    logger = logging.getLogger("videomae_jax")
    logger.addHandler(_handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


class _LogHandler(logging.Handler):
    """Writes lines to stderr without breaking the progress bar.

    While a run is set up, warnings wait: the user should see them last, after the lines
    that need no action.
    """

    def __init__(self):
        super().__init__()
        self.warnings: list[logging.LogRecord] | None = None  # None: they do not wait

    def emit(self, record):
        if self.warnings is not None and record.levelno == logging.WARNING:
            self.warnings.append(record)
            return
        if record.levelno >= logging.ERROR:
            self.write_waiting()
        # Now, not when it was made: the times of a log should increase.
        now = time.strftime("%H:%M:%S")
        tqdm.tqdm.write(f"{now} {printable(record.getMessage())}", file=sys.stderr)

    def write_waiting(self) -> None:
        """Writes the warnings that have waited."""
        warnings, self.warnings = self.warnings or [], None
        for record in warnings:
            self.emit(record)


_handler = _LogHandler()


@contextlib.contextmanager
def warnings_last() -> Iterator[None]:
    """Lets warnings wait for `release_warnings`, an error, or the end of the block."""
    _handler.warnings = []
    try:
        yield
    finally:
        _handler.write_waiting()


def release_warnings() -> None:
    """Writes the warnings that have waited since `warnings_last`; later ones do not."""
    _handler.write_waiting()


def log_parameters(params: Any) -> None:
    """Logs the number of parameters, and, at level DEBUG, a table of them."""
    sizes = [x.size for x in jax.tree.leaves(params)]
    log.info("parameters=%s in %d arrays", f"{sum(sizes):,}", len(sizes))
    if log.isEnabledFor(logging.DEBUG):
        # Mean and deviation need values that other processes may hold.
        stats = True if jax.process_count() == 1 else "sharding"
        table = parameter_overview.get_parameter_overview(params, include_stats=stats)
        log.debug("%s", table)


class MetricBuffer:
    """Keeps the metrics of the steps since the last report on the devices.

    `fetch` is the only place where the host waits for results of the devices.
    """

    def __init__(self, rows: list[dict], nonfinite: int, allowed: int):
        """Starts with the rows and the count of skipped steps of a checkpoint.

        Args:
            rows: metrics of steps that have not been reported yet.
            nonfinite: steps of the run that were not finite so far.
            allowed: `config.max_nonfinite_steps`.
        """
        self.rows, self.nonfinite, self._allowed = rows, nonfinite, allowed
        self._pending: list[tuple[int, Mapping, Sequence[str]]] = []

    def add(
        self, step: int, metrics: Mapping[str, jax.Array], ids: Sequence[str]
    ) -> None:
        """Adds the metrics of a step without waiting for them.

        Args:
            step: number of the step, from 1.
            metrics: scalars on the devices, with "loss" and "grad_norm".
            ids: of the videos in the batch.
        """
        self._pending.append((step, metrics, ids))
        if len(self._pending) > STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - STEPS_AHEAD][1])

    def fetch(self, last_checkpoint: int | None) -> None:
        """Waits for all metrics, and checks that they are finite.

        Args:
            last_checkpoint: step of the newest checkpoint, for the error message.

        Raises:
            NonFiniteLossError: more steps than allowed were not finite.
        """
        pending, self._pending = self._pending, []
        for step, metrics, ids in pending:
            row = {
                name: float(value) for name, value in jax.device_get(metrics).items()
            }
            if np.isfinite([row["loss"], row["grad_norm"]]).all():
                self.rows.append(row)
                continue
            self.nonfinite += 1
            summary = (
                f"step={step} loss={row['loss']} grad_norm={row['grad_norm']} "
                f"videos: {', '.join(dict.fromkeys(ids))}"
            )
            if self.nonfinite > self._allowed:
                saved = "none" if last_checkpoint is None else f"step {last_checkpoint}"
                raise NonFiniteLossError(
                    f"{summary}.\nThe step was dropped. Last good checkpoint: {saved}. "
                    "Look at these videos, lower config.optimizer.base_lr, set "
                    "config.optimizer.clip_norm, or allow more such steps with "
                    f"config.max_nonfinite_steps (now {self._allowed})."
                )
            log.warning("skipped a step that is not finite: %s", summary)

    def mean(self) -> dict[str, float]:
        """Returns means since the last call, except for the learning rate: the last."""
        rows, self.rows = self.rows, []
        if not rows:
            return {"loss": float("nan"), "grad_norm": float("nan"), "learning_rate": 0}
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return means | {"learning_rate": rows[-1]["learning_rate"]}


def check_wandb(config: Config) -> None:
    """Raises ConfigError if a run needs the package wandb, which is not installed."""
    project = config.wandb.project
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"config.wandb.project={project} needs the package wandb: pip install wandb"
        ) from error


def start_wandb(config: Config, workdir: pathlib.Path) -> Any:
    """Starts or resumes the run of Weights & Biases that belongs to a work directory.

    `<workdir>/wandb.json` keeps its id. Other settings are W&B's own: WANDB_ENTITY,
    WANDB_MODE=offline ...

    Returns:
        The `wandb.Run`; None if `config.wandb.project` is empty.

    Raises:
        ConfigError: the package wandb is not installed.
    """
    check_wandb(config)
    project = config.wandb.project
    if not project:
        return None
    import wandb

    file = workdir / "wandb.json"
    id = (read_json(file) or {"id": uuid.uuid4().hex[:8]})["id"]
    run = wandb.init(
        project=project,
        name=workdir.name,
        id=id,
        resume="allow",
        dir=str(workdir),
        config=json.loads(config.to_json()),
    )
    with atomic_write(file) as opened:
        opened.write(json.dumps({"id": id}) + "\n")
    return run


class Reporter:
    """Writes the reports of a run; on all processes but the first it only keeps time.

    Model FLOPs utilization (MFU) is the share of the devices' peak that the operations
    of the model take (PaLM, arXiv 2204.02311, appendix B): those of rematerialization
    do not count. It was not checked on a TPU.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        clips_per_device: float,
        flops_per_clip: float | None = None,
        peak_flops: float | None = None,
        wandb_run: Any = None,
        active: bool = True,
    ):
        """Continues the reports of a run; removes those after `start_step`.

        Args:
            workdir: folder of the files.
            start_step: steps already done.
            total_steps: steps of the whole run.
            clips_per_device: clips that each device takes per step.
            flops_per_clip: operations of a training step per clip.
            peak_flops: operations per second of a device; MFU is reported if both are
                known.
            wandb_run: of `start_wandb`, which is finished by `close`.
            active: whether to write files and log lines.
        """
        self._wandb_run = wandb_run
        self._active, self._workdir = active, workdir
        self._total_steps, self._clips_per_device = total_steps, clips_per_device
        self._mfu_of_rate = None
        if flops_per_clip and peak_flops:
            self._mfu_of_rate = flops_per_clip / peak_flops
        self._last_step = start_step
        self._last_time = time.perf_counter()
        self._waited = self._paused = 0.0
        if not active:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl")
        self._metrics.truncate(start_step)
        self._tensorboard = _TensorBoard(workdir / "tensorboard", start_step + 1)
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            # A log file should not contain lines that are rewritten.
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
        """Excludes the time inside from the speed of training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def compiling(self, is_first: bool) -> Iterator[None]:
        """Logs the time inside, if it is the first call of the step.

        JAX compiles a function when it is called first. The speed of training is
        measured from there on: without the compilation and the start of the workers.
        """
        if not is_first:
            yield
            return
        log.info("compiling the train step ...")
        start = time.perf_counter()
        yield
        self._last_time = time.perf_counter()
        self._waited = self._paused = 0.0
        log.info("compiled the train step in %.1f s", self._last_time - start)

    def metrics(self, step: int, values: Mapping[str, float]) -> tuple[float, float]:
        """Reports metrics after `step` steps, and the speed since the last report.

        Args:
            step: steps done.
            values: with "loss", "grad_norm" and "learning_rate".

        Returns:
            The seconds since the last report, without pauses, and the fraction of them
            spent waiting for data.
        """
        now = time.perf_counter()
        seconds = max(now - self._last_time - self._paused, 1e-9)
        steps = step - self._last_step
        rate = steps * self._clips_per_device / seconds
        data_wait = self._waited / seconds
        self._last_step, self._last_time = step, now
        self._waited = self._paused = 0.0
        if not self._active:
            return seconds, data_wait
        row = {
            "step": step,
            **values,
            "clips_per_second_per_device": rate,
            "data_wait_fraction": data_wait,
        }
        line = (
            f"loss={row['loss']:.4f} lr={row['learning_rate']:.2e} "
            f"grad_norm={row['grad_norm']:.3f} clips/s/device={rate:.1f} "
            f"data_wait={data_wait:.0%}"
        )
        if self._mfu_of_rate is not None:
            row["mfu"] = rate * self._mfu_of_rate
            line += f" mfu={row['mfu']:.1%}"
        self._write(row)
        if self._bar.disable:
            remaining = _clock((self._total_steps - step) * seconds / steps)
            log.info("step=%d/%d %s eta=%s", step, self._total_steps, line, remaining)
        else:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(line)
        return seconds, data_wait

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Reports values that are not of training, such as of a validation."""
        if self._active:
            self._write({"step": step, **values})

    def _write(self, row: dict) -> None:
        self._metrics.append([row])
        values = {name: value for name, value in row.items() if name != "step"}
        for name, value in values.items():
            self._tensorboard.add(row["step"], summary.scalar(name, value))
        if self._wandb_run is not None:
            self._wandb_run.log(values, step=row["step"])

    def picture(self, step: int, rows: list[np.ndarray]) -> None:
        """Writes original, masked and reconstructed clips as PNG and animated GIF.

        Each is uint8 or uint16 [B, T, H, W, C].
        """
        if not self._active:
            return
        folder = self._workdir / "pictures"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        labels = visualize.RECONSTRUCTION
        image = visualize.frame_strip(rows, labels=labels)
        visualize.save_png(folder / f"{step:08d}.png", image)
        visualize.save_gif(folder / f"{step:08d}.gif", rows, labels=labels)
        image = summary.image("clips", image, dataformats="HWC")
        self._tensorboard.add(step, image)
        log.info("picture=%s", folder / f"{step:08d}.png")

    def close(self) -> None:
        """Flushes TensorBoard and Weights & Biases, and closes the progress bar."""
        if self._active:
            self._bar.close()
            if self._wandb_run is not None:
                self._wandb_run.finish()
            self._tensorboard.close()


class _TensorBoard:
    """Writes a file of TensorBoard in the thread of its caller.

    The thread of tensorboardX.SummaryWriter ends when the disk is full. Its queue fills
    up, and the writer waits for ever.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        self._folder = folder
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"))
        # TensorBoard hides what earlier files have of later steps.
        log = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=first_step, session_log=log))

    def add(self, step: int, values: Any) -> None:
        """Adds a `summary`."""
        with writing(self._folder):
            event = Event(wall_time=time.time(), step=step, summary=values)
            self._file.write_event(event)
            self._file.flush()

    def close(self) -> None:
        with writing(self._folder):
            self._file.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
