"""Connects the processes of a run, and checks that they agree.

A run is one process, or one on each host of a TPU slice, of a Slurm or Open MPI job, of
an indexed Kubernetes job, or wherever three variables are set:

    JAX_COORDINATOR_ADDRESS=10.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
"""

import collections
import functools
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import socket
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from videomae_jax.errors import ClusterError
from videomae_jax.files import writing
from videomae_jax.processes import available_cores

log = logging.getLogger(__name__)

# How long the processes wait for each other at the start; JAX's default.
INITIALIZATION_TIMEOUT_SECONDS = 300
# How long JAX waits for a heartbeat before it takes a process for dead. Heartbeats come
# from a thread that runs no Python, so a busy process is not mistaken for a dead one.
HEARTBEAT_TIMEOUT_SECONDS = 30

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Variables that Slurm sets for processes started by srun, but not by salloc or sbatch.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
# JAX finds the other processes and chooses the devices. Differs from {}, which is for a
# host that may be the only one.
_DETECTED_BY_JAX = {"local_device_ids": None}


def initialize() -> None:
    """Connects this process to the others, if the environment names a cluster.

    Must be called before anything that asks JAX for devices.

    If the others do not connect within INITIALIZATION_TIMEOUT_SECONDS, JAX aborts this
    process.

    Raises:
        ClusterError: the environment names a cluster that cannot be joined, or the
            processes have different numbers of devices.
    """
    arguments = None
    try:
        arguments = detect(os.environ)
        if arguments is None:
            return
        log.info(
            "connecting to the other processes, timeout=%ds. On DEADLINE_EXCEEDED, "
            "check that every process was started and can reach process 0 (firewall, "
            "proxy variables).",
            INITIALIZATION_TIMEOUT_SECONDS,
        )
        jax.distributed.initialize(
            initialization_timeout=INITIALIZATION_TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
            **arguments,
        )
    except Exception as error:  # any type: JAX detects clusters with other packages
        if arguments == {} and "coordinator_address should be defined" in str(error):
            return  # JAX asked Google's metadata server: this TPU host is the only one.
        raise ClusterError(
            f"joining the cluster failed: {error}\nSet all of {', '.join(_EXPLICIT)}, "
            "or unset the variables of the cluster to train on this machine alone "
            "(docs/tpu_pods.md)."
        ) from error
    check_devices()
    log.info("%s", describe_processes())
    if jax.process_count() > 1:
        log.info(
            "If JAX aborts this process, another one is dead: an 'unhealthy' task is "
            "the process of that number, 'leader task' or 'Heartbeat' is process 0 "
            "(%s). Start the job again: it resumes from the newest checkpoint.",
            names()[0],
        )


