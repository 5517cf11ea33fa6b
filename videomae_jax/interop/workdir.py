"""Reads the newest checkpoint of a run of this library."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

from videomae_jax import checkpointing
from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import build


def read(folder: pathlib.Path, fields: Mapping[str, Any]) -> Pretrained:
    """Reads parameters, or their average if the run keeps one, and how it sees videos.

    Args:
        folder: the work directory.
        fields: of the model, instead of the run's.

    Raises:
        PretrainedError: if there is no complete checkpoint.
    """
    checkpoints = checkpointing.Checkpoints(str(folder), 1, 0, read_only=True)
    step = checkpoints.latest_step()
    if step is None:
        raise PretrainedError(f"{folder} is a work directory without a checkpoint yet")
    meta = checkpoints.meta(step)
    config = ml_collections.ConfigDict(meta["config"])
    items = {
        item: checkpoints.shapes(step, item) for item in ("ema", "params", "statistics")
    }
    checkpoints.close()
    labels = None
    preprocessing = {
        name: config.data[name] for name in ("num_frames", "stride", "image_size")
    }
    # Of training on other devices; computation is float32 unless asked for.
    plain = {"dtype": "float32", "remat": "none", "attention": None}
    if config.task == "pretrain":
        plain |= {"decoder_remat": None, "decoder_attention": None}
        model = build.autoencoder(config.model)
        preprocessing["frame_sampling"] = "exact"
    else:
        labels = tuple(meta["class_names"])
        model = build.classifier(config.model, len(labels))
        preprocessing["frame_sampling"] = config.data.frame_sampling
    item = "ema" if items["ema"] else "params"
    return Pretrained(
        model=model.clone(**(plain | dict(fields))),
        params=_restore(folder, step, item, items[item]),
        labels=labels,
        preprocessing=Preprocessing(**preprocessing),
        statistics=_restore(folder, step, "statistics", items["statistics"]),
        normalized_targets=config.get("normalize_targets", True),
        multi_label=config.task == "finetune" and config.loss.kind == "sigmoid",
        source=str(folder),
        format="workdir",
    )


def _restore(
    folder: pathlib.Path, step: int, item: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """An item onto one device, whatever mesh it was saved from."""
    if not shapes:
        return {}
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    part = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
        for name, shape in shapes.items()
    }
    part = flax.traverse_util.unflatten_dict(part, sep="/")
    return checkpointing.restore_part(str(folder), step, item, part)
