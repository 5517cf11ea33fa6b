"""Times reading all test views of a video: from one decode, or view by view.

    python benchmarks/multiview_decoding.py [VIDEO ...]

All methods use this library's decoder, so the ratio is the gain from decoding once.
benchmarks/input_pipeline.py compares with the original's decoder, decord. Without
videos, one is made: 10 s of 340x256 at 30 frames per second, H.264 with the encoder's
default settings. The methods alternate in one process; medians are printed, and their
ratio to decoding once.
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
    """Cuts all views from one decode, as this library does."""
    with Video(path) as video:
        return MultiViewClips(FRAMES, STRIDE, SIZE, "dense", SEGMENTS, CROPS)(
            video, None
        )


def for_each_view(path, whole_video):
    """Decodes for each view: the frames of all views, or only the view's own."""
    views = []
    for segment in range(SEGMENTS):
        for crop in range(CROPS):
            with Video(path) as video:
                indices = sampling.dense_test_indices(
                    video.num_frames, FRAMES, STRIDE, SEGMENTS
                )
                unique = np.unique(indices if whole_video else indices[segment])
                frames = video.read(unique)
            frames = augmentation.spatial_crops(frames, SIZE, CROPS)[crop]
            views.append(frames[np.searchsorted(unique, indices[segment])])
    return np.stack(views)


def make_video(path):
    """Writes smooth moving shapes with a little noise; they compress like a scene."""
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
    """Times the three methods for each video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    methods = {
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
        print("| video | frames | decoded | seconds | ratio |\n|---|---|---|---|---|")
        for path in videos:
            with Video(path) as video:
                num_frames = video.num_frames
            results = {name: method(path) for name, method in methods.items()}
            for views in results.values():
                np.testing.assert_array_equal(views, results["once for all views"])
            seconds = {name: [] for name in methods}
            for _ in range(arguments.repeats):
                for name, method in methods.items():
                    start = time.perf_counter()
                    method(path)
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
