"""Compiles the train step for TPU slices that are not there, and reads what came out.

XLA plans all memory of a program when it compiles it: that a step fits, and what it
moves between chips, is known without running it.
"""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import ml_collections

from videomae_jax.data import labels
from videomae_jax.distributed import sharding
from videomae_jax.errors import CompilerError, RecordError
from videomae_jax.tpu import collectives
from videomae_jax.training import train_step
from videomae_jax.training.finetune import Finetuning
from videomae_jax.training.pretrain import Pretraining

# Clips that a device is tried with.
BATCHES = tuple(n for k in range(10) for n in (2**k, 3 * 2 ** (k - 1)) if n == int(n))


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What the compiler makes of a step, in bytes of a device's memory.

    Attributes:
        devices: how many; a v4, v5e, v5p or v6e chip is one device, a tpu7x chip two.
        device_kind: what JAX calls them.
        plan: what is split over them, and why.
        clips: per device and step.
        grad_accum_steps: micro-batches of a step.
        seconds: what compiling took.
        available: memory that a program may use.
        needed: memory that this one needs, at its peak.
        arguments: state and batch; None, as what follows, if it does not fit.
        outputs: the new state, most of which takes the old one's place.
        aliased: of the outputs, what takes the place of arguments.
        temporaries: all else: activations, gradients, parameters gathered.
        traffic: see collectives.py.
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

    @property
    def fits(self) -> bool:
        """Whether the program could run."""
        return self.traffic is not None


def compile_step(config: ml_collections.ConfigDict, devices) -> Compilation:
    """Compiles the train step of a config; reads no videos and no weights.

    Args:
        config: see configs/common.py.
        devices: see `tpu_slices.devices`.

    Raises:
        CompilerError: if the compiler refuses the step, though not for its memory.
        ValueError: if the config does not fit the devices.
        RecordError: if it does not tell the number of classes.
    """
    task = make_task(config)
    # The number of steps is but a constant of the learning rate's schedule.
    built = train_step.build(
        config, task, total_steps=1000, warmup_steps=100, devices=devices
    )
    clips = config.batch_size * config.data.num_samples
    batch = _batch(config, built.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    start = time.monotonic()
    common = {
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "plan": built.plan,
        "clips": clips // len(devices),
        "grad_accum_steps": built.grad_accum_steps,
        "available": sharding.device_memory(devices[0]),
    }
    with jax.set_mesh(built.mesh):
        lowered = built.apply.lower(built.abstract_state, batch, key)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = bytes_needed(str(error))
            if needed is None:
                raise CompilerError(
                    f"the compiler refused: {str(error).splitlines()[0]}\nWith another "
                    "layout (--config.mesh.shard_optimizer=True, "
                    "--config.mesh.fsdp=2), slice or size of the model it may not"
                ) from error
            seconds = time.monotonic() - start
            return Compilation(**common, seconds=seconds, needed=needed)
    memory = compiled.memory_analysis()
    return Compilation(
        **common,
        seconds=time.monotonic() - start,
        needed=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        traffic=collectives.read(compiled.as_text()),
    )


def bytes_needed(message: str) -> int | None:
    """Bytes that a program needs, of the compiler's refusal; None for other errors.

    XLA says what it used of how much, or what the temporaries alone would take.
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
        r"\(([\d.]+)([KMGT])\) exceeds available HBM",
    ):
        if found := re.search(pattern, message):
            return int(float(found[1]) * units[found[2]])
    return None


def with_clips(config: ml_collections.ConfigDict, clips: int, devices: int):
    """The config with so many clips for each device at once; None if there is none."""
    videos, rest = divmod(clips * devices, config.data.num_samples)
    if rest:
        return None
    config = config.copy_and_resolve_references()
    config.batch_size = videos
    config.micro_batch_per_device = clips
    return config


def largest(config: ml_collections.ConfigDict, devices, first: Compilation):
    """Looks for the most clips that a device takes at once; yields what it compiles.

    Args:
        config: see configs/common.py.
        devices: see `tpu_slices.devices`.
        first: of the config as it is, near which the search begins.

    Yields:
        Compilations; of those that fit, the one of the most clips is the answer.

    Raises:
        ValueError: if no number of clips that is tried divides over the devices.
    """
    configs = {n: with_clips(config, n, len(devices)) for n in BATCHES}
    rungs = [n for n in BATCHES if configs[n]]
    if not rungs:
        raise ValueError(
            f"config.data.num_samples is {config.data.num_samples}: none of up to "
            f"{BATCHES[-1]} clips a device is a whole number of videos"
        )
    at_once = first.clips // first.grad_accum_steps
    i = max((i for i, n in enumerate(rungs) if n <= at_once), default=0)
    tried = first
    if rungs[i] != first.clips:
        tried = compile_step(configs[rungs[i]], devices)
    yield tried
    direction = 1 if tried.fits else -1
    begun_fitting = tried.fits
    while 0 <= (i := i + direction) < len(rungs):
        tried = compile_step(configs[rungs[i]], devices)
        yield tried
        if tried.fits != begun_fitting:
            return


def with_the_batch(config: ml_collections.ConfigDict, devices, most: int):
    """Tries the config's own batch in micro-batches of at most so many clips, or fewer.

    All clips of a step are on a device together with the gradients that micro-batches
    add up, so fewer at a time may fit than alone.

    Yields:
        Compilations with smaller and smaller micro-batches, up to one that fits.
    """
    for clips in reversed([n for n in BATCHES if n <= most]):
        config = config.copy_and_resolve_references()
        config.micro_batch_per_device = clips
        tried = compile_step(config, devices)
        yield tried
        if tried.fits:
            return


def make_task(config: ml_collections.ConfigDict) -> Pretraining | Finetuning:
    """The task of a config, without its lists of videos.

    Raises:
        ValueError: if fields of the config do not fit each other.
        RecordError: if it does not tell the number of classes.
    """
    if config.task == "pretrain":
        return Pretraining(config)
    config = config.copy_and_resolve_references()
    config.data.test = ""
    number, names = config.data.num_classes, None
    if number is None:
        try:
            names = labels.read(config.data.labels)
        except RecordError as error:
            raise RecordError(
                "how many classes? Give --config.data.num_classes=400, say, or "
                "--config.data.labels=FILE with a class name a line"
            ) from error
    return Finetuning(config, names or [str(label) for label in range(number)])


def _batch(config, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    size, frames = config.data.image_size, config.data.num_frames
    clips = config.batch_size * config.data.num_samples
    where = sharding.batch_sharding(mesh)
    shape = (clips, frames, size, size, 3)
    batch = {"video": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=where)}
    if config.task == "finetune":
        shape = (clips, 1) if config.loss.kind == "sigmoid" else (clips,)
        batch["label"] = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)
    return batch
