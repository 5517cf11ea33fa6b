"""RandAugment for clips (Cubuk et al. 2019): the same operations on every frame.

The operations and their ranges are those of the reference's `rand-m7-n4-mstd0.5-inc1`;
each is Pillow's own, on each frame by itself. Lookup tables over the whole clip in
numpy would be no faster: most of the time goes to resampling.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from videomae_jax.data.augmentation import check_clip

_GREY = (128, 128, 128)
_WANTED = (
    "wanted is rand-m<magnitude 0 to 10>-n<operations>-mstd<spread>-inc<0 or 1>-"
    "p<probability of each>, such as rand-m7-n4-mstd0.5-inc1"
)
# Letters of the notation: the field, its type, and the values it may have.
_PARTS = {
    "m": ("magnitude", float, lambda value: value <= 10),
    "n": ("operations", int, float.is_integer),
    "mstd": ("spread", float, lambda value: True),
    "inc": ("increasing", bool, lambda value: value in (0, 1)),
    "p": ("probability", float, lambda value: value <= 1),
}
# From this spread on levels are uniform (official code): almost all of so wide a normal
# would be cut off.
_UNIFORM_SPREAD = 100


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=_GREY,
    )


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Not ImageOps.posterize: levels can leave no bits, all black, which it refuses.
    mask = 256 - 2 ** (8 - int(bits))
    return image.point([value & mask for value in range(256)] * 3)


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    table = [
        min(value + int(added), 255) if value < 128 else value for value in range(256)
    ]
    return image.point(table * 3)


def _enhance(kind) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


# What each operation does to a frame, given its strength.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    # Degrees, counter-clockwise.
    "Rotate": lambda image, degrees: image.rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=_GREY
    ),
    # Upper bits that are kept.
    "Posterize": _posterize,
    # Values from this one on are inverted.
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    # What is added to values below 128.
    "SolarizeAdd": _solarize_add,
    # Factors; 1 changes nothing.
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    # Shares of the other axis, and of the side.
    "ShearX": lambda image, share: _affine(image, 1, share, 0, 0, 1, 0),
    "ShearY": lambda image, share: _affine(image, 1, 0, 0, share, 1, 0),
    "TranslateXRel": lambda image, share: _affine(
        image, 1, 0, share * image.width, 0, 1, 0
    ),
    "TranslateYRel": lambda image, share: _affine(
        image, 1, 0, 0, 0, 1, share * image.height
    ),
}


def strength(name: str, level: float, sign: int, increasing: bool) -> float:
    """The strength of an operation at a magnitude (official ranges).

    Args:
        name: of OPERATIONS.
        level: magnitude, 0 to 10.
        sign: 1 or -1; the direction of operations that have two.
        increasing: whether a higher level of Posterize, Solarize and the four
            enhancements always means more change ("inc1"); otherwise it means more
            bits, a higher threshold, a higher factor (the original AutoAugment's).
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
        clip: uint8 [T, H, W, 3].
        chosen: keys of OPERATIONS and the strengths they get.

    Returns:
        uint8 [T, H, W, 3]: a new array, or the clip itself if nothing was chosen.

    Raises:
        ValueError: if the clip is not uint8 [T, H, W, 3].
    """
    check_clip(clip)
    if not chosen:
        return clip
    out = np.empty(clip.shape, np.uint8)
    for frame, result in zip(clip, out, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame))
        for name, value in chosen:
            image = OPERATIONS[name](image, value)
        result[:] = image
    return out


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws operations and applies them, each the same to all frames of a clip.

    Attributes:
        magnitude: mean of the level of each operation, 0 to 10.
        operations: how many are drawn, with replacement.
        spread: standard deviation of the level, which is cut off at 0 and 10; from
            100 on the level is uniform between 0 and the magnitude instead.
        increasing: see `strength`.
        probability: of each drawn operation to be applied.
    """

    magnitude: float = 10.0
    operations: int = 2
    spread: float = 0.0
    increasing: bool = False
    probability: float = 0.5

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads the usual notation, such as `rand-m7-n4-mstd0.5-inc1`.

        The parts after `rand` may have any order; fields without a part have their
        defaults. Unlike in the official code, `inc0` is not `inc1`.

        Raises:
            ValueError: if it is anything else; names the part that is wrong.
        """
        kind, *parts = text.split("-")
        if kind != "rand":
            raise ValueError(
                f"rand_augment {text!r} does not begin with rand: {_WANTED}"
            )
        fields = {}
        for part in parts:
            where = f"{part!r} in rand_augment {text!r}"
            match = re.fullmatch(r"([a-z]+?)([0-9]+(?:\.[0-9]+)?|inf)", part)
            if not match or match[1] not in _PARTS:
                raise ValueError(f"{where} is not known: {_WANTED}")
            name, convert, fits = _PARTS[match[1]]
            if name in fields:
                raise ValueError(f"{where} gives the {name} again: {_WANTED}")
            value = float(match[2])
            if not fits(value):
                raise ValueError(f"{where} is out of range: {_WANTED}")
            fields[name] = convert(value)
        return cls(**fields)

    def __call__(self, rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
        """Augments a clip.

        Args:
            rng: randomness; one draw for all frames.
            clip: uint8 [T, H, W, 3].

        Returns:
            uint8 [T, H, W, 3]: a new array, or the clip itself if nothing was drawn.

        Raises:
            ValueError: if the clip is not uint8 [T, H, W, 3].
        """
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
