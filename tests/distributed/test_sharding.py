"""What is split over which devices, and that it follows from their memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tpu.test_compile import needs_libtpu
from videomae_jax.cli.compile_for_tpu import read_config
from videomae_jax.distributed import sharding
from videomae_jax.tpu import compile, topology
from videomae_jax.training import setup
from videomae_jax.training.train_step import TrainState

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that is not there."""

    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    slice_index: int = 0
    process_index: int = 0
    bytes_limit: int = 0

    def memory_stats(self):
        return {"bytes_limit": self.bytes_limit}


def chips(count, **fields):
    return [Chip(i, **fields) for i in range(count)]


def state_of(gib):
    """Parameters of so many GiB, and two moments."""
    tree = {"a": {"kernel": jax.ShapeDtypeStruct((int(gib * GIB / 4),), jnp.float32)}}
    return TrainState(jnp.int32(0), tree, (tree, tree), {})


@pytest.mark.parametrize(
    ("gib", "count", "fsdp", "shard_optimizer"),
    [
        (0.9, 8, 1, False),  # 3.6 of 3.94 GiB: parameters, gradient, two moments
        (1.0, 8, 1, True),  # 2 and an eighth of 2
        (3.0, 8, 2, True),
        (3.0, 256, 2, True),
        (9.0, 256, 8, True),
        (400.0, 8, 8, True),  # as much as there is, though it will not do
        (400.0, 1, 1, False),
    ],
)
def test_what_leaves_room_is_chosen(gib, count, fsdp, shard_optimizer):
    layout = sharding.choose_layout(state_of(gib), chips(count))
    assert (layout.fsdp, layout.shard_optimizer) == (fsdp, shard_optimizer)
    assert "GiB" in layout.reason


def test_memory_decides():
    large = chips(8, platform="gpu", device_kind="GPU", bytes_limit=80 * GIB)
    layout = sharding.choose_layout(state_of(3.0), large)
    assert (layout.fsdp, layout.shard_optimizer) == (1, False)
    layout = sharding.choose_layout(state_of(3.0), jax.devices())
    assert (layout.fsdp, layout.shard_optimizer) == (1, False)
    assert "known" in layout.reason


@pytest.mark.parametrize("fsdp", [None, 1, 4])
@pytest.mark.parametrize("shard_optimizer", [None, False, True])
def test_the_config_has_the_last_word(fsdp, shard_optimizer):
    layout = sharding.choose_layout(state_of(3.0), chips(8), fsdp, shard_optimizer)
    assert fsdp in (None, layout.fsdp)
    assert shard_optimizer in (None, layout.shard_optimizer)
    chosen = {
        (None, None): (2, True),  # what is left open is chosen
        (None, False): (4, False),
        (None, True): (2, True),
        (1, None): (1, True),
        (4, None): (4, False),
    }
    given = fsdp, shard_optimizer
    assert (layout.fsdp, layout.shard_optimizer) == chosen.get(given, given)


