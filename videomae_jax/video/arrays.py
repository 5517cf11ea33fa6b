"""Frames in arrays as a video: in memory, or in `.npy` and `.npz` files.

An array is [time, height, width, channels], or [time, height, width] for one channel.
A `.npz` file holds one array, or names it `video`.
"""

import io
import os
from collections.abc import Sequence

import numpy as np

from videomae_jax.errors import VideoError
from videomae_jax.files import is_url
from videomae_jax.video.source import (
    Box,
    DecodedFrames,
    FrameSource,
    Indices,
    PixelFormat,
    read_file,
)

EXTENSIONS = (".npy", ".npz")


class ArrayFrames(DecodedFrames):
    """Frames of an array, which are read and scaled on request."""

    def __init__(
        self, frames: np.ndarray, order: Sequence[int], format: PixelFormat, name: str
    ):
        """Holds [T, H, W, C]; `order` has the indices of the frames to return."""
        super().__init__(frames.shape[1], frames.shape[2], order)
        self._frames, self._format, self._name = frames, format, name

    def pixels(self, box: Box | None = None) -> np.ndarray:
        """Copies the frames, or the same box of each."""
        top, left, height, width = box or (0, 0, self.height, self.width)
        window = self._frames[:, top : top + height, left : left + width]
        try:
            return self._format.scale(np.stack([window[i] for i in self._order]))
        except ValueError as error:
            raise VideoError(f"{self._name}: {error}") from error


class ArrayVideo(FrameSource):
    """Random access to the frames of an array; `fps` is unknown."""

    def __init__(self, frames: np.ndarray, name: str = "<array>"):
        """Holds [T, H, W, C] or [T, H, W], which is not copied.

        Raises:
            VideoError: the array has another number of axes, holds no numbers, or is
                empty.
        """
        self.name = name
        if frames.dtype.kind not in "uif" or frames.ndim not in (3, 4):
            raise self.error(
                "expected numbers [time, height, width, channels], or [time, height, "
                f"width] for one channel, got {frames.dtype} {list(frames.shape)}"
            )
        if not frames.size:
            raise self.error(f"is empty: {list(frames.shape)}")
        self._frames = frames if frames.ndim == 4 else frames[..., None]
        self.num_frames = len(frames)
        self._size = frames.shape[1:3]

    def close(self) -> None:
        """Releases the array."""
        super().close()
        # A slice would keep the array, and its file, open.
        self._frames = np.empty((0, *self._frames.shape[1:]), self._frames.dtype)

    def decode(self, indices: Indices) -> ArrayFrames:
        """Returns at least one frame, not yet read.

        Raises:
            VideoError: the array has other channels than `format`.
        """
        checked, shape = self._checked(indices), list(self._frames.shape)
        if shape[-1] != self.format.channels:
            raise self.error(
                f"has the shape {shape}; expected [time, height, width, "
                f"{self.format.channels}], as config.model.channels says"
            )
        return ArrayFrames(self._frames, checked, self.format, self.name)


def is_array_file(path: str | os.PathLike) -> bool:
    """Returns whether a path ends like a file of an array."""
    return os.fsdecode(path).lower().endswith(EXTENSIONS)


def open_array(path: str) -> ArrayVideo:
    """Opens a `.npy` file, which is mapped into memory, or a `.npz` file.

    Raises:
        VideoError: the file is missing, damaged or holds Python objects, or several
            arrays of which none is named `video`.
    """
    # A compressed file is read at once.
    is_mapped = not is_url(path) and path.lower().endswith(".npy")
    try:
        if is_mapped:
            return ArrayVideo(np.load(path, mmap_mode="r"), path)
        content = np.load(io.BytesIO(read_file(path, path)))
        if isinstance(content, np.ndarray):
            return ArrayVideo(content, path)
        names = content.files
        name = names[0] if len(names) == 1 else "video"
        if name not in names:
            shown = ", ".join(names) or "nothing"
            raise VideoError(
                f"{path}: holds {shown}; expected one array, or one named `video`"
            )
        return ArrayVideo(content[name], path)
    except FileNotFoundError:
        raise VideoError(f"{path}: no such file") from None
    except VideoError:
        raise
    except Exception as error:  # ValueError, EOFError, BadZipFile, zlib.error, ...
        raise VideoError(f"{path}: cannot be read as an array: {error}") from error
