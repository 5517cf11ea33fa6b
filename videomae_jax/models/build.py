"""Builds a model from the `model` section of a config."""

from typing import Any

import numpy as np

from videomae_jax import ranges
from videomae_jax.errors import ConfigError
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import height_and_width
from videomae_jax.models.variants import SOURCE

Model = VideoMAE | VideoClassifier | ActionDetector


def autoencoder(config) -> VideoMAE:
    """Returns the masked autoencoder of a config's `model` section.

    A field that is None keeps the variant's value; see configs/common.py.

    Raises:
        ConfigError: the fields do not fit each other.
    """
    model = VideoMAE.from_variant(config.variant, **_overrides(config))
    check(model, "config.model.")
    return model


def classifier(config, num_classes: int) -> VideoClassifier:
    """Returns the classifier of a config's `model` section, see `autoencoder`."""
    overrides = _overrides(config)
    # 0 is the plain table.
    size = overrides.pop("position_size", 0) or None
    model = VideoClassifier.from_variant(
        config.variant,
        num_classes,
        position_size=size and height_and_width(size, "config.model.position_size"),
        **overrides,
    )
    check(model, "config.model.")
    return model


def check(model: Model, section: str = "") -> None:
    """Checks the fields of a model, of a config or a checkpoint of any layout.

    Raises:
        ConfigError: a field has no sense, or does not fit another; the message names
            it, after its section.
    """
    ranges.check({f"model.{name}": x for name, x in vars(model).items()}, section)
    if getattr(model, "position_size", None) is not None:
        height_and_width(model.position_size, f"{section}position_size")
    vit.check_channels(model, section)


def _overrides(config) -> dict[str, Any]:
    if config.variant == SOURCE and config.width is None:
        raise ConfigError(
            "config.model.variant=source takes its sizes from config.init.source when "
            "training starts; name a variant here, such as config.model.variant=base"
        )
    overrides = {
        name: value
        for name, value in config.items()
        if name != "variant" and value is not None
    }
    # One number, or a list that was saved as JSON.
    for name in {"pixel_mean", "pixel_std"} & overrides.keys():
        overrides[name] = tuple(map(float, np.atleast_1d(overrides[name])))
    return overrides
