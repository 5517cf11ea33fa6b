"""Samples the frames of a video that make a clip; one function per rule.

All functions take the same sizes, and raise ValueError if one of them is below 1, or if
a clip does not fit at its `start`, `end` or `offsets`:

    num_video_frames    frames N of the video
    num_frames          frames of a clip
    stride              frames of the video from one frame of a clip to the next
    segments            clips in time

They return int64 frame numbers: [num_frames] for one clip, [segments, num_frames] for
the clips of a test. The numbers never decrease along an axis, unless stated otherwise.
"""

import numpy as np
from numpy.typing import ArrayLike


def pretrain_indices(
    num_video_frames: int, num_frames: int, stride: int, start: int
) -> np.ndarray:
    """Returns start, start + stride, ...: the pretraining rule (official code).

    A video shorter than num_frames * stride is read from its first frame; the last
    index reached is repeated, which is the last multiple of the stride that is not
    the video's last frame (the reference compares with one frame too few).
    """
    last_start = _last_start(num_video_frames, num_frames, stride)
    if not 0 <= start <= last_start:
        raise ValueError(
            f"start={start} must be from 0 to {last_start} for a clip of {num_frames} "
            f"frames {stride} apart in a video of {num_video_frames}"
        )
    indices = start + stride * np.arange(num_frames, dtype=np.int64)
    if num_video_frames < num_frames * stride:
        last = max((num_video_frames - 2) // stride * stride, 0)
        indices = np.minimum(indices, last)
    return indices


def sample_pretrain(
    rng: np.random.Generator, num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """Draws the start of `pretrain_indices` uniformly from all that fit."""
    last_start = _last_start(num_video_frames, num_frames, stride)
    start = int(rng.integers(last_start + 1))
    return pretrain_indices(num_video_frames, num_frames, stride, start)


def exact_center_indices(
    num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """Returns the middle of `pretrain_indices`, rounded down."""
    start = _last_start(num_video_frames, num_frames, stride) // 2
    return pretrain_indices(num_video_frames, num_frames, stride, start)


def dense_indices(
    num_video_frames: int, num_frames: int, stride: int, end: int | None
) -> np.ndarray:
    """Returns the fine-tuning rule for Kinetics, UCF101, HMDB51 (official code).

    With span = num_frames * stride, num_frames points are spread evenly from
    end - span to end, both included, limited to end - 1 and rounded down. Frames are
    therefore span / (num_frames - 1) apart: 64 / 15 rather than 4 for 16 frames and
    stride 4. A video of N <= span frames gives N // stride points spread from 0 to N,
    then N repeatedly, limited to N - 1: a video of fewer frames than the stride gives
    only its last one.

    Args:
        end: the clip lies before this frame, span to N - 1; None if N <= span.
    """
    _check(num_video_frames, num_frames, stride=stride)
    span = num_frames * stride
    if num_video_frames <= span:
        if end is not None:
            raise ValueError(
                f"end={end} must be None: a video of {num_video_frames} frames has "
                f"only one clip that spans {span}"
            )
        points = np.full(num_frames, num_video_frames, np.float64)
        reached = num_video_frames // stride
        points[:reached] = np.linspace(0, num_video_frames, reached)
        last = num_video_frames - 1
    else:
        if end is None or not span <= end < num_video_frames:
            raise ValueError(
                f"end={end} must be from {span} to {num_video_frames - 1} for a clip "
                f"that spans {span} of {num_video_frames} frames"
            )
        points = np.linspace(end - span, end, num_frames)
        last = end - 1
    return np.minimum(points, last).astype(np.int64)


def sample_dense(
    rng: np.random.Generator, num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """Draws the end of `dense_indices` uniformly from all that fit.

    The reference draws from span to N - 1, so it never uses the last frame of a video
    that is longer than the clip (official code).
    """
    room = _last_start(num_video_frames, num_frames, stride)
    end = num_frames * stride + int(rng.integers(room)) if room else None
    return dense_indices(num_video_frames, num_frames, stride, end)


def dense_center_indices(
    num_video_frames: int, num_frames: int, stride: int
) -> np.ndarray:
    """Returns the middle of `dense_indices`: end (span + N) // 2 (V2's code)."""
    span = num_frames * stride
    end = (span + num_video_frames) // 2 if num_video_frames > span else None
    return dense_indices(num_video_frames, num_frames, stride, end)


def uniform_indices(
    num_video_frames: int, num_frames: int, offsets: ArrayLike | None
) -> np.ndarray:
    """Returns a frame per segment: the rule for Something-Something (official code).

    The video is cut into num_frames segments of N // num_frames frames; the rest at its
    end is not used. A video of fewer frames than the clip gives all of its frames,
    after repeats of frame 0 (V2's code; V1's repeats frame 0 only).

    Args:
        offsets: integers [num_frames], the frame of each segment, 0 to
            N // num_frames - 1; None if N < num_frames.
    """
    _check(num_video_frames, num_frames)
    indices = np.arange(num_frames, dtype=np.int64)
    length = num_video_frames // num_frames
    if not length:
        if offsets is not None:
            raise ValueError(
                f"offsets must be None: a video of {num_video_frames} frames has only "
                f"one clip of {num_frames}"
            )
        return np.maximum(indices - (num_frames - num_video_frames), 0)
    offsets = np.asarray(offsets)
    if offsets.shape != (num_frames,) or not np.isin(offsets, range(length)).all():
        raise ValueError(
            f"offsets must be {num_frames} integers from 0 to {length - 1}, got "
            f"{offsets}"
        )
    return indices * length + offsets.astype(np.int64)


def sample_uniform(
    rng: np.random.Generator, num_video_frames: int, num_frames: int
) -> np.ndarray:
    """Draws the offsets of `uniform_indices` uniformly, one for each segment."""
    _check(num_video_frames, num_frames)
    length = num_video_frames // num_frames
    offsets = rng.integers(length, size=num_frames) if length else None
    return uniform_indices(num_video_frames, num_frames, offsets)


def uniform_center_indices(num_video_frames: int, num_frames: int) -> np.ndarray:
    """Returns the middle of each segment of `uniform_indices` (V2's code).

    Of an even number of frames, it is the later one.
    """
    _check(num_video_frames, num_frames)
    return _at_offset(num_video_frames, num_frames, num_video_frames // num_frames // 2)


def sample_sparse(
    rng: np.random.Generator, num_video_frames: int, num_frames: int
) -> np.ndarray:
    """Draws as `sample_uniform`, but never the last of several frames of a segment.

    V2's code reads videos so with --sparse_sample, unlike folders of images. Of a video
    of fewer frames than the clip it takes the last frame only; here it is sampled as by
    `uniform_indices`.
    """
    _check(num_video_frames, num_frames)
    length = num_video_frames // num_frames
    if length < 2:
        return _at_offset(num_video_frames, num_frames, 0)
    offsets = rng.integers(length - 1, size=num_frames)
    return uniform_indices(num_video_frames, num_frames, offsets)


def sparse_center_indices(num_video_frames: int, num_frames: int) -> np.ndarray:
    """Returns the middle of each segment, of an even number of frames the earlier."""
    _check(num_video_frames, num_frames)
    length = num_video_frames // num_frames
    return _at_offset(num_video_frames, num_frames, max(length - 1, 0) // 2)


def _at_offset(num_video_frames: int, num_frames: int, offset: int) -> np.ndarray:
    """Returns the same frame of each segment of `uniform_indices`, if it has any."""
    offsets = [offset] * num_frames if num_video_frames >= num_frames else None
    return uniform_indices(num_video_frames, num_frames, offsets)


def dense_test_indices(
    num_video_frames: int, num_frames: int, stride: int, segments: int
) -> np.ndarray:
    """Returns clips over the whole video, as tested on Kinetics (official code).

    Every stride-th frame of the video makes a list, whose last frame is repeated until
    there are num_frames. Clip c takes num_frames of the list in a row, from
    c * (length - num_frames) / (segments - 1) rounded down. One segment, where the
    reference divides by zero, is the middle of the list.
    """
    _check(num_video_frames, num_frames, stride=stride, segments=segments)
    frames = np.arange(0, num_video_frames, stride, dtype=np.int64)
    spare = max(len(frames) - num_frames, 0)
    starts = _spread(spare, segments).astype(np.int64)
    positions = starts[:, None] + np.arange(num_frames)
    return frames[np.minimum(positions, len(frames) - 1)]


def uniform_test_indices(
    num_video_frames: int, num_frames: int, segments: int
) -> np.ndarray:
    """Returns clips over the whole video, as V2 tests on Something-Something.

    With tick = N / num_frames, frame i of clip c is c * tick / segments + i * tick
    rounded down (official code; V1 has the same for two segments only).
    """
    _check(num_video_frames, num_frames, segments=segments)
    order = np.arange(num_frames * segments, dtype=np.int64)
    indices = order * num_video_frames // (num_frames * segments)
    return indices.reshape(num_frames, segments).T


def first_indices(num_video_frames: int, num_frames: int, segments: int) -> np.ndarray:
    """Returns clips of consecutive frames, the first of which is the video's start.

    One segment is what transformers' pipeline takes with an image processor (all of 4;
    5 without torchvision). Clip c of several starts at c * N / segments, rounded down.
    """
    _check(num_video_frames, num_frames, segments=segments)
    starts = np.arange(segments, dtype=np.int64) * num_video_frames // segments
    return np.minimum(starts[:, None] + np.arange(num_frames), num_video_frames - 1)


def mmaction_test_indices(
    num_video_frames: int, num_frames: int, stride: int, segments: int
) -> np.ndarray:
    """Returns clips over the whole video, as in MMAction2's SampleFrames 1.2.0.

    Clip c starts at c * max(N - reach, 0) / (segments - 1), rounded to the nearest
    frame and halves to the even one, where reach = (num_frames - 1) * stride + 1. One
    segment is in the middle. A short video starts again from its first frame, so the
    numbers of a clip may decrease.
    """
    _check(num_video_frames, num_frames, stride=stride, segments=segments)
    spare = max(num_video_frames - (num_frames - 1) * stride - 1, 0)
    starts = np.round(_spread(spare, segments)).astype(np.int64)
    indices = starts[:, None] + stride * np.arange(num_frames)
    return indices % num_video_frames


def _spread(spare: int, segments: int) -> np.ndarray:
    """Returns starts, float64 [segments], from 0 to spare; a single one is whole."""
    if segments == 1:
        return np.array([spare // 2], np.float64)
    # The order of both sources: another one may round to other frames.
    return np.arange(segments) * (spare / (segments - 1))


def _last_start(num_video_frames: int, num_frames: int, stride: int) -> int:
    _check(num_video_frames, num_frames, stride=stride)
    return max(num_video_frames - num_frames * stride, 0)


def _check(num_video_frames: int, num_frames: int, **others: int) -> None:
    sizes = {"num_video_frames": num_video_frames, "num_frames": num_frames} | others
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
