"""Where arrays live: the device mesh, parameters by path, batches by row."""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

# Parameters (and the optimizer's moments, whose paths end alike) by path; the first
# match wins. "shard" cuts the largest axis that divides over `fsdp`; the rest is small.
RULES = (
    (r"kernel$", "shard"),
    (r"", "replicate"),
)


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh with axes ("data", "fsdp") over all devices of all processes.

    Args:
        data: ways to split the batch only; -1 takes what `fsdp` leaves.
        fsdp: ways to split batch, parameters and optimizer state.
        devices: the devices to use, all of them by default.

    Raises:
        ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1 and fsdp > 0:
        data = len(devices) // fsdp
    if data < 1 or data * fsdp != len(devices):
        raise ValueError(
            f"config.mesh asks for data={data} x fsdp={fsdp} devices, but there are "
            f"{len(devices)}; set config.mesh.data to -1 and config.mesh.fsdp to a "
            "divisor of the number of devices"
        )
    return jax.make_mesh(
        (data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def state_shardings(state, mesh: Mesh):
    """The NamedSharding of every array of a (possibly abstract) tree."""

    def sharding(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, x.shape, mesh.shape["fsdp"]))

    return jax.tree.map_with_path(sharding, state)


def with_shardings(shapes, shardings):
    """An abstract tree, such as `eval_shape` gives, that also says where it lives."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings,
    )


def _spec(name: str, shape: tuple[int, ...], ways: int) -> P:
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    if rule == "replicate":
        return P()
    # A scan takes one layer after the other: splitting the layer axis would move
    # every layer to every device.
    first = 1 if "blocks/" in name else 0
    axes = [i for i in range(first, len(shape)) if shape[i] % ways == 0]
    if not axes:
        return P()
    largest = max(axes, key=lambda i: shape[i])
    return P(*(AXES[1] if i == largest else None for i in range(len(shape))))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, one part for each device."""
    return NamedSharding(mesh, P(AXES))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that each process has read."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def accumulation_steps(clips: int, devices: int, max_per_device: int) -> int:
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
        raise ValueError("config.max_clips_per_device must be at least 1")
    per_device = clips // devices
    steps = math.ceil(per_device / max_per_device)
    while per_device % steps:
        steps += 1
    return steps
