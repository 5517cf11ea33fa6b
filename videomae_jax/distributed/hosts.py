"""The processes of a run: how they find each other, and what they tell each other.

A run is one process, or one on each host of a TPU slice, of a Slurm or Open MPI job, of
an indexed Kubernetes job, or wherever three variables say so:

    JAX_COORDINATOR_ADDRESS=10.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
"""

import collections
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from videomae_jax.distributed import failures
from videomae_jax.errors import ClusterError

log = logging.getLogger(__name__)

_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What a program has that Slurm's srun, and not only salloc or sbatch, has started.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
# JAX finds the others, and its choice of devices is right. Not {}, which is for a host
# that may be alone.
_LEFT_TO_JAX = {"local_device_ids": None}


def initialize() -> None:
    """Connects this process with the others, if there are any.

    To be called before anything asks for devices.

    Raises:
        ClusterError: if the environment names a cluster that cannot be joined, or the
            processes have different numbers of devices. Where others do not come in
            time, JAX ends the process; see failures.py.
    """
    arguments = None
    try:
        arguments = detect(os.environ)
        if arguments is None:
            return
        failures.explain_aborts()
        jax.distributed.initialize(
            initialization_timeout=failures.PATIENCE_SECONDS,
            heartbeat_timeout_seconds=failures.HEARTBEAT_SECONDS,
            **arguments,
        )
    except Exception as error:  # of any kind: JAX asks through packages of others
        if arguments == {} and "coordinator_address should be defined" in str(error):
            failures.leave_aborts()
            return  # JAX has asked Google, and this machine is alone.
        raise ClusterError(
            f"cannot join the other processes of this run: {error}\nSet all of "
            f"{', '.join(_EXPLICIT)} to say who they are, or unset the variables of "
            "the cluster to train on this machine alone (docs/tpu_pods.md)."
        ) from error
    if jax.process_count() == 1:
        failures.leave_aborts()
    log.info(
        "process %d of %d, on %s; coordinator %s",
        jax.process_index(),
        jax.process_count(),
        socket.gethostname(),
        failures.coordinator(),
    )
    check_devices()


