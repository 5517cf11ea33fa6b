"""Compiles the training step for TPU slices without TPUs, and reads the result.

XLA plans the memory of a program when it compiles it, so memory and communication are
known without running the step.
"""

import dataclasses
import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence

import jax

from videomae_jax.config import Config, check_choices
from videomae_jax.data import labels
from videomae_jax.data.clips import clip_shape, pixel_format
from videomae_jax.distributed import sharding
from videomae_jax.errors import CompilerError, ConfigError, RecordError
from videomae_jax.models.problem import Problem
from videomae_jax.tpu import collectives, step_time
from videomae_jax.tpu.chips import CHIPS
from videomae_jax.tpu.program import Program
from videomae_jax.training import losses, train_step
from videomae_jax.training.task import clip_grid
from videomae_jax.training.tasks import TASKS
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.tasks.pretrain import Pretraining

# Numbers of clips per device to try: 1, 2, 3, 4, 6, 8, 12 ...
BATCHES = tuple(n for k in range(10) for n in (2**k, 3 * 2 ** (k - 1)) if n == int(n))


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled step, or the memory it lacks; sizes are bytes of a device's memory.

    Attributes:
        devices: number of devices; chips of v4, v5e, v5p and v6e are one device, those
            of tpu7x two.
        device_kind: `jax.Device.device_kind`.
        plan: what is split over the devices, and why.
        clips: clips per device and step.
        grad_accum_steps: micro-batches per step.
        seconds: duration of the compilation.
        available: memory that a program may use.
        needed: peak memory of this program.
        arguments: size of state and batch; like all that follow, None if the step does
            not fit.
        outputs: size of the new state.
        aliased: part of the outputs that reuses the memory of arguments.
        temporaries: size of everything else: activations, gradients, gathered
            parameters.
        traffic: the collectives, by kind; see collectives.py.
        time: what the compiler expects of the step, if asked for; see step_time.py.
        clips_per_second: of a device, in this time.
        share_of_peak: of the device's matrix operations per second, that which the
            model's products need in this time; see models/flops.py.
    """

    devices: int
    device_kind: str
    plan: sharding.ShardingPlan
    clips: int
    grad_accum_steps: int
    seconds: float
    available: int
    needed: int
    arguments: int | None = None
    outputs: int | None = None
    aliased: int | None = None
    temporaries: int | None = None
    traffic: dict[str, collectives.Traffic] | None = None
    time: step_time.StepTime | None = None
    clips_per_second: float | None = None
    share_of_peak: float | None = None

    @property
    def fits(self) -> bool:
        """True if the step fits into memory."""
        return self.traffic is not None


def compile_step(
    config: Config, devices: Sequence[jax.Device], *, with_time: bool = False
) -> Compilation:
    """Compiles the training step of a config; reads no videos and no weights.

    Args:
        config: see configs/common.py.
        devices: see `topology.devices`.
        with_time: also read the time that the compiler expects.

    Raises:
        CompilerError: the compiler refused the step, but not because of its memory.
        ConfigError: the config does not fit the devices.
        RecordError: the number of classes is unknown.
    """
    task = make_task(config)
    # The numbers of steps are only constants of the learning-rate schedule.
    step = train_step.build(
        config, task, total_steps=1000, warmup_steps=100, devices=devices
    )
    clips = config.batch_size * config.data.num_samples
    batch = _abstract_batch(config, task, step.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = time.monotonic()
    common = {
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "plan": step.plan,
        "clips": clips // len(devices),
        "grad_accum_steps": step.grad_accum_steps,
        "available": sharding.device_memory(devices[0]),
    }
    with jax.set_mesh(step.mesh):
        lowered = step.apply.lower(step.abstract_state, batch, key)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = bytes_needed(str(error))
            if needed is None:
                raise CompilerError(
                    f"the compiler refused: {str(error).splitlines()[0]}\nTry another "
                    "sharding (--config.mesh.shard_optimizer=True, "
                    "--config.mesh.fsdp=2), slice or model size."
                ) from error
            seconds = time.monotonic() - start
            return Compilation(**common, seconds=seconds, needed=needed)
    memory = compiled.memory_analysis()
    program = Program(compiled.as_text())
    if with_time:
        chip = CHIPS[devices[0].device_kind]
        expected = step_time.read(program, chip)
        rate = common["clips"] / expected.seconds
        common |= {
            "time": expected,
            "clips_per_second": rate,
            "share_of_peak": rate * task.flops_per_clip / chip.peak,
        }
    return Compilation(
        **common,
        seconds=time.monotonic() - start,
        needed=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=collectives.read(program),
    )


def bytes_needed(message: str) -> int | None:
    """Parses the bytes that a program needs out of an XLA out-of-memory error.

    XLA reports the memory used of that available, or the temporaries alone.

    Returns:
        Bytes; None for other errors.
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
        r"\(([\d.]+)([KMGT])\) exceeds available HBM",
    ):
        if match := re.search(pattern, message):
            return int(float(match[1]) * units[match[2]])
    return None


