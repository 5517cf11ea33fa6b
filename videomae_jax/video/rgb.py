"""Decoded frames on their way to RGB: only the part that is wanted is converted."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

# Of these formats each 2x2 pixels are converted by themselves.
_BLOCKWISE = ("yuv420p", "yuvj420p")
# How many pixels to convert at once, so that they stay in the processor's cache.
_PIXELS_AT_ONCE = 2**19


class RotationError(ValueError):
    """A frame that is to be turned in a way that cannot be found out."""


class DecodedFrames:
    """Frames of a video as the decoder gave them, not yet RGB.

    Attributes:
        height: of the frames, upright, in pixels; width: likewise.
    """

    height: int
    width: int

    def __init__(
        self,
        frames: Sequence[av.VideoFrame],
        places: Sequence[int],
        error: Callable[[str], Exception],
    ):
        """Takes frames of one size.

        Args:
            frames: at least one.
            places: which of them to give, in this order.
            error: makes of a reason what to raise where they cannot be converted.
        """
        self._frames, self._places, self._error = frames, list(places), error
        # It keeps its scaler between frames.
        self._reformatter = VideoReformatter()
        self.height, self.width = upright_size(frames[0])

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._places)

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """Converts the frames, or the same part of each.

        Args:
            box: (top, left, height, width) in pixels, within the frames.

        Returns:
            uint8 [len(self), height, width, 3]: the pixels of the part exactly as they
            are in whole frames.

        Raises:
            VideoError: a frame cannot be converted.
        """
        top, left, height, width = box or (0, 0, self.height, self.width)
        images = np.empty((len(self._frames), height, width, 3), np.uint8)
        done = 0
        for group in _alike(self._frames, max(_PIXELS_AT_ONCE // (height * width), 1)):
            out = images[done : done + len(group)]
            if _kind(group[0]) is None:
                whole = upright(self._convert(group[0]), group[0])
                out[0] = whole[top : top + height, left : left + width]
            else:
                self._convert_part(group, (top, left, height, width), out)
            done += len(group)
        if self._places == list(range(len(images))):
            return images
        return images[self._places]

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns all of a frame, uint8 [height, width, 3], in the frame's memory."""
        try:
            # One thread: more would contend with those that read other videos.
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        except av.FFmpegError as error:
            raise self._error(
                f"cannot be converted to RGB: {error.strerror}"
            ) from error
        return _plane(rgb, 0)[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)

    def _convert_part(
        self, frames: Sequence[av.VideoFrame], box: Box, out: np.ndarray
    ) -> None:
        """Converts the same part of frames of a kind, one below the other."""
        top, left, height, width = box
        # Whole blocks: from an even place to an even place.
        rows = slice(top // 2, (top + height + 1) // 2)
        columns = slice(left // 2, (left + width + 1) // 2)
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        # Some rows more than needed: PyAV takes multiples of four.
        total = -(-len(frames) * high // 2) * 2
        packed = np.empty((3 * total, 2 * wide), np.uint8)
        luma, *chroma = np.split(packed.ravel(), [4 * total * wide, 5 * total * wide])
        for i, frame in enumerate(frames):
            part = slice(2 * i * high, 2 * (i + 1) * high)
            luma.reshape(2 * total, -1)[part] = _plane(frame, 0)[
                2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop
            ]
            part = slice(i * high, (i + 1) * high)
            for target, plane in zip(chroma, (1, 2), strict=True):
                target.reshape(total, -1)[part] = _plane(frame, plane)[rows, columns]
        stacked = av.VideoFrame.from_numpy_buffer(packed, frames[0].format.name)
        stacked.colorspace = frames[0].colorspace
        stacked.color_range = frames[0].color_range
        images = self._convert(stacked)[: 2 * len(frames) * high]
        images = images.reshape(len(frames), 2 * high, 2 * wide, 3)
        top, left = top % 2, left % 2
        out[:] = images[:, top : top + height, left : left + width]


def _alike(frames: Sequence[av.VideoFrame], most: int) -> Iterator[list[av.VideoFrame]]:
    """Splits frames into runs that can be converted at once."""
    for kind, run in itertools.groupby(frames, _kind):
        run = list(run)
        size = 1 if kind is None else most
        yield from (run[i : i + size] for i in range(0, len(run), size))


def _kind(frame: av.VideoFrame) -> tuple | None:
    """What frames to be converted as one have in common; None for whole frames."""
    blocks = frame.format.name in _BLOCKWISE
    # Interlaced frames are converted field by field.
    if not blocks or frame.width % 2 or frame.height % 2 or frame.interlaced_frame:
        return None
    if display_matrix(frame) is not None:
        return None
    return frame.format.name, frame.colorspace, frame.color_range


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """The bytes of a plane with what fills up its lines, uint8 [rows, line]."""
    plane = frame.planes[index]
    return np.frombuffer(plane, np.uint8).reshape(-1, abs(plane.line_size))


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Rotates and mirrors an image as the frame's display matrix says.

    Args:
        image: [height, width, channels].
        frame: The frame it was made from.

    Returns:
        A view, [height, width, channels] or [width, height, channels].

    Raises:
        RotationError: The frame is to be turned, but it cannot be told how.
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return image
    # Row vectors: x' = a x + c y and y' = b x + d y. Other angles than quarter turns
    # have no exact pixels and are taken for the nearest.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def display_matrix(frame: av.VideoFrame):
    """What tells how a frame is to be turned, None for not at all.

    Raises:
        RotationError: It is to be turned, but it cannot be told how.
    """
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError as error:
        # PyAV 18 fails over kinds that it has no name for, such as EXIF.
        if frame.rotation:  # 180 degrees may be a mirror image
            raise RotationError(f"cannot be turned upright: {error}") from error
        return None


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame after `upright`."""
    return upright(np.empty((frame.height, frame.width, 0)), frame).shape[:2]
