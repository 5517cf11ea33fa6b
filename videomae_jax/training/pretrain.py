"""Pretraining as a task of the training loop: masks, loss and pictures."""

import functools

import jax
import ml_collections

from videomae_jax import masking, reconstruction
from videomae_jax.data.pipeline import CenterClips, PretrainingClips
from videomae_jax.models import vit
from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss


class Pretraining:
    """What the training loop needs to know of masked-autoencoder pretraining.

    Attributes:
        model: the VideoMAE.
        training_clips: what is read from each training video.
        picture_clips: what is read from each video that pictures are made of.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the model.

        Raises:
            ValueError: if model, mask and clip of the config do not fit together.
        """
        model, data = config.model, config.data
        overrides = {
            name: value
            for name, value in model.items()
            if name != "variant" and value is not None
        }
        self.model = VideoMAE.from_variant(model.variant, **overrides)
        if config.mask.kind not in masking.KINDS:
            raise ValueError(
                f"config.mask.kind is {config.mask.kind!r}; it must be one of "
                f"{', '.join(masking.KINDS)}"
            )
        self._mask = functools.partial(
            masking.KINDS[config.mask.kind],
            grid=vit.token_grid(
                (data.num_frames, data.image_size, data.image_size, 3),
                self.model.patch_size,
                self.model.tubelet_size,
            ),
            ratio=config.mask.ratio,
        )
        self._normalize_targets = config.normalize_targets
        self._statistics = config.picture.statistics
        self.training_clips = PretrainingClips(
            num_frames=data.num_frames,
            stride=data.stride,
            size=data.image_size,
            scales=tuple(data.crop_scales),
            flip=data.flip,
            num_samples=data.num_samples,
        )
        self.picture_clips = CenterClips(data.num_frames, data.stride, data.image_size)

    def init(self, key: jax.Array, video: jax.Array):
        """Initial parameters for clips of video's shape [B, T, H, W, 3]."""
        mask_key, key = jax.random.split(key)
        visible, masked = self._mask(mask_key, len(video))
        return self.model.init(key, video, visible, masked)["params"]

    def prepare(self, batch: dict, key: jax.Array) -> dict:
        """Adds what is random on the device: a mask for every clip."""
        visible, masked = self._mask(key, len(batch["video"]))
        return batch | {"visible": visible, "masked": masked}

    def loss(self, params, batch: dict) -> jax.Array:
        """Mean loss of a prepared batch, float32 scalar."""
        video, masked = batch["video"], batch["masked"]
        prediction = self.model.apply(
            {"params": params}, video, batch["visible"], masked
        )
        target = pixel_targets(
            video,
            masked,
            self.model.patch_size,
            self.model.tubelet_size,
            self._normalize_targets,
        )
        return reconstruction_loss(prediction, target)

    @functools.partial(jax.jit, static_argnums=0)
    def picture(self, params, video: jax.Array) -> list[jax.Array]:
        """Original, masked and reconstructed clips, each like video, uint8."""
        # The same masks every time, so that the pictures of a run compare.
        visible, masked = self._mask(jax.random.key(0), len(video))
        patch = self.model.patch_size, self.model.tubelet_size
        return [
            video,
            reconstruction.hide(video, masked, *patch),
            reconstruction.reconstruct(
                self.model.apply({"params": params}, video, visible, masked),
                video,
                visible,
                masked,
                *patch,
                normalized_targets=self._normalize_targets,
                statistics=self._statistics,
            ),
        ]
