"""The picture of a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# In pixels.
_PICTURE_SIZE = 1600  # of a side, so that it fits on a screen after halving
_CELL_SIZE = 56  # at most; at least 1
_NUMBERED_CLASSES = 25  # up to which cells hold numbers
_NAMED_CELL_SIZE = 9  # from which on lines of text fit beside each other
_FONT_SIZES = (9, 15)  # smallest legible, largest wanted
_NAME_WIDTH = 220  # of the longest class name; longer ones are cut
_TICK_DISTANCE = 40
_GAP = 8  # between texts and cells
# White, blue and dark blue (ColorBrewer's "Blues"), and the shares of a row that they
# stand for: the rarer confusions are what one looks for.
_COLOURS = np.array([[255, 255, 255], [107, 174, 214], [8, 48, 107]])
_COLOUR_SHARES = (0, 0.25, 1)
_NO_VIDEOS = 235
_LINES = 222


def confusion_picture(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix as a heat map: dark where much of a row is.

    Up to 25 classes, cells hold the numbers of videos, except 0; up to about 150, rows
    and columns have their class names, beyond that labels at regular distances. Rows
    of classes without videos are grey.

    Args:
        matrix: int [C, C]: rows are true classes, columns predicted ones.
        class_names: C names; long ones are cut, and letters beyond ASCII are boxes, as
            the font that comes with Pillow has none.

    Returns:
        uint8 [H, W, 3]; sides are at most 1600 pixels up to about 1500 classes, which
        then are a pixel each.
    """
    size = len(matrix)
    sides = _side_texts(size, class_names)
    margin = max(int(font.getlength(text)) for _, text, font in sides) + 2 * _GAP
    font = ImageFont.load_default(_FONT_SIZES[1])
    captions = [
        "rows: true classes, columns: predicted",
        "white to dark blue: 0 to 100 % of the row",
    ]
    line = _FONT_SIZES[1] + 6
    top = line * len(captions) + margin
    cell = max(min((_PICTURE_SIZE - top - _GAP) // size, _CELL_SIZE), 1)

    caption_width = max(int(font.getlength(text)) for text in captions)
    width = max(margin + size * cell, caption_width + _GAP) + _GAP
    picture = Image.new("RGB", (width, top + size * cell + _GAP), "white")
    picture.paste(Image.fromarray(_cells(matrix, cell)), (margin, top))
    draw = ImageDraw.Draw(picture)
    for number, text in enumerate(captions):
        draw.text((_GAP, _GAP // 2 + number * line), text, "black", font)
    for place, text, side_font in sides:
        middle = int((place + 0.5) * cell)
        draw.text((margin - _GAP, top + middle), text, "black", side_font, anchor="rm")
        _draw_upwards(picture, (margin + middle, top - _GAP), text, side_font)
    if size <= _NUMBERED_CLASSES:
        _draw_numbers(draw, matrix, cell, (margin, top))
    return np.asarray(picture)


def _side_texts(
    size: int, class_names: Sequence[str]
) -> list[tuple[int, str, ImageFont.FreeTypeFont]]:
    """What stands beside which row and above which column, and its font."""
    # Names that take all their width leave the least to the cells.
    cell = (_PICTURE_SIZE - _NAME_WIDTH) // size
    if cell >= _NAMED_CELL_SIZE:
        font = ImageFont.load_default(min(cell, _FONT_SIZES[1]))
        return [
            (place, _cut(name, font), font) for place, name in enumerate(class_names)
        ]
    font = ImageFont.load_default(_FONT_SIZES[1])
    cell = max(_PICTURE_SIZE // size, 1)
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if step * cell >= _TICK_DISTANCE)
    return [(place, str(place), font) for place in range(0, size, step)]


def _cut(name: str, font: ImageFont.FreeTypeFont) -> str:
    """The name on one line, of characters that can be drawn, not too long."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    if font.getlength(name) <= _NAME_WIDTH:
        return name
    while font.getlength(name + "...") > _NAME_WIDTH:
        name = name[:-1]
    return name + "..."


def _cells(matrix: np.ndarray, cell: int) -> np.ndarray:
    """The heat map, uint8 [C * cell, C * cell, 3]."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    colours = [np.interp(shares, _COLOUR_SHARES, channel) for channel in _COLOURS.T]
    colours = np.stack(colours, axis=-1).round().astype(np.uint8)
    colours[totals[:, 0] == 0] = _NO_VIDEOS
    cells = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= _NAMED_CELL_SIZE:
        cells[::cell] = cells[:, ::cell] = _LINES
    cells[[0, -1]] = cells[:, [0, -1]] = _LINES
    return cells


def _draw_numbers(
    draw: ImageDraw.ImageDraw, matrix: np.ndarray, cell: int, corner: tuple[int, int]
) -> None:
    font_size = _FONT_SIZES[1]
    longest = str(matrix.max())
    while font_size > 1:
        font = ImageFont.load_default(font_size)
        if font.getlength(longest) <= cell - 4:
            break
        font_size -= 1
    totals = matrix.sum(axis=1)
    for row, column in np.argwhere(matrix):
        number = matrix[row, column]
        colour = "white" if number > 0.4 * totals[row] else "black"
        place = (
            corner[0] + int((column + 0.5) * cell),
            corner[1] + int((row + 0.5) * cell),
        )
        draw.text(place, str(number), colour, font, anchor="mm")


def _draw_upwards(
    picture: Image.Image,
    foot: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draws text turned to the left that starts at foot and is centred on it."""
    height = int(font.size) + 4
    line = Image.new("L", (int(font.getlength(text)) + 2, height), 0)
    ImageDraw.Draw(line).text((0, height // 2), text, 255, font, anchor="lm")
    line = line.transpose(Image.Transpose.ROTATE_90)
    corner = (foot[0] - line.width // 2, foot[1] - line.height)
    picture.paste("black", corner, line)
