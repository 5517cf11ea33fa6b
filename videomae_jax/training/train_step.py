"""One training step, the same for every task, to be jitted."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes.

    Attributes:
        step: int32 scalar, steps done.
        params: float32 parameters.
        opt_state: the optimizer's state.
        statistics: running statistics of the model's batch norm; usually empty.
        ema: exponential moving average of the parameters, or None.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    statistics: dict
    ema: dict | None = None

    def items(self) -> dict:
        """What a checkpoint holds of it, by item."""
        items = {"params": self.params, "opt_state": self.opt_state}
        optional = {"statistics": self.statistics, "ema": self.ema}
        return items | {name: tree for name, tree in optional.items() if tree}


def make_train_step(
    task,
    tx: optax.GradientTransformation,
    schedule: Callable,
    accumulation: int,
    ema_decay: float = 0.0,
) -> Callable:
    """The function (state, batch, key) -> (state, metrics) to be jitted.

    The update of a step whose loss or gradient is not finite is dropped; its metrics
    tell. The state's `ema`, if it has one, follows the parameters, with the decay
    min(ema_decay, (1 + step) / (10 + step)).
    With accumulation, micro-batch j holds the clips j, j + k, j + 2k ... of a batch, so
    that each device cuts up its own rows.
    """

    def loss_and_grad(params, statistics, batch):
        """Loss and statistics, and the gradient."""
        grad_of = jax.value_and_grad(task.loss, has_aux=True)
        if accumulation == 1:
            return grad_of(params, statistics, batch)
        micro_batches = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total, micro_batch):
            return jax.tree.map(
                jnp.add, total, grad_of(params, statistics, micro_batch)
            ), None

        zeros = jax.tree.map(jnp.zeros_like, ((jnp.zeros(()), statistics), params))
        total, _ = jax.lax.scan(add, zeros, micro_batches)
        return jax.tree.map(lambda x: x / accumulation, total)

    def train_step(state, batch, key):
        batch = task.prepare(batch, jax.random.fold_in(key, state.step))
        (loss, statistics), grads = loss_and_grad(state.params, state.statistics, batch)
        grad_norm = optax.tree.norm(grads)
        learning_rate = schedule(state.step)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(
            lambda param, update: param - learning_rate * update, state.params, updates
        )
        # Shorter at first: the initial parameters would weigh for long in the average.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda mean, param: decay * mean + (1 - decay) * param,
            state.ema,
            params if state.ema is not None else None,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = TrainState(state.step, params, opt_state, statistics, ema)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
        }
        return state.replace(step=state.step + 1), metrics

    return train_step
