"""Describes a checkpoint: its model, parameters, classes and clips.

python -m videomae_jax inspect MCG-NJU/videomae-base
python -m videomae_jax inspect checkpoint.pth --tensors
python -m videomae_jax inspect runs/digits_finetune --json
"""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from videomae_jax.cli import arguments

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.interop.pretrained import Pretrained

_SHOWN = 5  # labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_model(parser, "source")
    arguments.add_flag(parser, "--tensors", "also list each parameter with its shape")
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Prints what the checkpoint contains."""
    pretrained = arguments.load_model(args, args.source, strict=False)
    description = describe(pretrained)
    text = _as_text(description, tensors=args.tensors)
    arguments.print_result(args, description, text, indent=2)


def describe(pretrained: "Pretrained") -> dict[str, Any]:
    """Returns the JSON values that `inspect --json` prints."""
    from flax import traverse_util

    from videomae_jax.interop.pretrained import model_fields

    model = pretrained.model
    arrays: dict[str, Any] = traverse_util.flatten_dict(pretrained.params, sep="/")
    return {
        "source": pretrained.source,
        "format": pretrained.format,
        "model": type(model).__name__,
        "num_parameters": sum(int(np.prod(x.shape)) for x in arrays.values()),
        "fields": model_fields(model),
        "preprocessing": dataclasses.asdict(pretrained.preprocessing),
        "normalized_targets": pretrained.normalized_targets,
        "problem": pretrained.problem.to_json(),
        "unused": list(pretrained.unused),
        "missing": list(pretrained.missing),
        "labels": list(pretrained.labels or ()),
        "parameters": {name: list(x.shape) for name, x in arrays.items()},
    }


def _as_text(description: Mapping[str, Any], *, tensors: bool) -> str:
    rows = {
        name: value
        for name, value in description.items()
        if name not in ("fields", "preprocessing", "parameters")
        and (value or not isinstance(value, list))
    }
    preprocessing = dict(description["preprocessing"])
    rows |= description["fields"] | preprocessing.pop("framing") | preprocessing
    problem = rows.pop("problem")
    if description["fields"].get("num_classes"):
        heads = [f"{name} ({size})" for name, size in problem["heads"].items()]
        rows["problem"] = ", ".join([problem["type"], *heads])
    rows["num_parameters"] = f"{rows['num_parameters']:,}"
    for name in ("unused", "missing"):
        if name in rows:
            rows[name] = ", ".join(rows[name])
    if "labels" in rows:
        names = rows.pop("labels")
        more = f" ... ({len(names)})" if len(names) > _SHOWN else ""
        rows["labels"] = ", ".join(names[:_SHOWN]) + more
    text = _table(rows)
    if tensors:
        parameters = description["parameters"]
        shapes = {n: " x ".join(map(str, shape)) for n, shape in parameters.items()}
        text += "\n\n" + _table(shapes)
    return text


def _table(rows: Mapping[str, Any]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
