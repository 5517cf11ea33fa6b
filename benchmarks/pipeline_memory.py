"""What reading takes of memory, and whether it stays so.

    python benchmarks/pipeline_memory.py VIDEO ...

Reads clips of the videos with worker processes, as training does, and prints every
1,000 clips what this process and the workers hold: proportional set sizes, in which
memory that several processes share counts once, of /proc/*/smaps_rollup. Pages of
files, such as programs, are left out of all columns but one: how much of them counts
here depends on what else runs. Parts in shared memory are counted where they are
mapped; what is in /dev/shm is shown, too. The last three batches are kept, and before
each line the readers get some seconds in which nobody takes their clips, as with a
training loop whose devices are behind.

Beside it the estimate by which the numbers of readers and rows are chosen
(videomae_jax/data/workers.py). Linux only.
"""

import argparse
import collections
import os
import pathlib
import sys
import time

import decode

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.data import pipeline, resources, workers  # noqa: E402
from videomae_jax.data.clips import PretrainingClips  # noqa: E402
from videomae_jax.video.record import Record

# noqa: E402

FRAMES, STRIDE, SCALES = 16, 4, (1.0, 0.875, 0.75, 0.66)
MB = 10**6


def descendants():
    """Ids of the processes that this one started, and of those that they did."""
    found, look = [], [os.getpid()]
    while look:
        for file in pathlib.Path(f"/proc/{look.pop()}/task").glob("*/children"):
            children = [int(child) for child in file.read_text().split()]
            found += children
            look += children
    return found


def held(pid, kinds=("Pss_Anon:", "Pss_Shmem:")):
    """Bytes that a process holds; 0 if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines()]
    return 1024 * sum(int(words[1]) for words in lines if words[0] in kinds)


def shared():
    """Bytes in /dev/shm, of whomever."""
    disk = os.statvfs("/dev/shm")
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1000, help="clips a line")
    parser.add_argument("--size", type=int, default=64, help="pixels of a clip")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, help="by default, by the cores")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rows", type=int, help="clips of a part")
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--pause", type=float, default=5, help="seconds")
    arguments = parser.parse_args()
    decode.print_hardware()
    videos = [Record(path, path) for path in arguments.videos]
    clip_bytes = FRAMES * arguments.size**2 * 3
    task = workers.Task(clip_bytes, arguments.batch, arguments.clips, len(videos))
    chosen = workers.choose(
        task,
        resources.measure(),
        arguments.workers,
        arguments.threads,
        arguments.memory_gb,
    )
    how = chosen.arguments
    if arguments.rows:
        how["chunk_size"] = arguments.rows
    needs = workers.bytes_needed(task, *how.values())
    print(
        f"{chosen.describe()}, parts of {how['chunk_size']}, batches of "
        f"{arguments.batch} clips of {clip_bytes / MB:.2f} MB; estimated: at most "
        f"{needs / MB:.0f} MB more than the {held(os.getpid(), ['Pss:']) / MB:.0f} MB "
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
        videos, read_clips, arguments.batch, 0, range(steps + 10**6), **how
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
    print(f"\nafter the end: {(shared() - before) / MB:.0f} MB more in /dev/shm")


if __name__ == "__main__":
    main()
