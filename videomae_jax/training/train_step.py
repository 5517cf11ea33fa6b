"""The training step: the state, where it is placed, and the jitted update.

`build` puts everything together for a config, a task and the devices. Nothing is
compiled before it is called.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from videomae_jax.distributed import sharding
from videomae_jax.models.layers import attention
from videomae_jax.training import optimizer

# benchmarks/train_step.py also runs where few packages are installed.
if TYPE_CHECKING:
    from videomae_jax.checkpointing import Checkpoints
    from videomae_jax.config import Config
    from videomae_jax.training.task import Task

log = logging.getLogger(__name__)


class TrainState(struct.PyTreeNode):
    """Everything a step changes.

    Attributes:
        step: int32 scalar, steps done.
        params: float32 parameters.
        opt_state: the optimizer's state.
        batch_stats: running statistics of the model's batch norm; usually empty.
        ema: exponential moving average of the parameters, or None.
        frozen: arrays that the loss takes and no step changes (`Task.frozen`).
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    batch_stats: dict
    ema: dict | None = None
    frozen: dict = struct.field(default_factory=dict)

    @property
    def evaluated_variables(self) -> dict:
        """The model's variables for evaluation: the averaged parameters, if kept."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, **self.batch_stats}

    def items(self) -> dict:
        """Returns the trees to save in a checkpoint, by item."""
        items = {"params": self.params, "opt_state": self.opt_state}
        optional = {"batch_stats": self.batch_stats, "ema": self.ema}
        return items | {name: tree for name, tree in optional.items() if tree}


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A task's state and step for a mesh of devices.

    Attributes:
        mesh: the devices.
        plan: what is split over them, and why.
        grad_accum_steps: micro-batches per step.
        abstract_state: the TrainState as shapes with shardings.
        init: key -> TrainState, without what is frozen.
        start: (params, batch_stats) -> TrainState at step 0, without what is frozen.
        apply: (TrainState, batch, key) -> (TrainState, metrics); donates the state.
    """

    mesh: Mesh
    plan: sharding.ShardingPlan
    grad_accum_steps: int
    abstract_state: TrainState
    init: Callable
    start: Callable
    apply: Callable

    def log_plan(self, *, num_videos: int, num_clips: int, total_steps: int) -> None:
        """Logs how videos, steps and the clips of a step are split over the devices."""
        split = "split over each slice" if self.plan.shard_optimizer else None
        log.info(
            "mesh=%s optimizer_state=%s (%s)",
            dict(self.mesh.shape),
            split or "like parameters",
            self.plan.reason,
        )
        log.info(
            "videos=%d steps=%d clips_per_step=%d devices=%d x %s clips_per_device=%d "
            "micro_batches=%d",
            num_videos,
            total_steps,
            num_clips,
            self.mesh.size,
            self.mesh.devices.flat[0].platform,
            num_clips // self.mesh.size,
            self.grad_accum_steps,
        )


def build(
    config: "Config",
    task: "Task",
    *,
    total_steps: int,
    warmup_steps: int,
    devices: Sequence[jax.Device] | None = None,
) -> TrainStep:
    """Builds the training step of a config for all devices of all processes.

    Args:
        config: see configs/common.py.
        task: what is trained.
        total_steps: length of the run.
        warmup_steps: steps in which the learning rate rises.
        devices: by default this machine's; `tpu/` passes devices of a TPU slice that
            is only compiled for.

    Raises:
        ConfigError: the config does not fit the devices.
    """
    from videomae_jax.config import check_choices

    devices = jax.devices() if devices is None else devices
    check_attention(config.model, devices)
    if config.mesh.gradient_dtype is not None:
        check_choices(config, {"mesh.gradient_dtype": ("float32", "bfloat16")})
    tx, schedule = _optimizer(config, warmup_steps, total_steps)

    def start(params, batch_stats):
        ema = jax.tree.map(jnp.copy, params) if config.ema.decay else None
        return TrainState(jnp.int32(0), params, tx.init(params), batch_stats, ema)

    def init(key):
        return start(*task.init(key, dummy_clip(config)))

    shapes = jax.eval_shape(init, jax.random.key(0)).replace(frozen=task.frozen)
    plan = sharding.choose_plan(
        shapes,
        devices,
        fsdp=config.mesh.fsdp,
        shard_optimizer=config.mesh.shard_optimizer,
    )
    mesh = sharding.make_mesh(plan.fsdp, devices)
    grad_accum_steps = _choose_grad_accum_steps(config, mesh, shapes)
    shardings = sharding.state_shardings(shapes, mesh, plan.shard_optimizer)
    initial = shardings.replace(frozen={})
    step = make_train_step(
        task,
        tx,
        schedule,
        mesh=mesh,
        grad_accum_steps=grad_accum_steps,
        gradient_dtype=_gradient_dtype(config, mesh),
        ema_decay=config.ema.decay,
    )
    return TrainStep(
        mesh=mesh,
        plan=plan,
        grad_accum_steps=grad_accum_steps,
        abstract_state=sharding.with_shardings(shapes, shardings),
        init=jax.jit(init, out_shardings=initial),
        start=jax.jit(start, out_shardings=initial),
        apply=jax.jit(step, out_shardings=(shardings, None), donate_argnums=0),
    )


