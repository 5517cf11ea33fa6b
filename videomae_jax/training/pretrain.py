"""Pretraining as a task of the training loop: masks, loss and pictures."""

import functools
import logging
import pathlib

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from videomae_jax.data import pipeline, sources
from videomae_jax.data.clips import CenterClips, PretrainingClips
from videomae_jax.distributed import hosts
from videomae_jax.models import build, inpainting, masking, vit
from videomae_jax.models.mae import pixel_targets, reconstruction_loss
from videomae_jax.training import initialization
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)


class Pretraining:
    """What the training loop needs to know of masked-autoencoder pretraining.

    Attributes:
        model: the VideoMAE.
        training_clips: what is read from each training video.
        eval_every: steps between pictures; 0 for none.
    """

    # What a checkpoint says of the model besides its parameters: nothing.
    meta = {}

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the model; the lists are read when they are first asked for.

        Raises:
            ValueError: if model, mask and clip of the config do not fit together.
        """
        self._config, data = config, config.data
        self.model = build.autoencoder(config.model)
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
        self._statistics = config.picture.unpatch_stats
        self.training_clips = PretrainingClips(
            num_frames=data.num_frames,
            stride=data.stride,
            size=data.image_size,
            scales=tuple(data.crop_scales),
            flip=data.flip,
            num_samples=data.num_samples,
        )
        self._picture_clips = CenterClips(data.num_frames, data.stride, data.image_size)
        self._pictures = config.picture.clips
        self.eval_every = config.picture.every if self._pictures else 0

    @functools.cached_property
    def _videos(self) -> tuple[list[Record], list[Record]]:
        """What to train on, and what to make pictures of."""
        data = self._config.data
        load = functools.partial(
            sources.load,
            root=data.root,
            frame_name=data.frame_name,
            want_labels=False,
        )
        training = load(data.train)
        return training, load(data.validation) if data.validation else training

    @property
    def training_videos(self) -> list[Record]:
        """The records to train on.

        Raises:
            RecordError: if a list is missing or malformed, that of pictures included.
        """
        return self._videos[0]

    @property
    def lists(self) -> list[list[Record]]:
        """The records of every list that is read."""
        return list(self._videos)

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Initial parameters for clips like video [B, T, H, W, 3]; no statistics."""
        mask_key, key = jax.random.split(key)
        visible, masked = self._mask(mask_key, len(video))
        return self.model.init(key, video, visible, masked)["params"], {}

    def load(self, params):
        """Replaces parameters by those of `config.init.source`, if there is one."""
        source = self._config.init.source
        if not source:
            return params
        params, report = initialization.load(source, params, self._config.model)
        log.info("%s", report)
        return params

    def prepare(self, batch: dict, key: jax.Array) -> dict:
        """Adds what is random on the device: a mask for every clip."""
        visible, masked = self._mask(key, len(batch["video"]))
        return batch | {"visible": visible, "masked": masked}

    def loss(self, params, statistics, batch: dict) -> tuple[jax.Array, dict]:
        """Mean loss of a prepared batch, float32 scalar; statistics as they were."""
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
        return reconstruction_loss(prediction, target), statistics

    @functools.cached_property
    def _pictured_clips(self) -> np.ndarray:
        clips, ids = pipeline.read_all(
            self._videos[1], self._picture_clips, self._pictures
        )
        # Hosts that show different videos, or none, would wait for each other for ever.
        everywhere = set.intersection(*map(set, hosts.gather(ids)))
        kept = [i for i, video in enumerate(ids) if video in everywhere]
        clips, ids = clips[kept], [ids[i] for i in kept]
        log.info("pictures show: %s", ", ".join(ids) or "nothing, none is readable")
        return clips

    def check(self, step: int, state, mesh, reporter) -> None:
        """Makes pictures of held-out videos."""
        with reporter.pause():
            if len(self._pictured_clips):
                rows = self.picture(state.params, self._pictured_clips)
                # Where the parameters are split over processes, so may the rows be.
                rows = multihost_utils.process_allgather(rows, tiled=True)
                reporter.picture(step, rows)

    def finish(self, state, mesh, workdir: pathlib.Path) -> None:
        """Nothing is left to do after the last step."""

    def is_finished(self, workdir: pathlib.Path, step: int) -> bool:
        """Whether `finish` has been done at this step."""
        return True

    @functools.partial(jax.jit, static_argnums=0)
    def picture(self, params, video: jax.Array) -> list[jax.Array]:
        """Original, masked and reconstructed clips, each like video, uint8."""
        # The same masks every time, so that the pictures of a run compare.
        visible, masked = self._mask(jax.random.key(0), len(video))
        patch = self.model.patch_size, self.model.tubelet_size
        return [
            video,
            inpainting.hide(video, masked, *patch),
            inpainting.fill_in(
                self.model.apply({"params": params}, video, visible, masked),
                video,
                visible,
                masked,
                *patch,
                normalized_targets=self._normalize_targets,
                statistics=self._statistics,
            ),
        ]
