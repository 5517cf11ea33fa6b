"""Reconstructs hidden patches of a video with a masked autoencoder."""

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import inpainting, masking, vit
from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss

if TYPE_CHECKING:
    from videomae_jax.video.open import Source


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A clip, its visible part, and the prediction of the hidden part.

    Attributes:
        original: the clip, uint8 [T, H, W, 3].
        masked: the same, with the hidden patches grey.
        reconstruction: the same, with the hidden patches as predicted.
        loss: of pretraining: mean squared error over the hidden patches, of the targets
            that the model was trained on.
        fps: frames per second at the speed of the video; None if that is unknown, or a
            clip was given.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    loss: float
    fps: float | None


def reconstruct(
    pretrained: Pretrained,
    video: "Source | np.ndarray",
    *,
    mask_ratio: float = 0.9,
    mask: str = "tube",
    seed: int = 0,
    start: int | None = None,
    stride: int | None = None,
    unpatch_stats: str = "visible",
) -> Reconstruction:
    """Hides most of a clip and lets the model predict it.

    Frames are `stride` apart, as in pretraining. Their shorter side is resized to the
    image size of the model, and the centre is cropped. A model compiles once for all
    videos.

    Args:
        pretrained: a VideoMAE with its weights.
        video: path of a video file, its content, a record of a list, or a clip, uint8
            [T, H, W, 3], all of whose frames are used.
        mask_ratio: share of the patches to hide.
        mask: a key of `masking.KINDS`: "tube" or "random"; drawn from `seed`.
        start: first frame of the clip; by default, the clip is in the middle.
        stride: frames of the video from one frame of the clip to the next; by default
            that of `pretrained.preprocessing`.
        unpatch_stats: source of the mean and contrast of hidden patches, for a model
            trained on normalised targets, see `inpainting.fill_in`. "visible" uses
            nothing hidden; "hidden" does what the official visualisation does.

    Raises:
        PretrainedError: if the model has no decoder.
        VideoError: if the video cannot be read.
        ValueError: if the ratio hides all or nothing, mask or unpatch_stats is unknown,
            start or stride does not fit the video, or a clip is not uint8 [T, H, W, 3]
            or does not divide into tubelets.

    Example:
        >>> decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
        >>> model = VideoMAE(width=24, depth=1, heads=2, **decoder)
        >>> key, clip = jax.random.key(0), np.zeros((4, 40, 60, 3), np.uint8)
        >>> masks = masking.tube(key, batch=1, grid=(2, 2, 2), ratio=0.5)
        >>> params = model.init(key, clip[None, :, :32, :32], *masks)["params"]
        >>> pretrained = Pretrained(model, params, None, Preprocessing(image_size=32))
        >>> reconstruct(pretrained, clip, mask_ratio=0.5).reconstruction.shape
        (4, 32, 32, 3)
    """
    model = pretrained.model
    if not isinstance(model, VideoMAE):
        raise PretrainedError(
            f"{pretrained.source or 'the model'} has no decoder, which reconstruction "
            "needs. Load a checkpoint of pretraining, such as MCG-NJU/videomae-base or "
            "the work directory of a pretraining run; fine-tuned and distilled models "
            "have no decoder"
        )
    if mask not in masking.KINDS:
        raise ValueError(
            f"mask={mask!r} must be one of: {', '.join(sorted(masking.KINDS))}"
        )
    clip, fps = _read(video, pretrained.preprocessing, start, stride)
    options = mask, mask_ratio, pretrained.normalized_targets, unpatch_stats
    hidden, filled, loss = _mask_and_fill(
        model, *options, pretrained.variables, clip[None], jax.random.key(seed)
    )
    return Reconstruction(
        clip, np.asarray(hidden[0]), np.asarray(filled[0]), float(loss), fps
    )


def _read(
    video: "Source | np.ndarray",
    preprocessing: Preprocessing,
    start: int | None,
    stride: int | None,
) -> tuple[np.ndarray, float | None]:
    """Returns uint8 [T, image size, image size, 3], and its frames per second."""
    # Imported here, because `import videomae_jax` works without PyAV and OpenCV.
    from videomae_jax.data import augmentation, sampling
    from videomae_jax.video.open import open_video

    if isinstance(video, np.ndarray):
        if start is not None or stride is not None:
            raise ValueError(
                f"start={start}, stride={stride}: they choose frames of a video, but a "
                "clip was given, whose frames are all used. Leave them out"
            )
        return augmentation.spatial_crops(video, preprocessing.image_size, 1)[0], None
    stride = preprocessing.stride if stride is None else stride
    with open_video(video) as opened:
        lengths = opened.num_frames, preprocessing.num_frames, stride
        if start is None:
            indices = sampling.exact_center_indices(*lengths)
        else:
            indices = sampling.pretrain_indices(*lengths, start)
        frames = opened.read(indices.tolist())
        fps = opened.fps / stride if opened.fps else None
    return augmentation.spatial_crops(frames, preprocessing.image_size, 1)[0], fps


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _mask_and_fill(
    model, mask, mask_ratio, normalized_targets, unpatch_stats, variables, video, key
):
    """Returns masked and reconstructed clips, uint8 [B, T, H, W, 3], and the loss."""
    patch = {"patch_size": model.patch_size, "tubelet_size": model.tubelet_size}
    grid = vit.token_grid(video.shape, **patch)
    visible, masked = masking.KINDS[mask](key, len(video), grid=grid, ratio=mask_ratio)
    prediction = model.apply(variables, video, visible, masked)
    target = pixel_targets(video, masked, **patch, normalize=normalized_targets)
    filled = inpainting.fill_in(
        prediction,
        video,
        visible=visible,
        masked=masked,
        **patch,
        normalized_targets=normalized_targets,
        unpatch_stats=unpatch_stats,
    )
    loss = reconstruction_loss(prediction, target)
    return inpainting.hide(video, masked, **patch), filled, loss
