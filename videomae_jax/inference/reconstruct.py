"""What a video masked autoencoder sees of a video, and what it makes of the rest."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import masking, vit
from videomae_jax.models.mae import (
    VideoMAE,
    patch_statistics,
    pixel_targets,
    reconstruction_loss,
)
from videomae_jax.video.record import Record


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A clip, what the model saw of it, and what it made of the rest.

    Attributes:
        original: uint8 [T, H, W, 3], the clip.
        masked: the same with the hidden patches painted grey.
        reconstruction: the same with the hidden patches as the model predicts them.
        loss: mean squared error over the hidden patches, of the targets that the model
            was trained on: as in pretraining.
        fps: frames per second at which the clip plays at its video's speed; None if
            the video does not tell, or a clip was given.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    loss: float
    fps: float | None


def reconstruct(
    pretrained: Pretrained,
    video: str | os.PathLike | bytes | Record | np.ndarray,
    mask_ratio: float = 0.9,
    mask: str = "tube",
    seed: int = 0,
    start: int | None = None,
    stride: int | None = None,
    statistics: str = "visible",
) -> Reconstruction:
    """Hides most of a clip and has the model fill it in.

    Frames are `stride` apart, as in pretraining; their shorter side is resized to the
    model's image size and the centre is cropped. A model compiles once for all videos.

    Args:
        pretrained: a VideoMAE with its weights.
        video: path of a video file, its content, a record of a list, or a clip, uint8
            [T, H, W, 3], all of whose frames are taken.
        mask_ratio: share of the patches that is hidden.
        mask: a key of `masking.KINDS`: "tube" or "random".
        seed: of the mask.
        start: the clip's first frame; by default the clip is in the middle.
        stride: frames of the video between two of the clip; by default that of
            `pretrained.preprocessing`.
        statistics: where a model trained on normalised targets gets the hidden patches'
            mean and contrast from, see `fill_in`: "visible" gives nothing away;
            "hidden" shows what the official visualisation does.

    Returns:
        The clip before and after.

    Raises:
        PretrainedError: if the model has no decoder.
        VideoError: if the video cannot be read.
        ValueError: if the ratio hides all or nothing, the mask or the statistics are
            unknown, start or stride do not fit the video, or a clip is not uint8
            [T, H, W, 3] or does not divide into tubelets.

    Example:
        >>> towers = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
        >>> model = VideoMAE(width=24, depth=1, heads=2, **towers)
        >>> key, clip = jax.random.key(0), np.zeros((4, 40, 60, 3), np.uint8)
        >>> masks = masking.tube(key, batch=1, grid=(2, 2, 2), ratio=0.5)
        >>> params = model.init(key, clip[None, :, :32, :32], *masks)["params"]
        >>> pretrained = Pretrained(model, params, None, Preprocessing(image_size=32))
        >>> result = reconstruct(pretrained, clip, mask_ratio=0.5)
        >>> result.reconstruction.shape
        (4, 32, 32, 3)
        >>> kept = result.masked[..., 0] == 0
        >>> bool((result.reconstruction[kept] == result.original[kept]).all())
        True
    """
    model = pretrained.model
    if not isinstance(model, VideoMAE):
        raise PretrainedError(
            f"{pretrained.source or 'the model'} has no decoder, and reconstructing "
            "takes one. Checkpoints of pretraining have it, such as MCG-NJU/"
            "videomae-base or the work directory of a pretraining run; fine-tuned and "
            "distilled ones have not"
        )
    if mask not in masking.KINDS:
        raise ValueError(
            f"mask is {mask!r}; there are: {', '.join(sorted(masking.KINDS))}"
        )
    clip, fps = _read(video, pretrained.preprocessing, start, stride)
    hidden, filled, loss = _mask_and_fill(
        model,
        mask,
        mask_ratio,
        pretrained.normalized_targets,
        statistics,
        pretrained.variables,
        clip[None],
        jax.random.key(seed),
    )
    return Reconstruction(
        clip, np.asarray(hidden[0]), np.asarray(filled[0]), float(loss), fps
    )


def _read(
    video, preprocessing: Preprocessing, start: int | None, stride: int | None
) -> tuple[np.ndarray, float | None]:
    """The clip, uint8 [T, image size, image size, 3], and its frames per second."""
    # Here, because training and `import videomae_jax` do without PyAV and Pillow.
    from videomae_jax.data import augmentation, sampling
    from videomae_jax.video.open import open_video

    if isinstance(video, np.ndarray):
        if start is not None or stride is not None:
            raise ValueError(
                "start and stride choose frames of a video; of a clip all are taken"
            )
        return augmentation.spatial_crops(video, preprocessing.image_size, 1)[0], None
    stride = preprocessing.stride if stride is None else stride
    with open_video(video) as opened:
        lengths = opened.num_frames, preprocessing.num_frames, stride
        if start is None:
            indices = sampling.exact_center_indices(*lengths)
        else:
            indices = sampling.pretrain_indices(*lengths, start)
        frames = opened.read(indices)
        fps = opened.fps / stride if opened.fps else None
    return augmentation.spatial_crops(frames, preprocessing.image_size, 1)[0], fps


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _mask_and_fill(
    model, mask, mask_ratio, normalized_targets, statistics, variables, video, key
):
    """Masked and reconstructed clips, uint8 like video [B, T, H, W, 3]; the loss."""
    patch = model.patch_size, model.tubelet_size
    grid = vit.token_grid(video.shape, *patch)
    visible, masked = masking.KINDS[mask](key, len(video), grid, mask_ratio)
    prediction = model.apply(variables, video, visible, masked)
    target = pixel_targets(video, masked, *patch, normalized_targets)
    filled = fill_in(
        prediction, video, visible, masked, *patch, normalized_targets, statistics
    )
    loss = reconstruction_loss(prediction, target)
    return hide(video, masked, *patch), filled, loss


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