def _gradient_dtype(config: "Config", mesh: Mesh) -> str:
    """Returns the dtype in which devices sum gradients."""
    if math.prod(mesh.shape[x] for x in sharding.replica_axes(mesh)) == 1:
        return "float32"  # nothing is summed
    default = "bfloat16" if config.model.dtype == "bfloat16" else "float32"
    return config.mesh.gradient_dtype or default


def make_train_step(
    task: "Task",
    tx: optax.GradientTransformation,
    schedule: Callable,
    *,
    mesh: Mesh,
    grad_accum_steps: int,
    gradient_dtype: str = "float32",
    ema_decay: float = 0.0,
) -> Callable:
    """Returns the function (state, batch, key) -> (state, metrics) to be jitted.

    An update whose loss or gradient is not finite is dropped; the metrics show it. The
    state's `ema`, if it has one, follows the parameters with the decay
    min(ema_decay, (1 + step) / (10 + step)).

    With gradient accumulation, micro-batch j of k holds the clips j, j + k, j + 2k ...
    of a batch, so that each device splits its own rows. Devices add up the gradients of
    their micro-batches in float32, and are summed once per step, in `gradient_dtype`.
    """

    loss_and_grad = _loss_and_grad(task, mesh, grad_accum_steps, gradient_dtype)

    def train_step(state, batch, key):
        batch = task.add_randomness(batch, jax.random.fold_in(key, state.step))
        (loss, (batch_stats, parts)), grads = loss_and_grad(
            state.params, state.batch_stats, batch, state.frozen
        )
        grad_norm = optax.tree.norm(grads)
        learning_rate = schedule(state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(
            lambda param, update: param - learning_rate * update, state.params, updates
        )
        # Shorter at first: the initial parameters would dominate the average for long.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda mean, param: decay * mean + (1 - decay) * param,
            state.ema,
            params if state.ema is not None else None,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = TrainState(state.step, params, opt_state, batch_stats, ema)
        old, frozen = state.replace(frozen={}), state.frozen
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        metrics = {
            "loss": loss,
            **parts,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }
        return state.replace(step=state.step + 1, frozen=frozen), metrics

    return train_step


def _loss_and_grad(task, mesh, grad_accum_steps, gradient_dtype):
    """Returns a function of (params, batch_stats, batch, frozen).

    Its result is ((loss, (batch_stats, metrics)), grads), all averaged over the
    micro-batches and the devices. Each copy of the parameters is used for its own clips
    until the one sum at the end; left to itself, the compiler would sum in every
    micro-batch. If a copy is split over several devices, the compiler gathers and sums
    among these, layer by layer.
    """
    axes = sharding.replica_axes(mesh)
    count = grad_accum_steps * math.prod(mesh.shape[axis] for axis in axes)

    def of_each_copy(params, batch_stats, batch, frozen):
        sums = _accumulate(
            task, params, batch_stats, batch, frozen, grad_accum_steps, mesh
        )
        aux, grads = jax.tree.map(lambda x: x[None] / count, sums)
        return aux, jax.tree.map(lambda x: x.astype(gradient_dtype), grads)

    def loss_and_grad(params, batch_stats, batch, frozen):
        parts = jax.shard_map(
            of_each_copy,
            mesh=mesh,
            in_specs=(P(), P(), P(axes), P()),
            out_specs=P(axes),
            axis_names=set(axes),
            check_vma=False,
        )(params, batch_stats, batch, frozen)
        # The compiler makes this an all-reduce or, for a split optimizer, a
        # reduce-scatter. jnp.sum would send float32.
        aux, grads = jax.tree.map(
            lambda x: jax.lax.reduce(x, np.zeros((), x.dtype), jax.lax.add, [0]), parts
        )
        return aux, jax.tree.map(lambda x, param: x.astype(param.dtype), grads, params)

    return loss_and_grad


def _accumulate(task, params, batch_stats, batch, frozen, grad_accum_steps, mesh):
    """Returns ((loss, (batch_stats, metrics)), grads), sums over the micro-batches."""
    shardings = sharding.state_shardings(params, mesh)

    def grad_of(batch):
        aux, grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, batch_stats, batch, frozen
        )
        # The compiler would not see that sums of gradients are split like parameters.
        return aux, jax.tree.map(
            lambda x, y: jax.lax.with_sharding_constraint(x, y.spec), grads, shardings
        )

    if grad_accum_steps == 1:
        return grad_of(batch)
    micro_batches = jax.tree.map(
        lambda x: x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, grad_of(micro_batch)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    aux = jax.eval_shape(task.loss, params, batch_stats, first, frozen)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (aux, params))
    return jax.lax.scan(add, zeros, micro_batches)[0]


