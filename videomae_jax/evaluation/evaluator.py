"""Evaluation of a classifier on every video of a set exactly once.

A video is decoded once and all its views are cut from that; the class probabilities of
the views are averaged (softmax first, then the mean: official code since 2022-08, and
MMAction2's "prob"). What a video gets does not depend on the others of its batch, nor
on how many devices or hosts share the work.
"""

import collections
import functools
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomae_jax.data import labels, pipeline
from videomae_jax.distributed import hosts, sharding
from videomae_jax.errors import NoReadableVideoError
from videomae_jax.evaluation import multi_label, results
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)

# Batches that may be under way on the devices before the host waits for a result.
BATCHES_AHEAD = 2


class Evaluator:
    """Predicts all videos of a set; called once for each state of the parameters."""

    def __init__(
        self,
        model: VideoClassifier,
        probabilities: Callable[[jax.Array], jax.Array],
        records: Sequence[Record],
        class_names: Sequence[str],
        read_clips,
        image_shape: tuple[int, ...],
        mesh: Mesh,
        videos_per_device: int,
        num_workers: int = 0,
        num_threads: int = 2,
        chunk_size: int = 4,
    ):
        """Prepares the pass.

        Args:
            model: the classifier.
            probabilities: what makes them of logits, such as `jax.nn.softmax`.
            records: the videos, with labels.
            class_names: a name for each logit.
            read_clips: `clips.CenterClips` or `clips.MultiViewClips`.
            image_shape: shape of one clip, [T, H, W, 3].
            mesh: the devices.
            videos_per_device: videos of a batch on each device, whose views are taken
                one after the other; so memory holds this many clips' activations.
            num_workers: processes that read; 0 reads in threads of this process.
            num_threads: threads that read, in each worker.
            chunk_size: videos that a thread reads at a time.
        """
        self._records, self._class_names = records, list(class_names)
        self._mesh = mesh
        self._open = functools.partial(
            pipeline.each_once,
            records,
            read_clips,
            (read_clips.views, *image_shape),
            videos_per_device * mesh.size,
            num_workers,
            num_threads,
            chunk_size,
            (jax.process_index(), jax.process_count()),
        )
        # Every process gets every result: each can then count the whole set.
        replicated = NamedSharding(mesh, PartitionSpec())
        self._predict = jax.jit(
            functools.partial(_predict, model, probabilities), out_shardings=replicated
        )

    def __call__(self, variables) -> results.Predictions | multi_label.Predictions:
        """Predicts with variables {"params": ...}, "batch_stats" if the model has them.

        Returns:
            The same predictions on every process, in the order of the records.

        Raises:
            NoReadableVideoError: if no video could be read.
        """
        shape = len(self._records), len(self._class_names)
        probabilities = np.zeros(shape, np.float32)
        readable = np.zeros(len(self._records), bool)
        reasons: dict[int, str] = {}
        pending = collections.deque()

        def take_oldest():
            index, is_readable, values = jax.device_get(pending.popleft())
            real = index >= 0
            probabilities[index[real]] = values[real]
            readable[index[real]] = is_readable[real]

        with self._open() as batches, jax.set_mesh(self._mesh):
            for batch in batches:
                reasons |= batch.bad
                arrays = {
                    "video": batch.video,
                    "index": batch.index,
                    "readable": batch.readable,
                }
                arrays = sharding.to_devices(arrays, self._mesh)
                pending.append(self._predict(variables, arrays))
                if len(pending) > BATCHES_AHEAD:
                    take_oldest()
            while pending:
                take_oldest()
        # As pairs: JSON would make strings of the numbers.
        for found in hosts.gather(list(reasons.items())):
            reasons |= dict(found)
        if not readable.any():
            raise NoReadableVideoError(
                f"none of {len(readable)} videos to evaluate could be read:\n"
                + "\n".join(f"  {reason}" for reason in list(reasons.values())[:10])
            )
        good = [
            record for record, ok in zip(self._records, readable, strict=True) if ok
        ]
        if isinstance(good[0].label, tuple):
            kind = multi_label.Predictions
            true = labels.multi_hot(good, len(self._class_names))
        else:
            kind = results.Predictions
            true = np.array([record.label for record in good], np.int64)
        return kind(
            ids=[record.id for record in good],
            labels=true,
            probabilities=probabilities[readable],
            class_names=self._class_names,
            unreadable={
                self._records[i].id: (self._records[i].label, reasons[i])
                for i in np.flatnonzero(~readable)
            },
        )


def _predict(model: VideoClassifier, probabilities, variables, batch: dict):
    def of_view(clips):
        return probabilities(model.apply(variables, clips))

    # View by view, so that memory does not grow with their number.
    views = jax.lax.map(of_view, batch["video"].swapaxes(0, 1))
    return batch["index"], batch["readable"], jnp.mean(views, axis=0)
