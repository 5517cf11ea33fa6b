"""Mixup and cutmix of clips on the devices.

Clip i is mixed with clip B - 1 - i of the global batch, its pair. The random numbers
are drawn for the whole batch before it is split into micro-batches; pixels are mixed
after.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from videomae_jax.models import vit
from videomae_jax.models.array_types import Array, Patches
from videomae_jax.models.sizes import PatchShape

MODES = ("batch", "sample")


class Mix(struct.PyTreeNode):
    """Describes how each of B clips is mixed with its pair.

    Attributes:
        weight: float32 [B], weight of the clip's own pixels outside the box.
        box: int32 [B, 4], (top, left, bottom, right): in all frames, the pixels inside
            are those of the pair.
        label_weight: float32 [B], weight of the clip's own label.
    """

    weight: jax.Array
    box: jax.Array
    label_weight: jax.Array


def draw(
    key: jax.Array,
    batch: int,
    *,
    size: tuple[int, int],
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    mode: str = "batch",
) -> Mix:
    """Draws mixup or cutmix for each clip.

    Args:
        key: of the random numbers.
        batch: B, the number of clips.
        size: height and width of the frames in pixels.
        mixup: alpha of the Beta(alpha, alpha) distribution of mixup (VideoMAE: 0.8); 0
            disables mixup.
        cutmix: alpha of cutmix (VideoMAE: 1.0); 0 disables cutmix.
        probability: probability that clips are mixed at all.
        switch_probability: probability of cutmix if both are enabled.
        mode: "batch" draws once for all clips, as VideoMAE does; "sample" draws for
            each clip.
    """
    draws = 1 if mode == "batch" else batch
    height, width = size
    keys = jax.random.split(key, 6)
    if mixup and cutmix:
        cut = jax.random.bernoulli(keys[0], switch_probability, (draws,))
    else:
        cut = jnp.full((draws,), bool(cutmix))
    blend = jax.random.beta(keys[1], mixup or 1.0, mixup or 1.0, (draws,))
    kept_area = jax.random.beta(keys[2], cutmix or 1.0, cutmix or 1.0, (draws,))

    # A box with the frame's aspect ratio, centred anywhere, cropped at the border.
    side = jnp.sqrt(1 - kept_area)
    half_height = (height * side).astype(jnp.int32) // 2
    half_width = (width * side).astype(jnp.int32) // 2
    row = jax.random.randint(keys[3], (draws,), 0, height)
    column = jax.random.randint(keys[4], (draws,), 0, width)
    top, bottom = (row - half_height).clip(0), (row + half_height).clip(max=height)
    left, right = (column - half_width).clip(0), (column + half_width).clip(max=width)
    box = jnp.stack([top, left, bottom, right], axis=1)
    # The label weight counts the pixels of the cropped box.
    share = 1 - (bottom - top) * (right - left) / (height * width)

    active = jax.random.bernoulli(keys[5], probability, (draws,))
    weight = jnp.where(active & ~cut, blend, 1.0)
    mix = Mix(
        weight=weight,
        box=jnp.where((active & cut)[:, None], box, 0),
        label_weight=jnp.where(active & cut, share, weight),
    )
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), mix)


def mix_patches(
    patches: Patches,
    pair: Patches,
    mix: Mix,
    dtype: DTypeLike,
    *,
    patch_shape: PatchShape,
    mean: Sequence[float] = vit.IMAGENET_MEAN,
    std: Sequence[float] = vit.IMAGENET_STD,
) -> Patches:
    """Mixes clips, raw or normalized, into normalized ones."""
    own, other = (vit.normalize(x.values, dtype, mean, std) for x in (patches, pair))
    frames, side = patch_shape
    num_tokens, num_values = own.shape[1:]
    _, *corner = jnp.unravel_index(jnp.arange(num_tokens), patches.grid)
    in_patch = frames, side, side, num_values // (frames * side**2)
    _, *offset, _ = jnp.unravel_index(jnp.arange(num_values), in_patch)
    # Of each value in the frame, [tokens, values].
    rows, columns = (
        side * start[:, None] + more for start, more in zip(corner, offset, strict=True)
    )
    top, left, bottom, right = jnp.moveaxis(mix.box, 1, 0)[..., None, None]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    weight = mix.weight.astype(dtype)[:, None, None]
    blended = weight * own + (1 - weight) * other
    return Patches(jnp.where(inside, other, blended), patches.grid)


def mix_targets(targets: Array, pair: Array, mix: Mix) -> Array:
    """Mixes targets [B, C] in proportion to the pixels."""
    weight = mix.label_weight[:, None]
    return weight * targets + (1 - weight) * pair
