"""Distillation as a task of the training loop: a classifier learns from another one."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float, Float32

from videomae_jax.config import Config, check_choices
from videomae_jax.data import labels
from videomae_jax.data.clips import clip_shape
from videomae_jax.distributed import hosts
from videomae_jax.errors import CheckpointError, ConfigError, PretrainedError
from videomae_jax.interop import edit_head, loading
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import flops, vit
from videomae_jax.models.array_types import Array, Clips, Grid, Patches, Tokens
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.layers.linear import Dense
from videomae_jax.models.problem import Problem
from videomae_jax.training import initialization
from videomae_jax.training.tasks.finetune import Finetuning

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A classifier to learn from.

    Attributes:
        model: the VideoClassifier.
        variables: its parameters and batch statistics, on the host; or their shapes.
        digest: of its weights, however they are stored; "" without weights.
    """

    model: Any
    variables: dict
    digest: str = ""

    def abstract(self) -> "Teacher":
        """Returns the teacher with shapes in place of its variables."""
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.variables
        )
        return dataclasses.replace(self, variables=shapes)


class Distillation(Finetuning):
    """Training of a classifier, the student, by the outputs of another, the teacher.

    The procedure of Beyer et al. 2022 (arXiv 2106.05237), which VideoMAE V2 names: both
    see the same clip, after augmentation and mixing, and the loss is KL(teacher ||
    student) of the classes' probabilities. The teacher is not trained: it has neither
    dropout nor drop-path, and is read from its source again when a run resumes.
    """

    def __init__(self, config: Config, saved: Mapping[str, Any] | None = None):
        """Reads the lists and the teacher, and builds the student.

        Args:
            config: see configs/common.py.
            saved: as of Finetuning, for a student that is only compiled
                (tpu/compile.py). That needs no teacher with weights, if
                `config.teacher.variant` names its size.

        Raises:
            ConfigError, RecordError: as Finetuning; or the loss is not of one class per
                video.
            PretrainedError: see `read_teacher`.
        """
        super().__init__(config, saved)
        check_choices(config, {"teacher.dtype": ("bfloat16", "float32")})
        if self.objective.problem != Problem():
            raise ConfigError(
                "config.task=distill compares the probabilities of one class per video:"
                " config.loss.kind must be softmax, and config.data.heads empty"
            )
        if saved is not None and config.teacher.variant:
            self._teacher = _named_teacher(config, len(self.class_names))
        else:
            self._teacher = read_teacher(config, self.model, self.class_names)
        teacher = self._teacher.model
        self._teacher_grid = vit.token_grid(
            self._clip_shape, teacher.patch_size, teacher.tubelet_size
        )
        self._projection = None
        if config.distill.feature_weight:
            # Small, so that it predicts the mean of the normalized tokens at first.
            small = nn.initializers.truncated_normal(0.02)
            width, dtype = teacher.width, self.model.dtype
            self._projection = Dense(width, dtype=dtype, kernel_init=small)

    @property
    def meta(self) -> dict:
        """Facts to save: the classes, and which teacher it is."""
        return super().meta | {"teacher": {"digest": self._teacher.digest}}

    def resume(self, workdir: str, saved: Mapping[str, Any]) -> None:
        """Checks that classes and teacher are a checkpoint's.

        Raises:
            CheckpointError: they differ; the message names the work directory.
        """
        super().resume(workdir, saved)
        if "teacher" not in saved:
            raise CheckpointError(
                f"{workdir}: config.task=distill must be {saved['config']['task']}, as "
                "when the run began. Resume with that, or give a new --workdir"
            )
        if saved["teacher"]["digest"] != self._teacher.digest:
            raise CheckpointError(
                f"{workdir}: config.teacher.source={self._config.teacher.source} must "
                "be the teacher that the run began with, but has other weights. Resume "
                "with that teacher, or give a new --workdir"
            )

    @property
    def flops_per_clip(self) -> int:
        """Floating-point operations of a training step per clip, of both models."""
        tokens = math.prod(self._teacher_grid)
        return super().flops_per_clip + flops.classification(
            self._teacher.model, tokens
        )

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Returns random parameters of the student and of the projection."""
        params, batch_stats = super().init(key, video)
        if self._projection:
            tokens = jnp.zeros((1, 1, self.model.width))
            variables = self._projection.init(jax.random.fold_in(key, 1), tokens)
            params["projection"] = variables["params"]
        return params, batch_stats

    @property
    def frozen(self) -> dict:
        """The variables of the teacher, as shapes."""
        return self._teacher.abstract().variables

    def load_frozen(self, abstract: dict) -> dict:
        """Returns the variables of the teacher on the devices; frees the host's."""
        hosts.check_alike(teacher=self._teacher.digest)
        arrays = jax.tree.map(
            lambda x, to: initialization.to_devices(x, to.sharding),
            self._teacher.variables,
            abstract,
        )
        self._teacher = self._teacher.abstract()
        return arrays

    def loss(
        self, params: dict, batch_stats: dict, batch: dict, frozen: dict
    ) -> tuple[Array, tuple[dict, dict]]:
        """Returns the mean loss over the clips, new batch statistics, and its parts."""
        settings = self._config.distill
        patches, targets = self._mixed(batch)
        params = self._with_freeze(params)
        logits, tokens, updated = _apply(
            self.model,
            {"params": params, **batch_stats},
            patches,
            batch["keys"],
            mutable=list(batch_stats),
        )
        teacher_logits, teacher_tokens, _ = _apply(
            self._teacher.model, frozen, self._for_teacher(patches)
        )
        kl = kl_divergence(teacher_logits, logits, settings.temperature)
        if settings.square_temperature:
            kl *= settings.temperature**2
        label_loss = self.objective.loss(logits, targets)
        parts = {"kl": kl, "label_loss": label_loss}
        share = settings.label_share
        loss = (1 - share) * kl + share * label_loss
        if self._projection:
            predicted: Any = self._projection.apply(
                {"params": params["projection"]}, normalize_tokens(tokens)
            )
            seen = resample(teacher_tokens, self._teacher_grid, self._grid)
            parts["feature_loss"] = feature_loss(seen, predicted)
            loss += settings.feature_weight * parts["feature_loss"]
        return loss, (updated, parts)

    def _for_teacher(self, patches: Patches) -> Clips:
        """Returns the student's clips as the teacher takes them."""
        teacher = self._teacher.model
        if self.patch_shape == (teacher.tubelet_size, teacher.patch_size):
            return patches
        tubelet_size, patch_size = self.patch_shape
        return vit.unpatchify(patches.values, patches.grid, patch_size, tubelet_size)


