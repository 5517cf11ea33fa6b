"""Sizes of images, and how frames are brought to them.

A size is (height, width); a number is a square.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from videomae_jax import ranges
from videomae_jax.errors import ConfigError

# Frames, and pixels along a side, of the patches of a model: tubelet_size, patch_size.
PatchShape = tuple[int, int]


def height_and_width(size: Any, name: str = "image_size") -> tuple[int, int]:
    """Returns the height and width that one number or two numbers stand for.

    Args:
        size: height and width in pixels, or one number for both; anything else, as
            configs and JSON may hold it, is an error.
        name: of the field, for the message.

    Raises:
        ConfigError: unless the size is one whole number above 0, or two, of sense.

    Example:
        >>> height_and_width(224), height_and_width([128, 224])
        ((224, 224), (128, 224))
    """
    if not ranges.is_size(size):
        raise ConfigError(f"{name}={size!r} must be {ranges.SIZE}")
    return tuple(size) if isinstance(size, Sequence) else (size, size)


# Filters of Pillow, by its codes, which transformers' configs hold.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclasses.dataclass(frozen=True)
class Framing:
    """How frames of any size become images of one size: resized, then cropped.

    The defaults are those of the official code, and of all training here. Others come
    from the processors of foreign checkpoints.

    Attributes:
        resize: "cover" keeps the shape of the frames and covers the size of the images
            as tightly as possible; a number of pixels keeps the shape, and becomes the
            shorter side; (height, width) disregards the shape; None does not resize.
        crop: whether images are cut out, from frames that are extended with black where
            they are smaller. Without it, the resized frames must have the size.
        interpolation: "opencv", as the official code (see
            `augmentation.crop_and_resize`), or one of FILTERS, which average over
            pixels where they shrink.
    """

    resize: Literal["cover"] | int | tuple[int, int] | None = "cover"
    crop: bool = True
    interpolation: str = "opencv"

    def __post_init__(self):
        """Raises ConfigError for a value that is none of the above."""
        resize: Any = self.resize
        if resize not in ("cover", None):
            size = height_and_width(resize, "resize")
            if not isinstance(resize, int):  # a list, if from JSON
                object.__setattr__(self, "resize", size)
        if self.interpolation not in ("opencv", *FILTERS):
            raise ConfigError(
                f"interpolation={self.interpolation!r} must be one of: opencv, "
                + ", ".join(FILTERS)
            )

    def leaves_room(self, size: tuple[int, int]) -> bool:
        """Returns whether several crops of a size can differ."""
        return self.crop and self.resize != size

    def is_like_training(self, size: tuple[int, int]) -> bool:
        """Returns whether images of a size show what those of training here show."""
        height, width = size
        covers = self.resize == "cover" or height == width == self.resize
        return self.crop and covers

    def output_size(
        self, frame: tuple[int, int], size: tuple[int, int]
    ) -> tuple[int, int]:
        """Returns the size that frames are resized to, before images are cut out.

        Args:
            frame: size of the frames.
            size: of the images.

        Example:
            >>> Framing().output_size((240, 320), (224, 224))
            (224, 298)
            >>> Framing(resize=256).output_size((320, 240), (224, 224))
            (341, 256)
        """
        height, width = frame
        if self.resize is None:
            return frame
        if isinstance(self.resize, tuple):
            return self.resize
        if isinstance(self.resize, int):
            size = self.resize, self.resize
        if height * size[1] > width * size[0]:
            return height * size[1] // width, size[1]
        return size[0], width * size[0] // height


OFFICIAL = Framing()
