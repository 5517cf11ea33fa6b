"""Puts predictions of hidden patches back into the pixels of a clip."""

import jax
import jax.numpy as jnp

from videomae_jax.models import vit
from videomae_jax.models.mae import patch_statistics


def fill_in(
    prediction: jax.Array,
    video: jax.Array,
    visible: jax.Array,
    masked: jax.Array,
    patch_size: int,
    tubelet_size: int,
    normalized_targets: bool = True,
    statistics: str = "visible",
) -> jax.Array:
    """Puts predicted patches into the places of the hidden ones.

    A model trained on normalised targets says nothing of a patch's mean and contrast.
    `statistics="visible"` takes them from the visible patches, the nearer in time and
    space the more (inverse squared distance in tokens), so that nothing hidden
    reaches the picture. `statistics="hidden"` takes the hidden patches' own, as the
    official visualisation does: prettier, but part of the answer is given.

    Args:
        prediction: float32 [B, M, P], the model's output.
        video: uint8 [B, T, H, W, 3].
        visible: int32 [B, V] token ids.
        masked: int32 [B, M] token ids.
        patch_size: pixels on a side of a patch.
        tubelet_size: frames of a patch.
        normalized_targets: whether the model was trained on normalised targets.
        statistics: "visible" or "hidden".

    Returns:
        uint8 [B, T, H, W, 3]: visible patches as they are, hidden ones as predicted.

    Raises:
        ValueError: if `statistics` is neither of the two.
    """
    if statistics not in ("visible", "hidden"):
        raise ValueError(f"statistics is {statistics!r}, not 'visible' or 'hidden'")
    grid = vit.token_grid(video.shape, patch_size, tubelet_size)
    patches = vit.patchify(video, patch_size, tubelet_size)
    pixels = prediction
    if normalized_targets:
        source = visible if statistics == "visible" else masked
        known = vit.take_tokens(patches, source).astype(jnp.float32) / 255
        mean, std = patch_statistics(known)
        if statistics == "visible":
            weights = _nearness(masked, visible, grid)
            mean = jnp.einsum("bmv,bvp->bmp", weights, mean)
            std = jnp.einsum("bmv,bvp->bmp", weights, std)
        pixels = pixels * (std + 1e-6) + mean
    pixels = jnp.round(pixels.clip(0, 1) * 255).astype(jnp.uint8)
    return _fill(patches, masked, pixels, grid, video.shape)


def hide(
    video: jax.Array, masked: jax.Array, patch_size: int, tubelet_size: int
) -> jax.Array:
    """The clip [B, T, H, W, 3], uint8, with its hidden patches painted grey."""
    grid = vit.token_grid(video.shape, patch_size, tubelet_size)
    patches = vit.patchify(video, patch_size, tubelet_size)
    grey = jnp.full((*masked.shape, patches.shape[-1]), 128, jnp.uint8)
    return _fill(patches, masked, grey, grid, video.shape)


def _fill(patches, ids, values, grid, shape):
    """Patches with `values` at `ids`, as a video of the given shape."""
    rows = jnp.arange(len(ids))[:, None]
    patches = jnp.asarray(patches).at[rows, ids].set(values)
    tubelet_size, patch_size = shape[1] // grid[0], shape[2] // grid[1]
    return vit.unpatchify(patches, grid, patch_size, tubelet_size)


def _nearness(masked, visible, grid):
    """Weights [B, M, V] that sum to one over the visible tokens."""

    def places(ids):
        return jnp.stack(jnp.unravel_index(ids, grid), axis=-1).astype(jnp.float32)

    offsets = places(masked)[:, :, None] - places(visible)[:, None]
    weights = 1 / jnp.sum(offsets**2, axis=-1)
    return weights / weights.sum(axis=-1, keepdims=True)
