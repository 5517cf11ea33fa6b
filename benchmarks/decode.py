"""What decoding random clips costs: this library beside decord and plain PyAV.

    python benchmarks/decode.py VIDEO ...

Each way opens the file and reads 16 frames, 4 apart, from the same random starts, with
one decoding thread; the ways take turns clip by clip in one process. CPU time is that
of all threads of the process. Before, all frames of all ways are compared: they must be
equal in every pixel.

decord is compared where it is installed (pip install decord, or its successor decord2,
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
    """The packets that are needed, decoded and converted."""
    with Video(path) as video:
        return video.read(indices)


def plain_pyav(path, indices):
    """A seek to the keyframe before, and all frames from there on."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate, base = stream.average_rate, stream.time_base
        wanted = {round(i / rate / base) + (stream.start_time or 0): i for i in indices}
        container.seek(min(wanted), stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(indices):
                    break
    return np.stack(frames)


def with_decord(path, indices):
    """As the official code reads: one thread, one batch."""
    import decord

    reader = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
    return reader.get_batch(indices).asnumpy()


def ways():
    """The ways that can run here, by name."""
    found = {"videomae_jax": ours, "PyAV, seek and decode": plain_pyav}
    for package in ("decord", "decord2"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[f"{package} {version}"] = with_decord
    return found


def random_clips(path, count, seed=0):
    """Indices of random clips, int64 [count, FRAMES]."""
    with Video(path) as video:
        spare = video.num_frames - (FRAMES - 1) * STRIDE
    starts = np.random.default_rng(seed).integers(max(spare, 1), size=count)
    return starts[:, None] + STRIDE * np.arange(FRAMES)


def measure(contestants, clips):
    """CPU and wall seconds of each way for each clip; they take turns."""
    spent = {name: [] for name in contestants}
    for clip in clips:
        for name, way in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way(clip)
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: np.array(values) for name, values in spent.items()}


def print_hardware():
    """What the numbers were measured on."""
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
        "| video | way | CPU ms per clip | wall ms | CPU time of ours |"
        "\n|---|---|---|---|---|"
    )
    ratios = {}
    for path in arguments.videos:
        found = ways()
        clips = random_clips(path, arguments.clips)
        for indices in clips[:5]:
            for name, way in found.items():
                np.testing.assert_array_equal(
                    way(path, indices), ours(path, indices), f"{name}: {path}"
                )
        spent = measure(
            {
                name: lambda indices, way=way, path=path: way(path, indices)
                for name, way in found.items()
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
