"""Where arrays live: the device mesh, parameters by path, batches by row."""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.distributed import hosts
from videomae_jax.models.partitioning import BATCH_AXES as AXES

# Parameters (and the optimizer's moments, whose paths end alike) by path; the first
# match wins. "shard" cuts the largest axis that divides over `fsdp`; the rest is small.
RULES = (
    (r"kernel$", "shard"),
    (r"", "replicate"),
)


# High-bandwidth memory of a device, in GiB, by what JAX calls its kind: what a program
# may use of it, as the TPU compiler says when one does not fit (libtpu 0.0.50; that of
# 0.0.42 allowed up to 0.01 more).
TPU_MEMORY = {
    "TPU v4": 30.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.73,
    "TPU v6 lite": 31.24,
    "TPU7x": 94.74,
}

# Share of a device's memory that the state and a gradient may take; the rest is for
# what the backward pass keeps.
STATE_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is split over the devices besides the batch.

    Attributes:
        fsdp: ways to split parameters and optimizer state.
        shard_optimizer: split the optimizer's state and the averaged parameters over
            all devices, even where the parameters are not (ZeRO, stage 1).
        reason: why, in words.
    """

    fsdp: int
    shard_optimizer: bool
    reason: str


def choose_layout(
    state,
    devices: Sequence[jax.Device],
    fsdp: int | None = None,
    shard_optimizer: bool | None = None,
) -> Layout:
    """The layout that moves least between devices and leaves them enough memory.

    Replicas first: one sum of gradients a step. If state and gradients took more than
    STATE_SHARE of a device so, the optimizer's state is split over all of them: new
    parameters are then gathered once a step; if that is not enough, the parameters
    over as few devices as suffice, where each layer is gathered when it is used.

    Args:
        state: the (possibly abstract) TrainState.
        devices: those that train together.
        fsdp, shard_optimizer: as in Layout, where they are not to be chosen.

    Every process has to call it.

    Raises:
        ValueError: if `fsdp` does not divide the devices, those of each slice, or not
            all slices have as many.
    """
    params = _bytes(state.params)
    rest = _bytes((state.opt_state, state.ema))
    slices = _slices(devices)
    if fsdp is not None:
        _check_fsdp(fsdp, slices)
    count, together = len(devices), len(slices[0])

    def taken(ways, shard):
        return 2 * params / ways + rest / (count if shard else ways)

    def described(ways, shard, why):
        sizes = f"{taken(ways, shard) / 2**30:.2f} GiB of state and gradients a device"
        return Layout(ways, shard, f"{why}: {sizes}")

    ways = [n for n in range(1, together + 1) if together % n == 0]
    choices = [(1, False), *((n, True) for n in ways)]
    if fsdp is not None:
        choices = [(fsdp, False), (fsdp, True)]
    if shard_optimizer is not None:
        allowed = ways if fsdp is None else [fsdp]
        choices = [(n, shard_optimizer) for n in allowed]
    if len(choices) == 1:
        return described(*choices[0], "as the config says")
    if count == 1:
        return described(*choices[0], "there is one device")
    memory = device_memory(devices[0])
    if memory is None:
        return described(*choices[0], "no memory of its own is known of a device")
    limit = STATE_SHARE * memory
    room = f"{limit / 2**30:.1f} GiB of {memory / 2**30:.1f} are for it"
    for choice in choices:
        if taken(*choice) <= limit:
            return described(*choice, f"at most {room}")
    return described(*choices[-1], f"only {room}, but no layout takes less")


def device_memory(device: jax.Device) -> int | None:
    """Bytes of memory of an accelerator; None for a CPU, or if it does not tell.

    Every process has to call it: of GPUs, which are asked, the least counts.
    """
    if device.platform == "cpu":
        return None
    if device.device_kind in TPU_MEMORY:
        return int(TPU_MEMORY[device.device_kind] * 2**30)
    if device.process_index != jax.process_index():
        device = jax.local_devices()[0]  # those of other hosts do not answer
    told = hosts.gather((device.memory_stats() or {}).get("bytes_limit"))
    return None if None in told else min(told)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes ("data", "fsdp") over all devices of all processes.

    Of several TPU slices, or hosts with GPUs, each keeps a whole number of the `fsdp`
    groups: no layer is gathered over the slower network between them. Sums of gradients
    cross it and, where the optimizer's state is split over all devices (see Layout),
    the new parameters, once a step.

    Args:
        fsdp: ways to split batch, parameters and optimizer state; the other devices
            split the batch only.
        devices: the devices to use, all of them by default.

    Raises:
        ValueError: if `fsdp` does not divide the devices, those of each slice, or not
            all slices have as many.
    """
    slices = _slices(jax.devices() if devices is None else devices)
    _check_fsdp(fsdp, slices)
    shape = len(slices[0]) // fsdp, fsdp
    # A group may be part of a row of the slice's grid of chips, which jax.make_mesh
    # refuses for all but v5e.
    grids = [
        mesh_utils.create_device_mesh(shape, island, allow_split_physical_axes=True)
        for island in slices
    ]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * 2)


