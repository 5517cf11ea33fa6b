"""RandAugment: operations equal Pillow's, and draws have the right distribution."""

import collections
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from tests.helpers.videos import moving_noise, write_video
from videomae_jax.data import randaugment
from videomae_jax.data.randaugment import RandAugment
from videomae_jax.errors import ConfigError
from videomae_jax.video.decoder import Video

HEIGHT, WIDTH = 48, 64
NAMES = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"),
    *("SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two frames of a video, and two smooth ones of different ranges."""
    path = tmp_path_factory.mktemp("videos") / "noise.mp4"
    write_video(path, moving_noise(6, HEIGHT, WIDTH))
    with Video(path) as video:
        decoded = video.read([1, 4])
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([40 + 2 * x, 30 + 3 * y, 120 + 50 * np.sin(x / 9 + y / 7)], -1)
    smooth = np.stack([smooth, 90 + smooth / 2]).astype(np.uint8)
    return {"decoded": decoded, "smooth": smooth}


def transformed(*matrix):
    return lambda frame: Image.fromarray(frame).transform(
        frame.shape[1::-1],
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=(128, 128, 128),
    )


def enhanced(kind, factor):
    return lambda frame: kind(Image.fromarray(frame)).enhance(factor)


def expected(clip, name, level, sign, increasing):
    """Applies an operation to each frame with Pillow or NumPy, independently.

    Geometry, blends and what depends on a frame's statistics are Pillow's; the others
    are formulas on bytes.
    """
    height, width = clip.shape[1:3]
    share = level / 10
    factor = max(0.1, 1 + sign * 0.9 * share) if increasing else share * 1.8 + 0.1
    shear, shift = sign * 0.3 * share, sign * 0.45 * share
    bits, threshold = int(share * 4), int(256 * share)
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
    kept = [0, 128, 192, 224, 240][bits]  # 0 bits: black
    brighter = int(110 * share)
    operation = {
        "AutoContrast": lambda f: ImageOps.autocontrast(Image.fromarray(f)),
        "Equalize": lambda f: ImageOps.equalize(Image.fromarray(f)),
        "Invert": lambda f: 255 - f,
        "Rotate": lambda f: Image.fromarray(f).rotate(
            sign * 30 * share,
            resample=Image.Resampling.BICUBIC,
            fillcolor=(128, 128, 128),
        ),
        "Posterize": lambda f: f & kept,
        "Solarize": lambda f: np.where(f < threshold, f, 255 - f),
        "SolarizeAdd": lambda f: np.where(
            f < 128, np.minimum(f.astype(int) + brighter, 255), f
        ),
        "Color": enhanced(ImageEnhance.Color, factor),
        "Contrast": enhanced(ImageEnhance.Contrast, factor),
        "Brightness": enhanced(ImageEnhance.Brightness, factor),
        "Sharpness": enhanced(ImageEnhance.Sharpness, factor),
        "ShearX": transformed(1, shear, 0, 0, 1, 0),
        "ShearY": transformed(1, 0, 0, shear, 1, 0),
        "TranslateXRel": transformed(1, 0, shift * width, 0, 1, 0),
        "TranslateYRel": transformed(1, 0, 0, 0, 1, shift * height),
    }[name]
    return np.stack([np.asarray(operation(np.ascontiguousarray(f))) for f in clip])


# How far values may be from Pillow's. Single precision can take a sum to the other side
# of a whole number, where it is truncated, and OpenCV's luma is at times off by 1.
# OpenCV's cubic differs most where pixels are black and white at random: by up to 34,
# and by 23 where they are of any value.
TOLERANCE = dict.fromkeys(NAMES, 0)
TOLERANCE |= dict.fromkeys(["Color", "Contrast", "Sharpness", "ShearX", "ShearY"], 1)
TOLERANCE |= {"TranslateXRel": 1, "TranslateYRel": 1, "Rotate": 48}


def assert_alike(name, result, reference):
    assert result.dtype == np.uint8 and result.shape == reference.shape
    np.testing.assert_allclose(
        result.astype(int), reference, rtol=0, atol=TOLERANCE[name]
    )


def one(name, level, sign=1, increasing=True):
    return [(name, randaugment.strength(name, level, sign, increasing))]


@pytest.mark.parametrize("clip", ["decoded", "smooth"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 1, 3.3, 6, 7, 7.6, 10])
def test_is_pillows_on_every_frame(clips, clip, name, level):
    smooth, clip = clip == "smooth", clips[clip]
    original = clip.copy()
    for sign, increasing in itertools.product((1, -1), (True, False)):
        result = randaugment.apply(clip, one(name, level, sign, increasing))
        reference = expected(clip, name, level, sign, increasing)
        assert_alike(name, result, reference)
        if name != "Rotate":
            assert (result == reference).mean() > 0.99
        elif smooth:  # positions and values are rounded, not truncated
            np.testing.assert_allclose(result.astype(int), reference, rtol=0, atol=2)
    np.testing.assert_array_equal(clip, original)


@pytest.mark.parametrize("name", NAMES)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 35), st.integers(1, 35)),
    view=st.sampled_from(["whole", "mirrored", "part", "transposed", "backwards"]),
    values=st.sampled_from([256, 9, 2, 1]),
    level=st.floats(0, 10),
    sign=st.sampled_from([1, -1]),
    increasing=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_is_pillows_for_any_size_view_and_strength(
    name, shape, view, values, level, sign, increasing, seed
):
    frames, height, width = shape
    rng = np.random.default_rng(seed)
    memory = rng.integers(values, size=(frames, height + 2, width + 3, 3))
    memory = (memory + rng.integers(257 - values)).astype(np.uint8)
    clip = {
        "whole": memory,
        "mirrored": memory[:, :, ::-1],
        "part": memory[:, 1:-1, 2:-1],
        "transposed": memory.swapaxes(1, 2),
        "backwards": memory[::-1, ::-1, ::2, ::-1],
    }[view]
    before = memory.copy()
    # No round numbers: they put pixels on the very edge of a frame, where the last bit
    # of a sum decides which are grey.
    level *= 0.9999
    result = randaugment.apply(clip, one(name, level, sign, increasing))
    assert_alike(name, result, expected(clip, name, level, sign, increasing))
    assert not np.shares_memory(result, memory)
    np.testing.assert_array_equal(memory, before)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    degrees=st.floats(-29.9, 29.9),  # at 30, pixels lie on the very edge
    slope=st.tuples(st.integers(-8, 8), st.integers(-8, 8)),
)
@settings(deadline=None, max_examples=100)
def test_rotates_to_the_place_that_pillow_does(height, width, degrees, slope):
    # On a slope of 8 a pixel, a quarter of a pixel is 2.
    y, x = np.mgrid[:height, :width]
    ramp = 128 + slope[0] * (y - height // 2) + slope[1] * (x - width // 2)
    clip = np.stack([ramp.clip(0, 255).astype(np.uint8)] * 3, -1)[None]
    result = randaugment.apply(clip, [("Rotate", degrees)])
    reference = expected(clip, "Rotate", abs(degrees) / 3, np.sign(degrees), True)
    np.testing.assert_allclose(result.astype(int), reference, rtol=0, atol=2)


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY"])
@pytest.mark.parametrize("level", [0.5, 4, 7, 9.3])
def test_grey_begins_at_the_same_pixel_as_pillows(name, level):
    for sign in (1, -1):
        for height, width in [(57, 80), (80, 57), (64, 64)]:
            white = np.full((1, height, width, 3), 255, np.uint8)
            result = randaugment.apply(white, one(name, level, sign))
            reference = expected(white, name, level, sign, True)
            assert {*np.unique(reference)} == {128, 255}
            np.testing.assert_array_equal(result, reference)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_posterize_is_pillows_where_it_keeps_anything(clips, bits):
    clip = clips["decoded"]
    reference = [ImageOps.posterize(Image.fromarray(frame), bits) for frame in clip]
    result = randaugment.apply(clip, [("Posterize", bits)])
    np.testing.assert_array_equal(result, np.stack([np.asarray(x) for x in reference]))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
def test_statistics_are_of_each_frame(clips, name):
    clip = clips["smooth"]
    alone = [randaugment.apply(clip[[i]], one(name, 7)) for i in range(2)]
    result = randaugment.apply(clip, one(name, 7))
    np.testing.assert_array_equal(result, np.concatenate(alone))
    assert (result != clip).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    "name", sorted({*NAMES} - {"AutoContrast", "Equalize", "Invert"})
)
@pytest.mark.parametrize("sign", [1, -1])
def test_increasing_operations_change_more_at_higher_levels(clips, name, sign):
    # Smooth frames are sharp already; on noise, a small shift changes all it can.
    clip = clips["decoded" if name == "Sharpness" else "smooth"]
    levels = (0, 4, 10)
    results = [randaugment.apply(clip, one(name, level, sign)) for level in levels]
    none, some, more = (np.abs(result - clip.astype(int)).sum() for result in results)
    if name == "Posterize":  # keeps 4 bits at most
        assert 0 < none < some < more and not results[2].any()
    elif name == "Solarize":  # at the highest level all is inverted
        assert none == 0 < some and (results[2] == 255 - clip).all()
    else:
        assert none == 0 < some < more


