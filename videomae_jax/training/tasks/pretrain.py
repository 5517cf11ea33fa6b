"""Pretraining as a task of the training loop: masks, loss and reconstructions."""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from videomae_jax.config import Config, check_choices
from videomae_jax.data import pipeline, sources
from videomae_jax.data.bad_videos import check_paths
from videomae_jax.data.clips import (
    CenterClips,
    PretrainingClips,
    clip_shape,
    pixel_format,
)
from videomae_jax.distributed import hosts
from videomae_jax.models import build, flops, inpainting, masking
from videomae_jax.models.array_types import Array, Patches
from videomae_jax.models.mae import pixel_targets, reconstruction_loss
from videomae_jax.training import initialization
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.task import clip_grid
from videomae_jax.training.train_step import TrainState
from videomae_jax.video.record import LabelKind, Record

log = logging.getLogger(__name__)


class Pretraining:
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
        self._draw_mask = functools.partial(
            masking.KINDS[config.mask.kind], grid=self._grid, ratio=config.mask.ratio
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
        return self._lists

    @functools.cached_property
    def _lists(self) -> list[list[Record]]:
        data = self._config.data

        def load(source: str) -> list[Record]:
            records = sources.load(
                source,
                data.root,
                label_kind=LabelKind.UNUSED,
                frame_name=data.frame_name,
            )
            check_paths(records, source, data.root)
            return records

        training = load(data.train)
        return [training, load(data.validation) if data.validation else training]

    @property
    def training_videos(self) -> list[Record]:
        """The records to train on."""
        return self.lists[0]

    @property
    def flops_per_clip(self) -> int:
        """Floating-point operations of a training step per clip."""
        visible, masked = jax.eval_shape(
            lambda key: self._draw_mask(key, 1), jax.random.key(0)
        )
        num_visible, num_masked = visible.shape[1], masked.shape[1]
        return flops.training(
            flops.pretraining(self.model, num_visible + num_masked, num_visible)
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
        """Draws a mask for every clip."""
        visible, masked = self._draw_mask(key, len(batch["patches"]))
        return batch | {"visible": visible, "masked": masked}

    def loss(self, params: dict, batch_stats: dict, batch: dict) -> tuple[Array, dict]:
        """Returns the mean loss over the masked patches; the statistics unchanged."""
        patches, masked = Patches(batch["patches"], self._grid), batch["masked"]
        prediction: Any = self.model.apply(
            {"params": params}, patches, batch["visible"], masked
        )
        target = pixel_targets(
            patches,
            masked,
            **self._patch,
            normalize=self._config.normalize_targets,
            mean=self.model.pixel_mean,
            std=self.model.pixel_std,
        )
        return reconstruction_loss(prediction, target), batch_stats

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
