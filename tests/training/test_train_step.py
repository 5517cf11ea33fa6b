"""One training step: the reference's trajectory, accumulation, meshes, bad steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import videomae_jax as vmae
from configs import common
from tests.helpers import official
from videomae_jax.distributed import sharding
from videomae_jax.models import partitioning, vit
from videomae_jax.tpu import collectives
from videomae_jax.tpu.program import Program
from videomae_jax.training import optimizer
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.tasks.pretrain import Pretraining
from videomae_jax.training.train_step import TrainState, make_train_step


class GivenMasks(Pretraining):
    """Pretraining with the masks that the batch brings along."""

    def add_randomness(self, batch, key):
        return batch


@pytest.fixture(scope="module")
def videos_list(tmp_path_factory):
    """Ten classes; the videos themselves are not looked at here."""
    path = tmp_path_factory.mktemp("lists") / "train.txt"
    path.write_text("".join(f"{i}.mp4 {i % 10}\n" for i in range(20)))
    for i in range(20):
        path.with_name(f"{i}.mp4").touch()
    return str(path)


def small(config, videos_list):
    config.model.update(width=48, depth=2, heads=3, dtype="float32")
    config.data.update(train=videos_list, num_frames=8, image_size=64)
    return config


@pytest.fixture(scope="module")
def pretraining(videos_list):
    config = small(common.pretrain(), videos_list)
    config.model.update(decoder_width=32, decoder_depth=2, decoder_heads=2)
    config.mask.ratio = 0.75
    return config


@pytest.fixture(scope="module")
def finetuning(videos_list):
    """With all that is random in it: mixing, drop-path, dropout."""
    config = small(common.finetune(), videos_list)
    config.model.update(drop_path=0.2, dropout=0.2, head_init_scale=1.0)
    config.model.position_size = 64
    return config


@pytest.fixture(scope="module")
def trajectory():
    return np.load(official.GOLDEN / "pretrain_trajectory.npz")


@pytest.mark.parametrize(
    "mesh_shape", [pytest.param((1, 1), marks=pytest.mark.slow), (2, 2)]
)
def test_trajectory_matches_reference(pretraining, trajectory, mesh_shape):
    golden = np.load(official.GOLDEN / "pretrain_step.npz")
    tx = optimizer.adamw(
        *trajectory["betas"],
        eps=float(trajectory["eps"]),
        weight_decay=float(trajectory["weight_decay"]),
    )
    schedule = optimizer.warmup_cosine(
        2e-3, 1e-4, batch_size=256, warmup_steps=10, total_steps=40
    )
    task = GivenMasks(pretraining)
    step, state, mesh = jitted(
        task, official.parameters(golden), tx, schedule, mesh_shape
    )
    videos = official.video(trajectory["videos_uint8_bcthw"])
    for i in range(40):
        visible, masked = vmae.masking.ids_from_mask(trajectory["masks"][i])
        batch = {
            "patches": vit.patchify(videos[trajectory["batch_indices"][i]], 16, 2),
            "visible": visible,
            "masked": masked,
            "decoded": masked,
        }
        state, metrics = step(
            state, sharding.to_devices(batch, mesh), jax.random.key(0)
        )
        np.testing.assert_allclose(metrics["loss"], trajectory["loss"][i], rtol=1e-3)
        np.testing.assert_allclose(
            metrics["grad_norm"], trajectory["grad_norm"][i], rtol=1e-2
        )
        np.testing.assert_allclose(
            metrics["learning_rate"], trajectory["lr"][i], atol=1e-9
        )


@pytest.mark.parametrize(
    "mesh_shape", [pytest.param((1, 1), marks=pytest.mark.slow), (2, 2)]
)
def test_layer_decay_trajectory_matches_reference(finetuning, mesh_shape):
    golden = np.load(official.GOLDEN / "finetune_step.npz")
    trajectory = np.load(official.GOLDEN / "finetune_trajectory.npz")
    config = finetuning.copy_and_resolve_references()
    config.model.update(drop_path=0.0, dropout=0.0)
    config.mix.probability = 0.0
    task = Finetuning(config)
    params = official.classifier_parameters(golden)
    decay = float(trajectory["layer_decay"])
    scales = optimizer.layer_scales(params, decay)
    blocks = scales["encoder"]["blocks"]["mlp"]["fc1"]["bias"].ravel()
    ours = [scales["encoder"]["embedding"]["bias"], *blocks, scales["head"]["kernel"]]
    np.testing.assert_allclose(ours, trajectory["layer_scale"], rtol=1e-6)
    tx = optimizer.adamw(
        *trajectory["betas"],
        eps=1e-8,
        weight_decay=float(trajectory["weight_decay"]),
        layer_decay=decay,
    )
    rates = jnp.asarray(trajectory["lr"])
    step, state, mesh = jitted(task, params, tx, lambda step: rates[step], mesh_shape)
    videos = official.video(trajectory["videos_uint8_bcthw"])
    for i, chosen in enumerate(trajectory["batch_indices"]):
        batch = {
            "patches": vit.patchify(videos[chosen], 16, 2),
            "label": trajectory["labels"][chosen].astype(np.int32),
        }
        state, metrics = step(
            state, sharding.to_devices(batch, mesh), jax.random.key(0)
        )
        np.testing.assert_allclose(metrics["loss"], trajectory["loss"][i], rtol=1e-3)


def jitted(
    task,
    params,
    tx,
    schedule,
    mesh_shape=(1, 1),
    grad_accum_steps=1,
    ema_decay=0.0,
    batch_stats=None,
    shard_optimizer=False,
):
    count = mesh_shape[0] * mesh_shape[1]
    mesh = sharding.make_mesh(mesh_shape[1], jax.devices()[:count])
    params = jax.tree.map(jnp.asarray, params)
    ema = params if ema_decay else None
    state = TrainState(jnp.int32(0), params, tx.init(params), batch_stats or {}, ema)
    shardings = sharding.state_shardings(state, mesh, shard_optimizer)
    step = jax.jit(
        make_train_step(
            task,
            tx,
            schedule,
            mesh=mesh,
            grad_accum_steps=grad_accum_steps,
            ema_decay=ema_decay,
        ),
        out_shardings=(shardings, None),
    )
    return step, jax.device_put(state, shardings), mesh


@pytest.fixture(scope="module")
def task(pretraining):
    return Pretraining(pretraining)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 256, (16, 8, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def params(task, video):
    return jax.jit(task.init)(jax.random.key(0), video[:1])[0]


def run(task, params, video, steps=3, tx=None, **kwargs):
    tx = tx or optimizer.adamw(0.9, 0.95, eps=1e-8, weight_decay=0.05)
    step, state, mesh = jitted(task, params, tx, lambda step: 1e-3, **kwargs)
    labels = np.arange(len(video), dtype=np.int32) % 10
    arrays = {"patches": vit.patchify(video, 16, 2), "label": labels}
    batch = sharding.to_devices(arrays, mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return losses, state


BOTH = {"mesh_shape": (4, 2), "grad_accum_steps": 2}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
layouts = pytest.mark.parametrize(
    ("on_one_device", "kwargs"),
    [
        ("pretrain", BOTH),
        slow("pretrain", {"mesh_shape": (2, 4)}),
        slow("pretrain", {"mesh_shape": (1, 1), "grad_accum_steps": 4}),
        slow("pretrain", {"mesh_shape": (8, 1), "grad_accum_steps": 2}),
        slow("finetune", BOTH),
        slow("finetune", {"mesh_shape": (8, 1)}),
    ],
    indirect=["on_one_device"],
    scope="module",
)


@pytest.fixture(scope="module")
def on_one_device(request, task, finetuning, video):
    """A task, its parameters, and three steps with all that is random in it."""
    # Plain gradient descent: Adam would blow rounding up where gradients vanish.
    tx = optax.identity()
    task = task if request.param == "pretrain" else Finetuning(finetuning)
    params, _ = jax.jit(task.init)(jax.random.key(0), video[:1])
    return task, params, tx, *run(task, params, video, tx=tx)


@layouts
def test_meshes_and_accumulation_change_nothing(on_one_device, video, kwargs):
    task, params, tx, losses, state = on_one_device
    other_losses, other_state = run(task, params, video, tx=tx, **kwargs)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    assert losses[2] != losses[0]
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
        state.params,
        other_state.params,
    )


class Regression:
    """A task that compiles in no time, with noise of its own for every clip."""

    def add_randomness(self, batch, key):
        return batch | {"noise": jax.random.normal(key, batch["x"].shape)}

    def loss(self, params, batch_stats, batch, frozen):
        x = batch["x"] + batch["noise"]
        hidden = jnp.tanh(partitioning.keep_clips_in_place(x) @ params["fc1"]["kernel"])
        out = hidden @ params["fc2"]["kernel"]
        mean = 0.9 * batch_stats["mean"] + 0.1 * x.mean(axis=0)
        return jnp.mean(jnp.square(out - x)), ({"mean": mean}, {})


@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_gradients_are_summed_once_however_many_micro_batches(shard_optimizer):
    draw = np.random.default_rng(0).normal
    kernels = {
        "fc1": {"kernel": draw(size=(16, 64))},
        "fc2": {"kernel": draw(size=(64, 16))},
    }
    params = jax.tree.map(np.float32, kernels)
    arrays = {"x": np.float32(draw(size=(32, 16)))}
    tx = optimizer.adamw(0.9, 0.95, eps=1e-3, weight_decay=0.05)
    traffic, runs = [], []
    for mesh_shape, count in (((8, 1), 1), ((8, 1), 4), ((4, 2), 2), ((1, 1), 1)):
        step, state, mesh = jitted(
            Regression(),
            params,
            tx,
            lambda step: 1e-2,
            mesh_shape,
            count,
            ema_decay=0.5,
            batch_stats={"mean": jnp.zeros(16)},
            shard_optimizer=shard_optimizer,
        )
        batch, key = sharding.to_devices(arrays, mesh), jax.random.key(0)
        program = step.lower(state, batch, key).compile()
        traffic.append(collectives.read(Program(program.as_text())))
        losses = []
        for _ in range(3):
            state, metrics = program(state, batch, key)
            losses.append(metrics["loss"])
        runs.append((losses, state))
    once, accumulated, _, one_device = traffic
    assert accumulated == once and one_device == {}
    sums = {"all-reduce", "reduce-scatter"} & once.keys()
    # The gradients, the loss and the mean; the rest is the norm of split gradients.
    extra = sum(once[kind].bytes for kind in sums) - 4 * (2 * 16 * 64 + 1 + 16)
    assert 0 <= extra <= 8
    for other in runs[:-1]:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            other,
            runs[-1],
        )


@pytest.mark.slow
def test_fsdp_splits_parameters_and_moments(task, params, video):
    _, state = run(task, params, video, steps=1, mesh_shape=(2, 4))
    kernels = 0
    for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
        name = jax.tree_util.keystr(path)
        shard = x.addressable_shards[0].data
        if "kernel" in name:
            kernels += 1
            assert shard.size == x.size // 4, name
            if "blocks" in name:
                assert shard.shape[0] == x.shape[0], name
        else:
            assert shard.size == x.size, name
    assert kernels == 3 * 11


def test_step_that_is_not_finite_touches_nothing_but_the_count(task, params):
    tx = optimizer.adamw(0.9, 0.95, eps=1e-8, weight_decay=0.05)
    step, state, mesh = jitted(task, params, tx, lambda step: 1e-3)
    patches = np.full((4, 64, 1536), np.nan, np.float32)
    new, metrics = step(
        state, sharding.to_devices({"patches": patches}, mesh), jax.random.key(0)
    )
    assert np.isnan(metrics["loss"]) and new.step == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        (new.params, new.opt_state),
        (state.params, state.opt_state),
    )


@pytest.fixture(scope="module")
def probe(finetuning, video):
    """A linear probe, its parameters and statistics."""
    config = finetuning.copy_and_resolve_references()
    config.freeze = "^encoder/"
    config.model.update(head_norm="batch", drop_path=0.0)
    task = Finetuning(config)
    return task, *jax.jit(task.init)(jax.random.key(0), video[:1])


def test_frozen_parameters_stay_and_have_no_moments(probe, video):
    task, params, batch_stats = probe
    tx = optimizer.adamw(
        0.9,
        0.999,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=1.0,
        layer_decay=0.75,
        freeze="^encoder/",
    )
    losses, state = run(task, params, video, tx=tx, batch_stats=batch_stats)
    assert losses[2] != losses[0]
    jax.tree.map(
        np.testing.assert_array_equal, state.params["encoder"], params["encoder"]
    )
    assert np.any(state.params["head"]["kernel"] != params["head"]["kernel"])
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    trained = sum(x.size for x in jax.tree.leaves(params["head"]))
    assert moments == 2 * trained + 1


@pytest.mark.slow
def test_batch_norm_follows_the_batches(probe, video):
    task, params, batch_stats = probe
    kwargs = {"tx": optax.identity(), "batch_stats": batch_stats}
    _, state = run(task, params, video, **kwargs)
    mean = state.batch_stats["batch_stats"]["norm"]["mean"]
    assert np.abs(mean).max() > 0
    # Micro-batches see other statistics, but their running mean is that of the batch.
    _, other = run(task, params, video, steps=1, grad_accum_steps=4, **kwargs)
    _, one = run(task, params, video, steps=1, **kwargs)
    np.testing.assert_allclose(
        other.batch_stats["batch_stats"]["norm"]["mean"],
        one.batch_stats["batch_stats"]["norm"]["mean"],
        atol=1e-6,
    )


def test_average_of_parameters(task, params, video):
    decay = 1 / 10  # of the first step
    _, state = run(task, params, video, steps=1, ema_decay=0.5)
    jax.tree.map(
        lambda ema, new, old: np.testing.assert_allclose(
            ema, decay * old + (1 - decay) * new, atol=1e-6
        ),
        state.ema,
        state.params,
        params,
    )
