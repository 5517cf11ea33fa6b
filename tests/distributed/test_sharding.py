"""The sharding plan follows from the memory of the devices; shardings of arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.libtpu import needs_libtpu
from videomae_jax import config as configuration
from videomae_jax.distributed import sharding
from videomae_jax.errors import ConfigError
from videomae_jax.tpu import topology
from videomae_jax.tpu.compile import make_task
from videomae_jax.training import train_step
from videomae_jax.training.train_step import TrainState

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a machine that does not exist."""

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
    """An abstract state with `gib` GiB of parameters, and two moments."""
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
        (400.0, 8, 8, True),  # the best plan there is, although it is not enough
        (400.0, 1, 1, False),
    ],
)
def test_plan_leaves_enough_memory(gib, count, fsdp, shard_optimizer):
    plan = sharding.choose_plan(state_of(gib), chips(count))
    assert (plan.fsdp, plan.shard_optimizer) == (fsdp, shard_optimizer)
    assert "GiB" in plan.reason


def test_plan_depends_on_memory():
    large = chips(8, platform="gpu", device_kind="GPU", bytes_limit=80 * GIB)
    plan = sharding.choose_plan(state_of(3.0), large)
    assert (plan.fsdp, plan.shard_optimizer) == (1, False)
    plan = sharding.choose_plan(state_of(3.0), jax.devices())
    assert (plan.fsdp, plan.shard_optimizer) == (1, False)
    assert "known" in plan.reason


@pytest.mark.parametrize("fsdp", [None, 1, 4])
@pytest.mark.parametrize("shard_optimizer", [None, False, True])
def test_config_overrides_the_choice(fsdp, shard_optimizer):
    plan = sharding.choose_plan(
        state_of(3.0), chips(8), fsdp=fsdp, shard_optimizer=shard_optimizer
    )
    assert fsdp in (None, plan.fsdp)
    assert shard_optimizer in (None, plan.shard_optimizer)
    chosen = {
        (None, None): (2, True),  # the other field is still chosen
        (None, False): (4, False),
        (None, True): (2, True),
        (1, None): (1, True),
        (4, None): (4, False),
    }
    given = fsdp, shard_optimizer
    assert (plan.fsdp, plan.shard_optimizer) == chosen.get(given, given)


