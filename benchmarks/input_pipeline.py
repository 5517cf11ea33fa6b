"""Times the input of training and evaluation: this library, and the original's chain.

    python benchmarks/input_pipeline.py VIDEO ...

Pretraining: a clip is 16 frames, 4 apart, from a random position, with a random crop,
in a batch of 8. Decoding, cropping, resizing and batching are timed. The original's
chain is written from its description: it decodes with decord, makes a Pillow image of
each frame, crops and resizes it, stacks the frames, converts them to floating point and
normalises. This library stops at bytes, because its devices normalise. Both draw the
same clips and crops. All methods alternate batch by batch in one process and thread.

Fine-tuning clips, with RandAugment, are timed for this library only.

Evaluation: 5 x 3 views of a video, from one decode; and as the original does it, with
one decode of the whole video for each view.

Requires decord (pip install decord, or its successor decord2). PyTorch makes the
original's tensors; without it, NumPy does.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time

import decode
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax import __main__, processes  # noqa: E402
from videomae_jax.data import augmentation, sampling, sources  # noqa: E402
from videomae_jax.data.clips import FinetuningClips, MultiViewClips, PretrainingClips  # noqa: E402
from videomae_jax.data.randaugment import RandAugment  # noqa: E402
from videomae_jax.models.vit import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from videomae_jax.video.decoder import Video  # noqa: E402
from videomae_jax.video.open import open_video  # noqa: E402
from videomae_jax.video.record import Record  # noqa: E402

FRAMES, STRIDE, SIZE, BATCH = 16, 4, 224, 8
SCALES = (1.0, 0.875, 0.75, 0.66)


def pretraining(num_samples):
    """Returns what this library reads from a video to pretrain."""
    return PretrainingClips(FRAMES, STRIDE, SIZE, SCALES, 0.0, num_samples)


def finetuning(num_samples):
    """Returns what it reads to fine-tune, in the recipe for Kinetics-400."""
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    return FinetuningClips(
        "dense", FRAMES, STRIDE, SIZE, augment, area, aspect, 0.5, 0.25, num_samples
    )


def ours(videos, read_clips):
    """Returns a function from seeds to uint8 [videos * num_samples, T, H, W, 3]."""

    def batch(seeds):
        clips = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            with open_video(videos[seed % len(videos)]) as video:
                clips.append(read_clips(video, rng))
        return np.concatenate(clips)

    return batch


def originals(videos, to_float):
    """Returns the original's chain: from seeds to float32 [videos, 3, T, H, W]."""
    import decord

    def batch(seeds):
        samples = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            path = videos[seed % len(videos)]
            reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
            indices = sampling.sample_pretrain(rng, len(reader), FRAMES, STRIDE)
            frames = reader.get_batch(indices).asnumpy()
            images = [Image.fromarray(frame).convert("RGB") for frame in frames]
            width, height = images[0].size
            top, left, h, w = augmentation.multi_scale_box(
                rng, height, width, size=SIZE, scales=SCALES
            )
            images = [im.crop((left, top, left + w, top + h)) for im in images]
            images = [im.resize((SIZE, SIZE), Image.BILINEAR) for im in images]
            stacked = np.concatenate([np.array(im) for im in images], axis=2)
            samples.append(to_float(stacked))
        return to_float.stack(samples)

    return batch


class _Torch:
    """Normalises bytes [H, W, T * 3] to [3, T, H, W], as the original does."""

    name = "PyTorch"

    def __init__(self):
        import torch

        self._torch = torch
        torch.set_num_threads(1)

    def __call__(self, stacked):
        x = self._torch.from_numpy(stacked).permute(2, 0, 1).contiguous()
        x = x.float().div(255.0)
        mean = self._torch.tensor(IMAGENET_MEAN * FRAMES)
        std = self._torch.tensor(IMAGENET_STD * FRAMES)
        x.sub_(mean[:, None, None]).div_(std[:, None, None])
        return x.view(FRAMES, 3, SIZE, SIZE).transpose(0, 1)

    def stack(self, samples):
        return self._torch.stack(samples, 0)


class _NumPy:
    """Does the same without PyTorch."""

    name = "NumPy"

    def __call__(self, stacked):
        x = np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(np.float32)
        x /= 255
        x -= np.float32(IMAGENET_MEAN * FRAMES)[:, None, None]
        x /= np.float32(IMAGENET_STD * FRAMES)[:, None, None]
        return x.reshape(FRAMES, 3, SIZE, SIZE).swapaxes(0, 1)

    def stack(self, samples):
        return np.stack(samples)


