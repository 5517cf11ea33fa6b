"""Makes the embedded data set: .mp4 files of one moving digit, made on first use.

A bright digit crosses a plain dark frame at constant velocity and re-enters on the
other side. The label is its direction, one of eight, so a single frame says nothing
about it: a model must look at motion. Nothing is downloaded, and everything from a
compressed file to an accuracy runs in minutes on a laptop.

Mirroring a clip changes its label, so recipes for this data set must not flip.
"""

import functools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomae_jax.files import read_json

# To be increased whenever a pixel, label or list changes, so that no run mixes two data
# sets of the same name.
VERSION = 1

# Clockwise on the screen, 45 degrees apart; the index is the label.
DIRECTIONS = tuple("right down-right down down-left left up-left up up-right".split())

SIZES = {"train": 3000, "val": 400, "test": 800}
SMALL = 400  # train_small.txt: the first videos of train, 50 of each direction
LISTS = (*SIZES, "train_small")  # each a .txt file

FRAMES = 16
SIDE = 32  # pixels
RATE = 10  # frames per second

_OVERSAMPLING = 4  # glyph samples per pixel and axis
_FONT_SIZES = (82, 100)  # in glyph samples: digits 14.5 to 18 pixels high
_SPEEDS = (2.0, 3.0)  # pixels per frame
_INKS = (200, 255)  # grey values
_PAPERS = (10, 45)


