"""Which frames of a video make a clip; one function for each rule."""

import numpy as np
from numpy.typing import ArrayLike


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


def exact_center_indices(
    num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """`pretrain_indices` in the middle: start max(N - num_frames * stride, 0) // 2.

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.
        stride: frames of the video from one frame of the clip to the next.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    start = _last_start(num_video_frames, num_frames, stride) // 2
    return pretrain_indices(num_video_frames, num_frames, stride, start)


def dense_indices(
    num_video_frames: int, num_frames: int, stride: int, end: int | None
) -> np.ndarray:
    """The reference's fine-tuning rule for Kinetics, UCF101, HMDB51 (official code).

    With span = num_frames * stride, num_frames points are spread evenly from
    end - span to end, both included, limited to end - 1 and rounded down. So frames
    are span / (num_frames - 1) apart: 64 / 15 rather than 4 for 16 frames and stride
    4. A video of N <= span frames gives N // stride points spread from 0 to N, then N
    again and again, limited to N - 1: one of fewer frames than the stride gives only
    its last.

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.
        stride: nominal frames of the video from one frame of the clip to the next.
        end: the clip lies before this frame, span to N - 1; None if N <= span.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1, or the end does not fit.
    """
    _check(num_video_frames, num_frames, stride=stride)
    span = num_frames * stride
    if num_video_frames <= span:
        if end is not None:
            raise ValueError(
                f"a video of {num_video_frames} frames leaves no choice to a clip that "
                f"spans {span}: its end must be None, not {end}"
            )
        points = np.full(num_frames, num_video_frames, np.float64)
        reached = num_video_frames // stride
        points[:reached] = np.linspace(0, num_video_frames, reached)
        last = num_video_frames - 1
    else:
        if end is None or not span <= end < num_video_frames:
            raise ValueError(
                f"a clip that spans {span} frames cannot end at {end} in a video of "
                f"{num_video_frames}: {span} to {num_video_frames - 1} can"
            )
        points = np.linspace(end - span, end, num_frames)
        last = end - 1
    return np.minimum(points, last).astype(np.int64)


def sample_dense(
    rng: np.random.Generator, num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """`dense_indices` with an end drawn uniformly from all that fit.

    The reference draws from span to N - 1, so the last frame of a video longer than
    the clip is never used (official code).

    Args:
        rng: randomness.
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.
        stride: nominal frames of the video from one frame of the clip to the next.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    room = _last_start(num_video_frames, num_frames, stride)
    end = num_frames * stride + int(rng.integers(room)) if room else None
    return dense_indices(num_video_frames, num_frames, stride, end)


def dense_center_indices(
    num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """`dense_indices` in the middle: end (num_frames * stride + N) // 2 (V2's code).

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.
        stride: nominal frames of the video from one frame of the clip to the next.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    span = num_frames * stride
    end = (span + num_video_frames) // 2 if num_video_frames > span else None
    return dense_indices(num_video_frames, num_frames, stride, end)


def uniform_indices(
    num_video_frames: int, num_frames: int, offsets: ArrayLike | None
) -> np.ndarray:
    """One frame of each segment: the rule for Something-Something (official code).

    The video is cut into num_frames segments of N // num_frames frames; what is left
    at its end is not used. A video of fewer frames than the clip gives all of its
    frames, after frame 0 repeated (V2's code; V1's repeats frame 0 only).

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.
        offsets: integers [num_frames], the frame of each segment, 0 to
            N // num_frames - 1; None if N < num_frames.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count is below 1, or the offsets do not fit.
    """
    _check(num_video_frames, num_frames)
    indices = np.arange(num_frames, dtype=np.int64)
    length = num_video_frames // num_frames
    if not length:
        if offsets is not None:
            raise ValueError(
                f"a video of {num_video_frames} frames leaves no choice to a clip of "
                f"{num_frames}: the offsets must be None"
            )
        return np.maximum(indices - (num_frames - num_video_frames), 0)
    offsets = np.asarray(offsets)
    fit = offsets.shape == (num_frames,) and np.isin(offsets, range(length)).all()
    if not fit:
        raise ValueError(
            f"the offsets must be {num_frames} integers from 0 to {length - 1}, not "
            f"{offsets}"
        )
    return indices * length + offsets.astype(np.int64)


def sample_uniform(
    rng: np.random.Generator, num_video_frames: int, num_frames: int
) -> np.ndarray:
    """`uniform_indices` with offsets drawn uniformly, one for each segment.

    Args:
        rng: randomness.
        num_video_frames: frames of the video.
        num_frames: frames of the clip.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count is below 1.
    """
    _check(num_video_frames, num_frames)
    length = num_video_frames // num_frames
    offsets = rng.integers(length, size=num_frames) if length else None
    return uniform_indices(num_video_frames, num_frames, offsets)


def uniform_center_indices(num_video_frames: int, num_frames: int) -> np.ndarray:
    """The middle of each of num_frames equal segments, as V2 validates.

    Segments are N / num_frames long, not rounded, as in `uniform_test_indices`, and
    the middle is rounded down: it is the second of two test views.

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of the clip.

    Returns:
        int64 [num_frames], non-decreasing.

    Raises:
        ValueError: if a count is below 1.
    """
    _check(num_video_frames, num_frames)
    return uniform_test_indices(num_video_frames, num_frames, segments=2)[1]


def dense_test_indices(
    num_video_frames: int, num_frames: int, stride: int, segments: int
) -> np.ndarray:
    """Clips over the whole video, as the reference tests on Kinetics (official code).

    Every stride-th frame of the video makes a list, its last frame repeated until
    there are num_frames; clip c takes num_frames of the list in a row, from
    c * (length - num_frames) / (segments - 1) rounded down. One segment, at which the
    reference divides by zero, is the middle of the list.

    Args:
        num_video_frames: frames of the video.
        num_frames: frames of a clip.
        stride: frames of the video from one frame of a clip to the next.
        segments: clips.

    Returns:
        int64 [segments, num_frames], non-decreasing along both axes.

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    _check(num_video_frames, num_frames, stride=stride, segments=segments)
    frames = np.arange(0, num_video_frames, stride, dtype=np.int64)
    spare = max(len(frames) - num_frames, 0)
    starts = _spread(spare, segments).astype(np.int64)
    places = starts[:, None] + np.arange(num_frames)
    return frames[np.minimum(places, len(frames) - 1)]


def uniform_test_indices(
    num_video_frames: int, num_frames: int, segments: int
) -> np.ndarray:
    """Clips over the whole video, as V2 tests on Something-Something (official code).

    With tick = N / num_frames, frame i of clip c is c * tick / segments + i * tick
    rounded down; V1 has the same for two segments only.

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of a clip.
        segments: clips.

    Returns:
        int64 [segments, num_frames], non-decreasing along both axes.

    Raises:
        ValueError: if a count is below 1.
    """
    _check(num_video_frames, num_frames, segments=segments)
    order = np.arange(num_frames * segments, dtype=np.int64)
    indices = order * num_video_frames // (num_frames * segments)
    return indices.reshape(num_frames, segments).T


def mmaction_test_indices(
    num_video_frames: int, num_frames: int, stride: int, segments: int
) -> np.ndarray:
    """Clips over the whole video, as MMAction2 tests (SampleFrames, version 1.2.0).

    Clip c starts at c * max(N - reach, 0) / (segments - 1), rounded to the nearest
    frame and halves to the even one, where reach = (num_frames - 1) * stride + 1; one
    segment is in the middle. A short video starts again from its first frame.

    Args:
        num_video_frames: frames N of the video.
        num_frames: frames of a clip.
        stride: frames of the video from one frame of a clip to the next.
        segments: clips.

    Returns:
        int64 [segments, num_frames].

    Raises:
        ValueError: if a count or the stride is below 1.
    """
    _check(num_video_frames, num_frames, stride=stride, segments=segments)
    spare = max(num_video_frames - (num_frames - 1) * stride - 1, 0)
    starts = np.round(_spread(spare, segments)).astype(np.int64)
    indices = starts[:, None] + stride * np.arange(num_frames)
    return indices % num_video_frames


def _spread(spare: int, segments: int) -> np.ndarray:
    """Starts, float64 [segments], from 0 to spare; a single one is a whole number."""
    if segments == 1:
        return np.array([spare // 2], np.float64)
    # In this order, as both sources: other orders may round to other frames.
    return np.arange(segments) * (spare / (segments - 1))


def _last_start(num_video_frames: int, num_frames: int, stride: int) -> int:
    _check(num_video_frames, num_frames, stride=stride)
    return max(num_video_frames - num_frames * stride, 0)


def _check(num_video_frames: int, num_frames: int, **others: int) -> None:
    counts = {"video frames": num_video_frames, "clip frames": num_frames} | others
    if min(counts.values()) < 1:
        *first, last = [f"{name} {count}" for name, count in counts.items()]
        raise ValueError(f"{', '.join(first)} and {last} must be at least 1")
