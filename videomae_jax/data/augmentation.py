"""Crops, flips and erases clips: [T, H, W, C] in, [T, H', W', C] of its dtype out.

Boxes are (top, left, height, width) in pixels, within the frame. They are drawn by
functions that see only the height and width of the frame, and cut out by others.
`area` is a range (smallest, largest) of shares of the frame, `aspect` one of shapes.
The `size` of an output is (height, width) in pixels, or one number for a square.

All functions raise ValueError for a clip that is empty or not uint8 (or uint16)
[T, H, W, C], and for boxes, ranges, counts and probabilities that are empty or
impossible.
"""

import sys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from videomae_jax.errors import VideoError
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width
from videomae_jax.video.source import Box

Size = int | tuple[int, int]  # height and width, or both

# For RGB in [0, 1]. The models have them too, but importing those would bring JAX into
# the workers.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Positions of a multi-scale crop, in quarters of the room that is left, as (row,
# column): corners, centre, edge centres and quarter points (official code).
ANCHORS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
# A side this close to the output size (in pixels) snaps to it, and then needs no
# resizing (official code).
SNAP = 3


def multi_scale_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    size: Size,
    scales: tuple[float, ...] = (1, 0.875, 0.75, 0.66),
) -> Box:
    """Draws a crop box of one of several sizes at one of thirteen positions.

    The largest box of the output's shape is scaled. The scales of height and width are
    drawn together, uniformly from all pairs that are at most one apart in the list; the
    position, uniformly from ANCHORS (official code, where outputs are square).

    Args:
        size: of the output, which crop sizes snap to.
        scales: crop sizes relative to the largest box, in (0, 1] and in order. For a
            square output, that is relative to the shorter side.
    """
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise ValueError(f"crop scales must be above 0 and at most 1, got {scales}")
    largest = _largest_of_shape(height, width, height_and_width(size))
    heights, widths = (
        _crop_sides(most, output, scales)
        for most, output in zip(largest, height_and_width(size), strict=True)
    )
    pairs = [
        (h, w) for i, h in enumerate(heights) for w in widths[max(i - 1, 0) : i + 2]
    ]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    row, column = ANCHORS[rng.integers(len(ANCHORS))]
    top = row * ((height - crop_height) // 4)
    left = column * ((width - crop_width) // 4)
    return top, left, crop_height, crop_width


def _largest_of_shape(
    height: int, width: int, size: tuple[int, int]
) -> tuple[int, int]:
    """Returns the sides of the largest box of a frame that is shaped as `size`."""
    if height * size[1] <= width * size[0]:
        return height, max(height * size[1] // size[0], 1)
    return max(width * size[0] // size[1], 1), width


def _crop_sides(largest: int, output: int, scales: Sequence[float]) -> list[int]:
    """Returns the lengths of a side at the scales, some snapped to the output's."""
    sides = [max(int(largest * scale), 1) for scale in scales]
    # Not beyond the frame, whose side may itself be near the output's.
    return [
        output if abs(side - output) < SNAP and output <= largest else side
        for side in sides
    ]


def crop_and_resize(
    clip: np.ndarray,
    box: Box,
    height: int,
    width: int,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cuts the same box out of every frame and resizes it bilinearly.

    Interpolates between neighbouring pixels (OpenCV), as the official code does in
    fine-tuning and tests. Below half the size, where that would skip pixels, it
    averages them (Pillow, as in the official code for pretraining), at several times
    the cost.

    Returns:
        [T, height, width, C]: `out` if it is given; otherwise, if the box has this
        size, a view of the clip.
    """
    check_clip(clip)
    top, left, crop_height, crop_width = box
    bottom, right = top + crop_height, left + crop_width
    if not (0 <= top < bottom <= clip.shape[1] and 0 <= left < right <= clip.shape[2]):
        raise ValueError(
            f"box={box} (top, left, height, width) must not be empty, and must be "
            f"within frames of {clip.shape[1]} x {clip.shape[2]}"
        )
    crop = clip[:, top:bottom, left:right]
    if out is None:
        if (crop_height, crop_width) == (height, width):
            return crop
        out = np.empty((len(clip), height, width, clip.shape[-1]), clip.dtype)
    averaged = crop_height > 2 * height or crop_width > 2 * width
    for frame, result in zip(crop, out, strict=True):
        if averaged:
            # Not resize(box=...) of the whole frame, which blends in pixels around it.
            _resize_averaged(frame, Image.Resampling.BILINEAR, result)
        else:
            cv2.resize(frame, (width, height), dst=result)
    return out


def hull(boxes: Sequence[Box]) -> Box:
    """Returns the smallest box that contains all boxes, of which one is required."""
    top = min(box[0] for box in boxes)
    left = min(box[1] for box in boxes)
    bottom = max(box[0] + box[2] for box in boxes)
    right = max(box[1] + box[3] for box in boxes)
    return top, left, bottom - top, right - left


def random_resized_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a box of random size, shape and position (Inception, Szegedy et al. 2015).

    Its share of the frame and the logarithm of its aspect ratio are uniform. If ten
    draws do not fit, the largest central box within the aspect ratios is used. These
    are width over height.
    """
    _check_ranges("crops", area, aspect)
    for _ in range(10):
        box_width, box_height = _draw_sides(rng, height * width, area, aspect)
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    shape = min(max(width / height, aspect[0]), aspect[1])
    box_height = min(height, max(round(width / shape), 1))
    box_width = min(width, max(round(height * shape), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_resized_crop(
    rng: np.random.Generator,
    clip: np.ndarray,
    size: Size,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Cuts the same `random_resized_box` out of every frame, and resizes it.

    Aspects are relative to that of the output: 1 keeps the shapes of things.
    """
    check_clip(clip)
    _check_ranges("crops", area, aspect)
    height, width = height_and_width(size)
    smallest, largest = aspect
    aspect = (smallest * (width / height), largest * (width / height))
    box = random_resized_box(rng, *clip.shape[1:3], area=area, aspect=aspect)
    return crop_and_resize(clip, box, height, width)


def spatial_crops(
    clip: np.ndarray, size: Size, count: int, framing: Framing = OFFICIAL
) -> np.ndarray:
    """Resizes frames and cuts crops, by default as the official code does in tests.

    That keeps the shape of the frames, and covers the size as tightly as possible: for
    squares, the shorter side becomes `size`. A single crop is in the middle. Several go
    from end to end in equal steps, rounded down, along the side with more room.

    Returns:
        [count, T, height, width, C].

    Raises:
        VideoError: the framing does not crop, and its frames have another size.
    """
    check_clip(clip)
    if count < 1:
        raise ValueError(f"count={count} of crops must be at least 1")
    size = height_and_width(size)
    scaled = framing.output_size((clip.shape[1], clip.shape[2]), size)
    if not framing.crop and scaled != size:
        raise VideoError(
            f"frames of {scaled[0]} x {scaled[1]} pixels must have {size[0]} x "
            f"{size[1]} pixels, because the model's preprocessing (resize="
            f"{framing.resize}, crop=False) does not cut them; set another `framing` "
            "of its preprocessing"
        )
    clip = resize(clip, scaled, framing.interpolation)
    if framing.crop:
        clip = _extend(clip, size)
    room = clip.shape[1] - size[0], clip.shape[2] - size[1]
    # The official code rounds the middle, transformers rounds it down.
    middle = [round(x / 2) if framing.resize == "cover" else x // 2 for x in room]
    along = 0 if room[0] > room[1] else 1
    crops = []
    for i in range(count):
        start = middle.copy()
        if count > 1:
            start[along] = int(i * room[along] / (count - 1))
        (top, left), (height, width) = start, size
        crops.append(clip[:, top : top + height, left : left + width])
    return np.stack(crops)


def resize(clip: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    """Resizes frames by a `Framing.interpolation`; returns [T, height, width, C]."""
    size = height, width = height_and_width(size)
    if clip.shape[1:3] == size:
        return clip
    if interpolation == "opencv":
        whole = (0, 0, clip.shape[1], clip.shape[2])
        return crop_and_resize(clip, whole, height, width)
    result = np.empty((len(clip), *size, clip.shape[-1]), clip.dtype)
    for frame, out in zip(clip, result, strict=True):
        _resize_averaged(frame, Image.Resampling[interpolation.upper()], out)
    return result


def _resize_averaged(
    frame: np.ndarray, filter: Image.Resampling, out: np.ndarray
) -> None:
    """Resizes a frame with Pillow, which averages over pixels where it shrinks."""
    height, width, channels = out.shape
    if frame.dtype == np.uint8 and channels == 3:
        image = Image.fromarray(np.ascontiguousarray(frame))
        out[:] = image.resize((width, height), filter)
        return
    # Channel by channel: Pillow would weigh the others by a fourth as by alpha.
    for channel in range(channels):
        values = np.ascontiguousarray(frame[..., channel])
        if out.dtype == np.uint8:
            out[..., channel] = Image.fromarray(values).resize((width, height), filter)
            continue
        # In floating point: not every release of Pillow resizes 16 bits.
        image = Image.fromarray(values.astype(np.float32))
        resized = np.asarray(image.resize((width, height), filter))
        out[..., channel] = np.rint(resized).clip(0, np.iinfo(out.dtype).max)


def _extend(clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Puts frames that are smaller than the size into the middle of black ones.

    The odd one of the added rows comes last, as in transformers with torchvision.
    """
    missing = [max(x - y, 0) for x, y in zip(size, clip.shape[1:3], strict=True)]
    if not any(missing):
        return clip
    margins = [(x // 2, x - x // 2) for x in missing]
    return np.pad(clip, [(0, 0), *margins, (0, 0)])


def random_erasing(
    rng: np.random.Generator,
    clip: np.ndarray,
    probability: float = 0.25,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 10 / 3),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Fills a box, the same in all frames, with noise (Zhong et al. 2017).

    The noise is drawn for each value of each frame. It is standard normal in normalised
    values, as the model sees them (official code), clipped to the range of pixels.
    Aspects are height over width.

    Args:
        mean, std: of each channel, with which the model normalises values in [0, 1].

    Returns:
        [T, H, W, C]: a copy, or the clip itself if nothing was erased.
    """
    check_clip(clip)
    _check_ranges("erased boxes", area, aspect)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} of erasing must be in [0, 1]")
    if rng.random() >= probability:
        return clip
    frames, height, width, channels = clip.shape
    for _ in range(100):
        box_height, box_width = _draw_sides(rng, height * width, area, aspect)
        if 0 < box_height < height and 0 < box_width < width:
            break
    else:
        return clip
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    noise = rng.standard_normal((frames, box_height, box_width, channels), np.float32)
    most = np.iinfo(clip.dtype).max
    mean_array, std_array = np.array([mean, std], np.float32)
    noise = np.rint(most * (mean_array + std_array * noise)).clip(0, most)
    clip = clip.copy()
    clip[:, top : top + box_height, left : left + box_width] = noise
    return clip


def horizontal_flip(
    rng: np.random.Generator, clip: np.ndarray, probability: float = 0.5
) -> np.ndarray:
    """Mirrors all frames with a probability (0.5 in fine-tuning: official code).

    Returns:
        [T, H, W, C]: a new array, or the clip itself if it was not mirrored.
    """
    check_clip(clip)
    if rng.random() >= probability:
        return clip
    # Several times as fast as a copy of clip[:, :, ::-1].
    mirrored = np.stack([cv2.flip(frame, 1) for frame in clip])
    return mirrored.reshape(clip.shape)  # OpenCV drops the axis of a single channel


def check_clip(clip: np.ndarray) -> None:
    """Raises ValueError unless the clip is [T, H, W, C] of pixels, and not empty."""
    if clip.dtype not in (np.uint8, np.uint16) or clip.ndim != 4 or not clip.size:
        raise ValueError(
            "a clip must be uint8 [time, height, width, channels], or uint16, and not "
            f"empty, got {clip.dtype} {clip.shape}"
        )


def is_range(bounds: Sequence[float], most: float) -> bool:
    """Returns whether bounds are (smallest, largest), above 0 and at most `most`."""
    return len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= most  # NaN is not


def _draw_sides(
    rng: np.random.Generator,
    pixels: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int]:
    """Draws two sides: product uniform in area * pixels, log of their ratio uniform."""
    product = pixels * rng.uniform(*area)
    ratio = np.exp(rng.uniform(*np.log(aspect)))
    return round((product * ratio) ** 0.5), round((product / ratio) ** 0.5)


def _check_ranges(
    name: str, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    if not (is_range(area, 1) and is_range(aspect, sys.float_info.max)):
        raise ValueError(
            f"{name} of area={area} and aspect={aspect}: areas must be above 0 and at "
            "most 1, aspects above 0, each as (smallest, largest)"
        )
