"""Clips stay on their devices, also within a function that is mapped over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from videomae_jax.distributed import sharding
from videomae_jax.models import partitioning
from videomae_jax.models.partitioning import BATCH_AXES


@pytest.mark.eight_devices
@pytest.mark.parametrize("axes", [(), ("slice", "data"), BATCH_AXES])
def test_each_device_gets_its_own_clips(axes):
    """Of 16 on eight devices, whatever part of the split is the caller's."""
    mesh, seen = sharding.make_mesh(2), []

    def local(x):
        seen.append((partitioning.manual_axes(), partitioning.divides(len(x) - 1)))
        assert partitioning.divides(len(x))
        x = partitioning.keep_clips_in_place(x)
        return partitioning.on_each_device(lambda x: x.sum(keepdims=True) + 0 * x, x)

    if axes:
        local = jax.shard_map(
            local, in_specs=P(axes), out_specs=P(axes), axis_names=set(axes)
        )
    x = jnp.arange(16.0)
    with jax.set_mesh(mesh):
        sums = jax.jit(local)(x)
    np.testing.assert_array_equal(sums, x.reshape(8, 2).sum(axis=1).repeat(2))
    # Where all axes are the caller's, any number of clips is the device's own.
    assert set(seen) == {(axes, axes == BATCH_AXES)}
