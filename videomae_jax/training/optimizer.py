"""AdamW and the learning-rate schedule of the reference recipes."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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


def layer_scales(params, decay: float) -> dict:
    """How much slower each parameter learns: layer-wise learning-rate decay.

    With L blocks, block i (from 0) learns at decay^(L - i) of the full rate, the patch
    embedding at decay^(L + 1), everything after the blocks at the full rate (official
    code; VideoMAE's decay is 0.75). Weight decay slows down alike.

    Args:
        params: a classifier's parameters, with stacked blocks.
        decay: factor from each layer to the one below; 1 for none.

    Returns:
        A tree like params of float32 arrays that multiply its updates.
    """

    def scale(path, x):
        names = [entry.key for entry in path]
        if names[:2] == ["encoder", "blocks"]:
            exponents = np.arange(x.shape[0], 0, -1).reshape(-1, *[1] * (x.ndim - 1))
        elif names[:2] == ["encoder", "embedding"]:
            exponents = depth + 1
        else:
            exponents = 0
        return np.asarray(decay**exponents, np.float32)

    depth = len(params["encoder"]["blocks"]["norm1"]["scale"])
    return jax.tree.map_with_path(scale, params)


def is_frozen(params, pattern: str) -> dict:
    """Which parameters do not train: those whose path, a/b/c, the pattern is found in.

    Args:
        params: parameters.
        pattern: regular expression, such as "^encoder/"; an empty one freezes nothing.

    Raises:
        ValueError: if no parameter, or each of them, matches.
    """

    def matches(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return bool(pattern) and bool(re.search(pattern, name))

    frozen = jax.tree.map_with_path(matches, params)
    matched = jax.tree.leaves(frozen)
    if pattern and (not any(matched) or all(matched)):
        raise ValueError(
            f"config.freeze = {pattern!r} matches {sum(matched)} of {len(matched)} "
            "parameters; it is searched for in names such as encoder/embedding/kernel"
        )
    return frozen


def adamw(
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    freeze: str = "",
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
        layer_decay: see `layer_scales`; 1 for none.
        freeze: see `is_frozen`; what is frozen has no moments either.
    """
    parts = [
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=decays),
    ]
    if clip_norm:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    tx = optax.chain(*parts)
    if freeze:
        tx = optax.partition(
            {"trained": tx, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(
                lambda frozen: "frozen" if frozen else "trained",
                is_frozen(params, freeze),
            ),
        )
    # Outside the partition, which hides frozen layers: all of them count.
    return tx if layer_decay == 1 else optax.chain(tx, _scale_by_layer(layer_decay))


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scale(updates, params):
        return jax.tree.map(jnp.multiply, updates, layer_scales(params, decay))

    return optax.stateless(scale)
