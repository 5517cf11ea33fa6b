"""Conversion of decoded frames to RGB or gray: upright, only the requested box."""

import itertools
import re
from collections.abc import Sequence

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideData, SideDataContainer
from av.video.reformatter import ColorRange, VideoReformatter

from videomae_jax.errors import VideoError
from videomae_jax.video.images import to_channels
from videomae_jax.video.source import RGB, Box, DecodedFrames, PixelFormat

# In these formats each block of 2x2 pixels is converted independently.
_BLOCKWISE = ("yuv420p", "yuvj420p")
# 4:2:0, also of more than 8 bits.
_CHROMA_BELOW = re.compile(r"yuvj?420p((?P<bits>9|10|12)le)?")
_DEEPER = {8: 9, 9: 10, 10: 12, 12: 14}  # bits of the next deeper formats
# What the names of formats without colour begin with.
_GRAY = ("gray", "ya", "mono")
# Pixels to convert at once, so that they stay in the processor's cache.
_PIXELS_AT_ONCE = 2**19


class RotationError(ValueError):
    """A frame has to be rotated, but PyAV cannot read how."""


class VideoFrames(DecodedFrames):
    """Frames of a video file as the decoder returns them, not yet RGB."""

    def __init__(
        self,
        frames: Sequence[av.VideoFrame],
        order: Sequence[int],
        name: str,
        format: PixelFormat = RGB,
    ):
        """Holds frames of one size, at least one; `order` has the indices to return."""
        super().__init__(*upright_size(frames[0]), order)
        self._frames, self._name, self._format = frames, name, format
        # Keeps its scaler between frames.
        self._reformatter = VideoReformatter()

    @property
    def decoded(self) -> Sequence[av.VideoFrame]:
        """The distinct frames, as the decoder returns them."""
        return self._frames

    def pixels(self, box: Box | None = None) -> np.ndarray:
        """Converts the frames, or the same box of each."""
        top, left, height, width = box or (0, 0, self.height, self.width)
        shape = (len(self._frames), height, width, self._format.channels)
        images = np.empty(shape, self._format.dtype)
        done = 0
        batch_size = max(_PIXELS_AT_ONCE // (height * width), 1)
        for layout, run in itertools.groupby(self._frames, _layout):
            # Frames without a layout are converted one by one.
            while batch := list(itertools.islice(run, batch_size if layout else 1)):
                out = images[done : done + len(batch)]
                if layout is None:
                    whole = upright(self._convert(batch[0]), batch[0])
                    out[0] = whole[top : top + height, left : left + width]
                else:
                    self._convert_box(batch, (top, left, height, width), out)
                done += len(batch)
        if self._order == list(range(len(images))):
            return images
        return images[self._order]

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns all of a frame, [height, width, channels]."""
        name, channels, dtype = _packed_format(frame.format, self._format)
        vertical = (
            _CHROMA_BELOW.fullmatch(frame.format.name) if name == "rgb24" else None
        )
        if vertical and (vertical["bits"] or frame.height % 2):
            frame = _interpolate_chroma(frame)
        else:
            frame = progressive(frame)
        try:
            # One thread: more would contend with those that read other videos.
            packed = self._reformatter.reformat(frame, format=name, threads=1)
        except FFmpegError as error:
            raise VideoError(
                f"{self._name}: cannot be converted to {name}: {error.strerror}"
            ) from error
        pixels = _plane(packed, 0).view(dtype)[:, : channels * packed.width]
        pixels = pixels.reshape(packed.height, packed.width, channels)
        try:
            return self._format.scale(to_channels(pixels, self._format.channels))
        except ValueError as error:
            raise VideoError(f"{self._name}: {error}") from error

    def _convert_box(
        self, frames: Sequence[av.VideoFrame], box: Box, out: np.ndarray
    ) -> None:
        """Converts the same box of frames of one layout, stacked into one frame."""
        top, left, height, width = box
        # Whole 2x2 blocks, counted in blocks.
        rows = slice(top // 2, (top + height + 1) // 2)
        columns = slice(left // 2, (left + width + 1) // 2)
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        # Rounded up: PyAV takes heights that are multiples of four.
        total = -(-len(frames) * high // 2) * 2
        packed = np.empty((3 * total, 2 * wide), np.uint8)
        luma, *chroma = np.split(packed.ravel(), [4 * total * wide, 5 * total * wide])
        for i, frame in enumerate(frames):
            target_rows = slice(2 * i * high, 2 * (i + 1) * high)
            luma.reshape(2 * total, -1)[target_rows] = _plane(frame, 0)[
                2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop
            ]
            target_rows = slice(i * high, (i + 1) * high)
            for target, plane in zip(chroma, (1, 2), strict=True):
                target.reshape(total, -1)[target_rows] = _plane(frame, plane)[
                    rows, columns
                ]
        stacked = av.VideoFrame.from_numpy_buffer(packed, frames[0].format.name)
        stacked.colorspace = frames[0].colorspace
        stacked.color_range = frames[0].color_range
        images = self._convert(stacked)[: 2 * len(frames) * high]
        images = images.reshape(len(frames), 2 * high, 2 * wide, -1)
        top, left = top % 2, left % 2
        out[:] = images[:, top : top + height, left : left + width]


def _packed_format(
    source: av.VideoFormat, format: PixelFormat
) -> tuple[str, int, np.dtype]:
    """Returns the pixel format of one plane to convert frames to.

    Also returns its channels and dtype. Gray is never stretched, so that its values are
    the file's; colour of more than 8 bits becomes 16 bits if a range of values is
    known, otherwise 8.
    """
    is_transparent, bits = has_alpha(source), bits_of(source)
    is_gray = source.name.startswith(_GRAY)
    has_range = format.value_range is not None
    if is_gray and bits > 8 and (has_range or format.channels < 3):
        order = ">" if source.name.endswith("be") else "<"
        kind = "f4" if source.name.startswith("grayf32") else "u2"
        return source.name, 1 + is_transparent, np.dtype(order + kind)
    if has_range and bits > 8:
        name = "rgba64le" if is_transparent else "rgb48le"
        return name, 3 + is_transparent, np.dtype("<u2")
    name, channels = "rgb24", 3
    if is_transparent:
        name, channels = ("ya8", 2) if is_gray else ("rgba", 4)
    elif format.channels == 1 or format.channels < 3 and is_gray:
        name, channels = "gray", 1
    return name, channels, np.dtype(np.uint8)


def has_alpha(format: av.VideoFormat) -> bool:
    """Returns whether the pixels of a format may be transparent."""
    # The colours of palettes have alpha.
    return format.has_palette or any(part.is_alpha for part in format.components)


def bits_of(format: av.VideoFormat) -> int:
    """Returns the most bits that a channel of a format has."""
    return max(part.bits for part in format.components)


def check_8_bit_rgb(frame: av.VideoFrame, name: str) -> None:
    """Checks that 8 bits without alpha hold a frame; fewer bits of colour are accepted.

    Raises:
        VideoError: it has transparent pixels, or gray of more bits, as depth maps and
            medical images; the message begins with `name`.
    """
    bits = bits_of(frame.format)
    if bits > 8 and frame.format.name.startswith(_GRAY):
        raise VideoError(f"{name}: its gray has {bits} bits, of which 8 would be kept")
    if has_alpha(frame.format):
        VideoFrames([frame], [0], name).pixels()


def _layout(frame: av.VideoFrame) -> tuple | None:
    """Returns what frames must share to be stacked; None to convert a frame whole."""
    blocks = frame.format.name in _BLOCKWISE
    if not blocks or frame.width % 2 or frame.height % 2:
        return None
    if display_matrix(frame) is not None:
        return None
    return frame.format.name, frame.colorspace, frame.color_range


def progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a frame that is scaled and converted as a whole, with the same pixels.

    Otherwise an interlaced one is treated field by field. decord, which read the videos
    of all published weights, treats it as a whole.
    """
    return copy_frame(frame) if frame.interlaced_frame else frame


def copy_frame(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a progressive frame with the same pixels and colours, to be turned alike.

    It shares no memory with the decoder.
    """
    try:
        matrix = display_matrix(frame)
    except RotationError:
        return frame  # it is refused later
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for index in range(len(frame.planes)):
        target, source = _plane(copy, index), _plane(frame, index)
        width = min(target.shape[1], source.shape[1])  # the padding may differ
        target[:, :width] = source[: len(target), :width]
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    # Side data cannot be written.
    copy.opaque = matrix and bytes(matrix)
    return copy


def _interpolate_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a 4:2:0 frame as 4:2:2, from which conversion gives decord's pixels.

    decord 0.6 has FFmpeg 4, whose libswscale has no special conversion for more than 8
    bits or odd heights. It places lines of chroma linearly, but then takes one line, or
    the mean of two if the second has half the weight or more (yuv2rgb_1). Later
    versions mix the lines by their weights. One more bit holds the mean exactly.
    """
    bits = frame.format.components[0].bits
    height, width = frame.height, (frame.width + 1) // 2
    shift = _DEEPER[bits] - bits
    whole = av.VideoFrame(frame.width, height, f"yuv422p{_DEEPER[bits]}le")
    dtype = np.dtype(np.uint8 if bits == 8 else "<u2")
    sources = [_plane(frame, index).view(dtype) for index in range(3)]
    luma, *chroma = (_plane(whole, index).view("<u2") for index in range(3))
    np.left_shift(
        sources[0][:height, : frame.width],
        shift,
        out=luma[:height, : frame.width],
        dtype=np.uint16,
    )
    # The position of each line among those of chroma, in 2**-17, as in initFilter.
    lines = (height + 1) // 2
    step = ((lines << 16) + height // 2) // height
    positions = (2 * np.arange(height) + 1) * step - 2**16
    # Weights below 0.002 are cut off; others have 12 bits.
    cut, half = 262, 2**16 - 16
    above, weight = np.divmod(positions + cut, 2**17)
    mixed = (above >= 0) & ((weight >= half + cut) | (above >= lines - 1))
    above = above.clip(0, max(lines - 2, 0))
    below = np.minimum(above + mixed, lines - 1)
    for source, target in zip(sources[1:], chroma, strict=True):
        values = source[:lines, :width].astype(np.uint16) << (shift - 1)
        target[:height, :width] = values[above] + values[below]
    whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
    if frame.format.name.startswith("yuvj"):
        whole.color_range = ColorRange.JPEG
    return whole


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """Returns a view of a plane and the padding of its lines, uint8 [rows, line]."""
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, abs(plane.line_size))


def upright(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Returns a view of an image, turned and mirrored by its frame's display matrix.

    It is [height, width, channels], and becomes [width, height, channels] if turned.
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return image
    # Row vectors: x' = a x + c y and y' = b x + d y. Angles other than quarter turns
    # have no exact pixels; the nearest quarter turn is used.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def display_matrix(frame: av.VideoFrame) -> SideData | bytes | None:
    """Returns the side data that says how to rotate a frame; None if it has none.

    Raises:
        RotationError: the frame has to be rotated, but it is unknown how.
    """
    if isinstance(frame.opaque, bytes):
        return frame.opaque  # of `copy_frame`
    try:
        # Not `frame.side_data`: frame and container would refer to each other, which
        # keeps the memory from the decoder until garbage is collected.
        sides = SideDataContainer(frame)  # pyright: ignore[reportCallIssue]
        return sides.get("DISPLAYMATRIX")
    except ValueError as error:
        # PyAV 18 fails for kinds that it does not know, such as EXIF.
        if frame.rotation:  # 180 degrees may be a mirror image
            raise RotationError(f"cannot be turned upright: {error}") from error
        return None


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Returns the height and width of a frame after `upright`."""
    return upright(np.empty((frame.height, frame.width, 0)), frame).shape[:2]
