"""Which frames of a video make a clip; one function for each rule."""

import numpy as np


def pretrain_indices(
    num_video_frames: int, num_frames: int, stride: int, start: int
) -> np.ndarray:
    """The reference's pretraining rule: start, start + stride, ... (official code).

    A video shorter than num_frames * stride is read from its first frame; the last
    index reached is repeated, which is the last multiple of the stride that is not
    the video's last frame (the reference compares with one frame too few).

    Args:
        num_video_frames: frames of the video.
        num_frames: frames of the clip.
        stride: frames of the video from one frame of the clip to the next.
        start: first frame; 0 for a short video.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1, or the start does not fit.
    """
    last_start = _last_start(num_video_frames, num_frames, stride)
    if not 0 <= start <= last_start:
        raise ValueError(
            f"a clip of {num_frames} frames {stride} apart cannot start at frame "
            f"{start} of {num_video_frames}: 0 to {last_start} can"
        )
    indices = start + stride * np.arange(num_frames, dtype=np.int64)
    if num_video_frames < num_frames * stride:
        last = max((num_video_frames - 2) // stride * stride, 0)
        indices = np.minimum(indices, last)
    return indices


def sample_pretrain(
    rng: np.random.Generator, num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """`pretrain_indices` from a start drawn uniformly from all that fit.

    Args:
        rng: randomness.
        num_video_frames: frames of the video.
        num_frames: frames of the clip.
        stride: frames of the video from one frame of the clip to the next.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    last_start = _last_start(num_video_frames, num_frames, stride)
    start = int(rng.integers(last_start + 1))
    return pretrain_indices(num_video_frames, num_frames, stride, start)


def _last_start(num_video_frames: int, num_frames: int, stride: int) -> int:
    if min(num_video_frames, num_frames, stride) < 1:
        raise ValueError(
            f"video frames {num_video_frames}, clip frames {num_frames} and stride "
            f"{stride} must be at least 1"
        )
    return max(num_video_frames - num_frames * stride, 0)
