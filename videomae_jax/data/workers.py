"""Chooses the processes and threads that read videos; docs/input_pipeline.md says how.

The choice follows from the resources of this process and from the bytes that one video
contributes to a batch: its clips, or all its views. If `bytes_needed` exceeds the
budget, chunks become smaller first, then there are fewer threads, then fewer processes;
at last, this process reads by itself.
"""

import dataclasses
import logging
from typing import Any

from videomae_jax import processes
from videomae_jax.errors import ConfigError
from videomae_jax.processes import Resources

log = logging.getLogger(__name__)

# A core has work while a file is waited for.
THREADS = 2
# Threads of the training process itself, if there are no workers. More would wait for
# each other, and for the step.
THREADS_WITHOUT_WORKERS = 8
# Large enough that handing over a chunk costs nothing, small enough that the first
# batch comes soon.
CHUNK_BYTES = 16 << 20

# Measured: 142 to 149 MB per process, with shared pages counted in proportion.
PROCESS_BYTES = 160 << 20
# Each process holds the whole list: paths, ids and labels of the videos.
RECORD_BYTES = 500
# Memory in use by a thread, in multiples of what a video contributes to a batch: the
# decoded frames, and what is cut from them. An assumption, as it depends on the videos;
# it fits 16 frames of 340x256 for a clip of 224x224.
BUFFERS_PER_THREAD = 4
# Batches that the caller holds: the next one, and two that wait for the devices or are
# in use there, if the devices are CPUs.
BATCHES_IN_USE = 3
# Share of the free memory for reading; the rest is for parameters, checkpoints and the
# page cache. Training gets half of it, an evaluation beside it the other half.
MEMORY_SHARE = 0.5
SHARED_MEMORY_SHARE = 0.9

# What prefetch.py holds in memory at the same time.
# Chunks per worker, besides one per thread: the one it copies into shared memory, that
# copy, one in the pipe to this process, and two that wait in this process.
CHUNKS_IN_FLIGHT = 5
# Those of them in shared memory: all but the first.
CHUNKS_SHARED = 4
# Threads that copy chunks into a batch. One copies about 1,000 clips of 16x224x224 a
# second, into newly allocated memory.
COPY_THREADS = 4
# A batch that is assembled while the caller works on the one before.
BATCHES_AHEAD = 1


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    """The processes and threads that read videos."""

    num_workers: int = 0  # processes; 0 reads in threads of this process
    num_threads: int = 2  # of each process
    chunk_size: int = 4  # videos that a thread reads at a time

    def __str__(self) -> str:
        """Returns, for example, "15 workers with 2 threads"."""
        threads = _plural(self.num_threads, "thread")
        if not self.num_workers:
            return f"{threads} of this process"
        return f"{_plural(self.num_workers, 'worker')} with {threads}"


DEFAULT_WORKERS = WorkerConfig()


@dataclasses.dataclass(frozen=True)
class Workload:
    """The videos that a process reads."""

    video_bytes: int  # of the clips or views of one video
    batch_size: int  # videos of a batch that this process reads
    num_videos: int  # that this process reads in all
    num_records: int  # length of the list of videos
    model_on_cpu: bool = False  # the model runs on the cores of this machine


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """A choice of workers, and the facts it is based on."""

    workers: WorkerConfig
    max_workers: int  # processes that the cores would allow if memory did not matter
    cores: int  # that this process may use
    bytes_needed: int  # memory at most, estimated
    bytes_allowed: int  # the budget

    @property
    def busy_cores(self) -> int:
        """The cores that reading keeps busy; each process counts as one."""
        return min(self.workers.num_workers or self.workers.num_threads, self.cores)


def choose_workers(
    data: Any,
    *,
    clip_bytes: int,
    clips_per_video: int,
    batch_size: int,
    num_batches: int,
    num_records: int,
    model_on_cpu: bool,
    sharing: tuple[int, int] = (1, 1),
) -> WorkerPlan:
    """Chooses the workers of this process, and logs the choice.

    Args:
        data: the config's `data`.
        clip_bytes: bytes of a clip, see `clips.clip_bytes`.
        clips_per_video: samples or views.
        batch_size, num_records, model_on_cpu: see `Workload`.
        num_batches: batches that are read in all.
        sharing: processes of this run that share the cores, and the memory, of this
            machine; see `hosts.processes_sharing_resources`.

    Raises:
        ConfigError: num_workers, num_threads or memory_gb is out of range.
    """
    video_bytes = clips_per_video * clip_bytes
    num_videos = batch_size * num_batches
    workload = Workload(video_bytes, batch_size, num_videos, num_records, model_on_cpu)
    resources = processes.available_resources().share(*sharing)
    plan = plan_workers(
        workload,
        resources,
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        memory_gb=data.memory_gb,
    )
    workers = plan.workers
    log.info(
        "workers: num_workers=%d num_threads=%d chunk_size=%d memory_gb=%.2g (%s)",
        workers.num_workers,
        workers.num_threads,
        workers.chunk_size,
        plan.bytes_needed / 1e9,
        _reason(data, workload, resources, plan),
    )
    if plan.bytes_needed > plan.bytes_allowed:
        log.warning(
            "workers may need %.2g GB of memory, but only %.2g GB are allowed: lower "
            "config.data.num_workers or config.batch_size, or raise "
            "config.data.memory_gb",
            plan.bytes_needed / 1e9,
            plan.bytes_allowed / 1e9,
        )
    shared = shared_bytes(workload, workers)
    if shared > resources.shared_memory:
        log.warning(
            "workers may need %.2g GB of shared memory, but /dev/shm has %.2g GB: "
            "lower config.data.num_workers, or enlarge it (docker run --shm-size)",
            shared / 1e9,
            resources.shared_memory / 1e9,
        )
    return plan


