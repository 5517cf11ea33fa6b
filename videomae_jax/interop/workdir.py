"""Reads a checkpoint of a work directory."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from videomae_jax import checkpointing
from videomae_jax.config import upgrade
from videomae_jax.errors import CheckpointError, PretrainedError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import build
from videomae_jax.models.problem import MULTI_LABEL, Problem


def read(
    folder: pathlib.Path, choice: int | str, fields: Mapping[str, Any]
) -> Pretrained:
    """Reads the averaged parameters, or the plain ones if the run has no average.

    Args:
        folder: the work directory.
        choice: a step, "last" or "best"; see `Checkpoints.find_step`.
        fields: of the model, in place of the saved ones.

    Raises:
        PretrainedError: the checkpoint is not found.
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
    shapes = {name: checkpoints.shapes(step, name) for name in (item, "batch_stats")}
    checkpoints.close()
    params = _restore(folder, step, item, shapes[item])
    labels, problem = None, Problem()
    preprocessing = {
        name: config.data[name] for name in ("num_frames", "stride", "image_size")
    }
    preprocessing["value_range"] = config.data.get("value_range")
    # Without the settings of training; float32 unless `fields` override it.
    defaults = {"dtype": "float32", "remat": "none", "attention": None}
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
            params = _in_units(params, meta["target_mean"], meta["target_std"])
        preprocessing["frame_sampling"] = config.data.frame_sampling
    return Pretrained(
        model=model.clone(**(defaults | dict(fields))),
        params=params,
        labels=labels,
        preprocessing=Preprocessing(**preprocessing),
        # The state of training nests the collection in a dict of collections.
        batch_stats=_restore(folder, step, "batch_stats", shapes["batch_stats"]).get(
            "batch_stats", {}
        ),
        normalized_targets=config.get("normalize_targets", True),
        **mask,
        problem=problem,
        source=str(folder),
        format="workdir",
    )


def _in_units(
    params: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Returns params whose head predicts values, not standardized ones as trained."""
    scale, shift = np.asarray(std, np.float32), np.asarray(mean, np.float32)
    head = params["head"]
    head = {"kernel": head["kernel"] * scale, "bias": head["bias"] * scale + shift}
    return {**params, "head": head}


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