def detect(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` has to be told; None for a lone process.

    {} is for a TPU host, which is alone if JAX finds no others. Everywhere else there
    are others, or the environment would not say so.

    JAX detects clusters itself, but takes for one also what is a single process: a
    notebook in a Slurm allocation or a Kubernetes pod, one TPU host of Colab or Kaggle.
    Nothing is asked over the network here; JAX asks Google's metadata server, only on a
    machine with TPU chips.

    Args:
        environment: variables of the process, after `import jax`.

    Raises:
        ValueError: if they contradict each other, or JAX lacks a package to find the
            others that they tell of.
    """
    env = environment
    given = [name for name in _EXPLICIT if name in env]
    if len(given) == len(_EXPLICIT):
        address, count, index = (env[name] for name in _EXPLICIT)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID is {index} of JAX_NUM_PROCESSES {count}")
        if not address.rpartition(":")[2].isdigit():
            raise ValueError(f"JAX_COORDINATOR_ADDRESS {address} is not HOST:PORT")
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
            "cluster_detection_method": "deactivate",
        }
    # Open MPI first, as in JAX: its processes may run within tasks of Slurm's.
    if "OMPI_COMM_WORLD_SIZE" in env:
        return _open_mpi(env)
    if all(name in env for name in _SLURM):
        return _slurm(env)
    wanted = env.get("JAX_PLATFORMS") or "tpu"
    if "tpu" in wanted and importlib.util.find_spec("libtpu"):
        hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
        if hosts or "TPU_PROCESS_ADDRESSES_PATH" in env:
            # Google Kubernetes Engine; Colab and Kaggle name their one host alike.
            slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
            alone = hosts and "," not in hosts and slices == 1
            return None if alone else _LEFT_TO_JAX
        if "KUBERNETES_SERVICE_HOST" not in env and "TPU_SKIP_MDS_QUERY" not in env:
            return {}  # `import jax` sets the latter where there are no TPU chips
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if not importlib.util.find_spec("kubernetes"):
            raise ValueError(
                "JOB_COMPLETION_INDEX tells of an indexed Kubernetes job, whose pods "
                "JAX finds with `pip install kubernetes` and a service account that "
                "may list pods and get jobs"
            )
        return _LEFT_TO_JAX
    if given:
        missing = [name for name in _EXPLICIT if name not in env]
        raise ValueError(f"{given[0]} is set, but not {', '.join(missing)}")
    return None


def _open_mpi(env: Mapping[str, str]) -> dict[str, Any] | None:
    if int(env["OMPI_COMM_WORLD_SIZE"]) == 1:
        return None
    here = int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
    found = {"local_device_ids": _share(env, here, "OMPI_COMM_WORLD_LOCAL_RANK")}
    if "OMPI_MCA_orte_hnp_uri" in env:
        return found
    # From Open MPI 5 on no variable names a host that all could meet at.
    if not importlib.util.find_spec("mpi4py"):
        raise ValueError(
            "OMPI_COMM_WORLD_SIZE tells of several processes, which with Open MPI 5 "
            "and newer JAX finds with `pip install mpi4py`"
        )
    return found | {"cluster_detection_method": "mpi4py"}


def _slurm(env: Mapping[str, str]) -> dict[str, Any] | None:
    # An interactive step has one task; SLURM_NTASKS there is the allocation's.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"])
    if tasks == 1:
        return None
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or 0)
    if not nodes or tasks % nodes:
        return _LEFT_TO_JAX
    # Each task sees its own. Not so of mpirun, to which sbatch passes the variable on.
    here = 1 if "SLURM_GPUS_PER_TASK" in env else tasks // nodes
    return {"local_device_ids": _share(env, here, "SLURM_LOCALID")}


def _share(env: Mapping[str, str], here: int, place: str) -> list[int] | None:
    """Which of the GPUs that it sees a process takes; [] is all, None as JAX chooses.

    JAX would take one, the one whose number is the process's place on its node. That
    leaves the others idle if there are more of them, and where each process sees its
    own GPU only, this number does not exist.

    Args:
        env: variables of the process.
        here: processes on its node that see the same.
        place: the variable that numbers these.
    """
    if "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    gpus = env.get("CUDA_VISIBLE_DEVICES")
    visible = len(gpus.split(",")) if gpus else 0
    if here == 1 or visible == 1:
        return []
    if not visible:
        return None
    if visible % here:
        raise ValueError(
            f"{here} processes on a node cannot share its {visible} GPUs equally; "
            "start one a node or one a GPU (srun --ntasks-per-node, mpirun --map-by "
            "ppr:N:node), or give each its own (srun --gpus-per-task)"
        )
    share, first = visible // here, int(env[place])
    return list(range(first * share, (first + 1) * share))


def check_devices() -> None:
    """Makes sure that all processes have the same number of devices.

    What they tell each other is laid out over the devices, as many of each process.

    Raises:
        ClusterError: if they have not; the message says which, and how many.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    numbers = [counts[i] for i in range(jax.process_count())]
    most = max(numbers)
    fewer = [f"process {i} has {n}" for i, n in enumerate(numbers) if n < most]
    if fewer:
        raise ClusterError(
            f"the processes have different numbers of devices: {', '.join(fewer)}, all "
            f"others {most}. A host has lost an accelerator, or does not see all of "
            "them: compare CUDA_VISIBLE_DEVICES and nvidia-smi, or the TPU slice's "
            "chips, on the hosts; each log begins with its process and host"
        )


def gather(value: Any) -> list:
    """The values of all processes, in their order, on every one of them.

    Every process has to call it, in the same order among its other common work.

    Args:
        value: anything that JSON can write.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).ravel()
    # Few different sizes: each is compiled.
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def check_alike(**things: Any) -> None:
    """Makes sure that all processes have the same.

    Else they would wait for each other for ever, or train on other batches than meant.

    Args:
        **things: what is compared, of any kind that `repr` tells apart.

    Raises:
        ClusterError: if some differ; the message says which things, and where.
    """
    if jax.process_count() == 1:
        return
    digests = {
        name: hashlib.sha256(repr(thing).encode()).hexdigest()
        for name, thing in things.items()
    }
    found = gather([socket.gethostname(), digests])
    for name in things:
        others = [
            f"{i} ({host})"
            for i, (host, theirs) in enumerate(found)
            if theirs[name] != found[0][1][name]
        ]
        if others:
            raise ClusterError(
                f"{name} of process {', '.join(others)} differ from those of process 0 "
                f"({found[0][0]}): start the same code with the same flags, lists, "
                "packages and work directory on all hosts"
            )


def check_shared(folder: pathlib.Path) -> None:
    """Makes sure that all processes see the same folder.

    Raises:
        ClusterError: if some do not; the message says which.
    """
    if jax.process_count() == 1:
        return
    name, first = gather(f".{uuid.uuid4().hex}")[0], jax.process_index() == 0
    if first:
        (folder / name).touch()
    gather(None)  # it is there now
    found = gather([socket.gethostname(), (folder / name).exists()])
    if first:
        (folder / name).unlink()
    without = [f"{i} ({host})" for i, (host, sees) in enumerate(found) if not sees]
    if without:
        raise ClusterError(
            f"{folder} of process 0 ({found[0][0]}) is not the folder of that name of "
            f"process {', '.join(without)}: give a --workdir that all hosts "
            "share, such as one on NFS, Filestore or a mounted bucket"
        )
