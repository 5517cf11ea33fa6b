"""Initializes a run with the weights of another model, and reports what was loaded."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from videomae_jax.checkpointing import Checkpoints, restore_part
from videomae_jax.config import Config, upgrade
from videomae_jax.errors import CheckpointError, PretrainedError
from videomae_jax.interop import edit_head, loading
from videomae_jax.models import variants

# Fields that must be equal, although the shapes of the parameters may not show it.
_MODEL_FIELDS = (
    "heads",
    "patch_size",
    "tubelet_size",
    "width",
    "depth",
    "mlp_ratio",
    "decoder_heads",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Lists the paths of parameters, such as a/b/c, by what happened to them.

    Attributes:
        source: where the weights come from.
        loaded: parameters of the model that were loaded.
        new: parameters of the model that keep their random values.
        dropped: parameters of the source that the model does not have.
    """

    source: str
    loaded: list[str]
    new: list[str]
    dropped: list[str]

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
        return "\n".join([f"weights from {self.source}:", *lines])


def _module(path: str) -> str:
    """Returns encoder/blocks for encoder/blocks/norm1/scale, head for head/bias."""
    names = path.split("/")
    return "/".join(names[: 2 if names[0] == "encoder" else 1])


@dataclasses.dataclass(frozen=True)
class _Source:
    """Weights that have not been read yet.

    Attributes:
        name: for messages.
        sizes: the _MODEL_FIELDS that the source has.
        position_size: height of the images that its position table is for, in pixels.
        shapes: of its parameters, by path.
        restore: reads parameters, given as abstract arrays with shardings by path.
    """

    name: str
    sizes: Mapping[str, Any]
    position_size: int
    shapes: Mapping[str, tuple[int, ...]]
    restore: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]


def load(
    source: str, params: dict, *, config: Config, load_head: bool = True
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
        load_head: also take the head of a classifier; it must have the same classes.

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
    if (pathlib.Path(source) / "checkpoints").is_dir():
        weights = _from_workdir(source)
    else:
        weights = _from_pretrained(source)
    _check_model(weights, config)

    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    autoencoder = "mask_token" in flat
    required = ("encoder/", "head/") if load_head else ("encoder/",)
    selected, problems = {}, []
    for path, x in flat.items():
        if path not in weights.shapes:
            if autoencoder or path.startswith(required):
                problems.append(f"  {path}: missing in the source, model {x.shape}")
        elif load_head or not path.startswith("head/"):
            selected[path] = x
            if weights.shapes[path] != x.shape:
                shape = weights.shapes[path]
                problems.append(f"  {path}: source {shape}, model {x.shape}")
    if problems:
        raise CheckpointError(
            f"config.init.source={weights.name} is of another model:\n"
            + "\n".join(problems[:8])
            + "\nSet config.model to its sizes, or config.init.source to another run."
            + ("" if autoencoder else " config.init.head needs equal classes.")
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
    )
    return traverse_util.unflatten_dict(flat | dict(loaded), sep="/"), report


def _from_workdir(source: str) -> _Source:
    checkpoints = Checkpoints(source, read_only=True)
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(f"config.init.source={source}: no checkpoint found")
    config = upgrade(checkpoints.meta(step)["config"])
    item = checkpoints.evaluated_item(step)
    shapes = checkpoints.shapes(step, item)
    checkpoints.close()

    def restore(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
        part = traverse_util.unflatten_dict(abstract, sep="/")
        restored = restore_part(source, step, item, part)
        return traverse_util.flatten_dict(restored, sep="/")

    return _Source(
        f"{source} (step {step}, {item})",
        _sizes(config["model"]),
        config["model"].get("position_size") or config["data"]["image_size"],
        shapes,
        restore,
    )


def _from_pretrained(source: str) -> _Source:
    try:
        # Training normalizes with the mean and deviation of ImageNet.
        loaded = edit_head.with_pixel_stats(loading.read(source))
    except PretrainedError as error:
        raise CheckpointError(f"config.init.source={source}: {error}") from error
    arrays: dict[str, Any] = traverse_util.flatten_dict(loaded.params, sep="/")
    sizes = {
        name: getattr(loaded.model, name)
        for name in _MODEL_FIELDS
        if hasattr(loaded.model, name)
    }
    position_size = getattr(loaded.model, "position_size", None)
    return _Source(
        f"{source} ({loaded.format})",
        sizes,
        (position_size or loaded.preprocessing.image_size)[0],
        {name: x.shape for name, x in arrays.items()},
        lambda abstract: {
            path: _to_devices(arrays[path], x.sharding) for path, x in abstract.items()
        },
    )


def _to_devices(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Like `device_put`, but does not send the array of each host to all others."""
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _check_model(weights: _Source, config: Config) -> None:
    """Checks the fields of the model, before shapes are compared.

    Raises:
        CheckpointError: they differ; the message names the fields.
    """
    sizes = _sizes(config)
    lines = [
        f"  config.model.{name}={sizes[name]} must be {size}, as in the source"
        for name, size in weights.sizes.items()
        if name in sizes and size != sizes[name]
    ]
    if lines:
        raise CheckpointError(
            f"config.init.source={weights.name} is of another model:\n"
            + "\n".join(lines)
            + "\nSet these fields (or the variant that has these values), or another "
            "source."
        )
    size = weights.position_size
    if config.get("position_size", 0) not in (0, size):
        raise CheckpointError(
            f"config.model.position_size={config.position_size} must be {size} or 0: "
            f"{weights.name} was trained with images of {size} pixels. {size} "
            "interpolates its position table to config.data.image_size; 0 uses the "
            "plain 1-D table of any size."
        )


def _sizes(model: Config | dict) -> dict[str, Any]:
    """Returns the _MODEL_FIELDS of a config's `model`."""
    sizes = {"tubelet_size": 2} | variants.variant_fields(model["variant"])
    sizes |= {
        name: model[name] for name in _MODEL_FIELDS if model.get(name) is not None
    }
    if "decoder_heads" not in model:  # a classifier's config
        del sizes["decoder_heads"]
    return {name: sizes[name] for name in _MODEL_FIELDS if name in sizes}
