"""Clips stay on the devices that they were sent to.

A mesh that trains splits each batch by clip over its axes BATCH_AXES. The models run
the same without one.
"""

import math

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")


def keep_clips_in_place(x: jax.Array) -> jax.Array:
    """Tells the compiler that x [B, ...] is split by clip over the mesh in use.

    Left to itself it moves activations to where parts of the parameters are, once
    those are split too, rather than the parts, which are fewer, to the activations.
    """
    axes = _axes(len(x))
    return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x


def on_each_device(function, *arrays: jax.Array):
    """Calls function(*arrays), arrays [B, ...] and so the result, clip by clip.

    The compiler cannot cut a kernel up, and it would bring the clips together for a
    loop over them: so each device calls the function with its own clips.
    """
    axes = _axes(len(arrays[0]))
    if axes:
        function = jax.shard_map(
            function, in_specs=P(axes), out_specs=P(axes), check_vma=False
        )
    return function(*arrays)


def platform() -> str | None:
    """What computes, "cpu", "gpu" or "tpu": the mesh in use, or JAX's default.

    None if there are several devices and no mesh: arrays may be spread over them.
    """
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device.platform
    if default := jax.config.jax_default_device:
        return getattr(default, "platform", default)
    return jax.default_backend() if jax.device_count() == 1 else None


def divides(clips: int) -> bool:
    """Whether the mesh in use, if there is one, gives each device as many clips."""
    return jax.sharding.get_abstract_mesh().size <= 1 or bool(_axes(clips))


def _axes(clips: int) -> tuple[str, ...]:
    """Those axes of the mesh in use that split so many clips; none if they cannot."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.auto_axes)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    return axes if ways > 1 and clips % ways == 0 else ()
