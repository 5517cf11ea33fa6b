"""What the model sees: original, masked and reconstructed clips as pictures."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from videomae_jax.models import vit
from videomae_jax.models.mae import patch_statistics


def reconstruct(
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
    pixels = prediction.reshape(*prediction.shape[:2], -1, 3)
    if normalized_targets:
        source = visible if statistics == "visible" else masked
        known = vit.take_tokens(patches, source).astype(jnp.float32) / 255
        mean, std = patch_statistics(known.reshape(*known.shape[:2], -1, 3))
        if statistics == "visible":
            weights = _nearness(masked, visible, grid)
            mean = jnp.einsum("bmv,bvpc->bmpc", weights, mean)
            std = jnp.einsum("bmv,bvpc->bmpc", weights, std)
        pixels = pixels * (std + 1e-6) + mean
    pixels = jnp.round(pixels.clip(0, 1) * 255).astype(jnp.uint8)
    return _fill(patches, masked, pixels.reshape(prediction.shape), grid, video.shape)


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


def picture(
    rows: list[np.ndarray], max_frames: int = 8, min_size: int = 64
) -> np.ndarray:
    """Lays clips out: for each clip a row from every entry of `rows`.

    Args:
        rows: uint8 arrays [B, T, H, W, 3], such as original, masked, reconstruction.
        max_frames: frames shown of each clip, evenly spread.
        min_size: frames are enlarged by a whole factor to at least this height.

    Returns:
        uint8 [height, width, 3], with thin white lines between frames.
    """
    clips = _enlarge(np.stack([np.asarray(row) for row in rows], axis=1), min_size)
    frames = clips.shape[2]
    shown = np.linspace(0, frames - 1, min(frames, max_frames)).round().astype(int)
    # White lines below each frame and to its right, wider between clips.
    tiles = np.pad(
        clips[:, :, shown], [(0, 0)] * 3 + [(0, 2), (0, 2), (0, 0)], constant_values=255
    )
    clip_rows = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(
        len(tiles), len(rows) * tiles.shape[3], -1, 3
    )
    clip_rows = np.pad(clip_rows, [(0, 0), (0, 6), (0, 0), (0, 0)], constant_values=255)
    return clip_rows.reshape(-1, *clip_rows.shape[2:])[:-8, :-2]


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes a picture, uint8 [height, width, 3]."""
    Image.fromarray(image).save(path)


def save_gif(path: pathlib.Path, rows: list[np.ndarray], fps: float = 8.0) -> None:
    """Writes an animation: a line for each clip, the entries of `rows` side by side."""
    clips = _enlarge(np.stack([np.asarray(row) for row in rows], axis=1), 64)
    clips = np.pad(clips, [(0, 0)] * 3 + [(0, 2), (0, 2), (0, 0)], constant_values=255)
    frames = clips.transpose(2, 0, 3, 1, 4, 5)  # time, clip, height, row, width
    frames = frames.reshape(len(frames), clips.shape[0] * clips.shape[3], -1, 3)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=1000 / fps, loop=0
    )


def _enlarge(clips: np.ndarray, min_size: int) -> np.ndarray:
    factor = -(-min_size // clips.shape[-3])
    return clips.repeat(factor, axis=-3).repeat(factor, axis=-2)
