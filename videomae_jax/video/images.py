"""Videos whose frames are images, each encoded by itself: JPEG, PNG or WebP."""

import abc
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from videomae_jax.video.rgb import Box
from videomae_jax.video.source import FrameSource

_FORMATS = ("JPEG", "PNG", "WEBP")
# 8 bits or fewer of each pixel and colour; others would be cut off, not converted.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_JPEG_END = b"\xff\xd9"


class ImageError(ValueError):
    """An image that cannot be decoded whole; the message says why."""


def decode(content: bytes) -> np.ndarray:
    """Decodes an image; one that is cut off is refused, not filled up with grey.

    Args:
        content: of a JPEG, PNG or WebP file.

    Returns:
        uint8 [height, width, 3], RGB: grey is repeated, transparency left out.

    Raises:
        ImageError: if it is empty, damaged, no such image, or of 16 bits. Damage in the
            middle of a JPEG or WebP image, which have no checksums, may go unseen.
    """
    if not content:
        raise ImageError("is empty (0 bytes)")
    # What a file system makes of the end of a file that it lost. Decoders go on.
    if content.endswith(bytes(16)) and not content.rstrip(b"\0").endswith(_JPEG_END):
        raise ImageError("is damaged: it ends in zeros")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.format == "PNG":
                # Of the checksums, which decoding passes over; it uses the image up.
                with Image.open(io.BytesIO(content), formats=_FORMATS) as checked:
                    checked.verify()
            if image.mode not in _MODES:
                raise ImageError(f"has pixels of kind {image.mode}, not of 8 bits")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("is no JPEG, PNG or WebP image") from None
    except Exception as error:  # OSError, SyntaxError, struct.error, ...
        raise ImageError(f"is damaged: {error}") from error


def kind(content: bytes) -> str:
    """What an image that can be decoded is encoded as: jpeg, png or webp."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.format.lower()


class ImageFrames:
    """What readers use of `frames.Frames`, for images, which are RGB already.

    Attributes:
        height, width: of the frames, in pixels.
    """

    def __init__(self, images: Sequence[np.ndarray], places: Sequence[int]):
        """Takes images of one size, and which of them to give, in this order."""
        self._images, self._places = images, places
        self.height, self.width = images[0].shape[:2]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._places)

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """The frames, or the part (top, left, height, width) of each, in pixels.

        Returns:
            uint8 [len(self), height, width, 3].
        """
        top, left, height, width = box or (0, 0, self.height, self.width)
        part = slice(top, top + height), slice(left, left + width)
        return np.stack([self._images[place][part] for place in self._places])


class ImageVideo(FrameSource):
    """A video of which each frame is an image.

    Attributes:
        num_frames: how many there are.
        fps: None, for images do not tell.
    """

    def __init__(self, name: str, num_frames: int):
        """Notes what the video is called in errors, and how long it is."""
        self._name = name
        self.num_frames = num_frames
        self._closed = False

    @abc.abstractmethod
    def content(self, index: int) -> bytes:
        """The encoded image of a frame.

        Raises:
            VideoError: if it cannot be read.
        """

    @abc.abstractmethod
    def size(self, index: int) -> int:
        """Bytes of the encoded image of a frame.

        Raises:
            VideoError: if it is missing.
        """

    @abc.abstractmethod
    def image_name(self, index: int) -> str:
        """What the image of a frame is called in errors."""

    def close(self) -> None:
        """Ends reading; may be called more than once."""
        self._closed = True

    def decode(self, indices: Sequence[int]) -> ImageFrames:
        """Decodes at least one frame, for a part of each; otherwise as `read`."""
        wanted, places = self._distinct(indices)
        return ImageFrames([self._decode(index) for index in wanted], places)

    def _is_open(self) -> bool:
        return not self._closed

    def _decode(self, index: int) -> np.ndarray:
        try:
            image = decode(self.content(index))
        except ImageError as error:
            raise self.error(f"{self.image_name(index)} {error}") from error
        self._check_size(self.image_name(index), image.shape[:2])
        return image
