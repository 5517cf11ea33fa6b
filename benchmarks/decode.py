"""Times decoding random clips: this library, decord and plain PyAV.

    python benchmarks/decode.py VIDEO ...

Each method opens the file and reads 16 frames, 4 apart, from the same random starts,
with one decoding thread. The methods alternate clip by clip in one process. CPU time is
that of all threads of the process. First, all frames of all methods are compared: every
pixel must be equal.

decord is included if it is installed (pip install decord, or its successor decord2,
which has the same module name).
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
import sys
import time

import av
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.video.decoder import Video  # noqa: E402

FRAMES, STRIDE = 16, 4


def ours(path, indices):
    """Decodes with this library: only the packets that the frames depend on."""
    with Video(path) as video:
        return video.read(indices)


def plain_pyav(path, indices):
    """Seeks to the keyframe before the clip and decodes all frames from there on."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate, base = stream.average_rate, stream.time_base
        times = {round(i / rate / base) + (stream.start_time or 0) for i in indices}
        container.seek(min(times), stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts in times:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(indices):
                    break
    return np.stack(frames)


def with_decord(path, indices):
    """Decodes as the official code does: one thread, one batch."""
    import decord

    reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
    return reader.get_batch(indices).asnumpy()


def methods():
    """Returns the methods that are installed, by name."""
    installed = {"videomae_jax": ours, "PyAV, seek and decode": plain_pyav}
    for package in ("decord", "decord2"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        installed[f"{package} {version}"] = with_decord
    return installed


def random_clips(path, count, seed=0):
    """Returns frame indices of random clips, int64 [count, FRAMES]."""
    with Video(path) as video:
        spare = video.num_frames - (FRAMES - 1) * STRIDE
    starts = np.random.default_rng(seed).integers(max(spare, 1), size=count)
    return starts[:, None] + STRIDE * np.arange(FRAMES)


def measure(contestants, clips):
    """Returns CPU and wall seconds of each method for each clip; they alternate."""
    spent = {name: [] for name in contestants}
    for clip in clips:
        for name, method in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            method(clip)
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: np.array(values) for name, values in spent.items()}


def print_hardware():
    """Prints what the numbers are measured on."""
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, PyAV {av.__version__}\n"
    )


def main():
    """Prints a table for the videos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--clips", type=int, default=40, help="of each video")
    arguments = parser.parse_args()
    print_hardware()
    print(
        "| video | method | CPU ms per clip | wall ms | CPU time of ours |"
        "\n|---|---|---|---|---|"
    )
    ratios = {}
    for path in arguments.videos:
        installed = methods()
        clips = random_clips(path, arguments.clips)
        for indices in clips[:5]:
            for name, method in installed.items():
                np.testing.assert_array_equal(
                    method(path, indices), ours(path, indices), f"{name}: {path}"
                )
        spent = measure(
            {
                name: lambda indices, method=method, path=path: method(path, indices)
                for name, method in installed.items()
            },
            clips,
        )
        base = spent["videomae_jax"][:, 0].mean()
        for name, values in spent.items():
            cpu, wall = 1000 * values.mean(axis=0)
            ratio = cpu / 1000 / base
            ratios.setdefault(name, []).append(ratio)
            print(
                f"| {os.path.basename(path)} | {name} | {cpu:.1f} | {wall:.1f} | "
                f"{ratio:.2f} |"
            )
    if len(arguments.videos) > 1:
        for name, values in ratios.items():
            print(f"| all | {name} | | | {statistics.geometric_mean(values):.2f} |")


if __name__ == "__main__":
    main()
