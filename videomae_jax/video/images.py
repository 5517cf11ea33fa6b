"""Videos whose frames are images, each encoded separately: JPEG, PNG, WebP, TIFF."""

import abc
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from videomae_jax.video.source import (
    RGB,
    Box,
    DecodedFrames,
    FrameSource,
    Indices,
    PixelFormat,
)

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
# At most 8 bits per pixel and channel; Pillow would cut deeper ones to 8.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_JPEG_END = b"\xff\xd9"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_GRAY_AND_ALPHA = 4  # a colour type of PNG
# Dtypes of colours that OpenCV converts to gray.
_COLOURS = (np.uint8, np.uint16, np.float32)
# Names of 1 to 4 channels, in messages.
_CHANNELS = ("gray", "gray and alpha", "RGB", "RGB and alpha")


class ImageError(ValueError):
    """An image that cannot be decoded whole; the message says why."""


def decode_image(content: bytes, format: PixelFormat = RGB) -> np.ndarray:
    """Decodes an image; refuses one that is cut off, instead of filling it with grey.

    JPEG, WebP and TIFF have no checksums: damage in their middle may go unnoticed.

    Returns:
        [height, width, channels], channels and dtype of `format`; see `to_channels`.

    Raises:
        ImageError: the image is empty, damaged or of another format, does not have the
            channels, or has more than 8 bits and the format no range of values.
    """
    if not content:
        raise ImageError("is empty (0 bytes)")
    is_tiff = content.startswith(_TIFF_STARTS)
    # File systems replace a lost end of a file by zeros, and decoders accept them.
    if content.endswith(bytes(16)) and not is_tiff:  # whose dark pixels may be last
        if not content.rstrip(b"\0").endswith(_JPEG_END):
            raise ImageError("is damaged: it ends in zeros")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            pixels = _decode(image, content)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        if not is_tiff:
            message = "is not a JPEG, PNG, WebP or TIFF image"
            raise ImageError(message) from None
        pixels = _decode_deep(content)  # floating point in several channels
    except Exception as error:  # OSError, SyntaxError, struct.error, ...
        raise ImageError(f"is damaged: {error}") from error
    try:
        return format.scale(to_channels(pixels, format.channels))
    except ValueError as error:
        raise ImageError(str(error)) from error


def _decode(image: Image.Image, content: bytes) -> np.ndarray:
    """Returns the pixels [height, width, 1 to 4] that an image has."""
    if getattr(image, "n_frames", 1) > 1 and image.format == "TIFF":
        raise ImageError("is a TIFF of several pages: write each page to its own file")
    bits = 8
    if image.format == "PNG":
        # Decoding skips the checksums; verifying them uses the image up.
        with Image.open(io.BytesIO(content), formats=_FORMATS) as copy:
            copy.verify()
        bits = content[24]  # of the header, which is always first
    elif image.format == "TIFF":
        tags: Any = image
        bits = max(tags.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if bits > 8:
        pixels = _decode_deep(content)
        is_gray = image.format == "PNG" and content[25] == _GRAY_AND_ALPHA
        return pixels[..., [0, 3]] if is_gray else pixels
    if image.mode not in _MODES:
        raise ImageError(f"has pixels of mode {image.mode}, which is not supported")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.has_transparency_data:
        mode = "LA" if image.mode == "LA" else "RGBA"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _decode_deep(content: bytes) -> np.ndarray:
    """Returns the pixels of a PNG or TIFF that Pillow would cut to 8 bits."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("is damaged, or a kind of TIFF that OpenCV does not read")
    if pixels.ndim == 2:
        return pixels[..., None]
    # OpenCV's order is blue, green, red.
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]]


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts gray to RGB, or RGB to gray, and drops an alpha channel that is opaque.

    Args:
        pixels: [height, width, 1 to 4]: gray, gray and alpha, RGB, or RGB and alpha.
        channels: to return.

    Raises:
        ImageError: the pixels do not have these channels, or are transparent.
    """
    count = pixels.shape[-1]
    if count == channels:
        return pixels
    if channels in (1, 3):
        if count in (2, 4):
            is_float = pixels.dtype.kind == "f"
            opaque = 1 if is_float else np.iinfo(pixels.dtype).max
            if (pixels[..., -1] != opaque).any():
                raise ImageError(
                    f"has transparent pixels, which {channels} "
                    f"channel{'s' * (channels > 1)} would lose: convert it without "
                    f"alpha, or set config.model.channels={count}"
                )
            return to_channels(pixels[..., :-1], channels)
        if (count, channels) == (1, 3):
            return np.repeat(pixels, 3, axis=-1)
        if (count, channels) == (3, 1) and pixels.dtype in _COLOURS:
            rgb = np.ascontiguousarray(pixels)
            return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    names = f" ({_CHANNELS[count - 1]})" if count <= len(_CHANNELS) else ""
    raise ImageError(
        f"has {count} channel{'s' * (count > 1)}{names} of {pixels.dtype}, expected "
        f"{channels}, as config.model.channels says"
    )


def image_format(content: bytes) -> str:
    """Returns the format of an image that can be decoded: jpeg, png, webp or tiff."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return str(image.format).lower()


class ImageFrames(DecodedFrames):
    """Decoded images, which need no conversion."""

    def __init__(self, images: Sequence[np.ndarray], order: Sequence[int]):
        """Holds images of one size; `order` has the indices of those to return."""
        height, width, _ = images[0].shape
        super().__init__(height, width, order)
        self._images = images

    def pixels(self, box: Box | None = None) -> np.ndarray:
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
            image = decode_image(self.content(index), self.format)
        except ImageError as error:
            raise self.error(f"{self.image_name(index)} {error}") from error
        self._check_size(self.image_name(index), image.shape[:2])
        return image
