"""Mixup and cutmix of clips on the device.

The partner of clip i is clip B - 1 - i of the global batch. What is drawn is drawn for
the whole batch before it is cut into micro-batches; pixels are mixed after.
"""

import flax
import jax
import jax.numpy as jnp

from videomae_jax.models import vit

MODES = ("batch", "sample")


class Mix(flax.struct.PyTreeNode):
    """How each of B clips is mixed with its partner.

    Attributes:
        weight: float32 [B], share of the clip's own pixels outside the box.
        box: int32 [B, 4], (top, left, bottom, right): all its pixels, in all frames,
            are the partner's.
        label_weight: float32 [B], share of the clip's own label.
    """

    weight: jax.Array
    box: jax.Array
    label_weight: jax.Array


def draw(
    key: jax.Array,
    batch: int,
    size: tuple[int, int],
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    mode: str = "batch",
) -> Mix:
    """Draws mixup or cutmix.

    Args:
        key: randomness.
        batch: B, the number of clips.
        size: height and width of the frames in pixels.
        mixup: alpha of mixup's Beta(alpha, alpha), VideoMAE: 0.8; 0 for cutmix alone.
        cutmix: alpha of cutmix's, VideoMAE: 1.0; 0 for mixup alone.
        probability: of mixing at all.
        switch_probability: of cutmix where both are on.
        mode: "batch", one draw for all clips, as in VideoMAE; or "sample", each clip
            its own.
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

    # A box of the frame's aspect, centred anywhere, cut off at the border.
    side = jnp.sqrt(1 - kept_area)
    half_height = (height * side).astype(jnp.int32) // 2
    half_width = (width * side).astype(jnp.int32) // 2
    row = jax.random.randint(keys[3], (draws,), 0, height)
    column = jax.random.randint(keys[4], (draws,), 0, width)
    top, bottom = (row - half_height).clip(0), (row + half_height).clip(max=height)
    left, right = (column - half_width).clip(0), (column + half_width).clip(max=width)
    box = jnp.stack([top, left, bottom, right], axis=1)
    # The border may have taken a part of the box: labels follow the pixels.
    share = 1 - (bottom - top) * (right - left) / (height * width)

    active = jax.random.bernoulli(keys[5], probability, (draws,))
    weight = jnp.where(active & ~cut, blend, 1.0)
    mix = Mix(
        weight=weight,
        box=jnp.where((active & cut)[:, None], box, 0),
        label_weight=jnp.where(active & cut, share, weight),
    )
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), mix)


def mix_videos(video: jax.Array, partner: jax.Array, mix: Mix, dtype) -> jax.Array:
    """Mixes clips [B, T, H, W, 3], uint8 or normalised, into normalised ones."""
    video, partner = vit.normalize(video, dtype), vit.normalize(partner, dtype)
    rows = jnp.arange(video.shape[2])[:, None]
    columns = jnp.arange(video.shape[3])
    top, left, bottom, right = jnp.moveaxis(mix.box, 1, 0)[..., None, None]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    weight = mix.weight.astype(dtype)[:, None, None, None, None]
    blended = weight * video + (1 - weight) * partner
    return jnp.where(inside[:, None, :, :, None], partner, blended)


def mix_targets(targets: jax.Array, partner: jax.Array, mix: Mix) -> jax.Array:
    """Mixes targets [B, C] in the proportion of the pixels."""
    weight = mix.label_weight[:, None]
    return weight * targets + (1 - weight) * partner
