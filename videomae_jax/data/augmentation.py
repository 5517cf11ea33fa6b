"""Crops and flips of a clip: uint8 [T, H, W, 3] in, uint8 [T, H', W', 3] out.

Where to cut is decided apart from cutting, by functions that see sizes only.
"""

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

# Where a multi-scale crop may lie, in quarters of the room that is left, as (row,
# column): corners, centre, edge centres and quarter points (official code).
ANCHORS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
# A crop this close to the output size (in pixels) is taken at that size, and needs no
# resizing in that direction (official code).
SNAP = 3


def multi_scale_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: int,
    scales: tuple[float, ...] = (1, 0.875, 0.75, 0.66),
) -> Box:
    """Draws a crop box of one of several sizes at one of thirteen places.

    Height and width are drawn together, uniformly from all pairs of scales of the
    shorter side that are at most one apart in the list; the place uniformly from
    ANCHORS (official code).

    Args:
        rng: randomness.
        height: of the frame in pixels.
        width: of the frame in pixels.
        size: height and width of the output, which crop sizes snap to.
        scales: crop sizes relative to the shorter side, in order.

    Returns:
        (top, left, height, width), within the frame.

    Raises:
        ValueError: if there are no scales, or one is not above 0 and at most 1.
    """
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise ValueError(f"crop scales must be above 0 and at most 1, not {scales}")
    short = min(height, width)
    sizes = [max(int(short * scale), 1) for scale in scales]
    # Never beyond the frame, where the shorter side itself is near the output size.
    sizes = [size if abs(x - size) < SNAP and size <= short else x for x in sizes]
    pairs = [
        (sizes[i], sizes[j])
        for i in range(len(sizes))
        for j in range(len(sizes))
        if abs(i - j) <= 1
    ]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    row, column = ANCHORS[rng.integers(len(ANCHORS))]
    top = row * ((height - crop_height) // 4)
    left = column * ((width - crop_width) // 4)
    return top, left, crop_height, crop_width


def crop_and_resize(clip: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Cuts the same box out of every frame and resizes it with Pillow's bilinear.

    Args:
        clip: uint8 [T, H, W, 3].
        box: (top, left, height, width), within the frame.
        height: of the result in pixels.
        width: of the result in pixels.

    Returns:
        uint8 [T, height, width, 3]; a view of the clip if the box has that size.

    Raises:
        ValueError: if the clip is not uint8 [T, H, W, 3], or the box not within it.
    """
    _check(clip)
    top, left, crop_height, crop_width = box
    bottom, right = top + crop_height, left + crop_width
    if not (0 <= top < bottom <= clip.shape[1] and 0 <= left < right <= clip.shape[2]):
        raise ValueError(
            f"box {box} (top, left, height, width) is empty or not within frames of "
            f"{clip.shape[1]} x {clip.shape[2]}"
        )
    crop = clip[:, top:bottom, left:right]
    if (crop_height, crop_width) == (height, width):
        return crop
    out = np.empty((len(clip), height, width, 3), np.uint8)
    for frame, result in zip(crop, out, strict=True):
        # Not resize(box=...) of the whole frame: that blends in pixels around the box.
        image = Image.fromarray(np.ascontiguousarray(frame))
        result[:] = image.resize((width, height), Image.Resampling.BILINEAR)
    return out


def multi_scale_crop(
    rng: np.random.Generator,
    clip: np.ndarray,
    size: int,
    scales: tuple[float, ...] = (1, 0.875, 0.75, 0.66),
) -> np.ndarray:
    """A `multi_scale_box` of the clip, resized without regard to its aspect.

    Args:
        rng: randomness.
        clip: uint8 [T, H, W, 3].
        size: height and width of the result in pixels.
        scales: crop sizes relative to the shorter side, in order.

    Returns:
        uint8 [T, size, size, 3], the same box of every frame.

    Raises:
        ValueError: if the clip is not uint8 [T, H, W, 3] or a scale is not in (0, 1].
    """
    _check(clip)
    box = multi_scale_box(rng, *clip.shape[1:3], size, scales)
    return crop_and_resize(clip, box, size, size)


def center_crop(clip: np.ndarray, size: int) -> np.ndarray:
    """The middle of the clip at the scale where its shorter side is `size`.

    Args:
        clip: uint8 [T, H, W, 3].
        size: height and width of the result in pixels.

    Returns:
        uint8 [T, size, size, 3]; a view.

    Raises:
        ValueError: if the clip is not uint8 [T, H, W, 3].
    """
    _check(clip)
    height, width = clip.shape[1:3]
    short = min(height, width)
    scaled = (height * size // short, width * size // short)
    clip = crop_and_resize(clip, (0, 0, height, width), *scaled)
    top, left = (round((side - size) / 2) for side in scaled)
    return clip[:, top : top + size, left : left + size]


def horizontal_flip(
    rng: np.random.Generator, clip: np.ndarray, probability: float = 0.5
) -> np.ndarray:
    """The clip, or with the given probability its mirror image.

    Args:
        rng: randomness; one draw for all frames.
        clip: uint8 [T, H, W, 3].
        probability: of the mirror image; 0.5 is fine-tuning's (official code).

    Returns:
        uint8 [T, H, W, 3], a view.

    Raises:
        ValueError: if the clip is not uint8 [T, H, W, 3].
    """
    _check(clip)
    return clip[:, :, ::-1] if rng.random() < probability else clip


def _check(clip: np.ndarray) -> None:
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
        raise ValueError(
            "a clip is uint8 [time, height, width, 3], no side empty, not "
            f"{clip.dtype} {clip.shape}"
        )
