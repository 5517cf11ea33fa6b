"""Where arrays are placed: the device mesh, parameters by path, batches by row."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.distributed import hosts
from videomae_jax.errors import ConfigError
from videomae_jax.models.partitioning import BATCH_AXES as AXES

# Rules for parameters, and for the optimizer's moments, whose paths end alike. The
# first pattern that matches a path counts. "shard" splits the largest axis that is
# divisible by `fsdp`; small parameters are replicated.
RULES = (
    # Its last axis is cut in three, not where shards end.
    (r"qkv/kernel$", "shard input"),
    (r"kernel$", "shard"),
    (r"", "replicate"),
)

# High-bandwidth memory of a device in GiB, by `jax.Device.device_kind`: what the TPU
# compiler (libtpu 0.0.50) allows a program, as its out-of-memory errors say. libtpu
# 0.0.42 allowed up to 0.01 more.
TPU_MEMORY = {
    "TPU v4": 30.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.73,
    "TPU v6 lite": 31.24,
    "TPU7x": 94.74,
}

# Share of a device's memory that the state and a gradient may take. The rest is for the
# activations kept for the backward pass.
STATE_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
    """The split of parameters and optimizer state over the devices.

    Attributes:
        fsdp: number of devices over which parameters and optimizer state are split.
        shard_optimizer: split the optimizer state and the averaged parameters over all
            devices of a slice, even if the parameters are not (ZeRO, stage 1).
        reason: why this plan was chosen, for the log.
    """

    fsdp: int
    shard_optimizer: bool
    reason: str


def choose_plan(
    state: Any,
    devices: Sequence[jax.Device],
    *,
    fsdp: int | None = None,
    shard_optimizer: bool | None = None,
) -> ShardingPlan:
    """Returns the plan with the least communication that leaves enough memory.

    Replicas come first: they need one sum of gradients per step. If state and gradients
    would then take more than STATE_SHARE of a device, the optimizer state is split over
    each slice, and new parameters are gathered once per step. If that is not enough,
    the parameters are split over as few devices as suffice, and each layer is gathered
    when it is used.

    Every process must call it.

    Args:
        state: the (possibly abstract) TrainState.
        devices: the devices that train together.
        fsdp: fixes `ShardingPlan.fsdp`; None chooses it.
        shard_optimizer: fixes `ShardingPlan.shard_optimizer`; None chooses it.

    Raises:
        ConfigError: `fsdp` does not divide the devices of each slice, or the slices
            have different numbers of devices.
    """
    params = _bytes(state.params)
    rest = _bytes((state.opt_state, state.ema))
    frozen = _bytes(state.frozen)
    slices = _slices(devices)
    if fsdp is not None:
        _check_fsdp(fsdp, slices)

    def bytes_per_device(fsdp: int, shard_optimizer: bool) -> float:
        # The gradient is as large as the parameters.
        ways = len(slices[0]) if shard_optimizer else fsdp
        return (2 * params + frozen) / fsdp + rest / ways

    def plan(choice: tuple[int, bool], reason: str) -> ShardingPlan:
        size = f"{bytes_per_device(*choice) / 2**30:.2f} GiB"
        reason += f"; state and gradients take {size} per device"
        return ShardingPlan(*choice, reason)

    choices = _choices(len(slices[0]), fsdp, shard_optimizer)
    if len(choices) == 1:
        return plan(choices[0], "set by config.mesh")
    if len(devices) == 1:
        return plan(choices[0], "one device")
    memory = device_memory(devices[0])
    if memory is None:
        return plan(choices[0], "memory per device not known")
    limit = STATE_SHARE * memory
    limits = f"limit {limit / 2**30:.1f} of {memory / 2**30:.1f} GiB"
    for choice in choices:
        if bytes_per_device(*choice) <= limit:
            return plan(choice, limits)
    return plan(choices[-1], f"above the {limits}, but no plan takes less")


def _choices(
    slice_size: int, fsdp: int | None, shard_optimizer: bool | None
) -> list[tuple[int, bool]]:
    """Returns the allowed pairs (fsdp, shard_optimizer), the preferred ones first."""
    divisors = [n for n in range(1, slice_size + 1) if slice_size % n == 0]
    if shard_optimizer is not None:
        allowed = divisors if fsdp is None else [fsdp]
        return [(n, shard_optimizer) for n in allowed]
    if fsdp is not None:
        return [(fsdp, False), (fsdp, True)]
    return [(1, False), *((n, True) for n in divisors)]


def device_memory(device: jax.Device) -> int | None:
    """Returns the bytes of memory of an accelerator; None for a CPU or if not known.

    Every process must call it: the GPUs of all processes are asked, and the smallest
    memory counts.
    """
    if device.platform == "cpu":
        return None
    if device.device_kind in TPU_MEMORY:
        return int(TPU_MEMORY[device.device_kind] * 2**30)
    if device.process_index != jax.process_index():
        device = jax.local_devices()[0]  # those of other processes do not answer
    limits = hosts.gather((device.memory_stats() or {}).get("bytes_limit"))
    return None if None in limits else min(limits)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with axes ("slice", "data", "fsdp") over all processes' devices.

    Each TPU slice, or host with GPUs, holds whole `fsdp` groups and the whole optimizer
    state: no layer and no new parameters are gathered over the slower network between
    slices, which carries one sum of gradients per step.

    Args:
        fsdp: number of devices over which parameters and optimizer state are split.
            The batch is split over all devices.
        devices: the devices to use; all by default.

    Raises:
        ConfigError: `fsdp` does not divide the devices of each slice, or the slices
            have different numbers of devices.
    """
    slices = _slices(jax.devices() if devices is None else devices)
    _check_fsdp(fsdp, slices)
    shape = len(slices[0]) // fsdp, fsdp
    # A group may be a part of a row in the slice's grid of chips. jax.make_mesh refuses
    # that on all generations but v5e.
    grids = [
        mesh_utils.create_device_mesh(shape, members, allow_split_physical_axes=True)
        for members in slices
    ]
    return Mesh(np.stack(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check_fsdp(fsdp: int, slices: list[list[jax.Device]]) -> None:
    sizes = [len(members) for members in slices]
    if len(set(sizes)) > 1:
        raise ConfigError(
            "all hosts (of TPUs: slices) must have the same number of devices, but "
            f"they have {', '.join(map(str, sizes))}: start as many processes on each"
        )
    if fsdp < 1 or sizes[0] % fsdp:
        where = f" of each of {len(slices)} slices" if len(slices) > 1 else ""
        raise ConfigError(
            f"config.mesh.fsdp={fsdp} must divide the {sizes[0]} devices{where}"
        )


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Groups devices by fast network: TPUs by slice, GPUs by host.

    Where no two devices share a fast network, they are one group.
    """
    slices = collections.defaultdict(list)
    for device in devices:
        # For GPUs, JAX numbers the hosts like slices, however many processes they run.
        accelerator = device.platform != "cpu"
        slices[getattr(device, "slice_index", 0) if accelerator else 0].append(device)
    if len(slices) == len(devices):
        return [list(devices)]
    return [slices[index] for index in sorted(slices)]


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_shardings(state: Any, mesh: Mesh, shard_optimizer: bool = False) -> Any:
    """Returns the NamedSharding of every array of a (possibly abstract) tree.

    Args:
        state: a TrainState, or a tree whose paths end like those of a TrainState.
        mesh: see `make_mesh`.
        shard_optimizer: see ShardingPlan.
    """

    def sharding(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        candidates: list[str | tuple[str, ...]] = ["fsdp"]
        if shard_optimizer and name.startswith(("opt_state", "ema")):
            # A part of what a device has of the parameters, if they are split, too.
            candidates.insert(0, ("fsdp", "data"))
        return NamedSharding(mesh, _spec(name, x.shape, mesh, candidates))

    return jax.tree.map_with_path(sharding, state)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns an abstract tree, as from `jax.eval_shape`, with shardings added."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, candidates: list) -> P:
    """Splits over the first candidate, a mesh axis or several, that divides an axis."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    # A scan takes one layer after the other: splitting the layer axis would move
    # every layer to every device.
    first = 1 if "blocks/" in name else 0
    end = len(shape) - (rule == "shard input")
    for axes in candidates if rule.startswith("shard") else []:
        ways = math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes))
        dividing = [i for i in range(first, end) if shape[i] % ways == 0]
        if dividing and ways > 1:
            largest = max(dividing, key=lambda i: shape[i])
            return P(*(axes if i == largest else None for i in range(len(shape))))
    return P()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows are split over all devices."""
    return NamedSharding(mesh, P(AXES))


def replica_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes over which parameters are not split."""
    return tuple(x for x in AXES if x != "fsdp" or mesh.shape[x] == 1)


