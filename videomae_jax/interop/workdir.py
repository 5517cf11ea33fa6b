"""Reads a checkpoint of a work directory."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from videomae_jax import checkpointing, ranges
from videomae_jax.config import upgrade
from videomae_jax.errors import CheckpointError, ConfigError, PretrainedError
from videomae_jax.interop.pretrained import (
    Preprocessing,
    Pretrained,
    check_clips,
    check_fields,
    check_shapes,
)
from videomae_jax.models import build
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.problem import MULTI_LABEL, Problem

# Rounding that a predicted value may have, in standard deviations of training.
_LARGEST_STEP = 0.01


def read(
    folder: pathlib.Path, choice: int | str, fields: Mapping[str, Any]
) -> Pretrained:
    """Reads the averaged parameters, or the plain ones if the run has no average.

    Args:
        folder: the work directory.
        choice: a step, "last" or "best"; see `Checkpoints.find_step`.
        fields: of the model, in place of the saved ones.

    Raises:
        PretrainedError: the checkpoint is not found, or its sizes have no sense or do
            not fit its arrays.
        CheckpointError: it is damaged.
    """
    checkpoints = checkpointing.Checkpoints(str(folder), read_only=True)
    try:
        step = checkpoints.find_step(choice)
    except CheckpointError as error:
        raise PretrainedError(str(error)) from error
    meta = checkpoints.meta(step)
    config: Any = ConfigDict(upgrade(meta["config"]))
    item = checkpoints.evaluated_item(step)
    shapes = checkpoints.shapes(step)
    for path in [x for x in shapes[item] if x.startswith(checkpointing.TRAINING_ONLY)]:
        del shapes[item][path]
    checkpoints.close()
    name = f"{folder}: checkpoint {step}"
    try:
        model, preprocessing, rest = _described(meta, config, fields, name)
    except ConfigError as error:
        raise PretrainedError(f"{name}: {error}") from error
    check_clips(preprocessing, model, name)
    check_shapes(model, shapes[item], f"{name}: {item}")
    params = _restore(folder, step, item, shapes[item])
    if rest["problem"].is_regression:
        units = meta["target_mean"], meta["target_std"]
        _check_units(folder, rest["labels"], *units)
        params = _in_units(params, *units)
    return Pretrained(
        model=model,
        params=params,
        preprocessing=preprocessing,
        # The state of training nests the collection in a dict of collections.
        batch_stats=_restore(
            folder, step, "batch_stats", shapes.get("batch_stats", {})
        ).get("batch_stats", {}),
        normalized_targets=config.get("normalize_targets", True),
        **rest,
        source=str(folder),
        format="workdir",
    )


def _described(
    meta: Mapping[str, Any], config: Any, fields: Mapping[str, Any], name: str
) -> tuple[VideoMAE | VideoClassifier, Preprocessing, dict[str, Any]]:
    """Returns what `meta` says: the model, how clips are cut, and what else is known.

    Args:
        meta: of the checkpoint.
        config: in it, with today's names.
        fields: of the model, in place of the saved ones.
        name: of the checkpoint, for messages.

    Raises:
        PretrainedError: the model has no such field.
        ConfigError: a field has no sense, or they do not fit each other.
    """
    labels, problem = None, Problem()
    preprocessing = {
        name: config.data[name] for name in ("num_frames", "stride", "image_size")
    }
    preprocessing["value_range"] = config.data.get("value_range")
    # Without the settings of training; float32 unless `fields` override it.
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "remat": "none",
        "unroll": None,
        "attention": None,
    }
    mask = {}
    if config.task == "pretrain":
        mask = {"mask": config.mask.kind, "mask_ratio": config.mask.ratio}
        defaults |= {"decoder_remat": None, "decoder_attention": None}
        model = build.autoencoder(config.model)
        preprocessing["frame_sampling"] = "exact"
    else:
        labels = tuple(meta["class_names"])
        model = build.classifier(config.model, len(labels))
        if "problem" in meta:
            problem = Problem.from_json(meta["problem"])
        elif config.loss.kind == "sigmoid":  # a run of an earlier release
            problem = Problem(MULTI_LABEL)
        if problem.is_regression:
            units = {x: meta[x] for x in ("target_mean", "target_std")}
            ranges.check(units)
            if {len(x) for x in units.values()} != {len(labels)}:
                raise ConfigError(f"{units} must be of the values {', '.join(labels)}")
        preprocessing["frame_sampling"] = config.data.frame_sampling
    check_fields(type(model), fields, name)
    model = model.clone(**(defaults | dict(fields)))
    build.check(model)
    rest = {"labels": labels, "problem": problem, **mask}
    return model, Preprocessing(**preprocessing), rest


def _in_units(
    params: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Returns params whose head predicts values, not standardized ones as trained."""
    head = {x: np.asarray(params["head"][x], np.float64) for x in ("kernel", "bias")}
    head = {"kernel": head["kernel"] * std, "bias": head["bias"] * std + mean}
    return {**params, "head": {x: head[x].astype(np.float32) for x in head}}


def _check_units(
    folder: pathlib.Path,
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Checks that the values of a regression differ by more than float32 rounds.

    Raises:
        PretrainedError: a model would predict steps instead of values.
    """
    for name, shift, scale in zip(names, mean, std, strict=True):
        step = float(np.spacing(np.float32(abs(shift))))
        if step > _LARGEST_STEP * scale:
            raise PretrainedError(
                f"{folder}: {name} has mean {shift:.10g} and deviation {scale:.4g} in "
                f"training, but a model predicts float32, in steps of {step:.4g} there."
                " Subtract a constant from the values of the lists and train again; "
                "the test of main.py (config.mode=eval) does not have this limit"
            )


def _restore(
    folder: pathlib.Path, step: int, item: str, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Any]:
    """Restores an item onto one device, whatever mesh it was saved from."""
    if not shapes:
        return {}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        for name, shape in shapes.items()
    }
    abstract = unflatten_dict(flat, sep="/")
    return checkpointing.restore_part(str(folder), step, item, abstract)
