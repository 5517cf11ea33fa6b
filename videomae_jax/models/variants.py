"""Sizes of the named models: tiny, small, base, large, huge, giant."""

import dataclasses
from typing import Any

from videomae_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Variant:
    """Sizes of a named model (VideoMAE, appendix; VideoMAE V2, table 1, for giant).

    The decoders are those of V1. V2 pretrains large and huge with a decoder of width
    512, 8 heads and 4 blocks; override the fields for it.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int = 16
    mlp_ratio: float = 4.0


VARIANTS = {
    "tiny": Variant(192, 12, 3, 96, 4, 3),  # not in the papers: for small budgets
    "small": Variant(384, 12, 6, 192, 4, 3),
    "base": Variant(768, 12, 12, 384, 4, 6),
    "large": Variant(1024, 24, 16, 512, 12, 8),
    "huge": Variant(1280, 32, 16, 640, 12, 8),
    "giant": Variant(1408, 40, 16, 512, 4, 8, patch_size=14, mlp_ratio=48 / 11),
}


# In a config: the sizes are those of the checkpoint that a run starts from, which
# training fills in.
SOURCE = "source"


def variant_fields(name: str) -> dict[str, Any]:
    """Returns the fields of a named variant; of SOURCE none.

    Raises:
        ConfigError: the name is unknown.
    """
    if name == SOURCE:
        return {}
    if name not in VARIANTS:
        raise ConfigError(
            f"variant={name!r} is unknown; expected one of: {', '.join(VARIANTS)}"
        )
    return dataclasses.asdict(VARIANTS[name])


def encoder_fields(name: str) -> dict[str, Any]:
    """Returns the fields of a variant without its decoder; see `variant_fields`."""
    fields = variant_fields(name).items()
    return {field: x for field, x in fields if not field.startswith("decoder_")}
