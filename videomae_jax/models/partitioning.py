"""Keeps the clips of a batch on the devices that they were sent to.

In training, a mesh splits each batch by clip over its axes BATCH_AXES. Without a mesh
these functions change nothing. Over axes that are manual, because the caller is mapped
over them with `jax.shard_map`, the clips are split already.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from videomae_jax.models.array_types import Array

BATCH_AXES = ("slice", "data", "fsdp")


def keep_clips_in_place(x: Array) -> Array:
    """Tells the compiler that x [batch, ...] is split by clip over the current mesh.

    Where the parameters are sharded too, the compiler would otherwise move the
    activations to the shards, although the shards are smaller.
    """
    axes = _axes(x.shape[0])
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def on_each_device(function: Callable[..., Any], *arrays: jax.Array) -> jax.Array:
    """Calls function(*arrays) on each device with the device's own clips.

    The compiler cannot split a kernel, and would gather the clips for a loop over them.
    The function must treat clips independently, and make its other arrays itself.
    Arrays and result are [batch, ...].
    """
    axes = _axes(arrays[0].shape[0])
    if axes:
        function = jax.shard_map(
            function,
            in_specs=P(axes),
            out_specs=P(axes),
            axis_names=set(axes),
            check_vma=False,
        )
    return function(*arrays)


def manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the caller sees only its own devices' clips."""
    return jax.sharding.get_abstract_mesh().manual_axes


def has_split_parameters() -> bool:
    """Returns whether the current mesh splits parameters (FSDP)."""
    return jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1


def platform() -> str | None:
    """Returns "cpu", "gpu" or "tpu", of the current mesh or of JAX's default device.

    Returns None for several devices without a mesh: arrays may be on any of them.
    """
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device.platform
    default: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if default:
        return getattr(default, "platform", default)
    return jax.default_backend() if jax.device_count() == 1 else None


# Numbers of clips are Any: they are unknown where a model is exported for all of them.


def divides(clips: Any) -> bool:
    """Returns whether each device of the current mesh gets equally many clips."""
    mesh = jax.sharding.get_abstract_mesh()
    shared = set(mesh.axis_names).difference(mesh.manual_axes)
    return math.prod(mesh.shape[x] for x in shared) <= 1 or bool(_axes(clips))


def _axes(clips: Any) -> tuple[str, ...]:
    """Returns the mesh axes that split so many clips evenly; () if they cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.auto_axes)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    return axes if ways > 1 and clips % ways == 0 else ()
