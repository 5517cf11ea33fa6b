"""Checks arrays before a model gets them: frames of videos, and clips."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import InputError
from videomae_jax.interop.pretrained import Pretrained

# Rules of `data.clips.SAMPLERS` that do not use the stride.
WHOLE_VIDEO = ("uniform", "sparse", "transformers", "transformers_first")


def stack(frames: Sequence[Any]) -> np.ndarray:
    """Returns frames [H, W, C] of one size as an array [T, H, W, C].

    Raises:
        InputError: their shapes differ.
    """
    arrays = [np.asarray(frame) for frame in frames]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise InputError(
            f"the frames of a video have different shapes, {_shape(shapes[0])} and "
            f"{_shape(shapes[1])}; expected the same [H, W, C] for all"
        )
    return np.stack(arrays)


def check_model(pretrained: Any) -> None:
    """Raises InputError if the first argument of a function is not a model."""
    if not isinstance(pretrained, Pretrained):
        is_name = isinstance(pretrained, str | os.PathLike)
        got = repr(os.fspath(pretrained)) if is_name else type(pretrained).__name__
        raise InputError(
            f"the first argument must be a model, as load_pretrained returns it, got "
            f"{got}"
        )


def checked_frames(pretrained: Pretrained, frames: Any) -> np.ndarray:
    """Returns the frames of a video, or of a batch of videos, as an array.

    Warns if a video has fewer frames than a clip spans: often, these frames have been
    sampled already.

    Raises:
        InputError: the array is not uint8 [T, H, W, C] or [B, T, H, W, C].
    """
    frames = np.asarray(frames)
    channels = len(pretrained.model.pixel_mean)
    expected = f"expected uint8 [T, H, W, {channels}], or a batch of these"
    got = f"got {frames.dtype} {_shape(frames.shape)}"
    if frames.ndim not in (4, 5) or frames.shape[-1] != channels or not frames.size:
        hint = ""
        if frames.ndim in (4, 5) and frames.shape[-3] == channels:
            hint = "; the channels must be last: np.moveaxis(frames, -3, -1)"
        elif frames.ndim == 3 and frames.shape[-1] == channels:
            hint = "; for a video of one frame: frame[None]"
        raise InputError(f"frames of a video: {expected}, {got}{hint}")
    is_scaled = pretrained.preprocessing.value_range is not None
    if frames.dtype != np.uint8 and not is_scaled:
        raise InputError(
            f"frames of a video: {expected}, with values 0 to 255; {got}, with values "
            f"{_range(frames)}. Clips that are normalized already are for "
            "videomae_jax.classify or model.apply"
        )
    clip = pretrained.preprocessing
    span = (clip.num_frames - 1) * clip.stride + 1
    if (
        frames.shape[-4] < span
        and clip.stride > 1
        and clip.frame_sampling not in WHOLE_VIDEO
    ):
        warnings.warn(
            f"{frames.shape[-4]} frames are fewer than a clip spans ({span}), so the "
            "last one is repeated; if they were sampled already, set stride=1",
            stacklevel=5,
        )
    return frames


def checked_clips(pretrained: Pretrained, clips: Any) -> np.ndarray | jax.Array:
    """Returns clips [B, T, H, W, C] that the model can take, as an array.

    Warns of floating-point clips with values from 0 to 1, which are probably not
    normalized.

    Raises:
        InputError: shape, dtype or range do not fit the model.
    """
    if not isinstance(clips, jax.Array):
        clips = np.asarray(clips)
    model = pretrained.model
    mean, std = (np.asarray(x) for x in (model.pixel_mean, model.pixel_std))
    sizes = (1, model.tubelet_size, model.patch_size, model.patch_size, len(mean))
    shape = clips.shape
    fits = len(shape) == 5 and shape[-1] == len(mean)
    if not fits or any(n % size or not n for n, size in zip(shape, sizes, strict=True)):
        hint = "; for one clip: clip[None]" if len(shape) == 4 else ""
        raise InputError(
            f"clips: expected [B, T, H, W, {len(mean)}], T a multiple of "
            f"{model.tubelet_size}, H and W of {model.patch_size}, got "
            f"{_shape(shape)}{hint}"
        )
    if clips.dtype in (np.uint8, np.uint16):
        return clips
    if not jnp.issubdtype(clips.dtype, jnp.floating):
        raise InputError(
            "clips: expected uint8 (0 to 255) or floating point (normalized), got "
            f"{clips.dtype}"
        )
    low, high = (-mean / std).min(), ((1 - mean) / std).max()
    least, most = float(clips.min()), float(clips.max())
    rule = f"(pixels / 255 - mean) / std, here {low:.1f} to {high:.1f}"
    # Some room, for noise and for resizing after the normalization.
    if not (2 * low - high <= least and most <= 2 * high - low):
        raise InputError(
            f"clips: expected uint8, or floating point normalized as {rule}; got "
            f"{clips.dtype} with values {_range(clips)}"
        )
    if low < 0 <= least < most <= 1:
        warnings.warn(
            f"floating-point clips with values {_range(clips)} are probably not "
            f"normalized; expected {rule}, or uint8",
            stacklevel=3,
        )
    return clips


def _range(values: Any) -> str:
    return f"{float(values.min()):g} to {float(values.max()):g}"


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