def test_groups_stay_within_a_slice():
    two_slices = [Chip(i, slice_index=i // 4) for i in range(8)]
    layout = sharding.choose_layout(state_of(400.0), two_slices)
    assert layout.fsdp == 4
    with pytest.raises(ValueError, match="4 devices of each of 2 slices"):
        sharding.make_mesh(8, two_slices)
    # A process for each GPU changes nothing.
    gpus = [
        Chip(i, "gpu", "GPU", slice_index=i // 4, process_index=i, bytes_limit=GIB)
        for i in range(8)
    ]
    assert sharding.choose_layout(state_of(400.0), gpus).fsdp == 4
    with pytest.raises(ValueError, match="have 4, 3 devices: start as many processes"):
        sharding.make_mesh(1, gpus[:7])


@needs_libtpu
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize(
    "name", ["v5e-16", "v5e-64", "v5p-128", "v6e-16", "v6e-64", "tpu7x-16"]
)
def test_every_size_of_group_forms_within_slices(name, slices):
    devices = topology.devices(name, slices)
    count = len(devices) // slices
    for fsdp in [n for n in range(1, count + 1) if count % n == 0]:
        mesh = sharding.make_mesh(fsdp, devices)
        assert mesh.devices.shape == (slices * count // fsdp, fsdp)
        assert set(mesh.devices.flat) == set(devices)
        if slices > 1:
            assert all(
                len({x.slice_index for x in group}) == 1 for group in mesh.devices
            )


@needs_libtpu
@pytest.mark.parametrize(
    ("variant", "name", "slices"), [("huge", "v5e-16", 2), ("giant", "v6e-16", 1)]
)
def test_what_is_chosen_for_large_models_forms(variant, name, slices):
    config = read_config("configs/k400_vith_pretrain.py", [])
    config.model.variant = variant
    devices = topology.devices(name, slices)
    task = compile.make_task(config)
    built = setup.build(config, task, 1000, 100, devices)
    assert built.layout.fsdp == 2
    assert built.mesh.shape == {"data": 8 * slices, "fsdp": 2}


@pytest.mark.parametrize("fsdp", [-1, 0, 3, 16])
def test_groups_that_do_not_divide_are_refused_first(fsdp):
    with pytest.raises(
        ValueError, match=f"fsdp is {fsdp}, which does not divide the 8"
    ):
        sharding.choose_layout(state_of(1.0), chips(8), fsdp)


def test_unknown_memory_is_asked_of_the_device(monkeypatch):
    chip = Chip(0, device_kind="TPU v9", bytes_limit=7)
    assert sharding.device_memory(chip) == 7
    # Devices of other hosts cannot be asked, and the least of all hosts counts.
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    monkeypatch.setattr(sharding.hosts, "gather", lambda value: [value, 5])
    assert sharding.device_memory(Chip(0, "gpu", "GPU", process_index=1)) == 5
    monkeypatch.setattr(sharding.hosts, "gather", lambda value: [value, None])
    assert sharding.device_memory(chip) is None
    assert sharding.device_memory(Chip(0)) == 15.75 * GIB
    assert sharding.device_memory(jax.devices()[0]) is None


@pytest.mark.parametrize("fsdp", [1, 2, 4])
@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_bytes_of_a_device_fall_with_the_axes(fsdp, shard_optimizer):
    params = {
        "blocks": {"mlp": {"kernel": jnp.zeros((2, 16, 32)), "bias": jnp.zeros((2,))}},
        "mask_token": jnp.zeros((16,)),
    }
    moments = jax.tree.map(jnp.ones_like, params)
    state = TrainState(jnp.int32(0), params, (moments,), {}, ema=params)
    mesh = sharding.make_mesh(fsdp)
    shardings = sharding.state_shardings(state, mesh, shard_optimizer)
    placed = jax.device_put(state, shardings)

    def here(tree):
        kernel = tree["blocks"]["mlp"]["kernel"]
        # Never along the layers, which are taken one after the other.
        assert kernel.addressable_shards[0].data.shape[0] == 2
        assert tree["mask_token"].is_fully_replicated
        return kernel.addressable_shards[0].data.size

    assert here(placed.params) == 2 * 16 * 32 // fsdp
    ways = 8 if shard_optimizer else fsdp
    assert here(placed.opt_state[0]) == here(placed.ema) == 2 * 16 * 32 // ways
    np.testing.assert_array_equal(placed.opt_state[0]["mask_token"], 1)


def test_what_does_not_divide_is_split_less_or_not():
    mesh = sharding.make_mesh(2)
    shapes = {
        name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for name, shape in {"six": (6, 3), "odd": (5, 3)}.items()
    }
    state = TrainState(jnp.int32(0), shapes, (shapes,), {})
    where = sharding.state_shardings(state, mesh, shard_optimizer=True)
    # 6 divides by the two ways of fsdp, not by all eight devices.
    P = jax.sharding.PartitionSpec
    assert where.opt_state[0]["six"]["kernel"].spec == P("fsdp", None)
    assert where.opt_state[0]["odd"]["kernel"].spec == P()