def kl_divergence(
    teacher: Float[Array, "batch classes"],
    student: Float[Array, "batch classes"],
    temperature: float,
) -> Float32[Array, ""]:
    """Returns the mean over clips of KL(teacher || student) of logits / temperature."""
    targets, predictions = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
        for x in (teacher, student)
    )
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(predictions, targets))


def feature_loss(teacher: Tokens, predicted: Tokens) -> Float32[Array, ""]:
    """Returns the mean squared error of predictions of the teacher's normalized tokens.

    Of the tokens of large transformers, a few channels are so large that nothing else
    would count, if they were not normalized (as in data2vec, arXiv 2202.03555, section
    3.3). With that, no outliers are left for which a smooth L1 loss, and its additional
    parameter, would be needed.
    """
    target = normalize_tokens(teacher)
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - target))


def normalize_tokens(tokens: Tokens) -> Tokens:
    """Returns tokens, float32, that have mean 0 and variance 1 over their channels."""
    return jax.nn.standardize(tokens.astype(jnp.float32), epsilon=1e-6)


def resample(
    tokens: Tokens, grid: Grid, to: Grid
) -> Float[Array, "batch new_tokens dim"]:
    """Returns the tokens of a grid at the places of another, interpolated linearly."""
    if grid == to:
        return tokens
    batch, _, width = tokens.shape
    places = tokens.reshape(batch, *grid, width)
    resized = jax.image.resize(places, (batch, *to, width), "linear")
    return resized.reshape(batch, -1, width)


