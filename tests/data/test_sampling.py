"""Frames of a clip: the rows of the references, and properties of any video."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.official import GOLDEN
from videomae_jax.data import sampling
from videomae_jax.data.clips import SAMPLERS
from videomae_jax.data.sampling import pretrain_indices, sample_pretrain

GOLDEN_ROWS = json.loads((GOLDEN / "frame_sampling.json").read_text())
ROWS = GOLDEN_ROWS["pretrain"]

counts = {
    "num_video_frames": st.integers(1, 400),
    "num_frames": st.integers(1, 32),
    "stride": st.integers(1, 8),
}
any_video = given(**counts, seed=st.integers(0, 2**32 - 1))
any_test = given(**counts, segments=st.integers(1, 12))
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
def test_short_videos_follow_the_reference_loop(stride):
    for num_video_frames in range(1, 16 * stride):
        frame, walk = 1, []  # the reference counts from 1
        for _ in range(16):
            walk.append(frame - 1)
            frame += stride if frame + stride < num_video_frames else 0
        indices = pretrain_indices(num_video_frames, 16, stride, start=0)
        assert indices.tolist() == walk


@any_video
@quick
def test_starts_at_the_start(num_video_frames, num_frames, stride, seed):
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
def test_sizes_below_one_are_errors(counts):
    names = ("num_video_frames", "num_frames", "stride")
    [message] = [
        f"^{name} must be at least 1, got {count}$"
        for name, count in zip(names, counts, strict=True)
        if count < 1
    ]
    with pytest.raises(ValueError, match=message):
        pretrain_indices(*counts, start=0)
    with pytest.raises(ValueError, match=message):
        sample_pretrain(np.random.default_rng(0), *counts)


@pytest.mark.parametrize(
    ("num_video_frames", "start", "last"), [(300, -1, 236), (300, 237, 236), (40, 1, 0)]
)
def test_a_start_must_fit(num_video_frames, start, last):
    message = (
        f"start={start} must be from 0 to {last} for a clip of 16 frames 4 apart in a "
        f"video of {num_video_frames}"
    )
    with pytest.raises(ValueError, match=message):
        pretrain_indices(num_video_frames, 16, 4, start)


def _golden(name, result):
    """Compares `result(row)` with the indices, or clips, of all rows of that name."""
    rows = GOLDEN_ROWS[name]
    assert rows
    for row in rows:
        actual = result(row)
        assert actual.dtype == np.int64
        assert actual.tolist() == row.get("indices", row.get("clips")), row


def test_dense_matches_reference():
    _golden(
        "finetune_dense_train",
        lambda row: sampling.dense_indices(
            row["num_frames"], 16, row["stride"], row["end"]
        ),
    )
    _golden(
        "dense_validation_center",
        lambda row: sampling.dense_center_indices(row["num_frames"], 16, row["stride"]),
    )


def test_uniform_matches_reference():
    _golden(
        "finetune_uniform_train",
        lambda row: sampling.uniform_indices(
            row["num_frames"], 16, [row["draw_in_each_segment"]] * 16
        ),
    )


def test_test_clips_match_references():
    _golden(
        "dense_test_5x3",
        lambda row: sampling.dense_test_indices(
            row["num_frames"], 16, row["stride"], row["segments"]
        ),
    )
    _golden(
        "uniform_test_2",
        lambda row: sampling.uniform_test_indices(row["num_frames"], 16, row["views"]),
    )
    _golden(
        "mmaction_test_5",
        lambda row: sampling.mmaction_test_indices(
            row["num_frames"], 16, row["stride"], 5
        ),
    )


def _is_a_clip(indices, num_video_frames, num_frames):
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert 0 <= indices.min() and indices.max() < num_video_frames
    assert (np.diff(indices) >= 0).all()


@any_video
@quick
def test_dense_indices_of_any_video(num_video_frames, num_frames, stride, seed):
    rng = np.random.default_rng(seed)
    span = num_frames * stride
    for indices in (
        sampling.sample_dense(rng, num_video_frames, num_frames, stride),
        sampling.dense_center_indices(num_video_frames, num_frames, stride),
    ):
        _is_a_clip(indices, num_video_frames, num_frames)
        if num_video_frames > span:
            assert indices[-1] < num_video_frames - 1
            assert indices[-1] - indices[0] == (span - 1 if num_frames > 1 else 0)
            if num_frames > 2:
                distance = span / (num_frames - 1)
                errors = np.diff(indices)[:-1] - distance
                assert (np.abs(errors) <= 1 + 1e-9).all()
        elif num_video_frames < stride:
            assert (indices == num_video_frames - 1).all()
        else:
            assert indices[0] == 0
            reached = num_video_frames // stride
            assert (indices[reached:] == num_video_frames - 1).all()


@any_video
@quick
def test_central_clips_are_in_the_middle(num_video_frames, num_frames, stride, seed):
    span = num_frames * stride
    exact = sampling.exact_center_indices(num_video_frames, num_frames, stride)
    _is_a_clip(exact, num_video_frames, num_frames)
    if num_video_frames < span:
        assert exact[0] == 0
        return
    assert (np.diff(exact) == stride).all()
    after = num_video_frames - span - exact[0]
    assert after - exact[0] in (0, 1)
    if num_video_frames > span:
        dense = sampling.dense_center_indices(num_video_frames, num_frames, stride)
        assert dense[0] == exact[0]


@pytest.mark.parametrize(
    ("num_video_frames", "starts"), [(300, 236), (66, 2), (65, 1), (64, 1), (40, 1)]
)
def test_every_dense_end_is_drawn(num_video_frames, starts):
    rng = np.random.default_rng(0)
    drawn = {
        int(sampling.sample_dense(rng, num_video_frames, 16, 4)[0])
        for _ in range(20 * starts)
    }
    assert drawn == set(range(starts))


@any_video
@quick
def test_uniform_indices_of_any_video(num_video_frames, num_frames, stride, seed):
    rng = np.random.default_rng(seed)
    indices = sampling.sample_uniform(rng, num_video_frames, num_frames)
    _is_a_clip(indices, num_video_frames, num_frames)
    length = num_video_frames // num_frames
    if length:
        assert (indices // length == np.arange(num_frames)).all()
    else:
        zeros = [0] * (num_frames - num_video_frames)
        assert indices.tolist() == zeros + list(range(num_video_frames))


def test_every_uniform_offset_is_drawn():
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.sample_uniform(rng, 63, 16) for _ in range(100)])
    for segment, frames in enumerate(drawn.T):
        assert set(frames) == {3 * segment + offset for offset in range(3)}
    # Each segment is drawn independently.
    assert len(np.unique(drawn - 3 * np.arange(16), axis=0)) == 100


def test_middles_of_segments():
    middles = sampling.uniform_center_indices
    assert middles(12, 4).tolist() == [1, 4, 7, 10]
    assert middles(18, 4).tolist() == [2, 6, 10, 14]
    assert middles(6, 4).tolist() == [0, 1, 2, 3]
    assert middles(2, 4).tolist() == [0, 0, 0, 1]
    earlier = sampling.sparse_center_indices
    assert earlier(12, 4).tolist() == [1, 4, 7, 10]
    assert earlier(18, 4).tolist() == [1, 5, 9, 13]
    assert earlier(6, 4).tolist() == [0, 1, 2, 3]
    assert earlier(2, 4).tolist() == [0, 0, 0, 1]


@any_video
@quick
def test_sparse_indices_of_any_video(num_video_frames, num_frames, stride, seed):
    rng = np.random.default_rng(seed)
    length = num_video_frames // num_frames
    for indices in (
        sampling.sample_sparse(rng, num_video_frames, num_frames),
        sampling.sparse_center_indices(num_video_frames, num_frames),
        sampling.uniform_center_indices(num_video_frames, num_frames),
    ):
        _is_a_clip(indices, num_video_frames, num_frames)
        if length:
            assert (indices // length == np.arange(num_frames)).all()


def test_every_sparse_offset_but_the_last_is_drawn():
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.sample_sparse(rng, 79, 16) for _ in range(100)])
    for segment, frames in enumerate(drawn.T):
        assert set(frames) == {4 * segment + offset for offset in range(3)}


@any_test
@quick
def test_test_clips_of_any_video(num_video_frames, num_frames, stride, segments):
    dense, uniform, mmaction, first = (
        sampling.dense_test_indices(num_video_frames, num_frames, stride, segments),
        sampling.uniform_test_indices(num_video_frames, num_frames, segments),
        sampling.mmaction_test_indices(num_video_frames, num_frames, stride, segments),
        sampling.first_indices(num_video_frames, num_frames, segments),
    )
    for clips in (dense, uniform, mmaction, first):
        assert clips.shape == (segments, num_frames) and clips.dtype == np.int64
        assert 0 <= clips.min() and clips.max() < num_video_frames
    reach = (num_frames - 1) * stride + 1
    ordered = (dense, uniform, first)
    for clips in ordered + ((mmaction,) if num_video_frames >= reach else ()):
        assert (np.diff(clips, axis=0) >= 0).all()
        assert (np.diff(clips, axis=1) >= 0).all()

    # The video from end to end, or the clip alone in the middle.
    last = (num_video_frames - 1) // stride * stride
    if num_video_frames >= reach:
        assert (np.diff(dense, axis=1) == stride).all()
        assert (np.diff(mmaction, axis=1) == stride).all()
        if segments > 1:
            assert mmaction[0, 0] == 0 and mmaction[-1, -1] == num_video_frames - 1
            # int(c * (spare / (segments - 1))) may be one short of spare.
            assert dense[0, 0] == 0 and last - dense[-1, -1] in (0, stride)
        else:
            assert mmaction[0, 0] == (num_video_frames - reach) // 2
            assert 0 <= last - dense[0, -1] - dense[0, 0] <= stride
    else:
        assert (mmaction == np.arange(num_frames) * stride % num_video_frames).all()
        assert (dense == np.minimum(np.arange(num_frames) * stride, last)).all()


@any_test
@quick
def test_uniform_clips_interleave(num_video_frames, num_frames, stride, segments):
    clips = sampling.uniform_test_indices(num_video_frames, num_frames, segments)
    # The reference takes every `segments`-th of all indices in order.
    order = np.sort(clips.ravel())
    for number, clip in enumerate(clips):
        np.testing.assert_array_equal(clip, order[number::segments])
    # Over all clips, the frames are spread evenly.
    steps = np.diff(order)
    assert steps.max(initial=0) - steps.min(initial=steps.max(initial=0)) <= 1


@pytest.mark.parametrize("num_frames", [8, 16, 32])
@pytest.mark.parametrize("segments", [1, 2, 3, 4, 7])
def test_uniform_clips_by_the_reference_formula(num_frames, segments):
    for num_video_frames in range(1, 200):
        tick = num_video_frames / num_frames
        expected = [
            [int(clip * tick / segments + tick * i) for i in range(num_frames)]
            for clip in range(segments)
        ]
        clips = sampling.uniform_test_indices(num_video_frames, num_frames, segments)
        assert clips.tolist() == expected


@pytest.mark.parametrize("num_video_frames", [5, 16, 17, 61, 300])
def test_frames_of_the_pipeline_of_transformers(num_video_frames):
    """By its formulas: pipelines/video_classification.py, video_utils.py (5.24)."""
    rule = SAMPLERS["transformers"]
    spread = np.arange(16) * num_video_frames // 16
    np.testing.assert_array_equal(rule.validation(num_video_frames, 16, 4), spread)
    np.testing.assert_array_equal(rule.test(num_video_frames, 16, 4, 1), [spread])
    rule = SAMPLERS["transformers_first"]
    first = np.linspace(0, 15, 16, dtype=np.int64).clip(max=num_video_frames - 1)
    np.testing.assert_array_equal(rule.validation(num_video_frames, 16, 4), first)
    np.testing.assert_array_equal(rule.test(num_video_frames, 16, 4, 1), [first])


def test_one_segment_is_in_the_middle():
    assert sampling.dense_test_indices(40, 4, 2, 1).tolist() == [[16, 18, 20, 22]]
    assert sampling.mmaction_test_indices(40, 4, 2, 1).tolist() == [[16, 18, 20, 22]]
    assert sampling.uniform_test_indices(40, 4, 1).tolist() == [[0, 10, 20, 30]]


@pytest.mark.parametrize(
    ("rule", "counts", "name", "wrong"),
    [
        ("dense_center_indices", (0, 16, 4), "num_video_frames", 0),
        ("dense_center_indices", (300, -16, 4), "num_frames", -16),
        ("exact_center_indices", (300, 16, 0), "stride", 0),
        ("uniform_center_indices", (300, 0), "num_frames", 0),
        ("sparse_center_indices", (0, 16), "num_video_frames", 0),
        ("dense_test_indices", (300, 16, 4, 0), "segments", 0),
        ("mmaction_test_indices", (300, 16, 0, 5), "stride", 0),
        ("uniform_test_indices", (0, 16, 2), "num_video_frames", 0),
        ("first_indices", (300, 16, 0), "segments", 0),
    ],
)
def test_sizes_below_one_are_errors_in_every_rule(rule, counts, name, wrong):
    message = f"^{name} must be at least 1, got {wrong}$"
    with pytest.raises(ValueError, match=message):
        getattr(sampling, rule)(*counts)


@pytest.mark.parametrize("counts", [(0, 16, 4), (300, 0, 4), (300, -16, 4)])
def test_sizes_below_one_are_errors_in_draws(counts):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="must be at least 1"):
        sampling.sample_dense(rng, *counts)
    with pytest.raises(ValueError, match="must be at least 1"):
        sampling.sample_uniform(rng, *counts[:2])
    with pytest.raises(ValueError, match="must be at least 1"):
        sampling.sample_sparse(rng, *counts[:2])


@pytest.mark.parametrize("end", [63, 300, None])
def test_an_end_must_fit(end):
    message = f"end={end} must be from 64 to 299 for a clip that spans 64 of 300 frames"
    with pytest.raises(ValueError, match=message):
        sampling.dense_indices(300, 16, 4, end)


def test_a_short_video_has_no_end():
    with pytest.raises(ValueError, match="end=63 must be None: a video of 64 frames"):
        sampling.dense_indices(64, 16, 4, 63)


@pytest.mark.parametrize(
    "offsets", [None, 0, [0] * 3, [0, 0, 0, 3], [0, 0, 0, -1], [0.0, 0.5, 1.0, 2.0]]
)
def test_offsets_must_fit(offsets):
    with pytest.raises(ValueError, match="must be 4 integers from 0 to 2, got"):
        sampling.uniform_indices(12, 4, offsets)


def test_a_short_video_has_no_offsets():
    with pytest.raises(ValueError, match="None: a video of 3 frames has .* of 4"):
        sampling.uniform_indices(3, 4, [0] * 4)
