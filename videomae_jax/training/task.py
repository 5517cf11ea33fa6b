"""The interface between the training loop and what it trains."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax
import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from videomae_jax import __version__
from videomae_jax.config import Config
from videomae_jax.data.clips import clip_shape
from videomae_jax.data.pipeline import ReadClips, VideoList
from videomae_jax.distributed import hosts
from videomae_jax.errors import ConfigError, InputError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Array, Grid
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import PatchShape
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.train_step import TrainState
from videomae_jax.video.record import Record


class Task(Protocol):
    """A model with its data, loss and evaluation: all that differs between tasks.

    The classes of `tasks` implement it. A task is built from a config, reads lists but
    no videos, and raises ConfigError for fields that do not fit each other.

    Attributes:
        training_clips: cuts clips out of an opened video; runs in the workers.
        patch_shape: (tubelet_size, patch_size), by which the workers cut them.
        eval_every: steps between calls of `validate`; 0 for none.
    """

    training_clips: ReadClips
    patch_shape: PatchShape
    eval_every: int

    @property
    def model(self) -> nn.Module:
        """The Flax module that is trained."""
        ...

    @property
    def training_lists(self) -> Sequence[VideoList]:
        """The lists to train on."""
        ...

    @property
    def training_videos(self) -> Sequence[Record]:
        """The records of these lists, one after another."""
        ...

    @property
    def label_array(self) -> np.ndarray | None:
        """The labels of the training videos, [videos, ...], if they are used."""
        ...

    @property
    def lists(self) -> Sequence[Sequence[Record]]:
        """The records of every list; all hosts must have read the same."""
        ...

    @property
    def flops_per_clip(self) -> int:
        """Floating-point operations of a training step per clip; see models/flops.py.

        Frozen parameters count as if they were trained.
        """
        ...

    def resume(self, workdir: str, saved: Mapping[str, Any]) -> None:
        """Checks that the task fits the `meta` of a checkpoint, and takes that over.

        Raises:
            CheckpointError: it does not; the message names the work directory.
        """
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """Facts to save with a checkpoint, besides the arrays; a JSON object."""
        ...

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Returns random parameters and batch statistics.

        Args:
            key: of the random numbers.
            video: raw pixels [B, T, H, W, C], of the shape that is trained on.
        """
        ...

    def log_lists(self) -> None:
        """Logs what the lists hold, and warns of what is probably wrong with them."""
        ...

    def load_source(self, params: dict) -> dict:
        """Returns params with the weights of `config.init.source`, if it is set."""
        ...

    @property
    def frozen(self) -> dict:
        """The arrays that the loss takes and training does not change, as shapes.

        They are placed like parameters, and not saved. {} if there are none.
        """
        ...

    def load_frozen(self, abstract: dict) -> dict:
        """Returns the arrays of `frozen`, given with their shardings."""
        ...

    def add_randomness(self, batch: dict, key: jax.Array) -> dict:
        """Returns a batch with everything random of a step: masks, mixing, dropout.

        The batch has the arrays of `pipeline.Batch`, of all processes together. Runs on
        the devices, once for the whole batch of a step, so that gradient accumulation
        does not change what is drawn.
        """
        ...

    def loss(
        self, params: dict, batch_stats: dict, batch: dict, frozen: dict
    ) -> tuple[Array, tuple[dict, dict]]:
        """Returns the mean loss of a batch, and (new batch statistics, metrics).

        Loss and metrics, which are reported beside it, are float32 scalars.
        """
        ...

    def validate(
        self, step: int, state: TrainState, mesh: Mesh, reporter: Reporter
    ) -> tuple[str, float] | None:
        """Evaluates on held-out videos while training, and reports the results.

        Returns:
            Name and value of the metric by which checkpoints are chosen; "-name" if
            lower is better. The same on all processes; None without a metric.
        """
        ...

    def test(self, state: TrainState, mesh: Mesh, workdir: pathlib.Path) -> None:
        """Does the final test, after the last step; writes to the work directory."""
        ...

    def is_tested(self, workdir: pathlib.Path, step: int) -> bool:
        """Returns whether the results of `test` at this step are on disk."""
        ...


class NothingFrozen:
    """The part of a task that has no arrays but its parameters."""

    @property
    def frozen(self) -> dict:
        """Returns {}."""
        return {}

    def load_frozen(self, abstract: dict) -> dict:
        """Returns {}."""
        return {}


def clip_grid(config: Config, model: VideoMAE | VideoClassifier) -> Grid:
    """Returns the tokens of a clip of the config along time, height and width.

    Raises:
        ConfigError: the clip does not divide into the patches of the model.
    """
    try:
        return vit.token_grid(clip_shape(config), model.patch_size, model.tubelet_size)
    except InputError as error:
        raise ConfigError(
            f"config.data.num_frames={config.data.num_frames}, image_size="
            f"{config.data.image_size}: {error}"
        ) from error


def check_hosts(config: Config, task: Task) -> None:
    """Raises ClusterError unless all hosts have the same flags, lists and packages."""
    hosts.check_alike(
        flags=config.to_json(),
        videos=[
            [(x.id, x.labels, x.values, x.time_range or x.frame_range) for x in videos]
            for videos in task.lists
        ],
        packages=(__version__, jax.__version__, flax.__version__),
    )