def plan_workers(
    workload: Workload,
    resources: Resources,
    *,
    num_workers: int | None = None,
    num_threads: int | None = None,
    memory_gb: float | None = None,
) -> WorkerPlan:
    """Plans the workers of a workload.

    Args:
        workload: the videos to read.
        resources: what this process may use.
        num_workers: a fixed number of processes; 0 for none.
        num_threads: a fixed number of threads per process.
        memory_gb: memory of training and evaluation together, in 10**9 bytes; by
            default MEMORY_SHARE of the free memory.

    Returns:
        A plan within its budget, if there is one; otherwise, the one that needs least.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, minimum in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
    ):
        if value is not None and value < minimum:
            raise ConfigError(
                f"config.data.{name} must be at least {minimum}, got {value}"
            )
    if memory_gb is not None and memory_gb <= 0:
        raise ConfigError(f"config.data.memory_gb must be above 0, got {memory_gb:g}")
    share = MEMORY_SHARE * resources.memory
    allowed = int((share if memory_gb is None else memory_gb * 1e9) / 2)
    shared_allowed = int(SHARED_MEMORY_SHARE * resources.shared_memory)

    def fits(processes: int, threads: int, chunk_size: int) -> bool:
        workers = WorkerConfig(processes, threads, chunk_size)
        needed = bytes_needed(workload, workers)
        return needed <= allowed and shared_bytes(workload, workers) <= shared_allowed

    cores, max_workers = resources.cores, 0
    if not workload.model_on_cpu:
        free_cores = max(cores - max(cores // 16, 1), 1)
        max_workers = min(free_cores, max(workload.num_videos, 1))
    # From the best choice down to the smallest; the first that fits.
    count = max_workers if num_workers is None else num_workers
    while True:
        threads = num_threads or THREADS
        if num_threads is None:
            if not count and not workload.model_on_cpu:
                threads = min(max(cores, THREADS), THREADS_WITHOUT_WORKERS)
            threads = next((n for n in range(threads, 1, -1) if fits(count, n, 1)), 1)
        if fits(count, threads, 1) or not count or num_workers is not None:
            break
        count -= 1
    spread = -(-workload.batch_size // (count or threads))
    largest = min(CHUNK_BYTES // max(workload.video_bytes, 1), spread)
    chunk = next((n for n in range(largest, 1, -1) if fits(count, threads, n)), 1)
    workers = WorkerConfig(count, threads, chunk)
    needed = bytes_needed(workload, workers)
    return WorkerPlan(workers, max_workers, cores, needed, allowed)


def bytes_needed(workload: Workload, workers: WorkerConfig) -> int:
    """Estimates the memory that reading takes at most: batches and chunks."""
    video, chunk = workload.video_bytes, workers.chunk_size * workload.video_bytes
    batches = (BATCHES_AHEAD + BATCHES_IN_USE) * workload.batch_size * video
    shared = batches + COPY_THREADS * chunk
    threads = workers.num_threads * (BUFFERS_PER_THREAD * video + chunk)
    if not workers.num_workers:
        return shared + threads
    process = PROCESS_BYTES + RECORD_BYTES * workload.num_records
    return shared + workers.num_workers * (process + threads + CHUNKS_IN_FLIGHT * chunk)


def shared_bytes(workload: Workload, workers: WorkerConfig) -> int:
    """Estimates the part of `bytes_needed` that is shared memory."""
    if not workers.num_workers:
        return 0
    chunks = CHUNKS_SHARED * workers.num_workers + COPY_THREADS
    return chunks * workers.chunk_size * workload.video_bytes


def _reason(
    data: Any, workload: Workload, resources: Resources, plan: WorkerPlan
) -> str:
    if data.num_workers is not None:
        return "config.data.num_workers"
    if workload.model_on_cpu:
        return "the model runs on the CPU"
    cores = _plural(resources.cores, "core")
    unlimited = Resources(resources.cores, 1 << 60, 1 << 60)
    best = plan_workers(workload, unlimited).workers
    if plan.workers.num_workers == best.num_workers:
        return cores
    return (
        f"{cores} would allow {best}, but memory is limited to "
        f"{plan.bytes_allowed / 1e9:.2g} GB, /dev/shm to "
        f"{resources.shared_memory / 1e9:.2g} GB"
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