def local_indices(mesh: Mesh, batch_size: int, clips_per_video: int = 1) -> np.ndarray:
    """Returns which videos of a global batch this process must read for its devices.

    A mesh follows the network between devices, in which processes have no particular
    order. With these indices a global batch has the same rows however many processes
    there are, and so do masks and pairs of mixed clips.

    Args:
        mesh: the devices.
        batch_size: videos in a global batch.
        clips_per_video: adjacent rows of the arrays that come from one video.

    Returns:
        Ascending indices.

    Raises:
        ConfigError: clips of one video would be on devices of two processes.
    """
    num_clips = batch_size * clips_per_video
    slices = batch_sharding(mesh).addressable_devices_indices_map((num_clips,)).values()
    rows = np.unique(np.concatenate([np.arange(num_clips)[x] for x in slices]))
    videos, counts = np.unique(rows // clips_per_video, return_counts=True)
    if (counts != clips_per_video).any():
        raise ConfigError(
            f"config.batch_size={batch_size} must be a multiple of the {mesh.size} "
            f"devices: otherwise the {clips_per_video} clips of a video "
            "(config.data.num_samples) are on devices of different hosts"
        )
    return videos


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Builds global arrays from the rows that each process read; see `local_indices`.

    Args:
        batch: arrays [rows of this process, ...] by name.
        mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def grad_accum_steps(num_clips: int, num_devices: int, max_per_device: int) -> int:
    """Returns the fewest micro-batches per step that keep devices within their limit.

    Args:
        num_clips: clips per step over all devices (batch size times clips per video).
        num_devices: devices that share them.
        max_per_device: the most clips that a device takes at once.

    Raises:
        ConfigError: the clips do not divide over the devices, or the limit is not
            positive.
    """
    if num_clips % num_devices:
        raise ConfigError(
            f"the {num_clips} clips of a step (config.batch_size times "
            f"config.data.num_samples) must be divisible by the {num_devices} devices"
        )
    if max_per_device < 1:
        raise ConfigError(
            f"config.micro_batch_per_device={max_per_device} must be at least 1"
        )
    per_device = num_clips // num_devices
    steps = math.ceil(per_device / max_per_device)
    while per_device % steps:
        steps += 1
    return steps
