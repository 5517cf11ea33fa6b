"""Detection of clusters from environment variables; devices of the processes."""

import collections

import jax
import pytest

from videomae_jax.distributed import hosts
from videomae_jax.errors import ClusterError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}
IN_KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEXED_JOB = {**IN_KUBERNETES, "JOB_COMPLETION_INDEX": "1"}
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
ONE_A_NODE = {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
# The GPUs that JAX chooses, and all that a process sees.
CHOSEN, ALL = {"local_device_ids": None}, {"local_device_ids": []}


@pytest.mark.parametrize(
    "environment, arguments",
    [
        (NO_CHIPS, None),
        # salloc and sbatch without srun, an interactive step, srun of one task.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", **NO_CHIPS}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, CHOSEN),
        # A task per GPU that sees all GPUs or its own; a task per host, with and
        # without a variable that names its GPUs.
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"local_device_ids": [1]}),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, ALL),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "CUDA_VISIBLE_DEVICES": "0,1,2"}, ALL),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, ALL),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, ALL),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, CHOSEN),
        # mpirun, also within a Slurm allocation; the same shares.
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (OPEN_MPI, CHOSEN),
        (OPEN_MPI | SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, CHOSEN),
        (OPEN_MPI | ONE_A_NODE, ALL),
        (OPEN_MPI | ONE_A_NODE | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, ALL),
        (
            # The variable comes from sbatch: mpirun gives no process its own GPUs.
            OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "2"},
            {"local_device_ids": [2, 3]},
        ),
        (OPEN_MPI_5 | ONE_A_NODE, ALL | {"cluster_detection_method": "mpi4py"}),
        # TPU: a host that may be the only one, Colab or Kaggle, slices of GKE.
        ({}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_PROCESS_ADDRESSES": "local"}, None),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1", **IN_KUBERNETES},
            CHOSEN,
        ),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, CHOSEN),
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, None),
        # A notebook in a pod; a pod of an indexed job.
        (IN_KUBERNETES, None),
        (INDEXED_JOB | NO_CHIPS, CHOSEN),
        (
            EXPLICIT | SLURM,
            {
                "coordinator_address": "host:1234",
                "num_processes": 2,
                "process_id": 1,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_detection(environment, arguments, monkeypatch):
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: True)
    assert hosts.detect(environment) == arguments


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2 must be less than JAX_NUM_PROCESSES=2",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "host"},
            "JAX_COORDINATOR_ADDRESS=host must be HOST:PORT",
        ),
        (
            {"JAX_NUM_PROCESSES": None},
            "ADDRESS is set, but not JAX_NUM",
        ),
    ],
)
def test_contradictory_variables_raise(changes, message):
    environment = EXPLICIT | NO_CHIPS | changes
    with pytest.raises(ValueError, match=message):
        hosts.detect({name: x for name, x in environment.items() if x is not None})


@pytest.mark.parametrize("cluster", [SLURM, OPEN_MPI])
def test_gpus_that_processes_cannot_share_raise(cluster):
    environment = cluster | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}
    with pytest.raises(ValueError, match="cannot share its 5 GPUs equally"):
        hosts.detect(environment)


@pytest.fixture
def no_cluster(monkeypatch):
    """An environment without a cluster, and without packages that find one."""
    for name in {*SLURM, *EXPLICIT, *INDEXED_JOB, *OPEN_MPI}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    return monkeypatch


def test_single_machine_needs_no_others(no_cluster):
    hosts.initialize()
    assert hosts.gather({"a": [1, None]}) == [{"a": [1, None]}]


@pytest.mark.parametrize(
    "environment, message",
    [
        (INDEXED_JOB, "JOB_COMPLETION_INDEX .*pip install kubernetes.* pods and get"),
        (OPEN_MPI_5, "OMPI_COMM_WORLD_SIZE .*pip install mpi4py"),
    ],
)
def test_missing_package_for_detection_raises(environment, message, no_cluster):
    """Otherwise every host would train by itself, into the same folder."""
    for name, value in environment.items():
        no_cluster.setenv(name, value)
    with pytest.raises(ClusterError, match=f"(?s){message}.*JAX_PROCESS_ID"):
        hosts.initialize()


@pytest.mark.parametrize("arguments", [{}, CHOSEN])
def test_only_a_tpu_host_may_be_single(arguments, no_cluster):
    def find_nobody(**_):
        raise ValueError("coordinator_address should be defined.")

    no_cluster.setattr(hosts, "detect", lambda environment: arguments)
    no_cluster.setattr(jax.distributed, "initialize", find_nobody)
    if arguments:
        with pytest.raises(ClusterError, match="joining the cluster failed"):
            hosts.initialize()
    else:
        hosts.initialize()


def test_processes_with_fewer_devices_are_named(monkeypatch):
    Device = collections.namedtuple("Device", "process_index")
    devices = [Device(i) for i in (0, 0, 1, 3, 3)]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    message = "process 1 has 1, process 2 has 0, all others 2"
    with pytest.raises(ClusterError, match=message):
        hosts.check_devices()
    devices += map(Device, (1, 2, 2))
    hosts.check_devices()
