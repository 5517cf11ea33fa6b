"""The interface of everything that frames are read from: files, images, shards."""

import abc
import operator
from collections.abc import Sequence
from typing import Self

import numpy as np

from videomae_jax.errors import VideoError
from videomae_jax.files import open_binary

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Indices = Sequence[int] | np.ndarray  # of frames; an array has one axis


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
    # ImportError and KeyError: a kind of URL that is not supported, or unknown.
    except (OSError, ImportError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{name}: cannot be read: {reason}") from error


class DecodedFrames(abc.ABC):
    """Decoded frames of one size, which are converted to RGB on request."""

    def __init__(self, height: int, width: int, order: Sequence[int]):
        """Sets the upright size, and which of the distinct frames to return."""
        self.height, self.width = height, width
        self._order = list(order)

    def __len__(self) -> int:
        """Number of frames; one that was requested twice counts twice."""
        return len(self._order)

    @abc.abstractmethod
    def rgb(self, box: Box | None = None) -> np.ndarray:
        """Converts the frames, or the same box, which lies within each of them.

        Returns:
            uint8 [len(self), height, width, 3], RGB: exactly the pixels that the box
            has in the whole frames.
        """


class FrameSource(abc.ABC):
    """Random access to the frames of one video.

    Attributes:
        name: name of the video in messages.
        num_frames: number of frames.
        fps: average frames per second; None if the source does not say.
        first_frame: number of frame 0 in the file or folder, if this is a part of it.
    """

    name: str
    num_frames: int
    fps: float | None = None
    first_frame: int = 0
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
            uint8 [len(indices), height, width, 3], RGB, in the order of `indices`.

        Raises:
            IndexError: an index is negative or not below `num_frames`.
            VideoError: a frame cannot be decoded exactly, the resolution changes
                between the decoded frames, or the video is closed.
        """
        if not len(indices):
            self._checked(indices)
            return np.empty((0, self.height, self.width, 3), np.uint8)
        return self.decode(indices).rgb()

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
        self._video, self.first_frame = video, start
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