def test_directions(clips):
    clip, grey = clips["decoded"], np.array([128, 128, 128])
    # By whole pixels, a quarter of the width and of the height.
    right = randaugment.apply(clip, [("TranslateXRel", -0.25)])
    np.testing.assert_array_equal(right[:, :, 16:], clip[:, :, :-16])
    assert (right[:, :, :16] == grey).all()
    up = randaugment.apply(clip, [("TranslateYRel", 0.25)])
    np.testing.assert_array_equal(up[:, :-12], clip[:, 12:])
    assert (up[:, -12:] == grey).all()
    # By two pixels a row or column, and by one in the middle of the first.
    left = randaugment.apply(clip, [("ShearX", 2.0)])
    for y in range(20):
        np.testing.assert_array_equal(left[:, y, : -2 * y - 1], clip[:, y, 2 * y + 1 :])
        assert (left[:, y, -2 * y - 1 :] == grey).all()
    up = randaugment.apply(clip, [("ShearY", 2.0)])
    for x in range(20):
        np.testing.assert_array_equal(up[:, : -2 * x - 1, x], clip[:, 2 * x + 1 :, x])
        assert (up[:, -2 * x - 1 :, x] == grey).all()
    square = clip[:, :, :HEIGHT]
    turned = randaugment.apply(square, [("Rotate", 90)])  # counter-clockwise
    np.testing.assert_array_equal(turned, np.rot90(square, axes=(1, 2)))
    turned = randaugment.apply(clip, [("Rotate", 20)])
    assert (turned[:, [0, 0, -1, -1], [0, -1, 0, -1]] == grey).all()