def _check_fsdp(fsdp: int, slices: list[list[jax.Device]]) -> None:
    sizes = [len(island) for island in slices]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the hosts (of TPUs, slices) of the run have {', '.join(map(str, sizes))} "
            "devices: start as many processes on each"
        )
    together = sizes[0]
    if fsdp < 1 or together % fsdp:
        where = f" of each of {len(slices)} slices" if len(slices) > 1 else ""
        raise ValueError(
            f"config.mesh.fsdp is {fsdp}, which does not divide the {together} "
            f"devices{where}"
        )


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices by fast network: slices of TPUs, hosts of GPUs."""
    slices = collections.defaultdict(list)
    for device in devices:
        # JAX numbers hosts of GPUs like slices, whatever processes there are.
        accelerator = device.platform != "cpu"
        slices[getattr(device, "slice_index", 0) if accelerator else 0].append(device)
    return [slices[index] for index in sorted(slices)]


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_shardings(state, mesh: Mesh, shard_optimizer: bool = False):
    """The NamedSharding of every array of a (possibly abstract) tree.

    Args:
        state: a TrainState, or trees whose paths end like those of one.
        mesh: see `make_mesh`.
        shard_optimizer: see Layout.
    """

    def sharding(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        split = ["fsdp"]
        if shard_optimizer and name.startswith(("opt_state", "ema")):
            split.insert(0, AXES)
        return NamedSharding(mesh, _spec(name, x.shape, mesh, split))

    return jax.tree.map_with_path(sharding, state)


def with_shardings(shapes, shardings):
    """An abstract tree, such as `eval_shape` gives, that also says where it lives."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings,
    )


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, split: list) -> P:
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    # A scan takes one layer after the other: splitting the layer axis would move
    # every layer to every device.
    first = 1 if "blocks/" in name else 0
    for axes in split if rule == "shard" else []:
        ways = math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes))
        dividing = [i for i in range(first, len(shape)) if shape[i] % ways == 0]
        if dividing:
            largest = max(dividing, key=lambda i: shape[i])
            return P(*(axes if i == largest else None for i in range(len(shape))))
    return P()


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, one part for each device."""
    return NamedSharding(mesh, P(AXES))


def local_indices(mesh: Mesh, batch_size: int, clips_per_video: int = 1) -> np.ndarray:
    """Which videos of a global batch this process has to read: those on its devices.

    A mesh follows the network between devices, and takes the processes in no particular
    order. Read so, a global batch is the same, row by row, whatever the processes are,
    and so are the masks and the pairs that are mixed.

    Args:
        mesh: the devices.
        batch_size: videos of a global batch.
        clips_per_video: adjacent rows of the arrays that one video gives.

    Returns:
        Ascending indices.

    Raises:
        ValueError: if clips of one video are on devices of two processes.
    """
    clips = batch_size * clips_per_video
    parts = batch_sharding(mesh).addressable_devices_indices_map((clips,)).values()
    mine = np.unique(np.concatenate([np.arange(clips)[part] for part in parts]))
    videos, counts = np.unique(mine // clips_per_video, return_counts=True)
    if (counts != clips_per_video).any():
        raise ValueError(
            f"the {clips_per_video} clips of a video (config.data.num_samples) are on "
            f"devices of different hosts: make config.batch_size, {batch_size}, a "
            f"multiple of the {mesh.size} devices"
        )
    return videos


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of what each process has read; see `local_indices`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def grad_accum_steps(clips: int, devices: int, max_per_device: int) -> int:
    """Micro-batches per step: the fewest that keep each device within its limit.

    Args:
        clips: clips per step over all devices (batch size times samples per video).
        devices: how many devices share them.
        max_per_device: the most clips that one device takes at once.

    Raises:
        ValueError: if the clips do not divide over the devices.
    """
    if clips % devices:
        raise ValueError(
            f"{clips} clips per step (config.batch_size times config.data.num_samples) "
            f"do not divide over {devices} devices"
        )
    if max_per_device < 1:
        raise ValueError("config.micro_batch_per_device must be at least 1")
    per_device = clips // devices
    steps = math.ceil(per_device / max_per_device)
    while per_device % steps:
        steps += 1
    return steps
