"""Random resized crops and erased boxes: where they lie, and what they hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_augmentation import assert_alike, cut_out, noise, quick, seeds
from videomae_jax.data import augmentation


def within(low, high):
    return st.tuples(*2 * [st.floats(low, high)]).map(sorted).map(tuple)


sides = st.integers(1, 100)
areas, aspects = within(0.01, 1), within(0.5, 2)


def assert_resized_box(sides, pixels, area, aspect):
    """Area and first over second side are in range, up to the rounding of both."""
    first, second = sides
    assert (first + 0.5) * (second + 0.5) >= area[0] * pixels
    assert (first - 0.5) * (second - 0.5) <= area[1] * pixels
    assert (first + 0.5) / (second - 0.5) >= aspect[0]
    assert (first - 0.5) / (second + 0.5) <= aspect[1]


def always_fits(height, width, area):
    """Returns whether every box has pixels, and the longest side has one to spare."""
    pixels, short = height * width, min(height, width)
    return area[0] * pixels >= 2 and (2 * area[1] * pixels) ** 0.5 < short - 1


@given(height=sides, width=sides, area=areas, aspect=aspects, seed=seeds)
@quick
def test_resized_boxes_lie_within_any_frame(height, width, area, aspect, seed):
    rng = np.random.default_rng(seed)
    top, left, h, w = augmentation.random_resized_box(
        rng, height, width, area=area, aspect=aspect
    )
    assert h >= 1 and 0 <= top <= top + h <= height
    assert w >= 1 and 0 <= left <= left + w <= width
    area = area if always_fits(height, width, area) else (0, 1)
    assert_resized_box((w, h), height * width, area, aspect)


def assert_uniform(values, low, high):
    """Does a Kolmogorov-Smirnov test, which fails once in a thousand times."""
    ranks = np.arange(len(values)) / len(values)
    gaps = np.abs((np.sort(values) - low) / (high - low) - ranks)
    assert gaps.max() < 1.95 / len(values) ** 0.5


@pytest.mark.parametrize("frame", [(2000, 3000), (3000, 2000)])
def test_resized_boxes_have_uniform_areas_log_aspects_and_positions(frame):
    rng = np.random.default_rng(0)
    area, aspect = (0.08, 0.3), (3 / 4, 3 / 2)  # always fits
    boxes = [
        augmentation.random_resized_box(rng, *frame, area=area, aspect=aspect)
        for _ in range(2000)
    ]
    top, left, height, width = np.array(boxes).T
    assert_uniform(height * width / 6e6, *area)
    assert_uniform(np.log(width / height), *np.log(aspect))
    assert abs(np.corrcoef(height * width, np.log(width / height))[0, 1]) < 0.08
    assert_uniform(top / (frame[0] - height), 0, 1)
    assert_uniform(left / (frame[1] - width), 0, 1)


def test_resized_boxes_reach_every_position():
    rng = np.random.default_rng(0)
    boxes = {
        augmentation.random_resized_box(
            rng, 5, 7, area=(16 / 35, 16 / 35), aspect=(1, 1)
        )
        for _ in range(300)
    }
    assert boxes == {(top, left, 4, 4) for top in range(2) for left in range(4)}


@pytest.mark.parametrize(
    ("frame", "area", "box"),
    [
        ((30, 100), 1, (0, 30, 30, 40)),  # too wide: 4 / 3
        ((100, 30), 1, (30, 0, 40, 30)),  # too tall: 3 / 4
        ((1, 9), 1, (0, 4, 1, 1)),
        ((5, 6), 0.001, (0, 0, 5, 6)),  # less than half a pixel high or wide
    ],
)
def test_without_a_fit_the_largest_central_box_is_used(frame, area, box):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        options = {"area": (area, area), "aspect": (3 / 4, 4 / 3)}
        assert augmentation.random_resized_box(rng, *frame, **options) == box


@pytest.mark.parametrize("seed", range(10))
def test_random_resized_crop_is_the_same_for_every_frame(seed):
    clip = noise(40, 60, num_frames=4)
    options = {"area": (0.2, 0.9), "aspect": (0.6, 1.8)}
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    box = augmentation.random_resized_box(rngs[0], 40, 60, **options)
    result = augmentation.random_resized_crop(rngs[1], clip, 32, **options)
    expected = np.stack([cut_out(frame, box, 32, 32) for frame in clip])
    assert_alike(result, expected)


def erase(seed, height, width, probability=0.25, num_frames=3, **options):
    """Erases a box from a black clip.

    Returns the clip and (top, left, height, width) of the box, found by erasing it
    from a white clip too, or None.
    """
    black = np.zeros((num_frames, height, width, 3), np.uint8)
    white = np.full_like(black, 255)
    erased, other = (
        augmentation.random_erasing(
            np.random.default_rng(seed), clip, probability, **options
        )
        for clip in (black, white)
    )
    assert erased.dtype == np.uint8 and erased.shape == black.shape
    assert not black.any() and (white == 255).all()
    inside = erased == other
    assert not erased[~inside].any() and (other[~inside] == 255).all()
    if not inside.any():
        return erased, None
    top, bottom = np.flatnonzero(inside.any((0, 2, 3)))[[0, -1]]
    left, right = np.flatnonzero(inside.any((0, 1, 3)))[[0, -1]]
    box = top, left, bottom - top + 1, right - left + 1
    assert inside[:, top : bottom + 1, left : right + 1].all()
    assert inside.sum() == num_frames * box[2] * box[3] * 3
    return erased, box


@given(height=sides, width=sides, area=areas, aspect=aspects, seed=seeds)
@quick
def test_one_box_is_erased_from_all_frames(height, width, area, aspect, seed):
    _, box = erase(seed, height, width, 1, area=area, aspect=aspect)
    assert box or not always_fits(height, width, area)
    if box:
        assert box[2] < height and box[3] < width
        assert_resized_box(box[2:], height * width, area, aspect)


def test_erased_boxes_have_uniform_areas_log_aspects_and_positions():
    boxes = [erase(seed, 90, 120, 1, num_frames=1)[1] for seed in range(1000)]
    top, left, height, width = np.array(boxes).T
    share = height * width / 10800
    # Larger and oblong boxes do not fit, which leaves only the others uniform.
    small = share < 0.3 * 90**2 / 10800
    assert 0.018 < share.min() and 0.3 < share.max() < 0.34
    assert_uniform(share[small], 0.02, 0.3 * 90**2 / 10800)
    assert_uniform(np.log(height / width)[small], *np.log((0.3, 10 / 3)))
    assert_uniform((top + 0.5) / (90 - height + 1), 0, 1)
    assert_uniform((left + 0.5) / (120 - width + 1), 0, 1)


def test_erasing_fills_with_what_the_model_sees_as_normal_noise():
    erased, box = erase(0, 200, 200, 1, num_frames=16, area=(0.9, 0.9), aspect=(1, 1))
    top, left, height, width = box
    filled = erased[:, top : top + height, left : left + width]
    assert filled.size > 1_700_000  # enough to tell rounding from truncation
    channels = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]  # of ImageNet
    for channel, (mean, std) in enumerate(channels):
        values = filled[..., channel].ravel()
        drawn = np.cumsum(np.bincount(values, minlength=256)) / values.size
        # Byte k holds the values that round to k, 255 also those above.
        ends = [((k + 0.5) / 255 - mean) / std for k in range(255)]
        expected = [(1 + math.erf(end / 2**0.5)) / 2 for end in ends]
        assert np.abs(drawn[:255] - expected).max() < 1.95 / values.size**0.5
    # Neighbours in time, space and colour are independent.
    centred = filled - filled.mean((0, 1, 2))
    for axis in range(4):
        pairs = np.moveaxis(centred, axis, 0)
        ahead, behind = pairs[1:].ravel(), pairs[:-1].ravel()
        assert abs(np.corrcoef(ahead, behind)[0, 1]) < 0.005


def test_tries_ten_and_a_hundred_times():
    rng, clip = np.random.default_rng(0), noise(100, 200, num_frames=1)
    # Half of the frame fits at width over height of 1 to 4, a tenth of these aspects,
    boxes = [
        augmentation.random_resized_box(
            rng, 100, 200, area=(0.5, 0.5), aspect=(1, 4**10)
        )
        for _ in range(2000)
    ]
    whole = np.mean([box == (0, 0, 100, 200) for box in boxes])
    assert abs(whole - 0.9**10) < 0.025
    # and a hundredth of these.
    results = [
        augmentation.random_erasing(rng, clip, 1, area=(0.5, 0.5), aspect=(4**-100, 1))
        for _ in range(500)
    ]
    assert abs(np.mean([x is clip for x in results]) - 0.99**100) < 0.08


@pytest.mark.parametrize("probability", [0, 0.25, 0.8, 1])
def test_erasing_has_its_probability(probability):
    clip, rng = noise(12, 12), np.random.default_rng(0)
    results = [augmentation.random_erasing(rng, clip, probability) for _ in range(2000)]
    share = np.mean([result is not clip for result in results])
    assert abs(share - probability) <= 0.2 * probability * (1 - probability)
    np.testing.assert_array_equal(clip, noise(12, 12))
    for clip in (noise(1, 30), noise(9, 1)):  # a box would fill a side
        assert augmentation.random_erasing(rng, clip, probability) is clip


@pytest.mark.parametrize("call", ["random_resized_crop", "random_erasing"])
@pytest.mark.parametrize(
    ("area", "aspect"),
    [
        *(((0, 1), (1, 1)), ((0.5, 0.4), (1, 1)), ((0.5, 1.1), (1, 1))),
        *(((-0.1, 0.2), (1, 1)), ((float("nan"), 1), (1, 1))),
        *(((0.1, 0.2), (0, 1)), ((0.1, 0.2), (2, 1)), ((0.1, 0.2), (-2, -1))),
        *(((0.1, 0.2), (1, float("inf"))), ((0.1, 0.2), (1, float("nan")))),
    ],
)
def test_impossible_ranges_are_errors(call, area, aspect):
    arguments = (np.random.default_rng(0), noise(20, 30), 1)
    with pytest.raises(ValueError, match="areas must be above 0 and") as error:
        getattr(augmentation, call)(*arguments, area=area, aspect=aspect)
    assert f"of area={area} and aspect={aspect}: " in str(error.value)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_impossible_probabilities_are_errors(probability):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"={probability} of erasing must be in"):
        augmentation.random_erasing(rng, noise(20, 30), probability)


def test_noise_has_the_statistics_of_each_channel():
    clip = np.zeros((8, 64, 64, 2), np.uint16)
    erased = augmentation.random_erasing(
        np.random.default_rng(0), clip, 1, mean=(0.25, 0.5), std=(0.01, 0.05)
    )
    noise = erased[:, erased.any(axis=(0, 2, 3))][:, :, erased.any(axis=(0, 1, 3))]
    assert erased.dtype == np.uint16
    np.testing.assert_allclose(
        noise.mean(axis=(0, 1, 2)) / 65535, (0.25, 0.5), atol=2e-3
    )
    np.testing.assert_allclose(
        noise.std(axis=(0, 1, 2)) / 65535, (0.01, 0.05), rtol=0.1
    )