def test_operations_follow_one_another(clips):
    clip = clips["decoded"]
    solarized = randaugment.apply(clip, [("Solarize", 100)])
    added = randaugment.apply(clip, [("SolarizeAdd", 60)])
    both = randaugment.apply(clip, [("Solarize", 100), ("SolarizeAdd", 60)])
    other = randaugment.apply(clip, [("SolarizeAdd", 60), ("Solarize", 100)])
    reference = randaugment.apply(solarized, [("SolarizeAdd", 60)])
    np.testing.assert_array_equal(both, reference)
    np.testing.assert_array_equal(other, randaugment.apply(added, [("Solarize", 100)]))
    assert (both != other).any()


def test_all_frames_get_the_same(clips):
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    still = clips["decoded"][[0, 0, 0, 0, 0]]
    changed = 0
    for seed in range(60):
        result = augment(np.random.default_rng(seed), still)
        np.testing.assert_array_equal(result, np.broadcast_to(result[:1], still.shape))
        changed += (result != still).any()
    assert changed > 40


@pytest.mark.parametrize("clip", ["decoded", "smooth"])
def test_applies_what_it_draws(clips, clip):
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    for seed in range(20):
        result = augment(np.random.default_rng(seed), clips[clip])
        chosen = augment.draw(np.random.default_rng(seed))
        np.testing.assert_array_equal(result, randaugment.apply(clips[clip], chosen))


def test_is_the_same_again_also_in_another_process(clips):
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    sent = pickle.loads(pickle.dumps(augment))
    assert sent == augment
    results = []
    for seed in range(10):
        results.append(augment(np.random.default_rng(seed), clips["decoded"]))
        again = sent(np.random.default_rng(seed), clips["decoded"])
        np.testing.assert_array_equal(results[-1], again)
    assert len({result.tobytes() for result in results}) > 5


def test_reads_a_view(clips):
    flipped = clips["decoded"][:, :, ::-1]
    chosen = one("Rotate", 7)
    np.testing.assert_array_equal(
        randaugment.apply(flipped, chosen), randaugment.apply(flipped.copy(), chosen)
    )


def drawn(text, calls=1500):
    augment, rng = RandAugment.parse(text), np.random.default_rng(0)
    return [augment.draw(rng) for _ in range(calls)]


def test_operations_are_equally_likely_and_independent():
    draws = drawn("rand-m7-n4-p1")
    assert {len(chosen) for chosen in draws} == {4}
    for place in range(4):
        count = collections.Counter(chosen[place][0] for chosen in draws)
        assert count.keys() == {*NAMES}
        assert all(abs(times - 100) < 45 for times in count.values())
    # With replacement: 1 - (14 * 13 * 12) / 15**3 of the draws have one twice.
    twice = np.mean([len(dict(chosen)) < 4 for chosen in draws])
    assert abs(twice - (1 - 14 * 13 * 12 / 15**3)) < 0.05