def ensure(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Makes the data set unless it exists, and returns its folder.

    That has `train.txt`, `val.txt`, `test.txt`, `train_small.txt` (lines such as
    `train/00001.mp4 3`), `labels.txt` and the videos.

    Args:
        folder: the parent folder, with one sub-folder per version; by default
            `$VIDEOMAE_JAX_DATA/digits` or, without that variable,
            `~/.cache/videomae_jax/digits`.

    Raises:
        FileExistsError: something else has the name of this version.
    """
    if folder is None:
        data = os.environ.get("VIDEOMAE_JAX_DATA") or "~/.cache/videomae_jax"
        folder = pathlib.Path(data, "digits")
    target = pathlib.Path(folder).expanduser().absolute() / f"v{VERSION}"
    if not _exists(target, SIZES):
        print(
            f"Making the digits data set in {target}: {sum(SIZES.values())} small "
            "videos, once, in about half a minute.",
            flush=True,
        )
        make(target, SIZES)
    return target


def make(folder: str | os.PathLike, sizes: Mapping[str, int] = SIZES) -> pathlib.Path:
    """Makes and returns a folder, which appears only when the data set is complete.

    If two processes make the same folder, the first to finish wins and the other one
    uses its result.

    Args:
        folder: the folder to make.
        sizes: videos per split. A smaller split is the beginning of a larger one.

    Raises:
        FileExistsError: the folder exists and holds anything but this data set.
    """
    folder = pathlib.Path(folder)
    if _exists(folder, sizes):
        return folder
    # A sibling, so that the rename stays within one file system.
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        for split, size in sizes.items():
            (unfinished / split).mkdir(parents=True)
            lines = []
            for index in range(size):
                frames, label = render(split, index)
                name = f"{split}/{index:05d}.mp4"
                _encode(unfinished / name, frames)
                lines.append(f"{name} {label}\n")
            (unfinished / f"{split}.txt").write_text("".join(lines))
            if split == "train":
                (unfinished / "train_small.txt").write_text("".join(lines[:SMALL]))
        (unfinished / "labels.txt").write_text("".join(f"{d}\n" for d in DIRECTIONS))
        settings = json.dumps(_settings(sizes), indent=2)
        (unfinished / "data_set.json").write_text(settings + "\n")
        try:
            unfinished.rename(folder)
        except OSError:
            if not _exists(folder, sizes):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def render(split: str, index: int) -> tuple[np.ndarray, int]:
    """Draws one video, as a function of its split and index alone.

    Returns:
        The grey frames, uint8 [16, 32, 32], and the label, 0 to 7.
    """
    # The eight labels are shuffled for every eight videos: they are exactly balanced,
    # yet every eighth video, as read by one host of eight, still has all labels.
    block, position = divmod(index, len(DIRECTIONS))
    label = int(_random("labels", split, block).permutation(len(DIRECTIONS))[position])

    random = _random("video", split, index)
    glyph = _glyph(int(random.integers(10)), int(random.integers(*_FONT_SIZES)))
    start = random.uniform(0, SIDE, size=2)
    speed = random.uniform(*_SPEEDS)
    ink, paper = random.uniform(*_INKS), random.uniform(*_PAPERS)

    angle = 2 * np.pi * label / len(DIRECTIONS)
    steps = speed * np.arange(FRAMES)
    rows = _sample(start[0] + steps * np.sin(angle))
    columns = _sample(start[1] + steps * np.cos(angle))
    coverage = rows @ glyph @ columns.swapaxes(1, 2)
    frames = paper + (ink - paper) * coverage
    return np.rint(frames).astype(np.uint8), label


def _random(purpose: str, split: str, index: int) -> np.random.Generator:
    name = f"{purpose} {split}".encode()
    return np.random.Generator(np.random.PCG64([VERSION, index, *name]))


# Pillow contains the font. Loading it costs more than drawing with it.
_font = functools.cache(ImageFont.load_default)


def _glyph(digit: int, font_size: int) -> np.ndarray:
    """Returns a digit in [0, 1] on an oversampled canvas of the size of a frame."""
    side = SIDE * _OVERSAMPLING
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(
        (side / 2, side / 2),
        str(digit),
        fill=255,
        font=_font(font_size),
        anchor="mm",
        stroke_width=2,  # half a pixel: plain strokes fade when moved off the grid
    )
    return np.asarray(canvas, np.float64) / 255


def _sample(offsets: np.ndarray) -> np.ndarray:
    """Returns matrices [T, pixels, samples] that move by T offsets and average.

    Offsets are in pixels. Each entry is the fraction of a pixel that a glyph sample
    covers, on a circle: motion is smooth at any speed, and what leaves on one side
    enters on the other.
    """
    width = 1 / _OVERSAMPLING
    left = np.arange(0, SIDE, width) + offsets[:, None, None]
    distance = (left - np.arange(SIDE)[:, None]) % SIDE
    # A sample starts inside the pixel, or just before it: nearly a full turn after.
    inside = np.clip(1 - distance, 0, width)
    before = np.clip(distance + width - SIDE, 0, width)
    return inside + before


def _encode(path: pathlib.Path, frames: np.ndarray) -> None:
    """Writes grey frames, uint8 [T, H, W], as H.264."""
    _, height, width = frames.shape
    # Video levels run from 16 to 235; chroma planes of half the size, at 128, are grey.
    luma = np.rint(16 + frames * (219 / 255)).astype(np.uint8)
    chroma = np.full((height // 2, width), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread: as fast at this size, and the bytes are the same on any machine
        # with the same encoder.
        # Lossless (qp 0): otherwise, a model with normalised targets would mostly
        # predict coding noise on the plain paper.
        stream.options.update(preset="superfast", qp="0", g=str(FRAMES), threads="1")
        for time, image in enumerate(luma):
            planes = np.concatenate([image, chroma])
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _settings(sizes: Mapping[str, int]) -> dict:
    return {
        "name": "digits",
        "version": VERSION,
        "sizes": dict(sizes),
        "frames": FRAMES,
        "side": SIDE,
        "rate": RATE,
        "labels": list(DIRECTIONS),
    }


def _exists(folder: pathlib.Path, sizes: Mapping[str, int]) -> bool:
    """Returns whether the folder exists; raises if it is not this data set."""
    if not folder.exists():
        return False
    is_folder = folder.is_dir()
    if not is_folder or read_json(folder / "data_set.json") != _settings(sizes):
        raise FileExistsError(
            f"{folder} exists, but is not version {VERSION} of the digits data set "
            f"with {dict(sizes)} videos: remove it, or choose another folder"
        )
    return True