def with_clips(config: Config, clips: int, num_devices: int) -> Config | None:
    """Returns a copy of a config that gives each device `clips` clips at once.

    Returns:
        The config; None if the clips of a step are not a whole number of videos.
    """
    videos, rest = divmod(clips * num_devices, config.data.num_samples)
    if rest:
        return None
    config = config.copy_and_resolve_references()
    config.batch_size = videos
    config.micro_batch_per_device = clips
    return config


def search_largest(
    config: Config,
    devices: Sequence[jax.Device],
    first: Compilation,
) -> Iterator[Compilation]:
    """Searches for the most clips that a device takes at once.

    Args:
        config: see configs/common.py.
        devices: see `topology.devices`.
        first: the compilation of the config; the search starts near its clips.

    Yields:
        Every compilation. Of those that fit, the one with the most clips is the result.

    Raises:
        ConfigError: none of BATCHES is a whole number of videos.
    """
    configs = {n: with_clips(config, n, len(devices)) for n in BATCHES}
    candidates = [(n, x) for n, x in configs.items() if x]
    if not candidates:
        raise ConfigError(
            f"config.data.num_samples={config.data.num_samples} must divide the clips "
            f"of a step, for some number of clips per device up to {BATCHES[-1]}"
        )
    at_once = first.clips // first.grad_accum_steps
    i = max((i for i, (n, _) in enumerate(candidates) if n <= at_once), default=0)
    clips, candidate = candidates[i]
    compilation = first
    if clips != first.clips:
        compilation = compile_step(candidate, devices)
    yield compilation
    # Up while it fits, or down until it fits.
    fits = compilation.fits
    direction = 1 if fits else -1
    while compilation.fits == fits and 0 <= (i := i + direction) < len(candidates):
        compilation = compile_step(candidates[i][1], devices)
        yield compilation


def search_micro_batch(
    config: Config,
    devices: Sequence[jax.Device],
    max_clips: int,
) -> Iterator[Compilation]:
    """Searches for the largest micro-batch with which the config's own batch fits.

    All clips of a step, and the gradients that micro-batches add up, are on the devices
    at once. A micro-batch may therefore have to be smaller than a batch that fits by
    itself.

    Args:
        config: see configs/common.py.
        devices: see `topology.devices`.
        max_clips: the largest micro-batch to try, in clips per device.

    Yields:
        Compilations with smaller and smaller micro-batches, up to one that fits.
    """
    for clips in reversed([n for n in BATCHES if n <= max_clips]):
        config = config.copy_and_resolve_references()
        config.micro_batch_per_device = clips
        compilation = compile_step(config, devices)
        yield compilation
        if compilation.fits:
            return


def make_task(config: Config) -> Pretraining | Finetuning:
    """Builds the task of a config without reading its lists of videos.

    Raises:
        ConfigError: fields of the config do not fit each other.
        RecordError: the number of classes is unknown.
    """
    if config.task == "pretrain":
        return Pretraining(config)
    config = config.copy_and_resolve_references()
    config.data.test = ""
    check_choices(config, {"loss.kind": losses.KINDS})
    heads, count = losses.head_labels(config), config.data.num_classes
    if count is None and config.loss.kind == "mse" and not config.data.labels:
        count = 1
    try:
        names = [
            [str(i) for i in range(count)] if count is not None else labels.read(file)
            for file in heads.values()
        ]
    except RecordError as error:
        raise RecordError(
            "the number of classes is unknown: set, for example, "
            "--config.data.num_classes=400, or --config.data.labels=FILE with a class "
            "name per line"
        ) from error
    sizes = tuple(zip(heads, map(len, names), strict=True)) if len(heads) > 1 else ()
    kind = losses.KINDS[config.loss.kind]
    objective = losses.Objective(
        Problem(kind.problem_type, sizes),
        tuple(itertools.chain(*names)),
        kind,
        mean=(0.0,) * len(names[0]),
        std=(1.0,) * len(names[0]),
    )
    return TASKS[config.task](config, objective.meta)


def _abstract_batch(
    config: Config, task: Pretraining | Finetuning, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    num_clips = config.batch_size * config.data.num_samples
    by_row = sharding.batch_sharding(mesh)
    tokens = math.prod(clip_grid(config, task.model))
    shape = num_clips, tokens, math.prod(clip_shape(config)) // tokens
    dtype = pixel_format(config).dtype
    batch = {"patches": jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)}
    if isinstance(task, Finetuning):
        label = task.objective.example_label
        shape = (num_clips, *label.shape)
        batch["label"] = jax.ShapeDtypeStruct(shape, label.dtype, sharding=by_row)
    return batch
