"""Starting a classifier from pretrained weights, and saying what was taken."""

import dataclasses
import logging
import pathlib

import flax
import jax

from videomae_jax.models import vit
from videomae_jax.training.checkpointing import (
    CheckpointError,
    Checkpoints,
    restore_part,
)

log = logging.getLogger(__name__)

# What must agree although the shapes of parameters may not show it.
_MODEL_FIELDS = ("heads", "patch_size", "tubelet_size", "width", "depth", "mlp_ratio")


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


def from_workdir(source: str, params, config, load_head: bool):
    """Puts the encoder of a pretraining or fine-tuning run in the place of params'.

    Of a pretraining run the encoder is taken without its final LayerNorm, unless the
    classifier has that too (pooling "first_token"); decoder, mask token and projection
    are dropped (official code). Of a fine-tuning run the norm before the head is taken
    too, and the head if wished. Averaged parameters are preferred where there are any.

    Args:
        source: a work directory.
        params: initial parameters of the classifier, on their devices.
        config: `config.model` of the classifier.
        load_head: take the head as well; it must have as many classes.

    Returns:
        The parameters, and a Report.

    Raises:
        CheckpointError: if there is no checkpoint, or it is of another model.
    """
    if not (pathlib.Path(source) / "checkpoints").is_dir():
        raise CheckpointError(
            f"config.init.source: {source!r} is no work directory with checkpoints. "
            "Give the --workdir of a pretraining run, such as runs/digits_pretrain, or "
            "leave it empty to train from scratch"
        )
    checkpoints = Checkpoints(source, 1, 0, read_only=True)
    if load_head and config.head_norm == "batch":
        raise CheckpointError(
            "config.init.head: the statistics of batch norm, which the head goes with, "
            "are not taken from another run"
        )
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(f"config.init.source: {source!r} holds no checkpoint yet")
    _check_model(source, checkpoints.meta(step)["config"], config)
    item = "ema" if checkpoints.shapes(step, "ema") else "params"
    saved = checkpoints.shapes(step, item)
    checkpoints.close()

    flat = flax.traverse_util.flatten_dict(params, sep="/")
    wanted = {
        name: x
        for name, x in flat.items()
        if name in saved and (load_head or not name.startswith("head/"))
    }
    lines = [
        f"  {name}: {saved[name]} in the checkpoint, {x.shape} in the model"
        for name, x in wanted.items()
        if saved[name] != x.shape
    ]
    lines += [
        f"  {name}: missing in the checkpoint, {x.shape} in the model"
        for name, x in flat.items()
        if name not in saved
        and (name.startswith("encoder/") or load_head and name.startswith("head/"))
    ]
    if lines:
        raise CheckpointError(
            f"{source} (step {step}) is of another model:\n"
            + "\n".join(lines[:8])
            + "\nSet config.model to its sizes, or config.init.source to another run."
            + (" config.init.head needs equal classes." if load_head else "")
        )
    abstract = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in wanted.items()
    }
    abstract = flax.traverse_util.unflatten_dict(abstract, sep="/")
    restored = restore_part(source, step, item, abstract)
    loaded = flax.traverse_util.flatten_dict(restored, sep="/")
    report = Report(
        source=f"{source} (step {step}, {item})",
        loaded=list(loaded),
        new=[name for name in flat if name not in loaded],
        dropped=[name for name in saved if name not in loaded],
    )
    return flax.traverse_util.unflatten_dict(flat | loaded, sep="/"), report


def _check_model(source: str, saved: dict, config) -> None:
    """Compares what shapes do not show, and what is better told by its own name."""
    theirs, ours = _sizes(saved["model"]), _sizes(config)
    differing = [name for name in _MODEL_FIELDS if theirs[name] != ours[name]]
    if differing:
        lines = [
            f"  config.model.{name} is {ours[name]}, the checkpoint's is {theirs[name]}"
            for name in differing
        ]
        raise CheckpointError(
            f"config.init.source: {source} is of another model:\n"
            + "\n".join(lines)
            + "\nSet these fields to the checkpoint's values (or the variant that has "
            "them), or give another source."
        )
    size = saved["model"].get("position_size") or saved["data"]["image_size"]
    if config.position_size not in (0, size):
        raise CheckpointError(
            f"config.model.position_size is {config.position_size}, but {source} was "
            f"trained with images of {size} pixels: set it to {size} (the position "
            "table is then interpolated to config.data.image_size), or to 0 for the "
            "plain 1-D table of any size"
        )


def _sizes(model) -> dict:
    sizes = {"tubelet_size": 2} | vit.variant_fields(model["variant"])
    return sizes | {
        name: model[name] for name in _MODEL_FIELDS if model[name] is not None
    }
