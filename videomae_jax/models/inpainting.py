"""Puts predictions of hidden patches back into the pixels of a clip."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt

from videomae_jax.errors import ConfigError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Array, Grid, MaskedIds, VisibleIds
from videomae_jax.models.mae import patch_stats
from videomae_jax.models.masking import take_tokens

# Where the mean and contrast of predicted patches come from, see `fill_in`.
UNPATCH_STATS = ("visible", "hidden")

# uint8 or uint16.
RawVideo = UInt[Array, "batch time height width channels"]


def fill_in(
    prediction: Float[Array, "batch masked values"],
    video: RawVideo,
    *,
    visible: VisibleIds,
    masked: MaskedIds,
    patch_size: int,
    tubelet_size: int,
    normalized_targets: bool = True,
    unpatch_stats: str = "visible",
) -> RawVideo:
    """Replaces the hidden patches of a clip by the predicted ones.

    A model trained on normalized targets does not predict a patch's mean and contrast.
    `unpatch_stats="visible"` takes them from the visible patches, weighted by the
    inverse squared distance in tokens, so that nothing hidden reaches the result.
    `unpatch_stats="hidden"` takes those of the hidden patches, as the official
    visualization does: it looks better, but shows part of the answer.

    With `normalized_targets` False, predictions are pixels in [0, 1].
    """
    if unpatch_stats not in UNPATCH_STATS:
        raise ConfigError(
            f"unpatch_stats={unpatch_stats!r} must be 'visible' or 'hidden'"
        )
    pixels, most = prediction, np.iinfo(video.dtype).max
    if normalized_targets:
        patches = vit.patchify(video, patch_size, tubelet_size)
        source = visible if unpatch_stats == "visible" else masked
        known = take_tokens(patches, source).astype(jnp.float32) / most
        mean, std = patch_stats(known, video.shape[-1])
        if unpatch_stats == "visible":
            grid = vit.token_grid(video.shape, patch_size, tubelet_size)
            weights = _distance_weights(masked, visible, grid)
            mean = jnp.einsum("bmv,bvp->bmp", weights, mean)
            std = jnp.einsum("bmv,bvp->bmp", weights, std)
        pixels = pixels * (std + 1e-6) + mean
    pixels = jnp.round(pixels.clip(0, 1) * most).astype(video.dtype)
    return _replace(video, masked, pixels, patch_size, tubelet_size)


def hide(
    video: RawVideo, masked: MaskedIds, *, patch_size: int, tubelet_size: int
) -> RawVideo:
    """Returns the clip with its hidden patches painted gray."""
    values = tubelet_size * patch_size**2 * video.shape[-1]
    middle = np.iinfo(video.dtype).max // 2 + 1
    gray = jnp.full((*masked.shape, values), middle, video.dtype)
    return _replace(video, masked, gray, patch_size, tubelet_size)


def _replace(
    video: RawVideo,
    ids: MaskedIds,
    pixels: UInt[Array, "batch masked values"],
    patch_size: int,
    tubelet_size: int,
) -> RawVideo:
    """Replaces the patches of some tokens."""
    patches = jnp.asarray(vit.patchify(video, patch_size, tubelet_size))
    patches = patches.at[jnp.arange(len(ids))[:, None], ids].set(pixels)
    grid = vit.token_grid(video.shape, patch_size, tubelet_size)
    return vit.unpatchify(patches, grid, patch_size, tubelet_size)


def _distance_weights(
    masked: MaskedIds, visible: VisibleIds, grid: Grid
) -> Float32[Array, "batch masked visible"]:
    """Returns weights that sum to one over the visible tokens."""

    def coordinates(ids):
        return jnp.stack(jnp.unravel_index(ids, grid), axis=-1).astype(jnp.float32)

    offsets = coordinates(masked)[:, :, None] - coordinates(visible)[:, None]
    weights = 1 / jnp.sum(offsets**2, axis=-1)
    return weights / weights.sum(axis=-1, keepdims=True)
