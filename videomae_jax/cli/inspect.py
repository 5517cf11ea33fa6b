"""Tells what a checkpoint is: its model, sizes, parameters, classes and clips.

python -m videomae_jax inspect MCG-NJU/videomae-base
python -m videomae_jax inspect checkpoint.pth --tensors
python -m videomae_jax inspect runs/digits_finetune --json
"""

import argparse
import dataclasses
import json
from typing import Any

import flax
import numpy as np

from videomae_jax.cli import arguments
from videomae_jax.interop.pretrained import Pretrained, model_fields

_SHOWN = 5  # labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_source(parser, "source")
    parser.add_argument(
        "--tensors", action="store_true", help="list each parameter and its shape too"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> None:
    """Prints what the source holds.

    Raises:
        PretrainedError: if it cannot be loaded.
    """
    pretrained = arguments.load(args, args.source, strict=False)
    told = describe(pretrained)
    if args.json:
        print(json.dumps(told, indent=2))
        return
    parameters, labels = told.pop("parameters"), told.pop("labels")
    rows = {
        key: value
        for key, value in told.items()
        if not isinstance(value, dict | list) or value
    }
    rows |= rows.pop("fields") | rows.pop("preprocessing")
    for name in ("unused", "missing"):
        if name in rows:
            rows[name] = ", ".join(rows[name])
    if labels:
        more = f" ... ({len(labels)})" if len(labels) > _SHOWN else ""
        rows["labels"] = ", ".join(labels[:_SHOWN]) + more
    width = max(map(len, rows))
    for name, value in rows.items():
        text = f"{value:,}" if name == "num_parameters" else value
        print(f"{name:{width}}  {text}")
    if args.tensors:
        print()
        width = max(map(len, parameters))
        for name, shape in parameters.items():
            print(f"{name:{width}}  {' x '.join(map(str, shape))}")


def describe(pretrained: Pretrained) -> dict[str, Any]:
    """What `inspect --json` prints, as an object."""
    model = pretrained.model
    flat = flax.traverse_util.flatten_dict(pretrained.params, sep="/")
    return {
        "source": pretrained.source,
        "format": pretrained.format,
        "model": type(model).__name__,
        "num_parameters": sum(int(np.prod(x.shape)) for x in flat.values()),
        "fields": model_fields(model),
        "preprocessing": dataclasses.asdict(pretrained.preprocessing),
        "normalized_targets": pretrained.normalized_targets,
        "multi_label": pretrained.multi_label,
        "unused": list(pretrained.unused),
        "missing": list(pretrained.missing),
        "labels": list(pretrained.labels or ()),
        "parameters": {name: list(x.shape) for name, x in flat.items()},
    }
