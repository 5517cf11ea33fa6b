"""The interface of everything that frames are read from: files, images, shards."""

import abc
import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from videomae_jax.errors import ConfigError, VideoError
from videomae_jax.files import open_binary

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Indices = Sequence[int] | np.ndarray  # of frames; an array has one axis


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """The pixels that a model takes.

    Attributes:
        channels: 3 for RGB, 1 for gray, 4 and 2 for these with alpha; arrays may have
            any number.
        value_range: the lowest and the highest value of the source, which become 0 and
            65,535 of uint16; values beyond them are clipped. None: values must have 8
            bits, and stay as they are.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None

    def __post_init__(self):
        """Raises ConfigError unless the range is two increasing numbers."""
        bounds: Any = self.value_range
        if bounds is None:
            return
        try:
            low, high = map(float, bounds)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not (low < high and np.isfinite([low, high]).all()):
            raise ConfigError(
                f"config.data.value_range={bounds!r} must be the lowest and the "
                "highest value of the pixels, such as (0, 65535)"
            )
        # A list that was saved as JSON.
        object.__setattr__(self, "value_range", (low, high))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of frames: uint8, or uint16 with a `value_range`."""
        return np.dtype(np.uint8 if self.value_range is None else np.uint16)

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Returns values of a source as `dtype`.

        Raises:
            ValueError: values have not 8 bits, and no range is known; or some are NaN.
        """
        if self.value_range is None:
            if values.dtype != np.uint8:
                raise ValueError(
                    f"has values of {values.dtype}, of unknown range: set "
                    "config.data.value_range to their lowest and highest, such as "
                    "(0, 65535)"
                )
            return values
        low, high = self.value_range
        if values.dtype == np.uint16 and (low, high) == (0, 65535):
            return values
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ValueError("holds values that are not a number (NaN)")
        # float32 holds 16 bits exactly, but not 32.
        wide = np.float32 if values.dtype.itemsize <= 2 else np.float64
        scaled = (values.astype(wide) - wide(low)) * wide(65535 / (high - low))
        return np.rint(scaled).clip(0, 65535).astype(np.uint16)


RGB = PixelFormat()  # of 8 bits


def read_file(path: str, name: str) -> bytes:
    """Returns the content of a file, or of what a URL names.

    Raises:
        VideoError: it cannot be read; the message begins with `name`.
    """
    try:
        with open_binary(path) as file:
            return file.read()
    except FileNotFoundError:
        raise VideoError(f"{name}: no such file") from None
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{name}: cannot be read: {reason}") from error


class DecodedFrames(abc.ABC):
    """Decoded frames of one size, which are converted on request."""

    def __init__(self, height: int, width: int, order: Sequence[int]):
        """Sets the upright size, and which of the distinct frames to return."""
        self.height, self.width = height, width
        self._order = list(order)

    def __len__(self) -> int:
        """Number of frames; one that was requested twice counts twice."""
        return len(self._order)

    @abc.abstractmethod
    def pixels(self, box: Box | None = None) -> np.ndarray:
        """Converts the frames, or the same box, which lies within each of them.

        Returns:
            [len(self), height, width, channels], exactly the pixels that the box has in
            the whole frames; dtype and channels are those of the source's `format`.
        """


class FrameSource(abc.ABC):
    """Random access to the frames of one video.

    Attributes:
        name: name of the video in messages.
        num_frames: number of frames.
        fps: average frames per second; None if the source does not say.
        first_frame: number of frame 0 in the file or folder, if this is a part of it.
        format: the pixels that frames are converted to.
    """

    name: str
    num_frames: int
    fps: float | None = None
    first_frame: int = 0
    format: PixelFormat = RGB
    _size: tuple[int, int] | None = None  # height and width, once known
    _closed = False

    def __enter__(self) -> Self:
        """Returns the video itself."""
        return self

    def __exit__(self, *unused) -> None:
        """Closes the video."""
        self.close()

    def close(self) -> None:
        """Releases files and memory; may be called more than once."""
        self._closed = True

    @abc.abstractmethod
    def decode(self, indices: Indices) -> DecodedFrames:
        """Decodes one or more frames as `read` does, but does not convert them."""

    @property
    def height(self) -> int:
        """Height of the upright frames; decodes one frame if it is not known yet."""
        return self._frame_size()[0]

    @property
    def width(self) -> int:
        """Width of the upright frames; decodes one frame if it is not known yet."""
        return self._frame_size()[1]

    def read(self, indices: Indices) -> np.ndarray:
        """Decodes frames, each once.

        Args:
            indices: frames in any order; an index may repeat.

        Returns:
            [len(indices), height, width, channels], in the order of `indices`: by
            default uint8 RGB, otherwise dtype and channels of `format`.

        Raises:
            IndexError: an index is negative or not below `num_frames`.
            VideoError: a frame cannot be decoded exactly, the resolution changes
                between the decoded frames, or the video is closed.
        """
        if not len(indices):
            self._checked(indices)
            shape = (0, self.height, self.width, self.format.channels)
            return np.empty(shape, self.format.dtype)
        return self.decode(indices).pixels()

    @property
    def frame_times(self) -> np.ndarray | None:
        """When each frame is shown: float64 [num_frames + 1]; None if unknown.

        Seconds after the first frame that is shown, then the end of the video. Files do
        not agree on how to say how long the last frame lasts: here, as long as the one
        before it. Without times of their own, frames are 1 / fps seconds apart.
        """
        return np.arange(self.num_frames + 1) / self.fps if self.fps else None

    def frames_between(self, start: float, end: float | None = None) -> range:
        """Returns the frames with start <= time < end, at least one.

        Args:
            start, end: seconds after the first frame; without an end, all that follow.

        Raises:
            VideoError: the times are unknown, or no frame is within the two.
        """
        times = self.frame_times
        if times is None:
            raise self.error("frame rate unknown, so seconds cannot be found in it")
        first, stop = np.searchsorted(
            times[:-1], [start, np.inf if end is None else end]
        )
        if first >= stop:
            until = "the end" if end is None else end
            raise self.error(
                f"none of its {self.num_frames} frames is within {start} to {until} s; "
                f"the last is at {times[-2]:.6g} s"
            )
        return range(int(first), int(stop))

    def error(self, reason: str) -> VideoError:
        """Returns an error whose message names the video."""
        return VideoError(f"{self.name}: {reason}")

    def _checked(self, indices: Indices) -> list[int]:
        """Returns the indices as integers; raises if one cannot be read."""
        if self._closed:
            raise self.error("the video is closed")
        checked = [operator.index(index) for index in indices]
        for index in checked:
            if not 0 <= index < self.num_frames:
                raise IndexError(
                    f"{self.name}: frame index {index} is out of range: the video has "
                    f"{self.num_frames} frames, 0 to {self.num_frames - 1}"
                )
        return checked

    def _distinct(self, indices: Indices) -> tuple[list[int], list[int]]:
        """Returns the distinct indices, increasing, and the position of each index."""
        distinct, order = np.unique(self._checked(indices), return_inverse=True)
        return distinct.tolist(), order.tolist()

    def _check_size(self, frame: str, size: tuple[int, int]) -> None:
        """Raises VideoError if a frame differs in height or width from earlier ones."""
        self._size = self._size or size
        if size != self._size:
            raise self.error(
                "changes its resolution: {} is {}x{}, others {}x{}".format(
                    frame, *size[::-1], *self._size[::-1]
                )
            )

    def _frame_size(self) -> tuple[int, int]:
        if self._size is None:
            frames = self.decode([0])
            self._size = frames.height, frames.width
        return self._size


class VideoSegment(FrameSource):
    """Frames `start` to `start + num_frames - 1` of a video, as a video of its own."""

    def __init__(self, video: FrameSource, start: int, num_frames: int):
        """Takes over an open video, which is closed if it is too short."""
        self._video, self.first_frame, self.format = video, start, video.format
        self.name, self.num_frames, self.fps = video.name, num_frames, video.fps
        if start + num_frames > video.num_frames:
            video.close()
            raise self.error(
                f"too short: the list asks for {num_frames} frames from frame {start} "
                f"on, but the video has {video.num_frames}"
            )

    def close(self) -> None:
        """Closes the video."""
        super().close()
        self._video.close()

    def decode(self, indices: Indices) -> DecodedFrames:
        """Decodes frames of the segment."""
        return self._video.decode(
            [self.first_frame + i for i in self._checked(indices)]
        )

    @property
    def frame_times(self) -> np.ndarray | None:
        """Seconds after the first frame of the segment, float64 [num_frames + 1]."""
        times = self._video.frame_times
        if times is None:
            return None
        times = times[self.first_frame : self.first_frame + self.num_frames + 1]
        # To the nanosecond: 0.72 - 0.32 is a little less than 0.4.
        return (times - times[0]).round(9)

    def _frame_size(self) -> tuple[int, int]:
        return self._video.height, self._video.width
