"""Boxes of persons, carried through what is done to the images.

A box is x1, y1, x2, y2 in pixels, in float32 arrays [boxes, 4]. Its last pixel belongs
to it: the width is x2 - x1 + 1, and a whole frame is 0, 0, width - 1, height - 1. Sizes
are (height, width). The rules and constants are those of the official detection code.
"""

import numpy as np
from numpy.typing import ArrayLike

# Bounds of what is added to x1, y1, x2, y2 in training, in widths and heights of the
# box. Boxes grow more than they shrink, and more along x.
_LEAST_JITTER = np.array([-0.2, -0.1, -0.1, -0.05], np.float32)
_MOST_JITTER = np.array([0.1, 0.05, 0.2, 0.1], np.float32)
# What is added in tests.
_ENLARGEMENT = np.array([-0.05, -0.025, 0.05, 0.025], np.float32)


def from_xywh(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes that are given as x1, y1, width, height, as in COCO's files."""
    corners = _float32(boxes)[:, :2]
    return np.hstack([corners, corners + np.maximum(_float32(boxes)[:, 2:] - 1, 0)])


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Moves what is outside of an image to its border."""
    height, width = size
    return np.clip(_float32(boxes), 0, _float32([width - 1, height - 1] * 2))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Returns which boxes are more than a line, bool [boxes].

    `clip` and `crop` make lines of those outside. The official code drops them in whole
    frames, but not in random crops: it trains on what `jitter` makes of the line, with
    the labels of the person.
    """
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def resize(
    boxes: np.ndarray, old_size: tuple[int, int], new_size: tuple[int, int]
) -> np.ndarray:
    """Scales boxes as an image that is resized."""
    (height, width), (new_height, new_width) = old_size, new_size
    return _float32(boxes) * _float32([new_width / width, new_height / height] * 2)


def crop(
    boxes: np.ndarray, corner: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Returns boxes in an image that is cut out at (top, left).

    The upper bound is the size, a pixel beyond the last one, as in the official code.
    """
    (top, left), (height, width) = corner, size
    moved = _float32(boxes) - _float32([left, top] * 2)
    return np.clip(moved, 0, _float32([width, height] * 2))


def flip(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors boxes as an image of a width, left to right."""
    x1, y1, x2, y2 = _float32(boxes).T
    return np.stack([width - x2 - 1, y1, width - x1 - 1, y2], axis=1)


def jitter(
    boxes: np.ndarray, uniforms: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Moves every side of a box, as in training.

    Args:
        boxes: as `crop` and `flip` return them.
        uniforms: in [0, 1), [boxes, 4], for x1, y1, x2, y2.
        size: of the image. Boxes are at least two pixels of it.
    """
    height, width = size
    share = _LEAST_JITTER + _float32(uniforms) * (_MOST_JITTER - _LEAST_JITTER)
    moved = _float32(boxes) + share * _sides(boxes)
    first = np.clip(moved[:, :2], 0, _float32([width - 2, height - 2]))
    last = np.minimum(moved[:, 2:], _float32([width - 1, height - 1]))
    return np.hstack([first, np.maximum(last, first + 1)])


def enlarge(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Makes boxes 10 % wider and 5 % higher, as in tests, within an image.

    Features are pooled from the larger boxes; results are about the detected ones.
    """
    return clip(_float32(boxes) + _ENLARGEMENT * _sides(boxes), size)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Returns width, height, width, height."""
    boxes = _float32(boxes)
    return np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def to_fractions(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the corners of boxes as fractions of an image, as AVA's files have them.

    Here the last pixel does not belong to the box: a whole frame is 0, 0, 1, 1. In the
    official code the size is that of the movie: `resize` boxes to it before.
    """
    height, width = size
    beyond = _float32(boxes) + _float32([0, 0, 1, 1])
    return np.clip(beyond / _float32([width, height] * 2), 0, 1)


def _float32(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, np.float32)
