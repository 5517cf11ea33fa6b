"""What all that frames are read from has in common: files, images, shards."""

import abc
import operator
from collections.abc import Sequence

import numpy as np

from videomae_jax.errors import VideoError


class FrameSource(abc.ABC):
    """Random access to the frames of one video.

    Attributes:
        num_frames: Number of its frames.
        fps: Average frames per second, `None` if nothing tells.
    """

    num_frames: int
    fps: float | None = None
    _name: str  # In messages.
    _size: tuple[int, int] | None = None  # Height and width, once they are known.

    def __enter__(self) -> "FrameSource":
        """Returns the video itself."""
        return self

    def __exit__(self, *unused) -> None:
        """Closes the video."""
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Releases what is held; may be called more than once."""

    @abc.abstractmethod
    def decode(self, indices: Sequence[int]):
        """Decodes at least one frame, of which `rgb(box)` then gives a part.

        Raises:
            IndexError: An index is negative or not below `num_frames`.
            VideoError: As in `read`.
        """

    @property
    def height(self) -> int:
        """Height of the frames as `read` returns them; decodes one frame if needed."""
        return self._frame_size()[0]

    @property
    def width(self) -> int:
        """Width of the frames as `read` returns them; decodes one frame if needed."""
        return self._frame_size()[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames, each once.

        Args:
            indices: Frames wanted, in any order; an index may repeat.

        Returns:
            uint8 [len(indices), height, width, 3], RGB, in the order of `indices`.

        Raises:
            IndexError: An index is negative or not below `num_frames`.
            VideoError: A wanted frame cannot be decoded exactly, the video changes its
                resolution between the frames decoded, or it is closed.
        """
        if not len(indices):
            self._assert_open()
            return np.empty((0, *self._frame_size(), 3), np.uint8)
        return self.decode(indices).rgb()

    def error(self, reason: str) -> VideoError:
        """An error that names the video."""
        return VideoError(f"{self._name}: {reason}")

    @abc.abstractmethod
    def _is_open(self) -> bool:
        """Whether frames can be read."""

    def _assert_open(self) -> None:
        if not self._is_open():
            raise self.error("the video is closed")

    def _distinct(self, indices: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """The frames wanted, increasing, and which of them is at each index."""
        self._assert_open()
        for index in map(operator.index, indices):
            if not 0 <= index < self.num_frames:
                raise IndexError(
                    f"{self._name}: no frame {index}: the video has "
                    f"{self.num_frames} frames, 0 to {self.num_frames - 1}"
                )
        wanted, places = np.unique(np.asarray(indices), return_inverse=True)
        return wanted.tolist(), places

    def _check_size(self, frame: str, size: tuple[int, int]) -> None:
        """Raises VideoError unless a frame has the height and width of others."""
        self._size = self._size or size
        if size != self._size:
            raise self.error(
                "changes its resolution: {} is {}x{}, others {}x{}".format(
                    frame, *size[::-1], *self._size[::-1]
                )
            )

    def _frame_size(self) -> tuple[int, int]:
        if self._size is None:
            self.read([0])
        return self._size
