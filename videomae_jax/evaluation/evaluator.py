"""Evaluates a classifier on every video of a set, exactly once.

A video is decoded once and all its views are cut from that; the class probabilities of
the views are averaged (softmax first, then the mean: official code since 2022-08, and
MMAction2's "prob"), as are the values of a regression. The result of a video depends
neither on the others of its batch nor on the number of devices or hosts that share the
work.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomae_jax.data import labels, pipeline
from videomae_jax.data.clips import CenterClips, MultiViewClips
from videomae_jax.data.workers import DEFAULT_WORKERS, WorkerConfig
from videomae_jax.distributed import hosts, sharding
from videomae_jax.errors import NoReadableVideoError
from videomae_jax.evaluation.metrics import Predictions
from videomae_jax.evaluation.regression import PredictedValues
from videomae_jax.inference import batching
from videomae_jax.models import vit
from videomae_jax.models.array_types import Grid, Patches
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.problem import MULTI_LABEL, Problem
from videomae_jax.video.record import Record
from videomae_jax.video.source import RGB, PixelFormat


class Evaluator:
    """Predicts all videos of a set; called once for each state of the parameters."""

    def __init__(
        self,
        model: VideoClassifier,
        outputs: Callable[[jax.Array], jax.Array],
        *,
        records: Sequence[Record],
        class_names: Sequence[str],
        problem: Problem,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        read_clips: CenterClips | MultiViewClips,
        image_shape: tuple[int, ...],
        pixels: PixelFormat = RGB,
        mesh: Mesh,
        videos_per_device: int,
        workers: WorkerConfig = DEFAULT_WORKERS,
    ):
        """Opens the data and builds the jitted prediction.

        Args:
            outputs: maps logits to probabilities, such as `jax.nn.softmax`, or
                standardized values.
            records: the videos, with labels.
            class_names: name of each logit, of a class or a value.
            problem: what the logits mean.
            mean, std: of each value of a regression over the training videos, to
                return to the units of the list.
            read_clips: cuts the views out of a video.
            image_shape: shape of one clip, [T, H, W, C].
            pixels: what the frames of the videos are converted to.
            videos_per_device: videos of a batch on each device, whose views are taken
                one after the other; so memory holds this many clips' activations.
            workers: processes and threads that read.
        """
        self._problem, self._mean, self._std = problem, mean, std
        self._records, self._class_names = records, list(class_names)
        self._mesh = mesh
        self._open = functools.partial(
            pipeline.each_once,
            records,
            read_clips,
            clips_shape=(read_clips.views, *image_shape),
            patch_shape=(model.tubelet_size, model.patch_size),
            pixels=pixels,
            batch_size=videos_per_device * mesh.size,
            workers=workers,
            process=(jax.process_index(), jax.process_count()),
        )
        # Every process gets every result: each can then count the whole set.
        replicated = NamedSharding(mesh, PartitionSpec())
        grid = vit.token_grid(image_shape, model.patch_size, model.tubelet_size)
        self._predict = jax.jit(
            functools.partial(_predict, model, grid, outputs), out_shardings=replicated
        )

    def __call__(self, variables: Mapping[str, Any]) -> Predictions | PredictedValues:
        """Predicts all videos with {"params": ...}, and "batch_stats" if it has any.

        Returns:
            The same predictions on every process, in the order of the records.

        Raises:
            NoReadableVideoError: if no video could be read.
        """
        shape = len(self._records), len(self._class_names)
        outputs = np.zeros(shape, np.float32)
        readable = np.zeros(len(self._records), bool)
        reasons: dict[int, str] = {}

        def compute(batch: pipeline.Views) -> tuple[jax.Array, ...]:
            reasons.update(batch.bad)
            arrays = {
                "patches": batch.patches,
                "index": batch.index,
                "readable": batch.readable,
            }
            return self._predict(variables, sharding.to_devices(arrays, self._mesh))

        with self._open() as batches, jax.set_mesh(self._mesh):
            for index, is_readable, values in batching.fetch(map(compute, batches)):
                is_record = index >= 0  # and not padding
                outputs[index[is_record]] = values[is_record]
                readable[index[is_record]] = is_readable[is_record]
        # As pairs: JSON would make strings of the numbers.
        for pairs in hosts.gather(list(reasons.items())):
            reasons |= dict(pairs)
        if not readable.any():
            raise NoReadableVideoError(
                f"none of {len(readable)} videos to evaluate could be read:\n"
                + "\n".join(f"  {reason}" for reason in list(reasons.values())[:10])
            )
        return self._predictions(outputs, readable, reasons)

    def _predictions(
        self, outputs: np.ndarray, readable: np.ndarray, reasons: Mapping[int, str]
    ) -> Predictions | PredictedValues:
        """Puts the outputs of the readable videos beside their labels."""
        records = [r for r, ok in zip(self._records, readable, strict=True) if ok]
        ids, outputs = [record.id for record in records], outputs[readable]
        bad = [
            (record, reasons[i])
            for i, record in enumerate(self._records)
            if not readable[i]
        ]
        if self._problem.is_regression:
            targets = np.array([record.values for record in records], np.float64)
            unreadable = {r.id: (r.values, reason) for r, reason in bad}
            return PredictedValues(
                ids=ids,
                targets=targets,
                values=outputs.astype(np.float64) * self._std + self._mean,
                names=self._class_names,
                unreadable=unreadable,
                std=tuple(self._std),
            )
        if self._problem.type == MULTI_LABEL:
            true_labels = labels.multi_hot(records, len(self._class_names))
        elif self._problem.heads:
            true_labels = np.array([record.labels for record in records], np.int64)
        else:
            true_labels = np.array([record.labels[0] for record in records], np.int64)
        unreadable = {r.id: (r.labels, reason) for r, reason in bad}
        heads = self._problem.heads
        return Predictions(
            ids, true_labels, outputs, self._class_names, unreadable, heads
        )


def _predict(model: VideoClassifier, grid: Grid, outputs, variables, batch: dict):
    def of_view(patches):
        return outputs(model.apply(variables, Patches(patches, grid)))

    # View by view, so that memory does not grow with their number.
    views = jax.lax.map(of_view, batch["patches"].swapaxes(0, 1))
    return batch["index"], batch["readable"], jnp.mean(views, axis=0)