def _optimizer(config: "Config", warmup_steps: int, total_steps: int):
    tx = optimizer.adamw(
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        layer_decay=config.optimizer.layer_decay,
        freeze=config.freeze,
    )
    schedule = optimizer.warmup_cosine(
        base_lr=config.optimizer.base_lr,
        min_lr=config.optimizer.min_lr,
        batch_size=config.batch_size,
        warmup_steps=min(warmup_steps, total_steps),
        total_steps=total_steps,
    )
    return tx, schedule


def _choose_grad_accum_steps(config: "Config", mesh: Mesh, shapes: TrainState) -> int:
    num_clips = config.batch_size * config.data.num_samples
    steps = sharding.grad_accum_steps(
        num_clips, mesh.size, config.micro_batch_per_device
    )
    if steps > 1 and shapes.batch_stats:
        log.warning(
            "batch norm sees micro-batches of %d clips, not the batch of %d: raise "
            "config.micro_batch_per_device",
            num_clips // steps,
            num_clips,
        )
    return steps


def restore_for_test(
    config: "Config", task: "Task", checkpoints: "Checkpoints", step: int
) -> tuple[Mesh, TrainState]:
    """Restores the parameters that training evaluates, without the optimizer."""
    from videomae_jax.checkpointing import TRAINING_ONLY

    video = dummy_clip(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0), video)
    item = checkpoints.evaluated_item(step)
    unused = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in checkpoints.shapes(step).get(item, {}).items()
        if path.startswith(TRAINING_ONLY)
    }
    # Checkpoints are restored whole.
    shapes = (shapes[0] | traverse_util.unflatten_dict(unused, sep="/"), shapes[1])
    abstract = TrainState(jnp.int32(0), shapes[0], (), shapes[1])
    plan = sharding.choose_plan(abstract, jax.devices(), fsdp=config.mesh.fsdp)
    mesh = sharding.make_mesh(plan.fsdp)
    params, batch_stats = sharding.with_shardings(
        shapes, sharding.state_shardings(shapes, mesh)
    )
    items = {item: params} | ({"batch_stats": batch_stats} if batch_stats else {})
    restored = checkpoints.restore(step, items)
    log.info("evaluating %s step=%d params=%s", checkpoints.folder, step, item)
    batch_stats = restored.get("batch_stats", {})
    return mesh, TrainState(jnp.int32(step), restored[item], (), batch_stats)


def check_attention(model: "Config", devices: Sequence[jax.Device]) -> None:
    """Checks that these devices have the attention that a config's `model` names.

    Raises:
        ConfigError: they do not; the message names the field.
    """
    for name in ("attention", "decoder_attention"):
        attention.check(
            model.get(name), devices[0].platform, name=f"config.model.{name}"
        )


def dummy_clip(config: "Config") -> jax.Array:
    """Returns a batch of one clip of the config's shape, to initialise a model with."""
    from videomae_jax.data.clips import clip_shape, pixel_format

    return jnp.zeros((1, *clip_shape(config)), pixel_format(config).dtype)
