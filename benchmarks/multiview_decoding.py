"""How long it takes to read all test views of a video: once, or view by view.

    python benchmarks/multiview_decoding.py [VIDEO ...]

Without videos, one is made: 10 s of 340x256 at 30 frames per second, H.264 with the
encoder's usual settings. The three ways are timed in turn, several times, in one
process; the medians are given, and their ratio to reading once.
"""

import argparse
import functools
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import av
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.data import augmentation, sampling  # noqa: E402
from videomae_jax.data.clips import MultiViewClips  # noqa: E402
from videomae_jax.video.decoder import Video  # noqa: E402

FRAMES, STRIDE, SIZE, SEGMENTS, CROPS = 16, 4, 224, 5, 3


def once(path):
    """This library's way: one decode, and all views cut from it."""
    with Video(path) as video:
        return MultiViewClips(FRAMES, STRIDE, SIZE, "dense", SEGMENTS, CROPS)(
            video, None
        )


def for_each_view(path, whole_video):
    """A decode for each view, of the whole video's frames or of the view's own."""
    views = []
    for segment in range(SEGMENTS):
        for crop in range(CROPS):
            with Video(path) as video:
                indices = sampling.dense_test_indices(
                    video.num_frames, FRAMES, STRIDE, SEGMENTS
                )
                wanted = np.unique(indices if whole_video else indices[segment])
                frames = video.read(wanted)
            frames = augmentation.spatial_crops(frames, SIZE, CROPS)[crop]
            views.append(frames[np.searchsorted(wanted, indices[segment])])
    return np.stack(views)


def make_video(path):
    """Smooth moving shapes with a little noise, which compress like a real scene."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:256, 0:340]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for t in range(300):
            waves = [
                np.sin((rows * a + columns * b) / 40 + t / 15)
                for a, b in ((1, 2), (2, -1), (-1, 1))
            ]
            image = 128 + 90 * np.stack(waves, axis=-1)
            image += rng.normal(0, 4, image.shape)
            frame = av.VideoFrame.from_ndarray(
                image.clip(0, 255).astype(np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main():
    """Times the three ways for each video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    ways = {
        "once for all views": once,
        "for each view, its own frames": functools.partial(
            for_each_view, whole_video=False
        ),
        "for each view, the whole video's (as the original)": functools.partial(
            for_each_view, whole_video=True
        ),
    }
    print(f"{os.cpu_count()} cores, {platform.machine()}; one thread reads")
    print(
        f"{SEGMENTS} x {CROPS} views of {FRAMES} frames, stride {STRIDE}, {SIZE} px\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.videos
        if not videos:
            videos = [os.path.join(folder, "made.mp4")]
            make_video(videos[0])
        print("| video | frames | read | seconds | ratio |\n|---|---|---|---|---|")
        for path in videos:
            with Video(path) as video:
                num_frames = video.num_frames
            results = {name: way(path) for name, way in ways.items()}
            for views in results.values():
                np.testing.assert_array_equal(views, results["once for all views"])
            seconds = {name: [] for name in ways}
            for _ in range(arguments.repeats):
                for name, way in ways.items():
                    start = time.perf_counter()
                    way(path)
                    seconds[name].append(time.perf_counter() - start)
            medians = {name: statistics.median(x) for name, x in seconds.items()}
            base = medians["once for all views"]
            for name, value in medians.items():
                print(
                    f"| {os.path.basename(path)} | {num_frames} | {name} | "
                    f"{value:.3f} | {value / base:.1f} |"
                )


if __name__ == "__main__":
    main()
