"""AdamW and the learning-rate schedule of the reference recipes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(
    base_lr: float,
    min_lr: float,
    batch_size: int,
    warmup_steps: int,
    total_steps: int,
) -> Callable[[jax.Array | int], jax.Array]:
    """The learning rate at a step: linear warm-up from zero, then half a cosine.

    Both rates are given for a batch of 256 and scale linearly with the global batch
    (VideoMAE, appendix; the official code scales the floor too). The warm-up reaches
    the peak on its last step; the cosine would reach the floor one step after the end.

    Args:
        base_lr: peak rate for a batch of 256.
        min_lr: floor for a batch of 256.
        batch_size: videos per step over all devices; repeated samples do not count.
        warmup_steps: steps of warm-up.
        total_steps: steps of the whole run.

    Returns:
        A function of the step (counted from 0), usable inside jit, giving float32.
    """
    peak, floor = base_lr * batch_size / 256, min_lr * batch_size / 256

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = peak * step / max(warmup_steps - 1, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decays(params) -> dict:
    """Which parameters weight decay applies to: the matrices.

    LayerNorm scales, biases and the mask token do not decay (official code). Rank
    cannot tell them apart here, as stacked layers add an axis; names can.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(
    b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float = 0.0
) -> optax.GradientTransformation:
    """AdamW with decoupled decay of the matrices, still to be scaled by -lr.

    The learning rate stays outside so that it is a function of the step alone, also
    after a skipped update.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, multiplied by the learning rate.
        clip_norm: largest global gradient norm; 0 clips nothing.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decays),
    )