@pytest.mark.parametrize(
    ("text", "probability"), [("", 0.5), ("-p0.2", 0.2), ("-p0", 0), ("-p1", 1)]
)
def test_each_is_applied_with_its_probability(text, probability):
    counts = np.bincount([len(c) for c in drawn(f"rand-n3{text}")], minlength=4)
    q = 1 - probability
    binomial = [q**3, 3 * q**2 * probability, 3 * q * probability**2, probability**3]
    assert np.abs(counts / 1500 - binomial).max() < 0.05


def rotations(text):
    draws = drawn(f"rand-n10-p1-{text}")
    return np.array([x for chosen in draws for name, x in chosen if name == "Rotate"])


@pytest.mark.parametrize(
    ("text", "low", "high", "mean", "std"),
    [
        ("m7", 7, 7, 7, 0),
        ("m7-mstd0", 7, 7, 7, 0),
        ("m7-mstd0.5", 4.5, 9.5, 7, 0.5),
        ("m6-mstdinf", 0, 6, 3, 6 / 12**0.5),
        ("m6-mstd100", 0, 6, 3, 6 / 12**0.5),
        ("m0-mstd0", 0, 0, 0, 0),
        ("mstd0", 10, 10, 10, 0),  # by default
    ],
)
def test_levels_have_their_spread(text, low, high, mean, std):
    degrees = rotations(text)
    levels = np.abs(degrees) / 3
    assert len(levels) > 800
    assert low - 1e-9 <= levels.min() and levels.max() <= high + 1e-9
    assert abs(levels.mean() - mean) < 0.15 and abs(levels.std() - std) < 0.1
    if mean:
        assert abs((degrees > 0).mean() - 0.5) < 0.06
        # Each operation has a level of its own.
        assert std == 0 or len({*levels}) == len(levels)


def test_levels_are_clipped():
    levels = np.abs(rotations("m10-mstd3")) / 3
    assert levels.max() == 10 and abs((levels == 10).mean() - 0.5) < 0.06
    levels = np.abs(rotations("m1-mstd3")) / 3
    assert levels.min() == 0 and 0.3 < (levels == 0).mean() < 0.44  # 0.37


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("rand-m7-n4-mstd0.5-inc1", (7, 4, 0.5, True, 0.5)),
        ("rand-inc1-mstd0.5-n4-m7", (7, 4, 0.5, True, 0.5)),
        ("rand-m9.5-n3-inc0-p0.25", (9.5, 3, 0, False, 0.25)),
        ("rand-mstdinf", (10, 2, float("inf"), False, 0.5)),
        ("rand", (10, 2, 0, False, 0.5)),
    ],
)
def test_parses(text, fields):
    assert RandAugment.parse(text) == RandAugment(*fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(("", "does not begin with rand"), ("m7-n4", "does not begin with rand")),
        *(
            ("augmix-m7", "does not begin with rand"),
            ("Rand-m7", "not begin with rand"),
        ),
        *(("rand-m11", "'m11'.*out of range"), ("rand-m10.1", "'m10.1'.*out of range")),
        *(("rand-n2.5", "'n2.5'.*out of range"), ("rand-ninf", "'ninf'.*out of range")),
        *(("rand-inc2", "'inc2'.*out of range"), ("rand-p1.5", "'p1.5'.*out of range")),
        *(
            ("rand-minf", "'minf'.*out of range"),
            ("rand-m7-m8", "'m8'.*magnitude again"),
        ),
        *(
            ("rand-n4-", "'' is not"),
            ("rand-m", "'m' is not"),
            ("rand-7", "'7' is not"),
        ),
        *(
            ("rand-m-7", "'m' is not"),
            ("rand-w0", "'w0'.*not known"),
            ("rand-mm7", "'mm7'"),
        ),
        *(("rand-m7 -n4", "'m7 '.*not known"), ("rand-M7", "'M7'.*not known")),
        *(("rand-mstd1e3", "'mstd1e3'.*not known"), ("rand-m7\n", "not known")),
        *(("rand-mnan", "'mnan'.*not known"), ("rand_m7", "does not begin with rand")),
    ],
)
def test_other_texts_are_errors(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        RandAugment.parse(text)
    assert f"config.data.rand_augment={text!r}" in str(error.value)
    assert str(error.value).endswith("such as rand-m7-n4-mstd0.5-inc1")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float32, (2, 8, 8, 3)), (np.uint8, (8, 8, 3)), (np.uint8, (0, 8, 8, 3))],
)
def test_other_arrays_are_errors(dtype, shape):
    # Also where nothing is drawn.
    for text in ("rand-p0", "rand-p1"):
        with pytest.raises(ValueError, match=r"a clip must be uint8 \[time, .*, got"):
            augment = RandAugment.parse(text)
            augment(np.random.default_rng(0), np.zeros(shape, dtype))