def all_views(path):
    """Returns all views of a video, from one decode."""
    with Video(path) as video:
        read_clips = MultiViewClips(FRAMES, STRIDE, SIZE, "dense", 5, 3)
        return read_clips(video, np.random.default_rng(0))


def originals_views(path, to_float):
    """Reads the whole video for each view, like the original's test loader."""
    import decord

    for segment in range(5):
        for crop in range(3):
            reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
            frames = reader.get_batch(np.arange(0, len(reader), STRIDE)).asnumpy()
            images = [Image.fromarray(frame) for frame in frames]
            width, height = images[0].size
            scale = SIZE / min(width, height)
            size = (round(width * scale), round(height * scale))
            frames = np.stack([np.array(im.resize(size)) for im in images])
            start = int(segment * max(len(frames) - FRAMES, 0) / 4)
            offset = int(crop * (max(size) - SIZE) / 2)
            clip = frames[start : start + FRAMES]
            clip = np.take(
                clip, range(offset, offset + SIZE), axis=1 + int(size[0] > size[1])
            )
            clip = np.ascontiguousarray(clip.transpose(1, 2, 0, 3))
            to_float(clip.reshape(SIZE, SIZE, -1))


def prepared(videos, folder, short_side):
    """Encodes videos with the command prepare; returns their records."""
    source = pathlib.Path(folder, "list.txt")
    sources.write_list(source, [(os.path.abspath(path), None) for path in videos])
    out = pathlib.Path(folder, f"prepared{short_side}")
    arguments = ["prepare", str(source), str(out), "--split=train"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = __main__.main([*arguments, f"--short-side={short_side}"])
    if status:
        sys.exit("preparing the videos failed")
    return sources.load(f"tfds:{out}/train")


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--batches", type=int, default=10)
    arguments = parser.parse_args()
    decode.print_hardware()
    # The settings of worker processes; here they help all methods.
    processes.set_up_worker()
    try:
        to_float = _Torch()
    except ImportError:
        to_float = _NumPy()
    name = next((x for x in decode.methods() if x.startswith("decord")), None)
    if name is None:
        sys.exit("decord is not installed: pip install decord")
    original = f"original's chain ({name}, Pillow, {to_float.name})"
    contestants = {original: (originals(arguments.videos, to_float), 1)}
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "ordinary files": [Record(path, path) for path in arguments.videos],
            **{
                f"prepared, short side {side}": prepared(arguments.videos, folder, side)
                for side in (320, 256)
            },
        }
        for kind, records in kinds.items():
            for samples in (1, 2, 4):
                name = f"this library, {kind}, num_samples={samples}"
                contestants[name] = (ours(records, pretraining(samples)), samples)
            contestants[f"this library, {kind}, fine-tuning, num_samples=2"] = (
                ours(records, finetuning(2)),
                2,
            )
        seeds = np.arange(BATCH * arguments.batches).reshape(-1, BATCH).tolist()
        spent = decode.measure(
            {name: method for name, (method, _) in contestants.items()}, seeds
        )
    print("| method | CPU ms per clip | wall ms | speed-up |")
    print("|---|---|---|---|")
    base = spent[original][:, 0].mean()
    for name, (_, samples) in contestants.items():
        cpu, wall = spent[name].mean(axis=0) / samples
        print(
            f"| {name} | {1000 * cpu / BATCH:.1f} | {1000 * wall / BATCH:.1f} | "
            f"{base / cpu:.2f} |"
        )
    print("\n| 5 x 3 views of | original, CPU s | this library | ratio |")
    print("|---|---|---|---|")
    for path in arguments.videos:
        seconds = []
        for method in (
            lambda: originals_views(path, to_float),  # noqa: B023
            lambda: all_views(path),  # noqa: B023
        ):
            rounds = []
            for _ in range(3):
                start = time.process_time()
                method()
                rounds.append(time.process_time() - start)
            seconds.append(statistics.median(rounds))
        theirs, mine = seconds
        print(
            f"| {os.path.basename(path)} | {theirs:.2f} | {mine:.2f} | "
            f"{theirs / mine:.1f} |"
        )


if __name__ == "__main__":
    main()
