"""How many processes and threads read, and how much each takes at a time.

All of it follows from what this process may use (resources.py) and from the bytes of a
row, which is what one video gives: its clips, or all its views.

- Processes: one for each core but one, or but a sixteenth of the cores, which are left
  to the training process; none where training itself computes on the cores.
- Threads of each: two, so that a core has work while a file is waited for.
- Rows of a part: as many as make CHUNK_BYTES, but few enough that all processes work on
  the same batch.

Then memory is looked at. `bytes_needed` estimates what a choice takes at most. Where
that is above the budget, parts become smaller first, then threads fewer, then
processes, and at last this process reads by itself.
"""

import dataclasses

from videomae_jax.data.prefetch import (
    BATCHES_AHEAD,
    CHUNKS_IN_FLIGHT,
    CHUNKS_SHARED,
    COPYING_THREADS,
)
from videomae_jax.data.resources import Resources

THREADS = 2
# Threads of the training process itself, where no processes read. More would wait for
# each other, and for the step.
THREADS_WITHOUT_PROCESSES = 8
# Large enough that handing a part over costs nothing, small enough that a batch is soon
# there.
CHUNK_BYTES = 16 << 20

# Measured: 142 to 149 MB a process, counting what it shares by halves and thirds.
PROCESS_BYTES = 160 << 20
# Every process has the whole list: paths, names and labels of the videos.
RECORD_BYTES = 500
# Rows in work in a thread: the frames of the video, and what is cut from them. Assumed,
# for it depends on the videos; it fits 16 frames of 340x256 for a clip of 224x224.
ROWS_IN_WORK = 4
# Batches that the caller has: the one it takes next, and two that wait for the devices
# or are in use there, where the devices are the cores.
BATCHES_IN_USE = 3
# Of the memory that can be had: the rest is for parameters, checkpoints and pages of
# the videos' files. Training has half of that and an evaluation beside it the other.
SHARE_OF_MEMORY = 0.5
SHARE_OF_SHARED_MEMORY = 0.9


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be read by a process.

    Attributes:
        row_bytes: of the clips or views of a video.
        batch_rows: videos of a batch, of those this process reads.
        rows: videos it reads in all.
        records: length of the list of videos.
        on_cores: whether the devices that train are this machine's cores.
    """

    row_bytes: int
    batch_rows: int
    rows: int
    records: int
    on_cores: bool = False


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    """A choice of readers; the first three fields are what pipeline.py takes.

    Attributes:
        num_workers: processes; 0: the threads are this process's.
        num_threads: threads of each.
        chunk_size: videos that a thread reads at a time.
        best: how many processes would read if memory did not matter.
        cores: how many cores there are to read with.
        needs: bytes that they take at most, estimated.
        budget: bytes that they may take.
    """

    num_workers: int
    num_threads: int
    chunk_size: int
    best: int
    cores: int
    needs: int
    budget: int

    @property
    def arguments(self) -> dict[str, int]:
        """Those of `pipeline.batches` and `pipeline.each_once`."""
        names = ("num_workers", "num_threads", "chunk_size")
        return {name: getattr(self, name) for name in names}

    @property
    def parallel(self) -> int:
        """How many cores they keep busy; a process counts as one."""
        return min(self.num_workers or self.num_threads, self.cores)

    def describe(self) -> str:
        """Such as "15 workers with 2 threads"."""
        threads = _counted(self.num_threads, "thread")
        if not self.num_workers:
            return f"{threads} of this process"
        return f"{_counted(self.num_workers, 'worker')} with {threads}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def choose(
    task: Task,
    resources: Resources,
    num_workers: int | None = None,
    num_threads: int | None = None,
    memory_gb: float | None = None,
) -> WorkerConfig:
    """Chooses the readers of a task.

    Args:
        task: what is to be read.
        resources: what this process may use.
        num_workers: processes, if that is decided already; 0 for none.
        num_threads: threads of each, likewise.
        memory_gb: memory of training and evaluation together, in 10**9 bytes; by
            default SHARE_OF_MEMORY of what there is.

    Returns:
        A WorkerConfig whose `needs` are within its `budget`, if there is one; otherwise
        the one that needs least.

    Raises:
        ValueError: if a number is too small to read with.
    """
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"config.data.{name} is {value}, but at least {least}")
    if memory_gb is not None and memory_gb <= 0:
        raise ValueError(f"config.data.memory_gb is {memory_gb:g}: not above 0")
    if memory_gb is None:
        total = SHARE_OF_MEMORY * resources.memory
    else:
        total = memory_gb * 1e9
    budget = int(total / 2)
    shared = int(SHARE_OF_SHARED_MEMORY * resources.shared_memory)

    def fits(workers, threads, rows):
        needs = bytes_needed(task, workers, threads, rows)
        return needs <= budget and shared_bytes(task, workers, rows) <= shared

    # From what would be best down to what is least; the first that fits.
    workers = _processes(task, resources) if num_workers is None else num_workers
    while True:
        best = num_threads or _threads(task, resources, workers)
        threads = next((n for n in range(best, 1, -1) if fits(workers, n, 1)), 1)
        threads = num_threads or threads
        if fits(workers, threads, 1) or not workers or num_workers is not None:
            break
        workers -= 1
    most = _rows(task, workers, threads)
    rows = next((n for n in range(most, 1, -1) if fits(workers, threads, n)), 1)
    needs = bytes_needed(task, workers, threads, rows)
    best = _processes(task, resources)
    return WorkerConfig(workers, threads, rows, best, resources.cores, needs, budget)


def bytes_needed(task: Task, workers: int, threads: int, rows: int) -> int:
    """What reading takes at most, estimated: batches here, parts on their way."""
    batches = (BATCHES_AHEAD + BATCHES_IN_USE) * task.batch_rows * task.row_bytes
    in_work = threads * ROWS_IN_WORK * task.row_bytes
    part = rows * task.row_bytes
    if not workers:
        return batches + in_work + (threads + COPYING_THREADS) * part
    parts = (threads + CHUNKS_IN_FLIGHT) * part
    process = PROCESS_BYTES + RECORD_BYTES * task.records
    return batches + COPYING_THREADS * part + workers * (process + in_work + parts)


def shared_bytes(task: Task, workers: int, rows: int) -> int:
    """What of it is in shared memory."""
    parts = CHUNKS_SHARED * workers + COPYING_THREADS if workers else 0
    return parts * rows * task.row_bytes


def cores_to_read_with(cores: int) -> int:
    """All but those left to the training process, at least one."""
    return max(cores - max(cores // 16, 1), 1)


def _processes(task: Task, resources: Resources) -> int:
    if task.on_cores:
        return 0
    return min(cores_to_read_with(resources.cores), max(task.rows, 1))


def _threads(task: Task, resources: Resources, workers: int) -> int:
    if workers or task.on_cores:
        return THREADS
    return min(max(resources.cores, THREADS), THREADS_WITHOUT_PROCESSES)


def _rows(task: Task, workers: int, threads: int) -> int:
    """Rows of a part, as far as memory does not matter."""
    spread = -(-task.batch_rows // max(workers or threads, 1))
    return max(min(CHUNK_BYTES // max(task.row_bytes, 1), spread), 1)
