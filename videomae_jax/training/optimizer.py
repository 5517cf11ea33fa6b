"""AdamW and the learning-rate schedule of the official recipes."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from videomae_jax.errors import ConfigError


def warmup_cosine(
    base_lr: float,
    min_lr: float,
    *,
    batch_size: int,
    warmup_steps: int,
    total_steps: int,
) -> Callable[[jax.Array | int], jax.Array]:
    """Returns the schedule: linear warm-up from zero, then half a cosine.

    Both rates are for a batch of 256 and scale linearly with the global batch size
    (VideoMAE, appendix; the official code scales the floor, too). The warm-up reaches
    the peak on its last step; the cosine would reach the floor one step after the end.

    Args:
        base_lr: peak rate for a batch of 256.
        min_lr: floor for a batch of 256.
        batch_size: videos per step over all devices; several clips of a video count
            as one.
        warmup_steps: steps of warm-up.
        total_steps: steps of the whole run.

    Returns:
        A function from the step, counted from 0, to the rate, float32 (float64 with
        `jax.enable_x64`); can be jitted.
    """
    peak, floor = base_lr * batch_size / 256, min_lr * batch_size / 256

    def schedule(step):
        step = jnp.asarray(step, float)
        warmup = peak * step / max(warmup_steps - 1, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decays(params: dict) -> dict:
    """Returns a tree of bools: weight decay applies to the matrices.

    LayerNorm scales, biases and the mask token do not decay (official code). They are
    recognized by name: stacked layers have one more axis, so the rank does not tell.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def layer_scales(params: dict, decay: float) -> dict:
    """Returns the factors of layer-wise learning-rate decay.

    With L blocks, block i (from 0) learns at decay^(L - i) of the full rate, the patch
    embedding at decay^(L + 1), everything after the blocks at the full rate (official
    code; VideoMAE's decay is 0.75). Weight decay is scaled in the same way.

    Args:
        params: a classifier's parameters, with stacked blocks.
        decay: factor from each layer to the one below; 1 disables it.

    Returns:
        A tree like params, of float32 arrays that multiply the updates.
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


def is_frozen(params: dict, pattern: str) -> dict:
    """Returns a tree of bools: whether the pattern is found in a parameter's path.

    Args:
        params: parameters, with paths such as encoder/embedding/kernel.
        pattern: regular expression, such as "^encoder/"; an empty one freezes nothing.

    Raises:
        ConfigError: no parameter matches, or all of them do.
    """

    def matches(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return bool(pattern) and bool(re.search(pattern, name))

    frozen = jax.tree.map_with_path(matches, params)
    matched = jax.tree.leaves(frozen)
    if pattern and (not any(matched) or all(matched)):
        raise ConfigError(
            f"config.freeze={pattern!r} must match some parameters, but not all: it "
            f"matches {sum(matched)} of {len(matched)}. It is searched in paths such "
            "as encoder/embedding/kernel."
        )
    return frozen


def adamw(
    b1: float,
    b2: float,
    *,
    eps: float,
    weight_decay: float,
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    freeze: str = "",
) -> optax.GradientTransformation:
    """Returns AdamW with decoupled decay of the matrices, not yet scaled by -lr.

    The learning rate is applied by the training step, so that it is a function of the
    step alone, also after a skipped update.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: coefficient of the decoupled decay.
        clip_norm: largest global gradient norm; 0 disables clipping.
        layer_decay: see `layer_scales`; 1 disables it.
        freeze: pattern of `is_frozen`; frozen parameters have no moments.
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
    # Outside the partition, which hides frozen layers: they count as layers, too.
    return tx if layer_decay == 1 else optax.chain(tx, _scale_by_layer(layer_decay))


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scale(updates, params):
        return jax.tree.map(jnp.multiply, updates, layer_scales(params, decay))

    return optax.stateless(scale)
