"""Clips that slide over a video of any length, decoding each frame once."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from videomae_jax.models.sizes import height_and_width
from videomae_jax.video.source import FrameSource

# Bytes of decoded frames to hold at once. A run that begins between two keyframes
# decodes the frames since the first of them again: longer runs waste less.
RUN_BYTES = 256 * 2**20


def read_windows(
    video: FrameSource,
    indices: np.ndarray,
    *,
    size: int | tuple[int, int],
    crop: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Yields the windows of a video in order.

    Frames are read in runs and kept while windows need them, so that memory does not
    grow with the length of the video.

    Args:
        indices: frames of each window, int64 [W, T], increasing along both axes.
        size: (height, width) of a cropped frame in pixels, or one number for both.
        crop: scales and crops frames, [n, H, W, C] -> [n, height, width, C].

    Yields:
        [T, height, width, C], of the video's pixel format.
    """
    # Scaling makes a copy of a frame, which is then cropped.
    pixels = math.prod(height_and_width(size))
    pixel_bytes = video.format.channels * video.format.dtype.itemsize
    frame_bytes = pixel_bytes * (video.height * video.width + 4 * pixels)
    needed = np.unique(indices)
    run_length = max(RUN_BYTES // frame_bytes, 1)
    runs = iter(np.split(needed, range(run_length, len(needed), run_length)))
    frames: dict[int, np.ndarray] = {}
    for window in indices.tolist():
        while window[-1] not in frames:
            frames = {i: frame for i, frame in frames.items() if i >= window[0]}
            run = next(runs).tolist()
            frames |= zip(run, crop(video.read(run)), strict=True)
        yield np.stack([frames[i] for i in window])
