"""What runs on the devices: the state, where it lives, and the step that changes it."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from videomae_jax.distributed import sharding
from videomae_jax.models import attention
from videomae_jax.training import optimizer
from videomae_jax.training.train_step import TrainState, make_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """A task's state and step for a mesh; nothing is compiled before it is called.

    Attributes:
        mesh: the devices, as they share the work.
        layout: what is split over them, and why.
        accumulation: micro-batches of a step.
        state: the abstract TrainState, with shardings.
        init: key -> TrainState.
        start: (parameters, statistics) -> TrainState at step 0.
        train_step: (TrainState, batch, key) -> (TrainState, metrics); it takes over the
            state's memory.
    """

    mesh: Mesh
    layout: sharding.Layout
    accumulation: int
    state: TrainState
    init: Callable
    start: Callable
    train_step: Callable


def build(
    config: ml_collections.ConfigDict,
    task,
    total_steps: int,
    warmup_steps: int,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """What the config asks for, on all devices of all processes.

    Args:
        config: see configs/common.py.
        task: what is trained, see training/loop.py.
        total_steps: length of the run.
        warmup_steps: steps in which the learning rate rises.
        devices: other devices than this machine's, such as those of a TPU slice that
            is only compiled for.

    Raises:
        ValueError: if the config does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    check_attention(config.model, devices)
    tx = optimizer.adamw(
        config.optimizer.b1,
        config.optimizer.b2,
        config.optimizer.eps,
        config.optimizer.weight_decay,
        config.optimizer.clip_norm,
        config.optimizer.layer_decay,
        config.freeze,
    )
    schedule = optimizer.warmup_cosine(
        config.optimizer.base_lr,
        config.optimizer.min_lr,
        config.batch_size,
        min(warmup_steps, total_steps),
        total_steps,
    )

    def start(params, statistics):
        ema = jax.tree.map(jnp.copy, params) if config.ema.decay else None
        return TrainState(jnp.int32(0), params, tx.init(params), statistics, ema)

    def init(key):
        return start(*task.init(key, dummy_clip(config)))

    shapes = jax.eval_shape(init, jax.random.key(0))
    layout = sharding.choose_layout(
        shapes, devices, config.mesh.fsdp, config.mesh.shard_optimizer
    )
    mesh = sharding.make_mesh(layout.fsdp, devices)
    num_clips = config.batch_size * config.data.num_samples
    accumulation = sharding.grad_accum_steps(
        num_clips, mesh.size, config.micro_batch_per_device
    )
    if accumulation > 1 and shapes.statistics:
        log.warning(
            "batch norm sees %d clips at a time, not the batch of %d: raise "
            "config.micro_batch_per_device",
            num_clips // accumulation,
            num_clips,
        )
    shardings = sharding.state_shardings(shapes, mesh, layout.shard_optimizer)
    return Program(
        mesh=mesh,
        layout=layout,
        accumulation=accumulation,
        state=sharding.with_shardings(shapes, shardings),
        init=jax.jit(init, out_shardings=shardings),
        start=jax.jit(start, out_shardings=shardings),
        train_step=jax.jit(
            make_train_step(task, tx, schedule, accumulation, config.ema.decay),
            out_shardings=(shardings, None),
            donate_argnums=0,
        ),
    )


def check_attention(
    model: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> None:
    """Makes sure that the attention of a config's `model` exists on these devices.

    Raises:
        ValueError: if it does not; the message names the field.
    """
    for name in ("attention", "decoder_attention"):
        attention.check(model.get(name), devices[0].platform, f"config.model.{name}")


def dummy_clip(config: ml_collections.ConfigDict) -> jax.Array:
    """A clip of the config's shape, to initialise with."""
    size, frames = config.data.image_size, config.data.num_frames
    return jnp.zeros((1, frames, size, size, 3), jnp.uint8)
