"""Our own portable format of a model: config.json and model.safetensors."""

import dataclasses
import logging
import pathlib
import typing
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videomae_jax.errors import ConfigError, PretrainedError
from videomae_jax.interop import huggingface
from videomae_jax.interop.pretrained import (
    MAX_NAMES,
    Preprocessing,
    Pretrained,
    check_clips,
    check_fields,
    check_shapes,
    model_fields,
)
from videomae_jax.interop.tensor_files import read_safetensors
from videomae_jax.models import build
from videomae_jax.models.build import Model
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.problem import MULTI_LABEL, SINGLE_LABEL, Problem
from videomae_jax.models.sizes import Framing

log = logging.getLogger(__name__)

_FORMAT = "videomae_jax"
_VERSION = 1
_MODELS = {kind.__name__: kind for kind in typing.get_args(Model)}
WEIGHTS = "model.safetensors"


def is_export(folder: pathlib.Path) -> bool:
    """Returns whether the folder holds this format."""
    try:
        return huggingface.read_json(folder / "config.json").get("format") == _FORMAT
    except PretrainedError:  # missing, or not a config
        return False


def content(pretrained: Pretrained) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the content of config.json, and the arrays by their paths a/b/c."""
    model = pretrained.model
    flat = flatten_dict(pretrained.variables, sep="/")
    arrays = {name: np.asarray(x) for name, x in flat.items()}
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": type(model).__name__,
        "fields": model_fields(model),
        "labels": pretrained.labels,
        "preprocessing": dataclasses.asdict(pretrained.preprocessing),
        "normalized_targets": pretrained.normalized_targets,
        "mask": pretrained.mask,
        "mask_ratio": pretrained.mask_ratio,
        "problem": pretrained.problem.to_json(),
        "crc32": _digests(arrays),
    }
    return config, arrays


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the CRC of the bytes of each array: they tell whether it has changed."""
    return {
        name: f"{zlib.crc32(np.ascontiguousarray(x).ravel().view('u1').data):08x}"
        for name, x in arrays.items()
    }


def read(folder: pathlib.Path, fields: Mapping[str, Any]) -> Pretrained:
    """Reads an export.

    Raises:
        PretrainedError: if it is of a newer version, or arrays and model do not fit.
    """
    arrays = read_safetensors(folder / WEIGHTS)
    with huggingface.opened_json(folder / "config.json") as config:
        if config.get("version") != _VERSION or config.get("model") not in _MODELS:
            raise PretrainedError(
                f"{folder}: version {config.get('version')} of {config.get('model')} "
                "is unknown to this release of videomae_jax; upgrade it"
            )
        saved: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config["fields"].items()
        }
        kind = _MODELS[config["model"]]
        # The decoder's heads may be given for any source, as in `assemble`.
        given = {
            name: value
            for name, value in fields.items()
            if name != "decoder_heads" or kind is VideoMAE
        }
        check_fields(kind, given, str(folder))
        model = kind(**(saved | given))
        try:
            build.check(model)
        except ConfigError as error:
            raise PretrainedError(f"{folder / 'config.json'}: {error}") from error
        check_shapes(
            model,
            {
                name.removeprefix("params/"): x.shape
                for name, x in arrays.items()
                if not name.startswith("batch_stats/")
            },
            f"{folder}: {WEIGHTS}",
        )
        # Exports of earlier releases have no digests.
        if "crc32" in config and (digests := _digests(arrays)) != config["crc32"]:
            names = [x for x in digests if digests[x] != config["crc32"].get(x)]
            raise PretrainedError(
                f"{folder}: {WEIGHTS} is damaged: by the digests in config.json, "
                f"{', '.join(names[:MAX_NAMES])} is not what was saved; copy it again"
            )
        labels, classes = config["labels"], getattr(model, "num_classes", 0)
        if labels is not None and len(labels) != classes:
            raise PretrainedError(
                f"{folder}: {len(labels)} labels for {classes} classes"
            )
        preprocessing = dict(config["preprocessing"])
        if "frames" in preprocessing:  # the name in earlier releases
            preprocessing["frame_sampling"] = preprocessing.pop("frames")
        if "framing" in preprocessing:  # earlier releases had only one
            preprocessing["framing"] = Framing(**preprocessing["framing"])
        if "problem" in config:
            problem = Problem.from_json(config["problem"])
        else:  # an export of an earlier release
            problem = Problem(MULTI_LABEL if config["multi_label"] else SINGLE_LABEL)
        # Exports of earlier releases do not have these.
        mask = {name: config[name] for name in ("mask", "mask_ratio") if name in config}
        # Files may have types of 64 bits, which JAX has only if it is told to.
        variables: dict[str, Any] = unflatten_dict(
            {
                name: x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
                for name, x in arrays.items()
            },
            sep="/",
        )
        clips = Preprocessing(**preprocessing)
        try:
            check_clips(clips, model, str(folder))
        except PretrainedError as error:  # earlier releases saved such models
            log.warning("%s; pass clips of other sizes", error)
        return Pretrained(
            model=model,
            params=variables["params"],
            labels=None if labels is None else tuple(labels),
            preprocessing=clips,
            batch_stats=variables.get("batch_stats", {}),
            normalized_targets=config["normalized_targets"],
            **mask,
            problem=problem,
            source=str(folder),
            format="jax",
            stated={
                name: saved[name]
                for name in given.keys() & saved.keys()
                if saved[name] != given[name]
            },
        )
