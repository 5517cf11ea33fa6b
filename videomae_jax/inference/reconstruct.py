"""Reconstructs hidden patches of videos with a masked autoencoder."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.inference import checks
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import inpainting, masking, vit
from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss

if TYPE_CHECKING:
    from videomae_jax.inference.inputs import Videos
    from videomae_jax.video.open import Source


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A clip, its visible part, and the prediction of the hidden part.

    Attributes:
        original: the clip, uint8 [T, H, W, C]; uint16 with a `value_range`.
        masked: the same, with the hidden patches grey.
        reconstruction: the same, with the hidden patches as predicted.
        loss: of pretraining: mean squared error over the hidden patches, of the targets
            that the model was trained on.
        mask, mask_ratio: how patches were hidden, see `reconstruct`.
        fps: frames per second at the speed of the video; None if that is unknown.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    loss: float
    mask: str
    mask_ratio: float
    fps: float | None


def reconstruct(
    pretrained: Pretrained,
    video: "Videos",
    *,
    mask_ratio: float | None = None,
    mask: str | None = None,
    seed: int = 0,
    start: int | None = None,
    stride: int | None = None,
    unpatch_stats: str = "visible",
) -> Any:
    """Hides most of a clip and lets the model predict it.

    Frames are `stride` apart and resized and cropped as in pretraining. A model
    compiles once for all videos.

    Args:
        pretrained: a VideoMAE with its weights.
        video: one or several videos, as in `predict`.
        mask_ratio: share of the patches to hide; by default that of pretraining, which
            is 0.9 if the source of the weights does not say.
        mask: a key of `masking.KINDS`: "tube" or "random", drawn from `seed`; by
            default that of pretraining.
        start: first frame of the clip; by default, the clip is in the middle.
        stride: frames of the video from one frame of the clip to the next; by default
            that of `pretrained.preprocessing`. 1 for frames that were sampled already.
        unpatch_stats: source of the mean and contrast of hidden patches, for a model
            trained on normalised targets, see `inpainting.fill_in`. "visible" uses
            nothing hidden; "hidden" does what the official visualisation does.

    Returns:
        Reconstruction: for several videos, a list.

    Raises:
        PretrainedError: if the model has no decoder.
        VideoError: if the video cannot be read.
        RecordError: if a folder, pattern or list names no video.
        InputError: if frames are not uint8 [T, H, W, C].
        ValueError: if the ratio hides all or nothing, mask or unpatch_stats is unknown,
            or start or stride does not fit the video.

    Example:
        >>> from videomae_jax.interop.pretrained import Preprocessing
        >>> decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
        >>> model = VideoMAE(width=24, depth=1, heads=2, **decoder)
        >>> key, video = jax.random.key(0), np.zeros((30, 40, 60, 3), np.uint8)
        >>> masks = masking.tube(key, batch=1, grid=(2, 2, 2), ratio=0.5)
        >>> params = model.init(key, video[None, :4, :32, :32], *masks)["params"]
        >>> preprocessing = Preprocessing(num_frames=4, image_size=32)
        >>> pretrained = Pretrained(model, params, preprocessing=preprocessing)
        >>> reconstruct(pretrained, video, mask_ratio=0.5).reconstruction.shape
        (4, 32, 32, 3)
    """
    checks.check_model(pretrained)
    model = pretrained.model
    if not isinstance(model, VideoMAE):
        raise PretrainedError(
            f"{pretrained.source or 'the model'} has no decoder, which reconstruction "
            "needs. Load a checkpoint of pretraining, such as MCG-NJU/videomae-base or "
            "the work directory of a pretraining run; fine-tuned and distilled models "
            "have no decoder"
        )
    mask = pretrained.mask if mask is None else mask
    mask_ratio = pretrained.mask_ratio if mask_ratio is None else mask_ratio
    if mask not in masking.KINDS:
        raise ValueError(
            f"mask={mask!r} must be one of: {', '.join(sorted(masking.KINDS))}"
        )
    # Imported here, because `import videomae_jax` works without PyAV and OpenCV.
    from videomae_jax.inference import inputs, predict

    pretrained = predict.with_stride(pretrained, stride)
    options = mask, mask_ratio, pretrained.normalized_targets, unpatch_stats

    def one(source: "Source") -> Reconstruction:
        clip, fps = _read(source, pretrained, start)
        hidden, filled, loss = _mask_and_fill(
            model, *options, pretrained.variables, clip[None], jax.random.key(seed)
        )
        hidden, filled = np.asarray(hidden[0]), np.asarray(filled[0])
        return Reconstruction(clip, hidden, filled, float(loss), mask, mask_ratio, fps)

    return inputs.for_each(pretrained, video, one)


def _read(
    video: "Source", pretrained: Pretrained, start: int | None
) -> tuple[np.ndarray, float | None]:
    """Returns a clip, uint8 [T, height, width, C], and its frames per second."""
    from videomae_jax.data import augmentation, sampling
    from videomae_jax.inference import inputs

    clip = pretrained.preprocessing
    with inputs.open_for(pretrained, video) as opened:
        lengths = opened.num_frames, clip.num_frames, clip.stride
        if start is None:
            indices = sampling.exact_center_indices(*lengths)
        else:
            indices = sampling.pretrain_indices(*lengths, start)
        frames = opened.read(indices.tolist())
        fps = opened.fps / clip.stride if opened.fps else None
    crops = augmentation.spatial_crops(frames, clip.image_size, 1, clip.framing)
    return crops[0], fps


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _mask_and_fill(
    model, mask, mask_ratio, normalized_targets, unpatch_stats, variables, video, key
):
    """Returns masked and reconstructed clips [B, T, H, W, C], and the loss."""
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