def detect(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`; None for a single process.

    For a TPU host the result is {}: JAX looks for other hosts, and the host is alone if
    it finds none. Otherwise the environment names the other processes.

    JAX's own detection is not enough: it also takes single processes for a cluster (a
    notebook in a Slurm allocation or a Kubernetes pod, a TPU host of Colab or Kaggle).
    This function does not use the network; JAX asks Google's metadata server, only on a
    machine with TPU chips.

    Args:
        environment: variables of the process, after `import jax`.

    Raises:
        ValueError: the variables contradict each other, or JAX needs a package to find
            the other processes.
    """
    env = environment
    given = [name for name in _EXPLICIT if name in env]
    if len(given) == len(_EXPLICIT):
        return _explicit(env)
    # Open MPI first, as in JAX: its processes may run within tasks of Slurm.
    if "OMPI_COMM_WORLD_SIZE" in env:
        return _open_mpi(env)
    if all(name in env for name in _SLURM):
        return _slurm(env)
    platforms = env.get("JAX_PLATFORMS") or "tpu"
    if "tpu" in platforms and importlib.util.find_spec("libtpu"):
        addresses = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
        if addresses or "TPU_PROCESS_ADDRESSES_PATH" in env:
            # Google Kubernetes Engine. Colab and Kaggle name their only host this way.
            slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
            is_single = addresses and "," not in addresses and slices == 1
            return None if is_single else _DETECTED_BY_JAX
        # `import jax` sets TPU_SKIP_MDS_QUERY on machines without TPU chips.
        if "KUBERNETES_SERVICE_HOST" not in env and "TPU_SKIP_MDS_QUERY" not in env:
            return {}
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if not importlib.util.find_spec("kubernetes"):
            raise ValueError(
                "JOB_COMPLETION_INDEX is set, as in an indexed Kubernetes job. To find "
                "its other pods, JAX needs `pip install kubernetes` and a service "
                "account that may list pods and get jobs."
            )
        return _DETECTED_BY_JAX
    if given:
        missing = [name for name in _EXPLICIT if name not in env]
        raise ValueError(f"{given[0]} is set, but not {', '.join(missing)}")
    return None


def _explicit(env: Mapping[str, str]) -> dict[str, Any]:
    address, count, index = (env[name] for name in _EXPLICIT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise ValueError(
            f"JAX_PROCESS_ID={index} must be less than JAX_NUM_PROCESSES={count}"
        )
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT")
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def _open_mpi(env: Mapping[str, str]) -> dict[str, Any] | None:
    if int(env["OMPI_COMM_WORLD_SIZE"]) == 1:
        return None
    local_count = int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    device_ids = _local_device_ids(env, local_count, "OMPI_COMM_WORLD_LOCAL_RANK")
    arguments = {"local_device_ids": device_ids}
    if "OMPI_MCA_orte_hnp_uri" in env:
        return arguments
    # Open MPI 5 and newer set no variable with the address of a coordinator.
    if not importlib.util.find_spec("mpi4py"):
        raise ValueError(
            "OMPI_COMM_WORLD_SIZE names several processes. With Open MPI 5 and newer, "
            "JAX needs `pip install mpi4py` to find them."
        )
    return arguments | {"cluster_detection_method": "mpi4py"}


def _slurm(env: Mapping[str, str]) -> dict[str, Any] | None:
    # An interactive step has one task; SLURM_NTASKS there is the allocation's.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"])
    if tasks == 1:
        return None
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or 0)
    if not nodes or tasks % nodes:
        return _DETECTED_BY_JAX
    # With this variable each task sees only its own GPUs. Not so under mpirun, which
    # inherits the variable from sbatch.
    local_count = 1 if "SLURM_GPUS_PER_TASK" in env else tasks // nodes
    return {"local_device_ids": _local_device_ids(env, local_count, "SLURM_LOCALID")}


def _local_device_ids(
    env: Mapping[str, str], local_count: int, rank_variable: str
) -> list[int] | None:
    """Returns the GPUs that this process takes of those it sees.

    JAX would take the one whose number is the process's rank on its node. That leaves
    GPUs idle if there are more of them than processes, and if each process sees its own
    GPU only, that number does not exist.

    Args:
        env: variables of the process.
        local_count: processes on the node that see the same GPUs.
        rank_variable: the variable that numbers these processes.

    Returns:
        Numbers of GPUs; [] for all, None to let JAX choose.
    """
    if "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    gpus = env.get("CUDA_VISIBLE_DEVICES")
    visible = len(gpus.split(",")) if gpus else 0
    if local_count == 1 or visible == 1:
        return []
    if not visible:
        return None
    if visible % local_count:
        raise ValueError(
            f"{local_count} processes on a node cannot share its {visible} GPUs "
            "equally. Start one per node or one per GPU (srun --ntasks-per-node, "
            "mpirun --map-by ppr:N:node), or give each its own (srun --gpus-per-task)."
        )
    share = visible // local_count
    first = share * int(env[rank_variable])
    return list(range(first, first + share))


def check_devices() -> None:
    """Checks that all processes have the same number of devices.

    Collective operations, `gather` included, need as many devices in each process.

    Raises:
        ClusterError: they do not; the message names the processes that have fewer.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    numbers = [counts[i] for i in range(jax.process_count())]
    most = max(numbers)
    fewer = [f"process {i} has {n}" for i, n in enumerate(numbers) if n < most]
    if fewer:
        raise ClusterError(
            "the processes must have equal numbers of devices, but "
            f"{', '.join(fewer)}, all others {most}. A host has lost an accelerator or "
            "does not see all of them: compare CUDA_VISIBLE_DEVICES and nvidia-smi, or "
            "the chips of the TPU slice, on the hosts. This is process "
            f"{jax.process_index()}, on {socket.gethostname()}."
        )


def gather(value: Any) -> list:
    """Returns the values of all processes, in the order of the processes.

    Every process must call it, in the same order among its other collective operations.

    Args:
        value: anything that JSON can represent.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).ravel()
    # Powers of two: every size is compiled once.
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


@functools.cache
def names() -> list[str]:
    """Returns the host of every process. All processes must make the first call."""
    return gather(socket.gethostname())


def describe_processes() -> str:
    """Returns a line that names this process, and the hosts of all processes."""
    index, hosts = jax.process_index(), names()
    numbered = " ".join(f"{i}={host}" for i, host in enumerate(hosts))
    return f"process {index} of {len(hosts)} on {hosts[index]}; hosts: {numbered}"


def check_alike(**values: Any) -> None:
    """Checks that all processes have the same values.

    Otherwise they would wait for each other forever, or train on wrong batches.

    Args:
        **values: compared by their `repr`.

    Raises:
        ClusterError: some differ; the message says which values, and where.
    """
    if jax.process_count() == 1:
        return
    digests = {
        name: hashlib.sha256(repr(value).encode()).hexdigest()
        for name, value in values.items()
    }
    gathered = gather([socket.gethostname(), digests])
    first_host, first_digests = gathered[0]
    for name in values:
        others = [
            f"{i} ({host})"
            for i, (host, digests) in enumerate(gathered)
            if digests[name] != first_digests[name]
        ]
        if others:
            raise ClusterError(
                f"{name} of process {', '.join(others)} differ from those of process 0 "
                f"({first_host}). Start the same code with the same flags, lists, "
                "packages and work directory on all hosts."
            )


@functools.cache
def processes_sharing_resources() -> tuple[int, int]:
    """Counts the processes of this run that share this process's cores and machine.

    Launchers that start a process per GPU may give each its own cores, or leave all
    cores of the machine to all of them. Every process of the run has to call this.

    Returns:
        How many processes, this one included, run on the same cores, and how many on
        the same machine.
    """
    if jax.process_count() == 1:
        return 1, 1
    host = socket.gethostname()
    # Half of a CRC-32, which fits int32.
    own = [
        zlib.crc32(text.encode()) >> 1
        for text in (f"{host} {sorted(available_cores())}", host)
    ]
    rows = multihost_utils.process_allgather(np.array(own, np.int32))
    cores, machines = (collections.Counter(x.tolist()) for x in rows.reshape(-1, 2).T)
    return cores[own[0]], machines[own[1]]


def check_shared(folder: pathlib.Path) -> None:
    """Checks that all processes see the same folder.

    Raises:
        ClusterError: some do not; the message names them.
    """
    if jax.process_count() == 1:
        return
    name, is_first = gather(f".{uuid.uuid4().hex}")[0], jax.process_index() == 0
    if is_first:
        with writing(folder / name):
            (folder / name).touch()
    gather(None)  # a barrier: the file exists from here on
    gathered = gather([socket.gethostname(), (folder / name).exists()])
    if is_first:
        (folder / name).unlink()
    missing = [f"{i} ({host})" for i, (host, sees) in enumerate(gathered) if not sees]
    if missing:
        raise ClusterError(
            f"--workdir={folder} must be a folder that all hosts share, such as one on "
            "NFS, Filestore or a mounted bucket. It is not the same folder on process "
            f"{', '.join(missing)} as on process 0 ({gathered[0][0]})."
        )
