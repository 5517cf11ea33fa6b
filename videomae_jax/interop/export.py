"""Our own portable form of a model: config.json and model.safetensors."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop import huggingface
from videomae_jax.interop.assemble import initialize
from videomae_jax.interop.pretrained import Preprocessing, Pretrained, model_fields
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE

_FORMAT = "videomae_jax"
_VERSION = 1
_MODELS = {kind.__name__: kind for kind in (VideoMAE, VideoClassifier)}
WEIGHTS = "model.safetensors"


def is_export(folder: pathlib.Path) -> bool:
    """Whether `write` made the folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == _FORMAT


def files(pretrained: Pretrained) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of config.json, and the arrays by their paths a/b/c."""
    model = pretrained.model
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": type(model).__name__,
        "fields": model_fields(model),
        "labels": pretrained.labels,
        "preprocessing": dataclasses.asdict(pretrained.preprocessing),
        "normalized_targets": pretrained.normalized_targets,
        "multi_label": pretrained.multi_label,
    }
    arrays = flax.traverse_util.flatten_dict(pretrained.variables, sep="/")
    return config, {name: np.asarray(x) for name, x in arrays.items()}


def read(
    folder: pathlib.Path, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> Pretrained:
    """Reads an export.

    Args:
        folder: the export.
        arrays: content of its weights file.
        fields: of the model, instead of the saved ones.

    Raises:
        PretrainedError: if it is of a newer version, or its arrays are not those of
            its model.
    """
    file = folder / "config.json"
    config = huggingface.read_json(file)
    if config.get("version") != _VERSION or config.get("model") not in _MODELS:
        raise PretrainedError(
            f"{folder}: version {config.get('version')} of {config.get('model')} is "
            "not known to this release of videomae_jax; use a newer one"
        )
    with huggingface.explaining(file):
        return _read(folder, config, arrays, fields)


def _read(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    fields: Mapping[str, Any],
) -> Pretrained:
    saved = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config["fields"].items()
    }
    model = _MODELS[config["model"]](**(saved | dict(fields)))
    variables = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    wanted = jax.eval_shape(lambda: initialize(model))
    wanted = flax.traverse_util.flatten_dict({"params": wanted}, sep="/")
    lines = [
        f"  {name}: {arrays[name].shape if name in arrays else 'missing'}, not "
        f"{wanted[name].shape if name in wanted else 'wanted'}"
        for name in sorted(wanted.keys() | arrays.keys())
        if not name.startswith("batch_stats/")
        and (
            name not in arrays
            or name not in wanted
            or arrays[name].shape != wanted[name].shape
        )
    ]
    if lines:
        raise PretrainedError(
            f"{folder}: {WEIGHTS} is not of the model in config.json:\n"
            + "\n".join(lines[:8])
        )
    labels = config["labels"]
    if labels is not None and len(labels) != getattr(model, "num_classes", 0):
        raise PretrainedError(f"{folder}: {len(labels)} labels are not one a class")
    return Pretrained(
        model=model,
        params=variables["params"],
        labels=None if labels is None else tuple(labels),
        preprocessing=Preprocessing(**config["preprocessing"]),
        statistics=variables.get("batch_stats", {}),
        normalized_targets=config["normalized_targets"],
        multi_label=config["multi_label"],
        source=str(folder),
        format="jax",
    )
