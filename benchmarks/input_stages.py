"""Times each stage of reading a clip: opening, decoding, converting, resizing.

    python benchmarks/input_stages.py VIDEO ...

Clips are those of pretraining: 16 frames, 4 apart, from random positions, of which only
the area of a random crop is converted. The augmentation of fine-tuning, on whole
frames, is timed as well. Numbers are CPU milliseconds per clip of one thread: the
median over the clips of a video, averaged over the videos. Ordinary and prepared videos
alternate.
"""

import argparse
import collections
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time

import decode
import input_pipeline
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax import processes  # noqa: E402
from videomae_jax.data import augmentation, sampling  # noqa: E402
from videomae_jax.data.prefetch import copy_as_patches  # noqa: E402
from videomae_jax.data.randaugment import RandAugment  # noqa: E402
from videomae_jax.video.open import open_video  # noqa: E402
from videomae_jax.video.record import Record  # noqa: E402

FRAMES, STRIDE, SIZE = (
    input_pipeline.FRAMES,
    input_pipeline.STRIDE,
    input_pipeline.SIZE,
)
PATCH, PATCH_VALUES = (2, 16), 2 * 16 * 16 * 3


@contextlib.contextmanager
def timed(spent):
    """Appends the CPU milliseconds of this thread inside the context to a list."""
    start = time.thread_time()
    yield
    spent.append(1000 * (time.thread_time() - start))


def read(record, rng, spent):
    """Reads a clip and times each stage."""
    with timed(spent["open"]):
        video = open_video(record)
    indices = sampling.sample_pretrain(rng, video.num_frames, FRAMES, STRIDE)
    with timed(spent["decode"]):
        frames = video.decode(indices)
    box = augmentation.multi_scale_box(rng, frames.height, frames.width, size=SIZE)
    with timed(spent["convert the crop to RGB"]):
        crop = frames.pixels(box)
    with timed(spent["resize the crop"]):
        whole = (0, 0, *crop.shape[1:3])
        clip = augmentation.crop_and_resize(crop, whole, SIZE, SIZE)
    with timed(spent["into the batch, as patches"]):
        patches = np.empty((1, clip.size // PATCH_VALUES, PATCH_VALUES), clip.dtype)
        copy_as_patches(clip[None], patches, PATCH)
    with timed(spent["the same as a plain copy"]):
        np.copyto(np.empty_like(clip), clip)
    with timed(spent["fine-tuning: convert whole frames"]):
        images = frames.pixels()
    with timed(spent["fine-tuning: RandAugment"]):
        images = AUGMENT(rng, images)
    with timed(spent["fine-tuning: resized crop"]):
        clip = augmentation.random_resized_crop(rng, images, SIZE)
    with timed(spent["fine-tuning: flip and erase"]):
        clip = augmentation.horizontal_flip(rng, clip, 0.5)
        augmentation.random_erasing(rng, clip, 0.25)
    with timed(spent["close"]):
        del frames
        video.close()


AUGMENT = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--clips", type=int, default=40, help="of each video")
    arguments = parser.parse_args()
    decode.print_hardware()
    processes.set_up_worker()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "ordinary files": [Record(path, path) for path in arguments.videos],
            "prepared": input_pipeline.prepared(arguments.videos, folder, 320),
        }
        means = {kind: collections.defaultdict(list) for kind in kinds}
        for i in range(len(arguments.videos)):
            spent = {kind: collections.defaultdict(list) for kind in kinds}
            for seed in range(arguments.clips):
                for kind, records in kinds.items():
                    read(records[i], np.random.default_rng(seed), spent[kind])
            for kind, stages in spent.items():
                for stage, values in stages.items():
                    means[kind][stage].append(statistics.median(values))
    print(f"| CPU ms per clip | {' | '.join(kinds)} |")
    print(f"|---|{'---|' * len(kinds)}")
    for stage in means["prepared"]:
        row = [f"{statistics.mean(means[kind][stage]):.2f}" for kind in kinds]
        print(f"| {stage} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
