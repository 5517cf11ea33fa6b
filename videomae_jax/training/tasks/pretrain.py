"""Pretraining as a task of the training loop: masks, loss and reconstructions."""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from videomae_jax.config import Config, check_choices
from videomae_jax.data import pipeline
from videomae_jax.data.clips import (
    CenterClips,
    PretrainingClips,
    clip_shape,
    pixel_format,
)
from videomae_jax.distributed import hosts
from videomae_jax.models import build, flops, inpainting, masking
from videomae_jax.models.array_types import Array, Patches
from videomae_jax.models.mae import pixel_targets, token_errors
from videomae_jax.training import initialization, mixture
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.task import NothingFrozen, clip_grid
from videomae_jax.training.train_step import TrainState
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)


class Pretraining(NothingFrozen):
    """Masked-autoencoder pretraining; implements `task.Task`."""

    label_array = None
    # The parameters and the config say all about the model.
    meta = {}

    def __init__(self, config: Config):
        """Builds the model; the lists are read when they are first used.

        Raises:
            ConfigError: model, mask and clip of the config do not fit together.
        """
        check_choices(
            config,
            {
                "mask.kind": masking.KINDS,
                "mask.decoder_kind": ("", *masking.DECODER_KINDS),
                "picture.unpatch_stats": inpainting.UNPATCH_STATS,
            },
        )
        self._config, data = config, config.data
        self.model = build.autoencoder(config.model)
        self._patch = {
            "patch_size": self.model.patch_size,
            "tubelet_size": self.model.tubelet_size,
        }
        self.patch_shape = self.model.tubelet_size, self.model.patch_size
        self._grid = clip_grid(config, self.model)
        mask = config.mask
        self._draw_mask = functools.partial(
            masking.KINDS[mask.kind], grid=self._grid, ratio=mask.ratio
        )
        self._draw_masks = functools.partial(
            masking.draw,
            grid=self._grid,
            kind=mask.kind,
            ratio=mask.ratio,
            decoder_kind=mask.decoder_kind,
            decoder_ratio=mask.decoder_ratio,
        )
        # Also refuses a grid or a ratio that does not fit.
        self._masks_of_a_clip = jax.eval_shape(
            functools.partial(self._draw_masks, batch=1), jax.random.key(0)
        )
        self.training_clips = PretrainingClips(
            num_frames=data.num_frames,
            stride=data.stride,
            size=clip_shape(config)[1:3],
            scales=tuple(data.crop_scales),
            flip=data.flip,
            num_samples=data.num_samples,
        )
        self.eval_every = config.picture.every if config.picture.clips else 0

    @property
    def lists(self) -> list[list[Record]]:
        """The records to train on, and those to reconstruct.

        Raises:
            RecordError: a list is missing or malformed.
        """
        return [self.training_videos, self._held_out]

    @property
    def training_lists(self) -> list[pipeline.VideoList]:
        """The lists to train on."""
        return self._training_lists

    @property
    def training_videos(self) -> list[Record]:
        """The records of these lists, one after another."""
        return pipeline.all_records(self._training_lists)

    @functools.cached_property
    def _training_lists(self) -> list[pipeline.VideoList]:
        return mixture.load(self._config.data)

    @functools.cached_property
    def _held_out(self) -> list[Record]:
        data = self._config.data
        if not data.validation:
            return self.training_videos
        return mixture.load_list(data.validation, data)

    @property
    def flops_per_clip(self) -> int:
        """Floating-point operations of a training step per clip."""
        masks = self._masks_of_a_clip
        return flops.training(
            flops.pretraining(
                self.model,
                num_visible=masks["visible"].shape[1],
                num_decoded=masks["decoded"].shape[1],
            )
        )

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Returns random parameters for clips like video [B, T, H, W, 3], and {}."""
        mask_key, key = jax.random.split(key)
        visible, masked = self._draw_mask(mask_key, len(video))
        variables: Any = self.model.init(key, video, visible, masked)
        return variables["params"], {}

    def resume(self, workdir: str, saved: Mapping[str, Any]) -> None:
        """Does nothing: the config says all."""

    def log_lists(self) -> None:
        """Does nothing: videos without labels cannot contradict each other."""

    def load_source(self, params: dict) -> dict:
        """Returns params with the weights of `config.init.source`, if it is set."""
        source = self._config.init.source
        if not source:
            return params
        params, report = initialization.load(source, params, config=self._config.model)
        log.info("%s", report)
        return params

    def add_randomness(self, batch: dict, key: jax.Array) -> dict:
        """Draws masks for every clip."""
        return batch | self._draw_masks(key, len(batch["patches"]))

    def loss(
        self, params: dict, batch_stats: dict, batch: dict, frozen: dict
    ) -> tuple[Array, tuple[dict, dict]]:
        """Returns the mean loss over the decoded patches; the statistics unchanged."""
        patches, decoded = Patches(batch["patches"], self._grid), batch["decoded"]
        prediction: Any = self.model.apply(
            {"params": params},
            patches,
            batch["visible"],
            batch["masked"],
            decoded=decoded,
        )
        target = pixel_targets(
            patches,
            decoded,
            **self._patch,
            normalize=self._config.normalize_targets,
            mean=self.model.pixel_mean,
            std=self.model.pixel_std,
        )
        errors = token_errors(prediction, target)
        return jnp.mean(batch.get("weight", 1.0) * errors), (batch_stats, {})

    def validate(
        self, step: int, state: TrainState, mesh: Mesh, reporter: Reporter
    ) -> None:
        """Shows reconstructions of held-out videos; they have no score."""
        with reporter.pause():
            if len(self._held_out_clips):
                rows = self.reconstruct(state.params, self._held_out_clips)
                # Parameters split over processes may leave the rows split, too.
                rows = multihost_utils.process_allgather(rows, tiled=True)
                reporter.picture(step, rows)

    @functools.cached_property
    def _held_out_clips(self) -> np.ndarray:
        data = self._config.data
        clips, ids = pipeline.read_all(
            self.lists[1],
            CenterClips(data.num_frames, data.stride, clip_shape(self._config)[1:3]),
            self._config.picture.clips,
            pixel_format(self._config),
        )
        # Processes with different clips, or none, would wait for each other forever.
        everywhere = set.intersection(*map(set, hosts.gather(ids)))
        kept = [i for i, video in enumerate(ids) if video in everywhere]
        clips, ids = clips[kept], [ids[i] for i in kept]
        log.info("reconstructions show: %s", ", ".join(ids) or "no readable video")
        return clips

    @functools.partial(jax.jit, static_argnums=0)
    def reconstruct(self, params: dict, video: jax.Array) -> list[Array]:
        """Returns original, masked and reconstructed clips, each like video."""
        # The same masks every time, so that the reconstructions of a run compare.
        visible, masked = self._draw_mask(jax.random.key(0), len(video))
        prediction: Any = self.model.apply({"params": params}, video, visible, masked)
        filled = inpainting.fill_in(
            prediction,
            video,
            visible=visible,
            masked=masked,
            **self._patch,
            normalized_targets=self._config.normalize_targets,
            unpatch_stats=self._config.picture.unpatch_stats,
        )
        return [video, inpainting.hide(video, masked, **self._patch), filled]

    def test(self, state: TrainState, mesh: Mesh, workdir: pathlib.Path) -> None:
        """Does nothing: pretraining has no test."""

    def is_tested(self, workdir: pathlib.Path, step: int) -> bool:
        """Returns True: pretraining has no test."""
        return True
