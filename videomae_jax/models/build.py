"""Builds a model from the `model` section of a config."""

from typing import Any

from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE


def autoencoder(config) -> VideoMAE:
    """Returns the masked autoencoder of a config's `model` section.

    A field that is None keeps the variant's value; see configs/common.py.
    """
    return VideoMAE.from_variant(config.variant, **_overrides(config))


def classifier(config, num_classes: int) -> VideoClassifier:
    """Returns the classifier of a config's `model` section, see `autoencoder`."""
    overrides = _overrides(config)
    size = overrides.pop("position_size", 0)
    return VideoClassifier.from_variant(
        config.variant,
        num_classes,
        position_size=(size, size) if size else None,
        **overrides,
    )


def _overrides(config) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.items()
        if name != "variant" and value is not None
    }