def test_fsdp_groups_stay_within_a_slice():
    two_slices = [Chip(i, slice_index=i // 4) for i in range(8)]
    plan = sharding.choose_plan(state_of(400.0), two_slices)
    assert plan.fsdp == 4
    with pytest.raises(ConfigError, match="4 devices of each of 2 slices"):
        sharding.make_mesh(8, two_slices)
    # The same with a process per GPU.
    gpus = [
        Chip(i, "gpu", "GPU", slice_index=i // 4, process_index=i, bytes_limit=GIB)
        for i in range(8)
    ]
    assert sharding.choose_plan(state_of(400.0), gpus).fsdp == 4
    with pytest.raises(ConfigError, match="have 4, 3: start as many processes"):
        sharding.make_mesh(1, gpus[:7])


def test_optimizer_is_split_within_a_slice(monkeypatch):
    gpus = [
        Chip(i, "gpu", "GPU", slice_index=i // 4, bytes_limit=8 * GIB) for i in range(8)
    ]
    plan = sharding.choose_plan(state_of(0.7), gpus)
    assert plan.shard_optimizer and plan.fsdp == 1
    # 1.4 GiB of parameters and gradient, a quarter of the 1.4 GiB of moments.
    assert "take 1.75 GiB per device" in plan.reason
    # Hosts with one GPU have no faster network: the moments are split over all.
    lone = [dataclasses.replace(gpu, slice_index=gpu.id) for gpu in gpus]
    assert "take 1.57 GiB" in sharding.choose_plan(state_of(0.7), lone).reason

    devices = jax.devices()
    monkeypatch.setattr(sharding, "_slices", lambda _: [devices[:4], devices[4:]])
    for fsdp in (1, 2):
        mesh = sharding.make_mesh(fsdp)
        assert mesh.shape == {"slice": 2, "data": 4 // fsdp, "fsdp": fsdp}
        kernel = {"kernel": jnp.arange(32.0).reshape(16, 2)}
        state = TrainState(jnp.int32(0), kernel, (kernel,), {})
        placed = jax.device_put(state, sharding.state_shardings(state, mesh, True))

        def rows(x):
            return {y.device: set(np.ravel(y.data)) for y in x.addressable_shards}

        params, moments = (
            rows(placed.params["kernel"]),
            rows(placed.opt_state[0]["kernel"]),
        )
        for i in range(4):
            assert len(moments[devices[i]]) == 32 // 4
            # Each slice has them all, and each device a part of what it updates.
            assert moments[devices[i]] <= params[devices[i]]
        assert set().union(*(moments[x] for x in devices[4:])) == set(range(32))


@needs_libtpu
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize(
    "name", ["v5e-16", "v5e-64", "v5p-128", "v6e-16", "v6e-64", "tpu7x-16"]
)
def test_mesh_of_every_fsdp_keeps_groups_within_slices(name, slices):
    devices = topology.devices(name, slices)
    count = len(devices) // slices
    for fsdp in [n for n in range(1, count + 1) if count % n == 0]:
        mesh = sharding.make_mesh(fsdp, devices)
        assert mesh.devices.shape == (slices, count // fsdp, fsdp)
        assert set(mesh.devices.flat) == set(devices)
        if slices > 1:
            assert all(
                {x.slice_index for x in mesh.devices[i].flat} == {i}
                for i in range(slices)
            )


@needs_libtpu
@pytest.mark.parametrize(
    ("variant", "name", "slices"), [("huge", "v5e-16", 2), ("giant", "v6e-16", 1)]
)
def test_plan_of_large_models_gives_a_mesh(variant, name, slices):
    config = configuration.load("configs/k400_vith_pretrain.py", [])
    config.model.variant = variant
    devices = topology.devices(name, slices)
    task = make_task(config)
    built = train_step.build(
        config, task, total_steps=1000, warmup_steps=100, devices=devices
    )
    assert built.plan.fsdp == 2
    assert built.mesh.shape == {"slice": slices, "data": 8, "fsdp": 2}


@pytest.mark.parametrize("fsdp", [-1, 0, 3, 16])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(ConfigError, match=f"fsdp={fsdp} must divide the 8 devices"):
        sharding.choose_plan(state_of(1.0), chips(8), fsdp=fsdp)


def test_memory_of_unknown_kinds_is_queried(monkeypatch):
    chip = Chip(0, device_kind="TPU v9", bytes_limit=7)
    assert sharding.device_memory(chip) == 7
    # Devices of other hosts cannot be queried; the smallest memory counts.
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    monkeypatch.setattr(sharding.hosts, "gather", lambda value: [value, 5])
    assert sharding.device_memory(Chip(0, "gpu", "GPU", process_index=1)) == 5
    monkeypatch.setattr(sharding.hosts, "gather", lambda value: [value, None])
    assert sharding.device_memory(chip) is None
    assert sharding.device_memory(Chip(0)) == 15.75 * GIB
    assert sharding.device_memory(jax.devices()[0]) is None


@pytest.mark.parametrize("fsdp", [1, 2, 4])
@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_bytes_per_device_fall_with_the_mesh_axes(fsdp, shard_optimizer):
    params = {
        "blocks": {"mlp": {"kernel": jnp.zeros((2, 16, 32)), "bias": jnp.zeros((2,))}},
        "mask_token": jnp.zeros((16,)),
    }
    moments = jax.tree.map(jnp.ones_like, params)
    state = TrainState(jnp.int32(0), params, (moments,), {}, ema=params)
    mesh = sharding.make_mesh(fsdp)
    shardings = sharding.state_shardings(state, mesh, shard_optimizer)
    placed = jax.device_put(state, shardings)

    def local_size(tree):
        kernel = tree["blocks"]["mlp"]["kernel"]
        # Never along the layers, which are scanned.
        assert kernel.addressable_shards[0].data.shape[0] == 2
        assert tree["mask_token"].is_fully_replicated
        return kernel.addressable_shards[0].data.size

    assert local_size(placed.params) == 2 * 16 * 32 // fsdp
    ways = 8 if shard_optimizer else fsdp
    assert (
        local_size(placed.opt_state[0]) == local_size(placed.ema) == 2 * 16 * 32 // ways
    )
    np.testing.assert_array_equal(placed.opt_state[0]["mask_token"], 1)


def test_indivisible_axes_are_split_less_or_not_at_all():
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


@pytest.mark.parametrize(
    "clips, devices, most, expected",
    [(64, 8, 8, 1), (64, 8, 3, 4), (2048, 64, 32, 1), (2048, 8, 32, 8), (6, 2, 2, 3)],
)
def test_accumulation_follows_from_the_devices(clips, devices, most, expected):
    steps = sharding.grad_accum_steps(clips, devices, most)
    assert steps == expected
    assert clips // devices % steps == 0 and clips // devices // steps <= most


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sharding.grad_accum_steps(10, 8, 4), "divisible by the 8 devices"),
        (lambda: sharding.grad_accum_steps(8, 8, 0), "at least 1"),
        (lambda: sharding.make_mesh(3), "divide the 8 devices"),
        (lambda: sharding.make_mesh(0), "divide the 8 devices"),
    ],
)
def test_impossible_layouts_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
