"""Initializes a run with the weights of another model, and reports what was loaded."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from videomae_jax.checkpointing import TRAINING_ONLY, Checkpoints, restore_part
from videomae_jax.config import Config, upgrade
from videomae_jax.errors import (
    CheckpointError,
    ConfigError,
    PretrainedError,
    shape_differences,
)
from videomae_jax.interop import edit_head, hub, loading
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import build
from videomae_jax.models.build import Model
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import height_and_width
from videomae_jax.models.variants import SOURCE, VARIANTS
from videomae_jax.training import mixture
from videomae_jax.training.source_weights import SourceWeights

log = logging.getLogger(__name__)

# Fields that must be equal, although the shapes of the parameters may not show it.
_MODEL_FIELDS = (
    "heads",
    "patch_size",
    "tubelet_size",
    "width",
    "depth",
    "mlp_ratio",
    "channels",
    "pixel_mean",
    "pixel_std",
    "decoder_heads",
    "decoder_mlp_ratio",
)
# Fields that a model of variant=source takes over where the config leaves them None.
_SOURCE_FIELDS = (
    *_MODEL_FIELDS,
    "norm_epsilon",
    "head_norm_epsilon",
    "decoder_width",
    "decoder_depth",
)
# Heads by width, and those of decoders: of the published models.
_PUBLISHED = {
    "heads": {x.width: x.heads for x in VARIANTS.values()},
    "decoder_heads": {x.decoder_width: x.decoder_heads for x in VARIANTS.values()},
}
_EQUAL_CLASSES = (
    "config.init.head needs equal classes, or names of both sides: of the run "
    "(config.data.labels) and of the source (convert --labels)."
)
_SCRATCH = "Empty (--config.init.source=) trains from scratch"


@dataclasses.dataclass(frozen=True)
class Report:
    """Lists the paths of parameters, such as a/b/c, by what happened to them.

    Attributes:
        source: where the weights come from.
        loaded: parameters of the model that were loaded.
        new: parameters of the model that keep their random values.
        dropped: parameters of the source that the model does not have.
        classes: a line about the classes of the head, if it was loaded.
    """

    source: str
    loaded: list[str]
    new: list[str]
    dropped: list[str]
    classes: str

    def __str__(self) -> str:
        """Returns a table with a line per module of the model."""
        rows = [("module", "arrays", "status")]
        for paths, status in (
            (self.loaded, "loaded"),
            (self.new, "newly initialised"),
            (self.dropped, "in the source, dropped"),
        ):
            counts = collections.Counter(map(_module, paths))
            rows += [(module, str(count), status) for module, count in counts.items()]
        width = max(len(module) for module, _, _ in rows)
        lines = [
            f"{module:{width}}  {count:6}  {status}" for module, count, status in rows
        ]
        lines += [self.classes] if self.classes else []
        return "\n".join([f"weights from {self.source}:", *lines])


def _module(path: str) -> str:
    """Returns encoder/blocks for encoder/blocks/norm1/scale, head for head/bias."""
    names = path.split("/")
    return "/".join(names[: 2 if names[0] == "encoder" else 1])


def load(
    source: str,
    params: dict,
    *,
    config: Config,
    load_head: bool = True,
    class_names: Sequence[str] = (),
) -> tuple[dict, Report]:
    """Replaces parameters by the weights of `config.init.source`.

    An autoencoder takes all weights. A classifier takes those of the encoder: from a
    pretrained model without the final LayerNorm, unless the classifier has one
    (pooling "first_token"); decoder, mask token and projection are dropped (official
    code). From a fine-tuned model it also takes the norm before the head, and
    optionally the head.

    Args:
        source: a work directory, or any other source that `load_pretrained` accepts. Of
            a work directory the averaged parameters are taken, if there are any.
        params: initial parameters, on their devices.
        config: `config.model`.
        load_head: also take the head of a classifier.
        class_names: if the source has names, too, the head takes the classes of the
            same names, and keeps the others. Otherwise, it must have equal classes.

    Returns:
        The parameters, and a Report.

    Raises:
        CheckpointError: the source cannot be read, or is of another model.
    """
    if load_head and config.get("head_norm") == "batch":
        raise CheckpointError(
            "config.init.head=True needs config.model.head_norm=layer: statistics of "
            "batch norm are not taken from another run"
        )
    ours = _build(config)
    weights = _open(source, config, ours)
    _check_model(weights, ours, config)
    if weights.incomplete:
        log.warning(
            "config.init.source=%s is not complete: %s", source, weights.incomplete
        )

    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    autoencoder = "mask_token" in flat
    classes = ""
    if load_head and not autoencoder:
        weights, classes = weights.with_classes(class_names, flat)
    required = ("encoder/", "head/") if load_head else ("encoder/",)
    left_out = (TRAINING_ONLY,) if load_head else (TRAINING_ONLY, "head/")
    selected = {
        path: x
        for path, x in flat.items()
        if path in weights.shapes and not path.startswith(left_out)
    }
    expected = {
        path: x.shape
        for path, x in flat.items()
        if path in selected or autoencoder or path.startswith(required)
    }
    found = {path: weights.shapes[path] for path in selected}
    if differences := shape_differences(found, expected):
        raise CheckpointError(
            f"config.init.source={weights.name} is of another model:\n{differences}\n"
            "Set config.model to its sizes, or config.init.source to another run."
            + ("" if autoencoder else f" {_EQUAL_CLASSES}")
        )
    loaded = weights.restore(
        {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for path, x in selected.items()
        }
    )
    report = Report(
        source=weights.name,
        loaded=list(loaded),
        new=[path for path in flat if path not in loaded],
        dropped=[path for path in weights.shapes if path not in loaded],
        classes=classes,
    )
    return traverse_util.unflatten_dict(flat | dict(loaded), sep="/"), report


def with_source_sizes(config: Config, workdir: pathlib.Path) -> Config:
    """Fills in the sizes that config.model.variant=source leaves to the checkpoint.

    A run that has checkpoints has saved them: it resumes, and is tested, without the
    source. It may have been started with another variant, by an earlier release of its
    recipe; then that is filled in.

    Args:
        config: see configs/common.py.
        workdir: of the run.

    Returns:
        A copy; for another variant, or to test a run that is not found, the config.

    Raises:
        ConfigError: there is no source, or it has no decoder to pretrain.
        RecordError: the training list or its videos are not found.
        CheckpointError: it cannot be read.
    """
    _read_for_sizes.clear()  # of an earlier run
    if config.model.variant != SOURCE:
        return config
    config = config.copy_and_resolve_references()
    checkpoints = Checkpoints(str(workdir), read_only=True)
    steps = checkpoints.steps()
    if steps:
        # The newest may be damaged: what is chosen in its place is read here, too.
        step = steps[-1]
        if config.mode == "eval" and "evaluation" in config:
            step = checkpoints.find_step(config.evaluation.step)
        elif config.checkpoint.step in steps:
            step = config.checkpoint.step
        taken = upgrade(checkpoints.meta(step)["config"])["model"]
    elif config.mode == "eval":
        return config  # the source is no run that could be tested in place of it
    elif config.init.source:
        # A wrong path, the most common mistake, should fail before a download.
        mixture.load(config.data)
        weights = _open(config.init.source, config.model)
        if "decoder_heads" in config.model and not isinstance(weights.model, VideoMAE):
            raise ConfigError(
                f"config.model.variant=source: the source {weights.name} has no decoder"
                ", which pretraining needs. Choose the source of an autoencoder, such "
                "as MCG-NJU/videomae-base, or fine-tune (config.task=finetune)"
            )
        taken = {x: getattr(weights.model, x, None) for x in _SOURCE_FIELDS}
        taken["position_size"] = weights.position_size
        log.info("config.model.variant=source: sizes of %s", weights.name)
    else:
        raise ConfigError(
            "config.model.variant=source needs config.init.source. To train from "
            "scratch, choose a size, such as --config.model.variant=base"
        )
    checkpoints.close()
    config.model.variant = taken.get("variant", SOURCE)
    with config.ignore_type():  # copies of fields of any type have lost that
        for name in _SOURCE_FIELDS:
            if name in config.model and config.model[name] is None:
                config.model[name] = taken.get(name)
        # 0, the plain table, is a choice; any other size is that of the source.
        if config.model.get("position_size") and "position_size" in taken:
            config.model.position_size = taken["position_size"]
    return config


# The source that variant=source read for its sizes, until its weights are taken: a
# second reading would take as long, and repeat the warnings.
_read_for_sizes: dict[str, Pretrained] = {}


def _open(
    source: str, config: Config, ours: VideoMAE | VideoClassifier | None = None
) -> SourceWeights:
    """Opens a source.

    Args:
        source: see `load`.
        config: `config.model`.
        ours: the model to initialize: weights of others are converted to its pixel
            mean and deviation. None: only the sizes of the source are needed.

    Raises:
        CheckpointError: it is not found, or cannot be read.
    """
    if (pathlib.Path(source).expanduser() / "checkpoints").is_dir():
        return _from_workdir(source)
    check_found("config.init.source", source, f" {_SCRATCH}")
    try:
        loaded = _read_for_sizes.pop(source, None) or _read(source, config)
        if ours is None:
            _read_for_sizes[source] = loaded
        else:
            mean, std = ours.pixel_mean, ours.pixel_std
            loaded = edit_head.with_pixel_stats(loaded, mean, std)
    except PretrainedError as error:
        raise CheckpointError(
            f"config.init.source={source}: {error}. {_SCRATCH}"
        ) from error
    arrays: dict[str, Any] = traverse_util.flatten_dict(loaded.params, sep="/")
    position_size = getattr(loaded.model, "position_size", None)
    clips = loaded.preprocessing
    # Once: with variant=source, a source is opened for its sizes before.
    if ours is not None and not clips.framing.is_like_training(clips.image_size):
        log.warning(
            "config.init.source=%s: its frames were resized otherwise (resize=%s, "
            "crop=%s) than in training and tests here, which cut crops",
            source,
            clips.framing.resize,
            clips.framing.crop,
        )
    return SourceWeights(
        f"{source} ({loaded.format})",
        loaded.model,
        position_size or loaded.preprocessing.image_size,
        {name: x.shape for name, x in arrays.items()},
        lambda abstract: {
            path: to_devices(arrays[path], x.sharding) for path, x in abstract.items()
        },
        labels=() if loaded.problem.heads else loaded.labels or (),
    )


def check_found(field: str, source: str, remedy: str = "") -> None:
    """Raises CheckpointError if the source in a field is a path that is gone.

    That may look like a name of the hub, and must not be looked up there.
    """
    is_path = source.startswith((".", "/", "~", "runs/")) or not hub.is_name(source)
    if is_path and not pathlib.Path(source).expanduser().exists():
        raise CheckpointError(
            f"{field}={source} not found; expected the work directory of a run, a file "
            "or folder of weights, or a model of the Hugging Face Hub, such as "
            f"MCG-NJU/videomae-base.{remedy}"
        )


def _read(source: str, config: Config) -> Pretrained:
    """Reads a source with the heads that the config sets.

    These are used if the source does not state its own, or states others than the
    published model of its width, which the config's are.
    """
    # A classifier has no use for the decoder, nor for its unknown heads.
    given = {"heads": config.heads, "decoder_heads": config.get("decoder_heads", 1)}
    given = {name: heads for name, heads in given.items() if heads is not None}
    loaded = loading.read(source, **given)
    model = loaded.model
    for name, stated in loaded.stated.items():
        width = getattr(model, name.replace("heads", "width"))
        if _PUBLISHED[name].get(width) == given[name]:
            log.warning(
                "config.model.%s=%s is used for config.init.source=%s, whose own "
                "config says %s",
                name,
                given[name],
                source,
                stated,
            )
        else:  # as good as no such setting: the models are compared later
            model = model.clone(**{name: stated})
    return dataclasses.replace(loaded, model=model)


def _from_workdir(source: str) -> SourceWeights:
    checkpoints = Checkpoints(os.path.expanduser(source), read_only=True)
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(
            f"config.init.source={source} has no checkpoint yet. {_SCRATCH}"
        )
    meta = checkpoints.meta(step)
    config: Any = ConfigDict(upgrade(meta["config"]))
    total = meta.get("total_steps", config.steps)
    is_complete = step >= total or meta.get("complete")
    item = checkpoints.evaluated_item(step)
    shapes = checkpoints.shapes(step)[item]
    checkpoints.close()

    def restore(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
        part = traverse_util.unflatten_dict(abstract, sep="/")
        restored = restore_part(os.path.expanduser(source), step, item, part)
        return traverse_util.flatten_dict(restored, sep="/")

    position_size = config.model.get("position_size") or config.data.image_size
    return SourceWeights(
        f"{source} (step {step}, {item})",
        _build(config.model),
        height_and_width(position_size),
        shapes,
        restore,
        "" if is_complete else f"step {step} of {total}",
        () if meta.get("problem", {}).get("heads") else meta.get("class_names", ()),
    )


def _build(config: Config) -> VideoMAE | VideoClassifier:
    """Returns the module of a config's `model`; that of a classifier has one class."""
    if "decoder_heads" in config:
        return build.autoencoder(config)
    return build.classifier(config, num_classes=1)


