"""The readers of a run: what its config says, and what this process may use."""

import collections
import functools
import logging
import socket
import zlib

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from videomae_jax import config
from videomae_jax.data import resources
from videomae_jax.data.workers import Task, WorkerConfig, choose, shared_bytes

log = logging.getLogger(__name__)


def choose_workers(
    data: ml_collections.ConfigDict,
    clips_per_video: int,
    batch_size: int,
    batches: int,
    records: int,
    mesh: Mesh,
) -> WorkerConfig:
    """Chooses the readers of this process, and logs the choice.

    Every process has to call it, if there are several.

    Args:
        data: the config's `data`.
        clips_per_video: samples or views.
        batch_size: videos of a global batch.
        batches: how many are read.
        records: length of the list of videos.
        mesh: the devices that train.

    Raises:
        ConfigError: if the config asks for readers that cannot be.
    """
    rows = -(-batch_size // jax.process_count())
    task = Task(
        clips_per_video * data.num_frames * data.image_size**2 * 3,
        rows,
        rows * batches,
        records,
        on_cores=mesh.devices.flat[0].platform == "cpu",
    )
    mine = resources.measure().share(*_processes_here())
    with config.checking():
        readers = choose(task, mine, data.num_workers, data.num_threads, data.memory_gb)
    gigabytes = "%.2g GB" % (readers.needs / 1e9)
    log.info(
        "reading: %s, %d video(s) at a time, at most about %s (%s)",
        readers.describe(),
        readers.chunk_size,
        gigabytes,
        _why(data, task, mine, readers),
    )
    if readers.needs > readers.budget:
        log.warning(
            "reading may take %s, more than the %.2g GB it may have: set fewer "
            "config.data.num_workers, a smaller config.batch_size or a larger "
            "config.data.memory_gb",
            gigabytes,
            readers.budget / 1e9,
        )
    shared = shared_bytes(task, readers.num_workers, readers.chunk_size)
    if shared > mine.shared_memory:
        log.warning(
            "reading may take %.2g GB of shared memory, but /dev/shm has %.2g GB: set "
            "fewer config.data.num_workers, or enlarge it (docker run --shm-size)",
            shared / 1e9,
            mine.shared_memory / 1e9,
        )
    return readers


def _why(data, task: Task, mine: resources.Resources, readers: WorkerConfig) -> str:
    if data.num_workers is not None:
        return "config.data.num_workers"
    if task.on_cores:
        return "the cores compute"
    roomy = choose(task, resources.Resources(mine.cores, 1 << 60, 1 << 60))
    cores = f"{mine.cores} core(s)"
    if readers.num_workers == roomy.num_workers:
        return f"for {cores}"
    return (
        f"for {cores} it would be {roomy.describe()}, but of memory there are "
        f"{readers.budget / 1e9:.2g} GB, of /dev/shm {mine.shared_memory / 1e9:.2g} GB"
    )


@functools.cache
def _processes_here() -> tuple[int, int]:
    """How many processes of this run share these cores, and this machine's memory.

    Launchers that start a process for each GPU may give each its own cores, or leave
    them all of the machine's.
    """
    if jax.process_count() == 1:
        return 1, 1
    host = socket.gethostname()
    mine = [
        zlib.crc32(text.encode()) >> 1
        for text in (f"{host} {sorted(resources.affinity())}", host)
    ]
    rows = multihost_utils.process_allgather(np.array(mine, np.int32))
    cores, machines = (collections.Counter(x.tolist()) for x in rows.reshape(-1, 2).T)
    return cores[mine[0]], machines[mine[1]]
