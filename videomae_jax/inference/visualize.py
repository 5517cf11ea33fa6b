"""Writes clips as a PNG strip of frames, an animated GIF, or an mp4.

Every function takes `rows`, a list of arrays [B, T, H, W, C] of one shape, such as
original, masked and reconstructed clips, and their names as `labels`. Pixels are uint8
or uint16. One or two channels are shown in grey, of more the first three in colour.
"""

import math
import os
import pathlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomae_jax.files import writing

FORMATS = ("gif", "png", "mp4")
RECONSTRUCTION = ("original", "masked", "reconstructed")  # labels
_MIN_SIZE = 128  # pixels; smaller frames are enlarged by an integer factor
_LINE = 2  # pixels; of white between two frames
_TEXT_SIZE, _TEXT_HEIGHT, _MARGIN = 14, 22, 6  # pixels; of labels


def save(
    stem: str | os.PathLike,
    rows: Sequence[np.ndarray],
    *,
    labels: Sequence[str] = (),
    fps: float = 8.0,
    formats: Sequence[str] = FORMATS,
) -> list[pathlib.Path]:
    """Writes clips in several formats, as `<stem>.gif`, `<stem>.png`, `<stem>.mp4`.

    Args:
        stem: path without an extension; its folder must exist.
        labels: a name for each row, written beside it; none by default.
        fps: frames per second of the animations.
        formats: some of FORMATS; the files are returned in their order.

    Raises:
        ValueError: for an unknown format.

    Example:
        >>> import tempfile
        >>> clip = np.zeros((1, 4, 32, 32, 3), np.uint8)
        >>> files = save(tempfile.mkdtemp() + "/clip", [clip, 255 - clip])
        >>> [file.name for file in files]
        ['clip.gif', 'clip.png', 'clip.mp4']
    """
    unknown = set(formats).difference(FORMATS)
    if unknown:
        raise ValueError(
            f"formats={tuple(formats)!r}: unknown {', '.join(sorted(unknown))}, use "
            f"some of {', '.join(FORMATS)}"
        )
    files = [pathlib.Path(f"{os.fspath(stem)}.{name}") for name in formats]
    for name, file in zip(formats, files, strict=True):
        if name == "gif":
            save_gif(file, rows, labels=labels, fps=fps)
        elif name == "png":
            save_png(file, frame_strip(rows, labels=labels))
        else:
            save_mp4(file, rows, labels=labels, fps=fps)
    return files


def frame_strip(
    rows: Sequence[np.ndarray],
    *,
    labels: Sequence[str] = (),
    max_frames: int = 8,
    min_size: int = _MIN_SIZE,
) -> np.ndarray:
    """Lays frames out as one image: for each clip, a line for every entry of `rows`.

    Args:
        labels: a name for each row, written to its left.
        max_frames: frames of each clip to show, evenly spread.
        min_size: frames are enlarged by an integer factor to at least this height.

    Returns:
        uint8 [height, width, 3], with thin white lines between frames.
    """
    tiles = _tiles(rows, min_size)
    frames = tiles.shape[2]
    shown = np.linspace(0, frames - 1, min(frames, max_frames)).round().astype(int)
    tiles = tiles[:, :, shown].transpose(0, 1, 3, 2, 4, 5)  # clip, row, height, time
    height = tiles.shape[2]
    images = tiles.reshape(len(tiles), len(rows) * height, -1, 3)
    if labels:
        width = max(map(_text_width, labels)) + 2 * _MARGIN
        names = np.concatenate([_text(name, height, width) for name in labels])
        names = np.broadcast_to(names, (len(images), *names.shape))
        images = np.concatenate([names, images], axis=2)
    gap = 3 * _LINE  # a wider line between clips
    images = np.pad(images, [(0, 0), (0, gap), (0, 0), (0, 0)], constant_values=255)
    return images.reshape(-1, *images.shape[2:])[: -gap - _LINE, :-_LINE]


def animation(rows: Sequence[np.ndarray], *, labels: Sequence[str] = ()) -> np.ndarray:
    """Lays clips out as one animation: a line for each, the `rows` side by side.

    Labels are written above the columns. Returns uint8 [T, height, width, 3], with thin
    white lines between frames.
    """
    frames = _tiles(rows, _MIN_SIZE).transpose(2, 0, 3, 1, 4, 5)
    # Axes: time, clip, height, row, width, colour.
    height, width = frames.shape[1] * frames.shape[2], frames.shape[3] * frames.shape[4]
    column = frames.shape[4]
    frames = frames.reshape(-1, height, width, 3)[:, :-_LINE, :-_LINE]
    if not labels:
        return frames
    names = [_text(name, _TEXT_HEIGHT, column) for name in labels]
    band = np.concatenate(names, axis=1)[:, :-_LINE]
    band = np.broadcast_to(band, (len(frames), *band.shape))
    return np.concatenate([band, frames], axis=1)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes an image, uint8 [height, width, 3]."""
    with writing(path):
        Image.fromarray(image).save(path)


def save_gif(
    path: pathlib.Path,
    rows: Sequence[np.ndarray],
    *,
    labels: Sequence[str] = (),
    fps: float = 8.0,
) -> None:
    """Writes an `animation` as a GIF that loops."""
    images = [Image.fromarray(frame) for frame in animation(rows, labels=labels)]
    options = {"duration": 1000 / fps, "loop": 0}
    with writing(path):
        images[0].save(path, save_all=True, append_images=images[1:], **options)


def save_mp4(
    path: pathlib.Path,
    rows: Sequence[np.ndarray],
    *,
    labels: Sequence[str] = (),
    fps: float = 8.0,
) -> None:
    """Writes an `animation` as H.264 that every browser and player can show."""
    # Imported here, because images do without.
    import av

    frames = animation(rows, labels=labels)
    # In yuv420p, colours have half the resolution: both sides must be even.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], constant_values=255)
    rate = Fraction(fps).limit_denominator(1001)
    with writing(path), av.open(os.fspath(path), "w") as file:
        # The default quality (23) shows in noise and at the edges of patches.
        stream = file.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def displayed(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels as they are shown, [..., C] -> uint8 [..., 3]."""
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[-1] < 3:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    return pixels[..., :3]


def _tiles(rows: Sequence[np.ndarray], min_size: int) -> np.ndarray:
    """Returns enlarged frames, white below and to the right, [B, rows, T, H, W, 3]."""
    clips = np.stack([displayed(row) for row in rows], axis=1)
    factor = -(-min_size // clips.shape[-3])
    clips = clips.repeat(factor, axis=-3).repeat(factor, axis=-2)
    lines = [(0, 0)] * 3 + [(0, _LINE), (0, _LINE), (0, 0)]
    return np.pad(clips, lines, constant_values=255)


def _text(text: str, height: int, width: int) -> np.ndarray:
    """Returns text in the middle of a white image, uint8 [height, width, 3]."""
    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(_TEXT_SIZE)
    # Starts at the left edge if it is too wide, so that its end is cut off.
    left = max((width - _text_width(text)) // 2, 0)
    ImageDraw.Draw(image).text((left, height // 2), text, "black", font, anchor="lm")
    return np.asarray(image)


def _text_width(text: str) -> int:
    return math.ceil(ImageFont.load_default(_TEXT_SIZE).getlength(text))
