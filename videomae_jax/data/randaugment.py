"""RandAugment for clips (Cubuk et al. 2019): the same operations on every frame.

The operations and their ranges are those of the reference's `rand-m7-n4-mstd0.5-inc1`,
which applies Pillow's to each frame. Here they use OpenCV, at a small part of the cost,
and give the same bytes as Pillow. Color, Contrast, Sharpness, shears and translations
do so in 99 of 100 values, and differ by 1 in the others. Only Rotate differs by more:
positions are rounded to 1/32 pixel, values are rounded instead of truncated, and the
cubic interpolation is OpenCV's, which sharpens a little less.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import cv2
import numpy as np

from videomae_jax.data.augmentation import check_clip
from videomae_jax.errors import ConfigError

# Fills what lies outside the frame.
_GREY = 128
# Added before OpenCV rounds, this makes it truncate, as Pillow does. Not a whole half:
# sums that should be whole can be a little less.
_TRUNCATE = -0.499
_EXPECTED = (
    "expected rand-m<magnitude 0 to 10>-n<operations>-mstd<spread>-inc<0 or 1>-"
    "p<probability of each>, such as rand-m7-n4-mstd0.5-inc1"
)
# Letters of the notation: name of the field, its type, and which values are valid.
_PARTS = {
    "m": ("magnitude", float, lambda value: value <= 10),
    "n": ("operations", int, float.is_integer),
    "mstd": ("spread", float, lambda value: True),
    "inc": ("increasing", bool, lambda value: value in (0, 1)),
    "p": ("probability", float, lambda value: value <= 1),
}
# From this spread on, levels are uniform (official code): almost all values of such a
# normal distribution would be clipped.
_UNIFORM_SPREAD = 100
# All values of a byte, in the shape of tables: [1, 256, 1].
_VALUES = np.arange(256)[None, :, None]


def _look_up(clip: np.ndarray, tables: np.ndarray, out: np.ndarray) -> None:
    """Replaces values by tables [T or 1, 256, 3 or 1] of each frame and channel."""
    tables = np.broadcast_to(tables, (len(clip), *tables.shape[1:])).astype(np.uint8)
    for frame, table, result in zip(clip, tables, out, strict=True):
        cv2.LUT(frame, table[:, None], dst=result)


def _auto_contrast(clip: np.ndarray, _: float, out: np.ndarray) -> None:
    # Both axes at once would take a hundred times as long.
    low = clip.min(axis=1).min(axis=1)[:, None].astype(float)
    high = clip.max(axis=1).max(axis=1)[:, None].astype(float)
    scale = 255 / np.maximum(high - low, 1)
    tables = (_VALUES * scale - low * scale).clip(0, 255)
    _look_up(clip, np.where(high > low, tables, _VALUES), out)


def _equalize(clip: np.ndarray, _: float, out: np.ndarray) -> None:
    counts = [
        cv2.calcHist([frame], [channel], None, [256], [0, 256])
        for frame in clip
        for channel in range(3)
    ]
    # [T, 256, 3]; OpenCV releases differ in an axis of length 1.
    counts = np.reshape(counts, (-1, 3, 256)).astype(int).swapaxes(1, 2)
    # The count of the highest value that occurs.
    last = counts[:, ::-1]
    last = np.take_along_axis(last, (last > 0).argmax(axis=1, keepdims=True), axis=1)
    step = (clip.shape[1] * clip.shape[2] - last) // 255
    below = counts.cumsum(axis=1) - counts
    tables = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    _look_up(clip, np.where(step > 0, tables, _VALUES), out)


def _invert(clip: np.ndarray, _: float, out: np.ndarray) -> None:
    np.invert(clip, out=out)


def _posterize(clip: np.ndarray, bits: float, out: np.ndarray) -> None:
    np.bitwise_and(clip, np.uint8(256 - 2 ** (8 - int(bits))), out=out)


def _solarize(clip: np.ndarray, threshold: float, out: np.ndarray) -> None:
    table = np.where(_VALUES < int(threshold), _VALUES, 255 - _VALUES)
    _look_up(clip, table, out)


def _solarize_add(clip: np.ndarray, added: float, out: np.ndarray) -> None:
    brighter = np.minimum(_VALUES + int(added), 255)
    _look_up(clip, np.where(_VALUES < 128, brighter, _VALUES), out)


def _color(clip: np.ndarray, factor: float, out: np.ndarray) -> None:
    for frame, result in zip(clip, out, strict=True):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        _away_from(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), frame, factor, result)


def _contrast(clip: np.ndarray, factor: float, out: np.ndarray) -> None:
    greys = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip)
    means = np.array([math.floor(cv2.mean(grey)[0] + 0.5) for grey in greys])
    _look_up(clip, _tables_away_from(means[:, None, None], factor), out)


def _brightness(clip: np.ndarray, factor: float, out: np.ndarray) -> None:
    _look_up(clip, _tables_away_from(np.zeros((1, 1, 1)), factor), out)


def _sharpness(clip: np.ndarray, factor: float, out: np.ndarray) -> None:
    kernel = np.ones((3, 3))
    kernel[1, 1] = 5
    for frame, result in zip(clip, out, strict=True):
        smooth = cv2.filter2D(frame, -1, kernel / 13)
        # The outermost pixels are left as they are.
        smooth[[0, -1]] = frame[[0, -1]]
        smooth[:, [0, -1]] = frame[:, [0, -1]]
        _away_from(smooth, frame, factor, result)


def _away_from(
    start: np.ndarray, frame: np.ndarray, factor: float, out: np.ndarray
) -> None:
    """Multiplies the distances of a frame from `start`; all are uint8 [H, W, 3]."""
    cv2.addWeighted(frame, factor, start, 1 - factor, _TRUNCATE, dst=out)


def _tables_away_from(starts: np.ndarray, factor: float) -> np.ndarray:
    """Returns tables that multiply the distances from values [T or 1, 1, 1]."""
    # In single precision, as Pillow does.
    starts = starts.astype(np.float32)
    tables = starts + np.float32(factor) * (_VALUES.astype(np.float32) - starts)
    return tables.clip(0, 255)


def _rotate(clip: np.ndarray, degrees: float, out: np.ndarray) -> None:
    height, width = clip.shape[1:3]
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Positions in the frame of the centres of the result's pixels, from the corner.
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    middle_x, middle_y = width / 2, height / 2
    columns = cos * x - sin * y + (middle_x - (cos * middle_x - sin * middle_y))
    rows = sin * x + cos * y + (middle_y - (sin * middle_x + cos * middle_y))
    inside = (0 <= columns) & (columns < width) & (0 <= rows) & (rows < height)
    outside = np.asarray(~inside, np.uint8)
    grey = np.full_like(clip[0], _GREY)
    # OpenCV counts from the centre of the first pixel, here of the padding.
    matrix = np.array([[cos, -sin, columns[0, 0]], [sin, cos, rows[0, 0]]])
    matrix[:, 2] += 2 - 0.5
    for frame, result in zip(clip, out, strict=True):
        # Two pixels, as far as the cubic reaches: more would only take time.
        padded = cv2.copyMakeBorder(frame, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
        cv2.warpAffine(
            padded,
            matrix,
            (width, height),
            dst=result,
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        )
        cv2.copyTo(grey, outside, result)


def _shift(image: np.ndarray, pixels: float, axis: int, out: np.ndarray) -> None:
    """Takes each pixel from `pixels` further on along an axis, or grey from outside.

    Interpolates with Pillow's cubic, whose slope at the far end is -1; that of OpenCV
    is -0.75. `image` and `out` are uint8 [H, W, 3], and may be the same.
    """
    before, nearest = math.floor(pixels), math.floor(pixels + 0.5)
    f = pixels - before
    weights = [-f * (1 - f) ** 2, 1 - 2 * f**2 + f**3, f + f**2 - f**3, f**3 - f**2]
    shape, anchor = [1, 1], [0, 0]  # OpenCV's points have x first
    shape[axis], anchor[1 - axis] = 4, 1 + nearest - before
    moved = cv2.filter2D(
        image,
        -1,
        np.reshape(weights, shape),
        anchor=anchor,
        delta=_TRUNCATE,
        borderType=cv2.BORDER_REPLICATE,
    )
    # Pixels [start, stop) along the axis come from within the image.
    size = image.shape[axis]
    start, stop = (min(max(x - nearest, 0), size) for x in (0, size))
    out, moved = out.swapaxes(0, axis), moved.swapaxes(0, axis)
    out[:start] = out[stop:] = _GREY
    if start < stop:
        out[start:stop] = moved[start + nearest : stop + nearest]


def _translate(clip: np.ndarray, share: float, out: np.ndarray, axis: int) -> None:
    for frame, result in zip(clip, out, strict=True):
        _shift(frame, share * frame.shape[axis], axis, result)


def _shear_x(clip: np.ndarray, share: float, out: np.ndarray) -> None:
    # The same row of all frames at once.
    for i in range(clip.shape[1]):
        _shift(clip[:, i], share * (i + 0.5), 1, out[:, i])


def _shear_y(clip: np.ndarray, share: float, out: np.ndarray) -> None:
    # Rows are contiguous in memory, columns are not: transposing costs less.
    turned = np.empty_like(clip).reshape(clip.swapaxes(1, 2).shape)
    for frame, result in zip(clip, turned, strict=True):
        cv2.transpose(frame, dst=result)
    _shear_x(turned, share, turned)
    for frame, result in zip(turned, out, strict=True):
        cv2.transpose(frame, dst=result)


# Operations (clip, strength, out): clip and out are uint8 [T, H, W, 3], contiguous.
OPERATIONS: dict[str, Callable[[np.ndarray, float, np.ndarray], None]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,  # degrees, counter-clockwise
    "Posterize": _posterize,  # number of upper bits that are kept
    "Solarize": _solarize,  # values from this one on are inverted
    "SolarizeAdd": _solarize_add,  # amount that is added to values below 128
    # Factors; 1 changes nothing.
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    # Fraction of the other axis (shear) or of the side (translation).
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": functools.partial(_translate, axis=1),
    "TranslateYRel": functools.partial(_translate, axis=0),
}


def strength(name: str, level: float, sign: int, increasing: bool) -> float:
    """Returns the strength of an operation at a magnitude (official ranges).

    Args:
        name: key of OPERATIONS.
        level: magnitude, 0 to 10.
        sign: 1 or -1; the direction of operations that have two.
        increasing: whether a higher level of Posterize, Solarize and the four
            enhancements always means more change ("inc1"); otherwise, it means more
            bits, a higher threshold or a higher factor (the original AutoAugment).
    """
    share = level / 10
    if name == "Rotate":
        return sign * 30 * share
    if name in ("ShearX", "ShearY"):
        return sign * 0.3 * share
    if name in ("TranslateXRel", "TranslateYRel"):
        return sign * 0.45 * share
    if name == "SolarizeAdd":
        return int(110 * share)
    if name == "Posterize":
        return 4 - int(4 * share) if increasing else int(4 * share)
    if name == "Solarize":
        return 256 - int(256 * share) if increasing else int(256 * share)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return max(0.1, 1 + sign * 0.9 * share) if increasing else 0.1 + 1.8 * share
    return 0.0


def apply(clip: np.ndarray, chosen: list[tuple[str, float]]) -> np.ndarray:
    """Applies operations one after the other, the same to every frame.

    Args:
        clip: uint8 [T, H, W, 3]; itself returned, not a copy, if nothing is chosen.
        chosen: keys of OPERATIONS, and strengths.
    """
    check_clip(clip)
    if clip.dtype != np.uint8 or clip.shape[-1] != 3:
        raise ValueError(
            "a clip must be uint8 [time, height, width, 3] for RandAugment, got "
            f"{clip.dtype} {clip.shape}"
        )
    if not chosen:
        return clip
    clip = np.ascontiguousarray(clip)
    # Two buffers in turns: new memory for each would cost more than some operations.
    results = [np.empty_like(clip) for _ in chosen[:2]]
    for name, value in chosen:
        OPERATIONS[name](clip, value, results[0])
        clip, results = results[0], results[::-1]
    return clip


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws operations and applies them, the same to all frames of a clip."""

    magnitude: float = 10.0  # mean of the level of each operation, 0 to 10
    operations: int = 2  # number that are drawn, with replacement
    # Standard deviation of the level, which is clipped to 0 and 10; from 100 on, the
    # level is uniform between 0 and the magnitude instead.
    spread: float = 0.0
    increasing: bool = False  # see `strength`
    probability: float = 0.5  # that a drawn operation is applied

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Parses the usual notation, such as `rand-m7-n4-mstd0.5-inc1`.

        The parts after `rand` may have any order; missing ones have the defaults of
        the fields. Unlike in the official code, `inc0` is not `inc1`.

        Raises:
            ConfigError: the notation is wrong; the message names the part.
        """

        def error(problem: str) -> ConfigError:
            return ConfigError(
                f"config.data.rand_augment={text!r}: {problem}; {_EXPECTED}"
            )

        kind, *parts = text.split("-")
        if kind != "rand":
            raise error("does not begin with rand")
        fields = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+?)([0-9]+(?:\.[0-9]+)?|inf)", part)
            if not match or match[1] not in _PARTS:
                raise error(f"{part!r} is not known")
            name, convert, fits = _PARTS[match[1]]
            if name in fields:
                raise error(f"{part!r} gives the {name} again")
            value = float(match[2])
            if not fits(value):
                raise error(f"{part!r} is out of range")
            fields[name] = convert(value)
        return cls(**fields)

    def __call__(self, rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
        """Applies one draw to a clip; see `apply`."""
        return apply(clip, self.draw(rng))

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draws the names and strengths of the operations that will be applied."""
        names = list(OPERATIONS)
        chosen = []
        for index in rng.integers(len(names), size=self.operations):
            applied = rng.random() < self.probability
            if self.spread < _UNIFORM_SPREAD:
                level = float(np.clip(rng.normal(self.magnitude, self.spread), 0, 10))
            else:
                level = rng.uniform(0, self.magnitude)
            sign = 1 if rng.random() < 0.5 else -1
            if applied:
                name = names[index]
                chosen.append((name, strength(name, level, sign, self.increasing)))
        return chosen
