"""Measures the memory of the input, and whether it keeps growing.

    python benchmarks/pipeline_memory.py VIDEO ...

Reads clips with worker processes, as training does. After every 1,000 clips it prints
the proportional set sizes of this process and of the workers, from
/proc/*/smaps_rollup, in which shared memory counts once. File pages, such as programs,
are in one column only, because their share depends on what else runs. Chunks in shared
memory count where they are mapped; the use of /dev/shm is printed too. The last three
batches are kept, and before each line the benchmark pauses for some seconds, like a
training loop whose devices are behind.

It also prints the estimate from which the workers are chosen
(videomae_jax/data/workers.py). Linux only.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import sys
import time

import decode

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax import processes  # noqa: E402
from videomae_jax.data import pipeline, workers  # noqa: E402
from videomae_jax.data.clips import PretrainingClips  # noqa: E402
from videomae_jax.video.record import Record  # noqa: E402

FRAMES, STRIDE, SCALES = 16, 4, (1.0, 0.875, 0.75, 0.66)
MB = 10**6


def descendants():
    """Returns the ids of all child processes of this one, and of their children."""
    descendants, parents = [], [os.getpid()]
    while parents:
        for file in pathlib.Path(f"/proc/{parents.pop()}/task").glob("*/children"):
            children = [int(child) for child in file.read_text().split()]
            descendants += children
            parents += children
    return descendants


def held(pid, kinds=("Pss_Anon:", "Pss_Shmem:")):
    """Returns the bytes that a process holds; 0 if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines()]
    return 1024 * sum(int(words[1]) for words in lines if words[0] in kinds)


def shared():
    """Returns the bytes in /dev/shm, of all processes."""
    disk = os.statvfs("/dev/shm")
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1000, help="clips per line")
    parser.add_argument(
        "--size", type=int, default=64, help="height and width of a clip, in pixels"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, help="default: chosen automatically")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--chunk-size", type=int, help="clips per chunk")
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument(
        "--pause", type=float, default=5, help="seconds before each line"
    )
    arguments = parser.parse_args()
    decode.print_hardware()
    videos = [Record(path, path) for path in arguments.videos]
    clip_bytes = FRAMES * arguments.size**2 * 3
    workload = workers.Workload(
        clip_bytes, arguments.batch, arguments.clips, len(videos)
    )
    chosen = workers.plan_workers(
        workload,
        processes.available_resources(),
        num_workers=arguments.workers,
        num_threads=arguments.threads,
        memory_gb=arguments.memory_gb,
    ).workers
    if arguments.chunk_size:
        chosen = dataclasses.replace(chosen, chunk_size=arguments.chunk_size)
    needed = workers.bytes_needed(workload, chosen)
    print(
        f"{chosen}, chunks of {chosen.chunk_size}, batches of "
        f"{arguments.batch} clips of {clip_bytes / MB:.2f} MB; estimated: at most "
        f"{needed / MB:.0f} MB more than the {held(os.getpid(), ['Pss:']) / MB:.0f} MB "
        "before\n"
    )
    print("| clips | this process, MB | workers | sum | with files | shm | clips/s |")
    print("|---|---|---|---|---|---|---|")
    before = shared()
    steps = -(-arguments.clips // arguments.batch)
    read_clips = PretrainingClips(FRAMES, STRIDE, arguments.size, SCALES, 0.5, 1)
    kept = collections.deque(maxlen=workers.BATCHES_IN_USE)
    count, next_line, paused = 0, arguments.every, 0.0
    start = time.perf_counter()
    with pipeline.batches(
        [pipeline.VideoList(videos)],
        read_clips,
        patch_shape=(2, 16),
        batch_size=arguments.batch,
        seed=0,
        steps=range(steps + 10**6),
        workers=chosen,
    ) as batches:
        for _ in range(steps):
            kept.append(next(batches))
            count += len(kept[-1].ids)
            if count >= next_line:
                time.sleep(arguments.pause)
                paused += arguments.pause
                mine, children = held(os.getpid()), descendants()
                others = sum(map(held, children))
                everything = sum(held(p, ["Pss:"]) for p in [os.getpid(), *children])
                print(
                    f"| {count} | {mine / MB:.0f} | {others / MB:.0f} | "
                    f"{(mine + others) / MB:.0f} | {everything / MB:.0f} | "
                    f"{(shared() - before) / MB:.0f} | "
                    f"{count / (time.perf_counter() - start - paused):.0f} |",
                    flush=True,
                )
                next_line += arguments.every
    print(f"\nleft in /dev/shm at the end: {(shared() - before) / MB:.0f} MB")


if __name__ == "__main__":
    main()
