"""Which frames make a clip: the reference's rows, and what holds for any video."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.official import GOLDEN
from videomae_jax.data.sampling import pretrain_indices, sample_pretrain

ROWS = json.loads((GOLDEN / "frame_sampling.json").read_text())["pretrain"]

any_video = given(
    num_video_frames=st.integers(1, 400),
    num_frames=st.integers(1, 32),
    stride=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
quick = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: "{num_frames}-{stride}-{start}".format(**row)
)
def test_matches_reference(row):
    indices = pretrain_indices(row["num_frames"], 16, row["stride"], row["start"])
    assert indices.dtype == np.int64
    assert indices.tolist() == row["indices"]


@any_video
@quick
def test_indices_of_any_video(num_video_frames, num_frames, stride, seed):
    rng = np.random.default_rng(seed)
    indices = sample_pretrain(rng, num_video_frames, num_frames, stride)
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert 0 <= indices.min() and indices.max() < num_video_frames
    steps = np.diff(indices)
    if num_frames * stride <= num_video_frames:
        assert (steps == stride).all()
    else:
        assert indices[0] == 0
        assert set(steps) <= {0, stride}
        assert (np.diff(steps) <= 0).all()  # once it repeats, it repeats to the end


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_short_videos_by_the_reference_walk(stride):
    for num_video_frames in range(1, 16 * stride):
        frame, walk = 1, []  # the reference counts from 1
        for _ in range(16):
            walk.append(frame - 1)
            frame += stride if frame + stride < num_video_frames else 0
        indices = pretrain_indices(num_video_frames, 16, stride, start=0)
        assert indices.tolist() == walk


@any_video
@quick
def test_starts_where_told(num_video_frames, num_frames, stride, seed):
    last_start = max(num_video_frames - num_frames * stride, 0)
    start = seed % (last_start + 1)
    indices = pretrain_indices(num_video_frames, num_frames, stride, start)
    assert indices[0] == start


@any_video
@quick
def test_same_rng_same_clip(num_video_frames, num_frames, stride, seed):
    a, b = (
        sample_pretrain(
            np.random.default_rng(seed), num_video_frames, num_frames, stride
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("num_video_frames", "starts"), [(300, 237), (65, 2), (64, 1), (5, 1)]
)
def test_every_start_is_drawn(num_video_frames, starts):
    rng = np.random.default_rng(0)
    drawn = {
        int(sample_pretrain(rng, num_video_frames, 16, 4)[0])
        for _ in range(20 * starts)
    }
    assert drawn == set(range(starts))


@pytest.mark.parametrize(
    "counts", [(0, 16, 4), (300, 0, 4), (300, 16, 0), (-1, 16, 4), (300, 16, -4)]
)
def test_refuses_nonsense(counts):
    message = "video frames {}, clip frames {} and stride {} must be at least 1"
    message = message.format(*counts)
    with pytest.raises(ValueError, match=message):
        pretrain_indices(*counts, start=0)
    with pytest.raises(ValueError, match=message):
        sample_pretrain(np.random.default_rng(0), *counts)


@pytest.mark.parametrize(
    ("num_video_frames", "start", "last"), [(300, -1, 236), (300, 237, 236), (40, 1, 0)]
)
def test_refuses_a_start_that_does_not_fit(num_video_frames, start, last):
    message = (
        f"16 frames 4 apart cannot start at frame {start} of {num_video_frames}: "
        f"0 to {last} can"
    )
    with pytest.raises(ValueError, match=message):
        pretrain_indices(num_video_frames, 16, 4, start)