def read_teacher(
    config: Config, student: VideoClassifier, class_names: Sequence[str]
) -> Teacher:
    """Reads a teacher, and adapts it to the classes and clips of the student.

    Args:
        config: see configs/common.py.
        student: the model that learns; its normalized pixels are those of the teacher.
        class_names: of the student. The teacher's head keeps these, by name.

    Raises:
        ConfigError: no source is given.
        CheckpointError: it is a path that is gone.
        PretrainedError: it cannot be read, is not a classifier of these classes, or its
            patches do not divide the clips.
    """
    source = config.teacher.source
    if not source:
        raise ConfigError(
            "config.teacher.source is empty; expected the work directory of a "
            "fine-tuning run, or any other classifier that load_pretrained takes"
        )
    initialization.check_found("config.teacher.source", source)
    num_frames, height, width, _ = clip_shape(config)
    try:
        loaded = loading.read(source, dtype=config.teacher.dtype)
        loaded = _with_classes(loaded, class_names, config.teacher.labels)
        loaded = edit_head.with_pixel_stats(
            loaded, student.pixel_mean, student.pixel_std
        )
        adapted = edit_head.resize_clips(
            loaded, num_frames=num_frames, image_size=(height, width)
        )
    except PretrainedError as error:
        raise PretrainedError(f"config.teacher.source={source}: {error}") from error
    log.info("teacher: %s", loaded)
    clips, own = adapted.preprocessing, loaded.preprocessing
    if (clips.num_frames, clips.image_size) != (own.num_frames, own.image_size):
        log.warning(
            "config.teacher.source=%s: trained with %d frames of %dx%d pixels; sees "
            "those of the student",
            source,
            own.num_frames,
            *own.image_size,
        )
    variables = jax.device_get(adapted.variables)
    return Teacher(
        adapted.model, _stored(variables, config.teacher.dtype), _digest(variables)
    )


def _with_classes(
    loaded: Pretrained, class_names: Sequence[str], label_file: str
) -> Pretrained:
    """Returns a classifier with the given classes, by name, in their order."""
    classes = getattr(loaded.model, "num_classes", 0)
    if not classes or loaded.problem != Problem():
        raise PretrainedError(
            "it must be a classifier with one class per video, which it is not"
        )
    if label_file:
        names = tuple(labels.read(label_file))
        if len(names) != classes:
            raise PretrainedError(
                f"it has {classes} classes, but config.teacher.labels={label_file} "
                f"names {len(names)}"
            )
        loaded = dataclasses.replace(loaded, labels=names)
    if loaded.labels is not None:
        try:
            return edit_head.select_classes(loaded, class_names)
        except PretrainedError as error:
            raise PretrainedError(
                f"{error} In a config: name the classes alike in config.data.labels "
                "and config.teacher.labels."
            ) from error
    if classes != len(class_names):
        raise PretrainedError(
            f"it has {classes} classes without names, but the student has "
            f"{len(class_names)}: name the teacher's in config.teacher.labels"
        )
    log.warning(
        "the classes of the teacher have no names: they are taken for those of the "
        "student, in the same order. config.teacher.labels names them"
    )
    return loaded


def _named_teacher(config: Config, num_classes: int) -> Teacher:
    """Returns a teacher of the size that the config names, without weights."""
    model = VideoClassifier.from_variant(
        config.teacher.variant, num_classes, dtype=config.teacher.dtype
    )
    video = jax.ShapeDtypeStruct((1, *clip_shape(config)), "uint8")
    return Teacher(
        model,
        jax.eval_shape(
            lambda key, video: _stored(model.init(key, video), config.teacher.dtype),
            jax.random.key(0),
            video,
        ),
    )


def _stored(variables: Any, dtype: str) -> Any:
    """Returns variables whose matrices are in the dtype that the model computes in.

    It would convert them in every step. The others are small; the head computes in
    float32.
    """

    def convert(path, x):
        names = [entry.key for entry in path]
        is_matrix = names[-1] == "kernel" and "head" not in names
        return x.astype(dtype) if is_matrix else x

    return jax.tree.map_with_path(convert, variables)


def _digest(variables: dict) -> str:
    """Returns a digest of the names, shapes and values of arrays."""
    digest = hashlib.sha256()
    for path, x in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(f"{path} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _apply(
    model: VideoClassifier, variables: Any, *inputs: Any, mutable: Sequence[str] = ()
) -> tuple[Array, Tokens, dict]:
    """Returns the logits, the encoder's tokens, and the collections that changed."""
    logits, updated = model.apply(
        variables,
        *inputs,
        mutable=[*mutable, "intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, vit.Encoder),
    )
    updated = dict(updated)
    [tokens] = updated.pop("intermediates")["encoder"]["__call__"]
    return logits, tokens, updated
