"""Crops and flips: where they may lie, and the pixels they give."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from videomae_jax.data import augmentation
from videomae_jax.errors import VideoError
from videomae_jax.models.sizes import Framing

SCALES = (1, 0.875, 0.75, 0.66)

quick = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def noise(height, width, num_frames=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(num_frames, height, width, 3), dtype=np.uint8)


def cut_out(frame, box, height, width):
    """The definition: between neighbours; Pillow's means below half the size."""
    top, left, crop_height, crop_width = box
    frame = frame[top : top + crop_height, left : left + crop_width]
    if crop_height > 2 * height or crop_width > 2 * width:
        image = Image.fromarray(np.ascontiguousarray(frame))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    rows = weights(crop_height, height)
    columns = weights(crop_width, width)
    return np.einsum("rh,cw,hwk->rck", rows, columns, frame)


def weights(size, new_size):
    """The matrix [new_size, size] that resizes an axis linearly."""
    places = ((np.arange(new_size) + 0.5) * size / new_size - 0.5).clip(0, size - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


def assert_alike(result, expected):
    """Checks that bytes are equal up to rounding."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=1)


@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [
        (256, 340, [256, 224, 192, 168]),
        (340, 256, [256, 224, 192, 168]),
        (258, 340, [258, 224, 193, 170]),  # int(.875 * 258) = 225 snaps
        (340, 254, [254, 224, 190, 167]),  # 222 snaps
        (120, 160, [120, 105, 90, 79]),
    ],
)
def test_boxes_are_all_pairs_at_all_anchors_equally_often(height, width, sides):
    a, b, c, d = sides
    pairs = [(a, a), (a, b), (b, a), (b, b), (b, c), (c, b), (c, c)]
    pairs += [(c, d), (d, c), (d, d)]
    # The 13 anchors of a 5 x 5 grid: where both coordinates are even, or both odd.
    anchors = [(r, c) for r in range(5) for c in range(5) if r % 2 == c % 2]
    assert len(set(pairs)) == 10 and len(anchors) == 13
    expected = collections.Counter(
        ((height - h) // 4 * row, (width - w) // 4 * column, h, w)
        for h, w in pairs
        for row, column in anchors
    )

    rng = np.random.default_rng(0)
    drawn = collections.Counter(
        augmentation.multi_scale_box(rng, height, width, size=224, scales=SCALES)
        for _ in range(100 * 130)
    )
    assert drawn.keys() == expected.keys()
    for box, ways in expected.items():  # boxes coincide where no room is left
        assert abs(drawn[box] - 100 * ways) < 6 * (100 * ways) ** 0.5


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    size=st.integers(1, 300),
    scales=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    seed=seeds,
)
@quick
def test_boxes_lie_within_any_frame(height, width, size, scales, seed):
    for h, w in [(height, width), (height, 1), (1, width), (size - 1 or 1, width)]:
        rng = np.random.default_rng(seed)
        box = augmentation.multi_scale_box(rng, h, w, size=size, scales=tuple(scales))
        top, left, crop_height, crop_width = box
        assert crop_height >= 1 and 0 <= top <= top + crop_height <= h
        assert crop_width >= 1 and 0 <= left <= left + crop_width <= w


@pytest.mark.parametrize(
    ("short", "scale", "side"),
    [
        *((227, 1, 227), (226, 1, 224), (225, 1, 224), (224, 1, 224)),
        *((223, 1, 223), (222, 1, 222)),  # never beyond the frame
        *((253, 0.875, 221), (254, 0.875, 224), (259, 0.875, 224)),
        *((260, 0.875, 227), (1, 0.66, 1)),
    ],
)
def test_sides_near_the_output_size_snap_to_it(short, scale, side):
    rng = np.random.default_rng(0)
    for frame in [(short, 300), (300, short)]:
        box = augmentation.multi_scale_box(rng, *frame, size=224, scales=(scale,))
        assert box[2:] == (side, side)


@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), seed=seeds)
@quick
def test_crop_and_resize_is_pillows(data, height, width, seed):
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    crop_height = data.draw(st.integers(1, height - top))
    crop_width = data.draw(st.integers(1, width - left))
    out = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))

    box = (top, left, crop_height, crop_width)
    clip = noise(height, width, num_frames=3, seed=seed)
    result = augmentation.crop_and_resize(clip, box, *out)
    assert result.shape == (3, *out, 3) and result.dtype == np.uint8
    expected = np.stack([cut_out(frame, box, *out) for frame in clip])
    assert_alike(result, expected)


def test_a_box_of_the_output_size_is_not_resampled():
    clip = noise(20, 30)
    for box in [(0, 0, 20, 30), (2, 3, 10, 12)]:
        result = augmentation.crop_and_resize(clip, box, *box[2:])
        assert np.shares_memory(result, clip)


@pytest.mark.parametrize(
    "box",
    [
        *((-1, 0, 4, 4), (0, -1, 4, 4), (17, 0, 4, 4), (0, 27, 4, 4)),
        *((0, 0, 21, 30), (20, 0, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0), (-20, 0, 4, 4)),
    ],
)
def test_a_box_beyond_the_frame_is_an_error(box):
    with pytest.raises(ValueError, match="must be within frames of 20 x 30"):
        augmentation.crop_and_resize(noise(20, 30), box, 4, 4)


@pytest.mark.parametrize("scales", [(), (0,), (1, -0.5), (1.2, 1), (float("nan"),)])
def test_scales_beyond_the_frame_are_errors(scales):
    with pytest.raises(ValueError, match="scales must be above 0 and at most 1, got"):
        rng = np.random.default_rng(0)
        augmentation.multi_scale_box(rng, 20, 30, size=16, scales=scales)


def test_crop_and_resize_reads_a_view():
    clip = noise(20, 30)
    flipped = clip[:, :, ::-1]
    box = (2, 3, 10, 12)
    np.testing.assert_array_equal(
        augmentation.crop_and_resize(flipped, box, 8, 8),
        augmentation.crop_and_resize(flipped.copy(), box, 8, 8),
    )


@pytest.mark.parametrize("box", [(2, 3, 10, 12), (2, 3, 8, 8), (0, 0, 20, 30)])
def test_crop_and_resize_into_an_array(box):
    clip = noise(20, 30)
    out = np.zeros((2, 8, 8, 3), np.uint8)
    assert augmentation.crop_and_resize(clip, box, 8, 8, out=out) is out
    np.testing.assert_array_equal(out, augmentation.crop_and_resize(clip, box, 8, 8))


def test_hull_holds_all_boxes():
    boxes = [(3, 4, 10, 20), (5, 2, 30, 6), (4, 9, 1, 1)]
    assert augmentation.hull(boxes) == (3, 2, 32, 22)
    assert augmentation.hull(boxes[:1]) == boxes[0]


@pytest.mark.parametrize(
    ("height", "width", "size", "scaled", "corner"),
    [
        (48, 64, 32, (32, 42), (0, 5)),
        (64, 48, 32, (42, 32), (5, 0)),
        (37, 100, 32, (32, 86), (0, 27)),
        (32, 33, 32, (32, 33), (0, 0)),  # half a pixel goes to the even side
        (35, 32, 32, (35, 32), (2, 0)),
        (20, 31, 32, (32, 49), (0, 8)),
        (32, 32, 32, (32, 32), (0, 0)),
        (1, 3, 8, (8, 24), (0, 8)),
    ],
)
def test_center_crop(height, width, size, scaled, corner):
    clip = noise(height, width)
    top, left = corner
    frames = np.stack([cut_out(x, (0, 0, height, width), *scaled) for x in clip])
    expected = frames[:, top : top + size, left : left + size]
    assert_alike(augmentation.spatial_crops(clip, size, 1)[0], expected)


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 24))
@quick
def test_center_crop_of_any_size(height, width, size):
    result = augmentation.spatial_crops(noise(height, width, num_frames=1), size, 1)[0]
    assert result.shape == (1, size, size, 3) and result.dtype == np.uint8


@pytest.mark.parametrize(
    ("frame", "size", "scaled", "corner"),
    [
        ((48, 64), (24, 40), (30, 40), (3, 0)),  # taller than the size
        ((48, 96), (24, 40), (24, 48), (0, 4)),
        ((48, 80), (24, 40), (24, 40), (0, 0)),
        ((64, 48), (40, 24), (40, 30), (0, 3)),
        ((10, 100), (16, 8), (16, 160), (0, 76)),
    ],
)
def test_crops_of_other_shapes_cover_them_tightly(frame, size, scaled, corner):
    clip = noise(*frame)
    whole = augmentation.crop_and_resize(clip, (0, 0, *frame), *scaled)
    (top, left), (height, width) = corner, size
    expected = whole[:, top : top + height, left : left + width]
    [result] = augmentation.spatial_crops(clip, size, 1)
    np.testing.assert_array_equal(result, expected)
    # Several crops go from end to end of what is left over.
    crops = augmentation.spatial_crops(clip, size, 3)
    np.testing.assert_array_equal(crops[0], whole[:, :height, :width])
    np.testing.assert_array_equal(crops[2], whole[:, -height:, -width:])


def pillow(clip, height, width, filter):
    images = [Image.fromarray(frame).resize((width, height), filter) for frame in clip]
    return np.stack([np.asarray(image) for image in images])


def test_framing_by_the_rules_of_transformers():
    """Their equality with its processors is tested in tests/interop."""
    clip = noise(45, 80)
    filters = Image.Resampling

    def crops(count=1, size=(32, 32), **framing):
        return augmentation.spatial_crops(clip, size, count, Framing(**framing))

    squashed = crops(resize=(32, 32), crop=False, interpolation="bilinear")
    expected = pillow(clip, 32, 32, filters.BILINEAR)
    np.testing.assert_array_equal(squashed, [expected])
    # The shorter side to 37, the other 65.8 rounded down; corners 2.5 and 16.5 too.
    large = crops(resize=37, interpolation="bicubic")
    whole = pillow(clip, 37, 65, filters.BICUBIC)
    np.testing.assert_array_equal(large, [whole[:, 2:34, 16:48]])
    # Several crops go along the side with more room, and are central on the other.
    several = crops(3, resize=37, interpolation="bicubic")
    for crop, left in zip(several, (0, 16, 33), strict=True):
        np.testing.assert_array_equal(crop, whole[:, 2:34, left : left + 32])
    unscaled = crops(resize=None, size=(32, 64))
    np.testing.assert_array_equal(unscaled, [clip[:, 6:38, 8:72]])
    # Black around smaller frames.
    padded = crops(resize=None, size=(64, 96))[0]
    np.testing.assert_array_equal(padded[:, 9:54, 8:88], clip)
    assert padded.sum() == clip.sum()


def test_any_channels_are_resized():
    clip = noise(20, 30)
    for channels in (1, 2, 4):
        many = np.concatenate([clip, clip], -1)[..., :channels]
        small = augmentation.resize(many, (8, 9), "lanczos")
        expected = np.asarray(pillow(clip, 8, 9, Image.Resampling.LANCZOS))
        expected = np.concatenate([expected, expected], -1)[..., :channels]
        np.testing.assert_array_equal(small, expected)


@pytest.mark.parametrize("resize", [None, 32])
def test_frames_that_are_neither_cut_nor_of_the_size_are_refused(resize):
    framing = Framing(resize, crop=False)
    square = augmentation.spatial_crops(noise(32, 32), 32, 1, framing)
    assert square.shape == (1, 2, 32, 32, 3)
    with pytest.raises(VideoError, match="must have 32 x 32 pixels.*does not cut"):
        augmentation.spatial_crops(noise(32, 40), 32, 1, framing)


@pytest.mark.parametrize(
    "wrong", [{"resize": "squash"}, {"resize": 0}, {"resize": (1, 2, 3)}]
)
def test_framing_is_checked(wrong):
    with pytest.raises(ValueError, match="resize=.* must be a whole number"):
        Framing(**wrong)
    with pytest.raises(ValueError, match="interpolation='area' must be one of: opencv"):
        Framing(interpolation="area")


def test_random_crops_have_the_shape_of_the_output():
    clip = noise(90, 120)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        box = augmentation.multi_scale_box(rng, 90, 120, size=(32, 64), scales=(0.5,))
        # Half of the largest box of this shape, 60 x 120; 30 snaps to 32.
        assert box[2:] == (32, 60)
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        options = {"area": (0.2, 0.4)}
        box = augmentation.random_resized_box(
            rngs[0], 90, 120, aspect=(2, 2), **options
        )
        assert box[3] / box[2] == pytest.approx(2, rel=0.05)
        crop = augmentation.random_resized_crop(
            rngs[1], clip, (32, 64), aspect=(1, 1), **options
        )
        expected = augmentation.crop_and_resize(clip, box, 32, 64)
        np.testing.assert_array_equal(crop, expected)


def test_flip_mirrors_columns_only():
    clip = noise(5, 7)
    rng = np.random.default_rng(0)
    mirrored = augmentation.horizontal_flip(rng, clip, 1)
    for column in range(7):
        np.testing.assert_array_equal(mirrored[:, :, column], clip[:, :, 6 - column])
    np.testing.assert_array_equal(augmentation.horizontal_flip(rng, clip, 0), clip)


@pytest.mark.parametrize("probability", [0.5, 0.1])
def test_flip_has_its_probability(probability):
    clip = noise(1, 2, num_frames=1)
    rng = np.random.default_rng(0)
    results = [
        augmentation.horizontal_flip(rng, clip, probability) for _ in range(2000)
    ]
    flipped = np.mean([not np.array_equal(result, clip) for result in results])
    assert abs(flipped - probability) < 0.05


DRAWS = {
    "box": lambda rng, clip: augmentation.multi_scale_box(rng, 40, 60, size=32),
    "flip": augmentation.horizontal_flip,
    "resized box": lambda rng, clip: augmentation.random_resized_box(rng, 40, 60),
    "resized crop": lambda rng, clip: augmentation.random_resized_crop(rng, clip, 32),
    "erasing": augmentation.random_erasing,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_depends_on_the_rng_alone(draw):
    clip = noise(40, 60)
    original = clip.copy()
    first, again = (
        [np.array(draw(np.random.default_rng(seed), clip)) for seed in range(20)]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert any((first[0] != result).any() for result in first)
    np.testing.assert_array_equal(clip, original)


RNG = np.random.default_rng(0)
CALLS = {
    "crop_and_resize": lambda c: augmentation.crop_and_resize(c, (0, 0, 4, 4), 4, 4),
    "spatial_crops": lambda c: augmentation.spatial_crops(c, 4, 1),
    "horizontal_flip": lambda c: augmentation.horizontal_flip(RNG, c),
    "random_resized_crop": lambda c: augmentation.random_resized_crop(RNG, c, 4),
    "random_erasing": lambda c: augmentation.random_erasing(RNG, c, 0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (np.float32, (2, 8, 8, 3)),
        (np.int64, (2, 8, 8, 3)),
        (np.uint8, (8, 8, 3)),
        (np.uint8, (2, 0, 8, 3)),
        (np.uint8, (2, 8, 0, 3)),
        (np.uint8, (0, 8, 8, 3)),
        (np.uint8, (1, 2, 8, 8, 3)),
    ],
)
def test_other_arrays_are_errors(call, dtype, shape):
    with pytest.raises(
        ValueError, match=r"a clip must be uint8 \[time, .*, got"
    ) as error:
        call(np.zeros(shape, dtype))
    assert str(error.value).endswith(f"got {np.dtype(dtype)} {shape}")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(4, 12), (20, 28)])
def test_channels_are_treated_alike(channels, dtype, size):
    """Every channel becomes what it would alone: averaged, enlarged and mirrored."""
    most = np.iinfo(dtype).max
    clip = (
        np.random.default_rng(0).integers(0, most, (2, 15, 30, channels)).astype(dtype)
    )

    def apply(clip):
        crop = augmentation.crop_and_resize(clip, (1, 2, 14, 28), *size)
        cubic = augmentation.resize(clip, size, "bicubic")
        return [crop, cubic, augmentation.horizontal_flip(RNG, crop, 1)]

    for result, *alone in zip(
        apply(clip), *(apply(clip[..., [i]]) for i in range(channels)), strict=True
    ):
        assert result.dtype == dtype and result.shape == (2, *size, channels)
        expected = np.concatenate(alone, axis=-1)
        # OpenCV rounds a little differently in vectors of several channels.
        np.testing.assert_allclose(result, expected, atol=1)
