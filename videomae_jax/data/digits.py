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
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent import futures

import av
import numpy as np
import tqdm
from PIL import Image, ImageDraw, ImageFont

from videomae_jax.files import PARTIAL_SUFFIX, atomic_write, partial_path, read_json
from videomae_jax.processes import available_resources

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

_SECONDS_PER_LINE = 10  # of progress, where no bar can be drawn


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
            "videos, once.",
            file=sys.stderr,
            flush=True,
        )
        make(target, SIZES)
    return target


def make(folder: str | os.PathLike, sizes: Mapping[str, int] = SIZES) -> pathlib.Path:
    """Makes and returns a folder, which appears only when the data set is complete.

    Until then its videos are in a hidden folder beside it, where a call continues that
    was interrupted. If two processes make the same folder, the first to finish wins and
    the other one uses its result.

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
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        _make_videos(unfinished, sizes)
        _write_lists(unfinished, sizes)
        unfinished.rename(folder)
    except OSError:
        if not _exists(folder, sizes):
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
    for file in folder.glob(f"*/.*{PARTIAL_SUFFIX}"):  # of processes that were killed
        file.unlink(missing_ok=True)
    return folder


def _make_videos(folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
    """Makes those videos that the folder does not have yet, and reports progress."""
    paths = []
    for split, size in sizes.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        paths += [folder / split / f"{index:05d}.mp4" for index in range(size)]
    # A file is empty if the machine lost power before its content was on the disk.
    todo = [x for x in paths if not (x.exists() and x.stat().st_size)]
    # Nearly all of the time is the encoder's, which leaves Python to other threads.
    threads = futures.ThreadPoolExecutor(available_resources().cores)
    try:
        done = threads.map(_make_video, todo)
        _report(done, total=len(paths), made=len(paths) - len(todo))
    finally:
        threads.shutdown(cancel_futures=True)


def _make_video(path: pathlib.Path) -> None:
    """Makes the video of a path, SPLIT/INDEX.mp4, which appears when it is whole."""
    frames, _ = render(path.parent.name, int(path.stem))
    temporary = partial_path(path)
    _encode(temporary, frames)
    temporary.replace(path)


def _report(done: Iterable[None], total: int, made: int) -> None:
    """Shows how many of the videos are made: a bar, or lines if stderr is a file."""
    start = line_time = time.monotonic()
    with tqdm.tqdm(total=total, initial=made, unit="video", disable=None) as bar:
        for count, _ in enumerate(done, start=1):
            bar.update()
            now = time.monotonic()
            if bar.disable and now - line_time > _SECONDS_PER_LINE:
                line_time, rate = now, count / (now - start)
                left = total - made - count
                print(
                    f"{made + count} of {total} videos, {rate:.0f}/s, "
                    f"{left / rate:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def _write_lists(folder: pathlib.Path, sizes: Mapping[str, int]) -> None:
    """Writes everything but the videos."""
    texts = {"labels.txt": "".join(f"{name}\n" for name in DIRECTIONS)}
    for split, size in sizes.items():
        lines = [f"{split}/{i:05d}.mp4 {_label(split, i)}\n" for i in range(size)]
        texts[f"{split}.txt"] = "".join(lines)
        if split == "train":
            texts["train_small.txt"] = "".join(lines[:SMALL])
    texts["data_set.json"] = json.dumps(_settings(sizes), indent=2) + "\n"
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)


def render(split: str, index: int) -> tuple[np.ndarray, int]:
    """Draws one video, as a function of its split and index alone.

    Returns:
        The grey frames, uint8 [16, 32, 32], and the label, 0 to 7.
    """
    label = _label(split, index)
    random = _random("video", split, index)
    glyph = _glyph(int(random.integers(10)), int(random.integers(*_FONT_SIZES)))
    start = random.uniform(0, SIDE, size=2)
    speed = random.uniform(*_SPEEDS)
    ink, paper = random.uniform(*_INKS), random.uniform(*_PAPERS)

    angle = 2 * np.pi * label / len(DIRECTIONS)
    steps = speed * np.arange(FRAMES)
    rows = start[0] + steps * np.sin(angle)
    columns = start[1] + steps * np.cos(angle)
    coverage = _coverage(glyph, rows, columns)
    frames = paper + (ink - paper) * coverage
    return np.rint(frames).astype(np.uint8), label


def _label(split: str, index: int) -> int:
    # The eight labels are shuffled for every eight videos: they are exactly balanced,
    # yet every eighth video, as read by one host of eight, still has all labels.
    block, position = divmod(index, len(DIRECTIONS))
    return int(_random("labels", split, block).permutation(len(DIRECTIONS))[position])


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


def _coverage(glyph: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the mean of the glyph in each pixel, [T, SIDE, SIDE].

    The glyph is moved by T offsets in pixels, on a circle: motion is smooth at any
    speed, and what leaves on one side enters on the other.
    """
    # The sum in a box follows from sums at its corners. Matrix products would be
    # shorter, but for matrices of this size, threads of a BLAS cost many times more
    # than they save.
    sums = np.zeros((2 * len(glyph) + 1,) * 2)
    np.cumsum(np.tile(glyph, (2, 2)), axis=1, out=sums[1:, 1:])
    np.cumsum(sums, axis=0, out=sums)
    row, part = (x[:, :, None] for x in _pixel_edges(rows))
    column, other_part = (x[:, None, :] for x in _pixel_edges(columns))
    corners = (1 - part) * (
        (1 - other_part) * sums[row, column] + other_part * sums[row, column + 1]
    ) + part * (
        (1 - other_part) * sums[row + 1, column]
        + other_part * sums[row + 1, column + 1]
    )
    return np.diff(np.diff(corners, axis=1), axis=2) / _OVERSAMPLING**2


def _pixel_edges(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the edges of pixels are in a moved glyph, tiled twice.

    Args:
        offsets: [T], in pixels.

    Returns:
        The glyph samples before the edges, [T, SIDE + 1], and the fraction of a sample
        from there to the edges, [T, 1].
    """
    edge = -offsets[:, None] * _OVERSAMPLING
    before = np.floor(edge)
    first = before.astype(int) % (SIDE * _OVERSAMPLING)
    return first + _OVERSAMPLING * np.arange(SIDE + 1), edge - before


def _encode(path: pathlib.Path, frames: np.ndarray) -> None:
    """Writes grey frames, uint8 [T, H, W], as H.264."""
    _, height, width = frames.shape
    # Video levels run from 16 to 235; chroma planes of half the size, at 128, are grey.
    luma = np.rint(16 + frames * (219 / 255)).astype(np.uint8)
    chroma = np.full((height // 2, width), 128, np.uint8)
    with av.open(str(path), "w", format="mp4") as container:
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
