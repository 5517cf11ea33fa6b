"""What pictures of metrics share: names of classes at an axis, and files."""

import pathlib
import warnings
from typing import TYPE_CHECKING

from videomae_jax.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME_LENGTH = 30  # characters; longer class names are shortened


def tick_text(name: str) -> str:
    """Returns a class name on one short line, without bytes that are not text."""
    text = " ".join(name.encode("utf-8", "replace").decode().split())
    if len(text) <= _NAME_LENGTH:
        return text
    return text[: _NAME_LENGTH - 3] + "..."


def save(path: pathlib.Path, figure: "Figure") -> None:
    """Writes a figure as PNG, atomically."""
    with atomic_write(path, "wb") as file, warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png")