def to_devices(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Like `device_put`, but does not send the array of each host to all others."""
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _check_model(
    weights: SourceWeights, ours: VideoMAE | VideoClassifier, config: Config
) -> None:
    """Checks the fields of the model, before shapes are compared.

    Raises:
        CheckpointError: they differ; the message names the fields.
    """
    fields = [(x, _field(ours, x), _field(weights.model, x)) for x in _MODEL_FIELDS]
    lines = [
        f"  config.model.{name}={value} must be {theirs}, as in the source"
        for name, value, theirs in fields
        if None not in (value, theirs) and value != theirs
    ]
    if lines:
        raise CheckpointError(
            f"config.init.source={weights.name} is of another model:\n"
            + "\n".join(lines)
            + "\nSet config.model.variant=source, which takes these fields over, or "
            "another source."
        )
    size = weights.position_size
    position_size = config.get("position_size", 0)
    if position_size and height_and_width(position_size) != size:
        shown = size[0] if size[0] == size[1] else size
        raise CheckpointError(
            f"config.model.position_size={position_size} must be {shown} or 0: "
            f"{weights.name} was trained with images of {shown} pixels. {shown} "
            "interpolates its position table to config.data.image_size; 0 uses the "
            "plain 1-D table of any size."
        )


def _field(model: Model, name: str) -> Any:
    """Returns a field of a model; None if models of its kind do not have it."""
    if name == "decoder_mlp_ratio" and isinstance(model, VideoMAE):
        return model.decoder_mlp_ratio or model.mlp_ratio
    return getattr(model, name, None)
