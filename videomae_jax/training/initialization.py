"""Starting a run from the weights of another, and saying what was taken."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np

from videomae_jax.checkpointing import Checkpoints, restore_part
from videomae_jax.config import upgrade
from videomae_jax.errors import CheckpointError, PretrainedError
from videomae_jax.interop import edit_head, loading
from videomae_jax.models import variants

# What must agree although the shapes of parameters may not show it.
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
    """What became of each parameter, by its path a/b/c.

    Attributes:
        source: where the weights come from.
        loaded: parameters of the model that were loaded.
        new: parameters of the model that keep their random start.
        dropped: parameters of the source that the model has no use for.
    """

    source: str
    loaded: list[str]
    new: list[str]
    dropped: list[str]

    def __str__(self):
        """A table with a line for each part of the model."""
        rows = [("part", "arrays", "what happened")]
        for names, what in (
            (self.loaded, "loaded"),
            (self.new, "newly initialised"),
            (self.dropped, "in the source, dropped"),
        ):
            parts: dict[str, int] = {}
            for name in names:
                part = "/".join(name.split("/")[:2]) if "/" in name else name
                part = part if name.startswith("encoder/") else name.split("/")[0]
                parts[part] = parts.get(part, 0) + 1
            rows += [(part, str(count), what) for part, count in parts.items()]
        width = max(len(part) for part, _, _ in rows)
        lines = [f"{part:{width}}  {count:6}  {what}" for part, count, what in rows]
        return "\n".join([f"weights from {self.source}:", *lines])


@dataclasses.dataclass(frozen=True)
class _Saved:
    """Weights that have not been read yet.

    Attributes:
        what: to be shown.
        sizes: those of _MODEL_FIELDS that the source has.
        position_size: height of the images that its position table is of, in pixels.
        shapes: of its parameters, by path.
        restore: reads parameters, given as abstract arrays with shardings by path.
    """

    what: str
    sizes: Mapping[str, Any]
    position_size: int
    shapes: Mapping[str, tuple[int, ...]]
    restore: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]


def load(source: str, params, config, load_head: bool = True):
    """Puts the weights of `config.init.source` in the place of params'.

    An autoencoder takes all of them. A classifier takes the encoder; of a pretrained
    one without its final LayerNorm, unless the classifier has that too (pooling
    "first_token"); decoder, mask token and projection are dropped (official code). Of
    a fine-tuned one the norm before the head is taken too, and the head if wished.

    Args:
        source: a work directory, whose averaged parameters are preferred where there
            are any, or whatever else `load_pretrained` takes.
        params: initial parameters, on their devices.
        config: `config.model`.
        load_head: take a classifier's head as well; it must have as many classes.

    Returns:
        The parameters, and a Report.

    Raises:
        CheckpointError: if the source cannot be read, or is of another model.
    """
    if load_head and config.get("head_norm") == "batch":
        raise CheckpointError(
            "config.init.head: the statistics of batch norm, which the head goes with, "
            "are not taken from another run"
        )
    if (pathlib.Path(source) / "checkpoints").is_dir():
        saved = _from_workdir(source)
    else:
        saved = _from_others(source)
    _check_model(saved, config)

    flat = flax.traverse_util.flatten_dict(params, sep="/")
    autoencoder = "mask_token" in flat
    wanted = {
        name: x
        for name, x in flat.items()
        if name in saved.shapes and (load_head or not name.startswith("head/"))
    }
    lines = [
        f"  {name}: {saved.shapes[name]} in the checkpoint, {x.shape} in the model"
        for name, x in wanted.items()
        if saved.shapes[name] != x.shape
    ]
    lines += [
        f"  {name}: missing in the checkpoint, {x.shape} in the model"
        for name, x in flat.items()
        if name not in saved.shapes
        and (
            autoencoder
            or name.startswith("encoder/")
            or load_head
            and name.startswith("head/")
        )
    ]
    if lines:
        raise CheckpointError(
            f"config.init.source: {saved.what} is of another model:\n"
            + "\n".join(lines[:8])
            + "\nSet config.model to its sizes, or config.init.source to another run."
            + (" config.init.head needs equal classes." if not autoencoder else "")
        )
    loaded = saved.restore(
        {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in wanted.items()
        }
    )
    report = Report(
        source=saved.what,
        loaded=list(loaded),
        new=[name for name in flat if name not in loaded],
        dropped=[name for name in saved.shapes if name not in loaded],
    )
    return flax.traverse_util.unflatten_dict(flat | dict(loaded), sep="/"), report


def _from_workdir(source: str) -> _Saved:
    checkpoints = Checkpoints(source, read_only=True)
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(f"config.init.source: {source!r} holds no checkpoint yet")
    config = upgrade(checkpoints.meta(step)["config"])
    item = checkpoints.evaluated_item(step)
    shapes = checkpoints.shapes(step, item)
    checkpoints.close()

    def restore(abstract):
        abstract = flax.traverse_util.unflatten_dict(abstract, sep="/")
        restored = restore_part(source, step, item, abstract)
        return flax.traverse_util.flatten_dict(restored, sep="/")

    return _Saved(
        f"{source} (step {step}, {item})",
        _sizes(config["model"]),
        config["model"].get("position_size") or config["data"]["image_size"],
        shapes,
        restore,
    )


def _from_others(source: str) -> _Saved:
    try:
        # Training normalises with ImageNet's statistics, whatever the source did.
        loaded = edit_head.with_imagenet_pixels(loading.read(source))
    except PretrainedError as error:
        raise CheckpointError(f"config.init.source: {error}") from error
    arrays = flax.traverse_util.flatten_dict(loaded.params, sep="/")
    sizes = {
        name: getattr(loaded.model, name)
        for name in _MODEL_FIELDS
        if hasattr(loaded.model, name)
    }
    position_size = getattr(loaded.model, "position_size", None)
    return _Saved(
        f"{source} ({loaded.format})",
        sizes,
        position_size[0] if position_size else loaded.preprocessing.image_size,
        {name: x.shape for name, x in arrays.items()},
        lambda wanted: {
            name: _place(arrays[name], x.sharding) for name, x in wanted.items()
        },
    )


def _place(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """What `device_put` does, but that sends the array of each host to all others."""
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _check_model(saved: _Saved, config) -> None:
    """Compares what shapes do not show, and what is better told by its own name."""
    ours = _sizes(config)
    differing = [
        name
        for name, theirs in saved.sizes.items()
        if name in ours and theirs != ours[name]
    ]
    if differing:
        lines = [
            f"  config.model.{name} is {ours[name]}, the checkpoint's is "
            f"{saved.sizes[name]}"
            for name in differing
        ]
        raise CheckpointError(
            f"config.init.source: {saved.what} is of another model:\n"
            + "\n".join(lines)
            + "\nSet these fields to the checkpoint's values (or the variant that has "
            "them), or give another source."
        )
    size = saved.position_size
    if config.get("position_size", 0) not in (0, size):
        raise CheckpointError(
            f"config.model.position_size is {config.position_size}, but {saved.what} "
            f"was trained with images of {size} pixels: set it to {size} (the position "
            "table is then interpolated to config.data.image_size), or to 0 for the "
            "plain 1-D table of any size"
        )


def _sizes(model) -> dict:
    sizes = {"tubelet_size": 2} | variants.variant_fields(model["variant"])
    sizes |= {
        name: model[name] for name in _MODEL_FIELDS if model.get(name) is not None
    }
    if "decoder_heads" not in model:  # a classifier's config
        del sizes["decoder_heads"]
    return {name: sizes[name] for name in _MODEL_FIELDS if name in sizes}
