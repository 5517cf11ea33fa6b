"""What a video masked autoencoder sees of a video, and what it makes of the rest."""

import dataclasses
import functools
import os

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import inpainting, masking, vit
from videomae_jax.models.mae import (
    VideoMAE,
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
            mean and contrast from, see `inpainting.fill_in`: "visible" gives nothing
            away; "hidden" shows what the official visualisation does.

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
    filled = inpainting.fill_in(
        prediction, video, visible, masked, *patch, normalized_targets, statistics
    )
    loss = reconstruction_loss(prediction, target)
    return inpainting.hide(video, masked, *patch), filled, loss
