"""Frames in memory as a video."""

import numpy as np

from videomae_jax.video.images import ImageFrames
from videomae_jax.video.source import FrameSource, Indices


class ArrayVideo(FrameSource):
    """Random access to the frames of an array; `fps` is unknown."""

    def __init__(self, frames: np.ndarray, name: str = "<array>"):
        """Holds uint8 [T, H, W, C], which is not copied.

        Raises:
            VideoError: the array has another dtype or number of axes, or is empty.
        """
        self.name = name
        if frames.dtype != np.uint8 or frames.ndim != 4 or not frames.size:
            raise self.error(
                f"expected frames uint8 [T, H, W, C], got {frames.dtype} "
                f"{list(frames.shape)}"
            )
        self._frames = frames
        self.num_frames = len(frames)
        self._size = frames.shape[1:3]

    def decode(self, indices: Indices) -> ImageFrames:
        """Returns at least one frame."""
        distinct, order = self._distinct(indices)
        return ImageFrames([self._frames[index] for index in distinct], order)
