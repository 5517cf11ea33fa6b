"""Pretraining with a decoder mask: the reference's trajectory, meshes, refusals."""

import functools

import jax
import numpy as np
import optax
import pytest

import videomae_jax as vmae
from configs import common
from tests.helpers import official
from tests.training.test_train_step import GivenMasks, jitted
from videomae_jax.distributed import sharding
from videomae_jax.errors import ConfigError
from videomae_jax.models import masking, vit
from videomae_jax.training import optimizer
from videomae_jax.training.tasks.pretrain import Pretraining

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The sizes of the golden files; 6 steps in time, so that counts differ."""
    path = tmp_path_factory.mktemp("lists") / "train.txt"
    path.write_text("0.mp4\n")
    path.with_name("0.mp4").touch()
    config = common.pretrain()
    config.model.update(width=32, depth=2, heads=4, patch_size=8, dtype="float32")
    config.model.update(decoder_width=24, decoder_depth=2, decoder_heads=3)
    config.data.update(train=str(path), num_frames=12, image_size=(32, 48))
    config.mask.update(ratio=0.8, decoder_kind="running_cell", decoder_ratio=0.5)
    return config


@pytest.fixture(scope="module")
def golden():
    return np.load(official.V2 / "dual_step_uneven.npz")


@pytest.mark.parametrize("mesh_shape", [slow((1, 1)), (3, 2)])
def test_trajectory_matches_the_reference(config, golden, mesh_shape):
    trajectory = np.load(official.V2 / "dual_trajectory.npz")
    tx = optimizer.adamw(
        *trajectory["betas"],
        eps=float(trajectory["eps"]),
        weight_decay=float(trajectory["weight_decay"]),
        clip_norm=float(trajectory["clip_grad"]),
    )
    peak, floor = (float(trajectory[name]) for name in ("peak_lr", "min_lr"))
    schedule = optimizer.warmup_cosine(
        peak, floor, batch_size=256, warmup_steps=5, total_steps=20
    )
    step, state, mesh = jitted(
        GivenMasks(config), official.parameters(golden), tx, schedule, mesh_shape
    )
    videos = official.video(trajectory["videos_uint8_bcthw"])
    for i, chosen in enumerate(trajectory["batch_indices"]):
        visible, masked = vmae.masking.ids_from_mask(trajectory["masks"][i])
        decoded, _ = vmae.masking.ids_from_mask(trajectory["decode_masks"][i])
        weight = np.asarray(masking.loss_weight(visible, decoded))
        batch = {
            "patches": vit.patchify(videos[chosen], 8, 2),
            "visible": visible,
            "masked": masked,
            "decoded": decoded,
            "weight": weight / weight.mean(),
        }
        # Of three clips, each device has one.
        batch = {name: np.concatenate([x] * mesh_shape[1]) for name, x in batch.items()}
        state, metrics = step(
            state, sharding.to_devices(batch, mesh), jax.random.key(0)
        )
        for name, rtol in (("loss", 2e-5), ("grad_norm", 1e-4)):
            np.testing.assert_allclose(metrics[name], trajectory[name][i], rtol=rtol)
        np.testing.assert_allclose(
            metrics["learning_rate"], trajectory["lr"][i], atol=1e-9
        )
    params = jax.device_get(state.params)
    ours = {
        "mask_token": params["mask_token"].reshape(1, 1, -1),
        "encoder.blocks.0.attn.q_bias": params["encoder"]["blocks"]["attention"][
            "q_bias"
        ][0],
        "encoder.norm.weight": params["encoder"]["norm"]["scale"],
        "encoder.norm.bias": params["encoder"]["norm"]["bias"],
        "decoder.head.bias": params["decoder"]["head"]["bias"],
        "encoder_to_decoder.weight": params["encoder_to_decoder"]["kernel"].T,
    }
    final = {name for name in trajectory if name.startswith("final/")}
    assert final == {f"final/{name}" for name in ours}
    for name, array in ours.items():
        np.testing.assert_allclose(array, trajectory[f"final/{name}"], atol=2e-5)


@pytest.fixture(scope="module")
def on_one_device(config, golden):
    return one_step(config, golden)


def one_step(config, golden, kind="running_cell", **layout):
    """Returns loss, gradients, and the number of loss tokens of each of 8 clips."""
    config = config.copy_and_resolve_references()
    config.mask.decoder_kind = kind
    # Plain gradient descent, so far that the parameters' own digits do not count.
    task, tx = Pretraining(config), optax.identity()
    params = official.parameters(golden)
    step, state, mesh = jitted(task, params, tx, lambda step: 1e4, **layout)
    videos = np.random.default_rng(0).integers(0, 256, (8, 12, 32, 48, 3), np.uint8)
    batch = {"patches": vit.patchify(videos, 8, 2)}
    key = jax.random.key(3)
    weight = jax.jit(task.add_randomness)(batch, jax.random.fold_in(key, 0))["weight"]
    state, metrics = step(state, sharding.to_devices(batch, mesh), key)
    grads = jax.tree.map(
        lambda before, after: (before - after) / 1e4,
        params,
        jax.device_get(state.params),
    )
    return float(metrics["loss"]), grads, np.count_nonzero(weight, axis=1)


@pytest.mark.parametrize(
    "layout",
    [
        slow({"mesh_shape": (8, 1)}),
        {"mesh_shape": (2, 4), "grad_accum_steps": 4},
        slow({"mesh_shape": (2, 4)}),
        slow({"mesh_shape": (1, 1), "grad_accum_steps": 4}),
        slow({"mesh_shape": (8, 1), "kind": "random"}),
    ],
)
def test_each_loss_token_counts_the_same_on_any_devices(
    config, golden, on_one_device, layout
):
    if "kind" in layout:
        on_one_device = one_step(config, golden, kind=layout["kind"])
    loss, grads, counts = on_one_device
    assert len(set(counts.tolist())) > 1  # one clip a device: counts differ
    other_loss, other_grads, _ = one_step(config, golden, **layout)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(x).max()),
        grads,
        other_grads,
    )


def test_operations_that_dual_masking_saves():
    config = common.pretrain()
    config.data.train = "unread.txt"
    without = Pretraining(config).flops_per_clip
    config.mask.decoder_kind = "running_cell"
    ratio = Pretraining(config).flops_per_clip / without
    # 25.87 of 35.48 G (VideoMAE V2, table 1), which may count more than products.
    np.testing.assert_allclose(ratio, 25.87 / 35.48, atol=0.015)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decoder_kind": "cell"},
            "config.mask.decoder_kind='cell' must be one of: ''",
        ),
        ({"decoder_ratio": 0.1}, "ratio=0.1 must be in"),
    ],
)
def test_refused(config, changes, message):
    config = config.copy_and_resolve_references()
    config.mask.update(changes)
    with pytest.raises(ConfigError, match=message):
        Pretraining(config)


def test_odd_grids_are_refused_before_anything_is_read(config):
    config = config.copy_and_resolve_references()
    config.data.update(train="not_there.txt", image_size=(40, 48))
    with pytest.raises(ConfigError, match="even number of patches .* 5 x 6"):
        Pretraining(config)
