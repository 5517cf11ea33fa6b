"""Clips that slide over a video of any length, each frame read once."""

from collections.abc import Callable, Iterator

import numpy as np

from videomae_jax.video.decoder import Video

# Of decoded frames that are held at once. Where a run of frames begins between
# keyframes, those since the last one are decoded again: longer runs lose less.
RUN_BYTES = 256 * 2**20


def read_windows(
    video: Video,
    indices: np.ndarray,
    size: int,
    cut: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Yields the windows of a video in order.

    Frames are read in runs and kept while windows need them: memory does not grow with
    the video.

    Args:
        video: opened.
        indices: frames of each window, int64 [W, T], increasing along both axes.
        size: height and width of what is kept of a frame, in pixels.
        cut: makes that of frames, uint8 [n, H, W, 3] -> [n, size, size, 3].

    Yields:
        uint8 [T, size, size, 3].

    Raises:
        VideoError: if a frame cannot be decoded.
    """
    # A frame is scaled by way of a copy and then cut.
    frame_bytes = 3 * (video.height * video.width + 4 * size**2)
    wanted = np.unique(indices)
    run = max(RUN_BYTES // frame_bytes, 1)
    runs = iter(np.split(wanted, range(run, len(wanted), run)))
    frames: dict[int, np.ndarray] = {}
    for window in indices.tolist():
        while window[-1] not in frames:
            frames = {i: frame for i, frame in frames.items() if i >= window[0]}
            run = next(runs)
            frames |= zip(run.tolist(), cut(video.read(run)), strict=True)
        yield np.stack([frames[i] for i in window])
