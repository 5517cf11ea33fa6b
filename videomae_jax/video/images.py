"""Videos whose frames are images, each encoded separately: JPEG, PNG or WebP."""

import abc
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from videomae_jax.video.source import Box, DecodedFrames, FrameSource, Indices

_FORMATS = ("JPEG", "PNG", "WEBP")
# At most 8 bits per pixel and channel; deeper ones would be clipped, not converted.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_JPEG_END = b"\xff\xd9"


class ImageError(ValueError):
    """An image that cannot be decoded whole; the message says why."""


def decode_image(content: bytes) -> np.ndarray:
    """Decodes an image; refuses one that is cut off, instead of filling it with grey.

    JPEG and WebP have no checksums: damage in their middle may go unnoticed.

    Returns:
        uint8 [height, width, 3], RGB: grey is repeated, transparency is dropped.

    Raises:
        ImageError: the image is empty, damaged, of another format, or has 16 bits.
    """
    if not content:
        raise ImageError("is empty (0 bytes)")
    # File systems replace a lost end of a file by zeros, and decoders accept them.
    if content.endswith(bytes(16)) and not content.rstrip(b"\0").endswith(_JPEG_END):
        raise ImageError("is damaged: it ends in zeros")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.format == "PNG":
                # Decoding skips the checksums; verifying them uses the image up.
                with Image.open(io.BytesIO(content), formats=_FORMATS) as copy:
                    copy.verify()
            if image.mode not in _MODES:
                raise ImageError(f"has pixels of mode {image.mode}, expected 8 bits")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("is not a JPEG, PNG or WebP image") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, ...
        raise ImageError(f"is damaged: {error}") from error


def image_format(content: bytes) -> str:
    """Returns the format of an image that can be decoded: jpeg, png or webp."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return str(image.format).lower()


class ImageFrames(DecodedFrames):
    """Decoded images, which are RGB already."""

    def __init__(self, images: Sequence[np.ndarray], order: Sequence[int]):
        """Holds images of one size; `order` has the indices of those to return."""
        height, width, _ = images[0].shape
        super().__init__(height, width, order)
        self._images = images

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """Copies the frames, or the same box of each."""
        top, left, height, width = box or (0, 0, self.height, self.width)
        window = slice(top, top + height), slice(left, left + width)
        return np.stack([self._images[i][window] for i in self._order])


class ImageVideo(FrameSource):
    """A video of which each frame is an encoded image; `fps` is unknown."""

    @abc.abstractmethod
    def content(self, index: int) -> bytes:
        """Returns the encoded image of a frame."""

    @abc.abstractmethod
    def size(self, index: int) -> int:
        """Returns the size of the encoded image of a frame in bytes."""

    @abc.abstractmethod
    def image_name(self, index: int) -> str:
        """Returns the name of a frame's image in messages."""

    def decode(self, indices: Indices) -> ImageFrames:
        """Decodes at least one frame, each once."""
        distinct, order = self._distinct(indices)
        return ImageFrames([self._decode(index) for index in distinct], order)

    def _decode(self, index: int) -> np.ndarray:
        try:
            image = decode_image(self.content(index))
        except ImageError as error:
            raise self.error(f"{self.image_name(index)} {error}") from error
        self._check_size(self.image_name(index), image.shape[:2])
        return image
