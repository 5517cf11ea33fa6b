"""Compares settings of `prepare`: size, quality, time to read a clip.

    python benchmarks/prepare_settings.py VIDEO [VIDEO ...] [--short-side=256]

Encodes each video with each of the settings. Then one thread reads clips of 16 frames,
4 apart, from random positions, as training does. Times are CPU times, which other
processes disturb less, and the best of a few passes over the same clips. Encoding speed
is in seconds of video per second. PSNR compares decoded frames with those of the
original, resized likewise. B is the number of B-frames between two other frames.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.data import sampling  # noqa: E402
from videomae_jax.datasets.encode import Encoded, Settings, encode  # noqa: E402
from videomae_jax.video.decoder import IndexedVideo, Video  # noqa: E402

FRAMES, STRIDE, CLIPS, PASSES = 16, 4, 40, 3

DEFAULT = Settings()
VARIANTS = [
    DEFAULT,
    *(dataclasses.replace(DEFAULT, keyframes=n) for n in (8, 16, 24, 64, 250)),
    *(dataclasses.replace(DEFAULT, tune="", keyframes=n) for n in (32, 250)),
    *(dataclasses.replace(DEFAULT, b_frames=n) for n in (0, 3, 5)),
    *(dataclasses.replace(DEFAULT, crf=n) for n in (16, 20, 23, 26)),
    *(
        dataclasses.replace(DEFAULT, preset=name)
        for name in ("superfast", "veryfast", "faster", "slow")
    ),
]


def read_clips(encoded: Encoded) -> float:
    """Returns the CPU milliseconds per clip, including opening the video."""
    size = (encoded.height, encoded.width)
    passes = []
    for _ in range(PASSES):
        rng = np.random.default_rng(0)
        start = time.thread_time()
        for _ in range(CLIPS):
            with (
                IndexedVideo(
                    encoded.video,
                    encoded.index,
                    fps=encoded.fps,
                    size=size,
                    name="video",
                )
                if encoded.index
                else Video(encoded.video)
            ) as video:
                video.read(
                    sampling.sample_pretrain(rng, video.num_frames, FRAMES, STRIDE)
                )
        passes.append(time.thread_time() - start)
    return 1000 * min(passes) / CLIPS


def frames(encoded: Encoded) -> np.ndarray:
    """Returns every tenth frame of a video."""
    with Video(encoded.video) as video:
        return video.read(range(0, video.num_frames, 10)).astype(np.float32)


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in decibels."""
    return float(10 * np.log10(255**2 / np.mean(np.square(frames - truth))))


def main() -> None:
    """Prints a row for each of the settings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--short-side", type=int, default=DEFAULT.short_side)
    args = parser.parse_args()
    contents = [pathlib.Path(path).read_bytes() for path in args.videos]
    exact = Settings(args.short_side, crf=0, preset="ultrafast")
    truths = [frames(encode(content, exact)) for content in contents]

    print("| keyframes | B | tune | crf | preset | kB/s | PSNR | ms/clip | encoding |")
    print("|---|---|---|---|---|---|---|---|---|")
    whole = [encode(content, None) for content in contents]
    row("| original files | | | | ", whole, [0.0] * len(whole), None)
    for settings in VARIANTS:
        settings = dataclasses.replace(settings, short_side=args.short_side)
        encoded, times, quality = [], [], []
        for content, truth in zip(contents, truths, strict=True):
            start = time.thread_time()
            encoded.append(encode(content, settings))
            times.append(time.thread_time() - start)
            quality.append(psnr(frames(encoded[-1]), truth))
        name = f"| {settings.keyframes} | {settings.b_frames} | {settings.tune} "
        name += f"| {settings.crf} "
        row(f"{name}| {settings.preset} ", encoded, times, statistics.mean(quality))


def row(
    name: str, videos: list[Encoded], times: list[float], quality: float | None
) -> None:
    """Prints a row of the table."""
    seconds = [video.num_frames / video.fps for video in videos]
    size = sum(len(video.video) for video in videos) / sum(seconds) / 1000
    reading = statistics.mean(read_clips(video) for video in videos)
    decibels = "" if quality is None else f"{quality:.1f}"
    speed = sum(seconds) / sum(times) if sum(times) else None
    speed = f"{speed:.1f}x" if speed else ""
    print(f"{name}| {size:.0f} | {decibels} | {reading:.1f} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
