"""Sizes of images: a number is a square, a pair is (height, width)."""

from collections.abc import Sequence
from typing import Any

from videomae_jax.errors import ConfigError


def height_and_width(
    size: int | Sequence[int], name: str = "image_size"
) -> tuple[int, int]:
    """Returns the height and width that one number or two numbers stand for.

    Args:
        size: height and width in pixels, or one number for both.
        name: of the field, for the message.

    Raises:
        ConfigError: unless the size is one whole number above 0, or two.

    Example:
        >>> height_and_width(224), height_and_width([128, 224])
        ((224, 224), (128, 224))
    """
    sides: Any = size
    if isinstance(size, int):
        sides = (size, size)
    elif isinstance(size, str) or len(size) != 2:
        sides = ()
    # A bool is an int, and means nothing here.
    if not sides or not all(type(x) is int and x > 0 for x in sides):
        raise ConfigError(
            f"{name}={size!r} must be a whole number of pixels, or (height, width)"
        )
    return sides[0], sides[1]
