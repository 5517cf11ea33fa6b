"""AdamW and its schedule: what decays, what is clipped, frozen, and by what rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import random_variables
from videomae_jax.training import optimizer

SIZES = {"width": 48, "depth": 2, "heads": 3}


@pytest.fixture(scope="module")
def params():
    decoder = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}
    return random_variables(vmae.VideoMAE(**SIZES, **decoder))["params"]


def test_learning_rate_table():
    trajectory = np.load(official.GOLDEN / "pretrain_trajectory.npz")
    schedule = optimizer.warmup_cosine(
        2e-3, 1e-4, batch_size=256, warmup_steps=10, total_steps=40
    )
    ours = [schedule(step) for step in range(40)]
    np.testing.assert_allclose(ours, trajectory["lr"], atol=1e-9, rtol=0)


def test_learning_rate_scales_with_the_batch_but_for_nothing_else():
    one = optimizer.warmup_cosine(
        2e-3, 1e-4, batch_size=256, warmup_steps=3, total_steps=20
    )
    eight = optimizer.warmup_cosine(
        2e-3, 1e-4, batch_size=2048, warmup_steps=3, total_steps=20
    )
    for step in range(20):
        np.testing.assert_allclose(eight(step), 8 * one(step), rtol=1e-6)
    assert one(0) == 0 and np.isclose(one(2), 2e-3) and np.isclose(one(3), 2e-3)


def test_weight_decay_spares_all_but_matrices(params):
    spared = {"bias", "scale", "q_bias", "v_bias", "mask_token"}
    for path, decays in jax.tree_util.tree_leaves_with_path(optimizer.decays(params)):
        assert decays == (path[-1].key not in spared), path
    tx = optimizer.adamw(0.9, 0.95, eps=1e-8, weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(
        updates["decoder"]["head"]["kernel"], 0.1 * params["decoder"]["head"]["kernel"]
    )
    assert not np.any(updates["mask_token"])
    assert not np.any(updates["encoder"]["blocks"]["norm1"]["scale"])


def test_clipping_bounds_the_update_but_not_the_report():
    grads = {"kernel": jnp.full((4,), 3.0)}
    tx = optimizer.adamw(0.0, 0.0, eps=1.0, weight_decay=0.0, clip_norm=0.5)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    clipped = 3.0 * 0.5 / 6.0
    np.testing.assert_allclose(updates["kernel"], clipped / (clipped + 1), rtol=1e-5)


def test_freezing_nothing_or_everything_is_refused(params):
    for pattern in ("^encoders/", "."):
        with pytest.raises(ValueError, match="config.freeze"):
            optimizer.is_frozen(params, pattern)


@pytest.mark.parametrize("freeze", ["", "norm1", "^encoder/blocks/"])
def test_freezing_does_not_change_the_layers_rates(freeze):
    model = vmae.VideoClassifier(num_classes=10, **SIZES)
    ones = jax.tree.map(jnp.ones_like, random_variables(model)["params"])
    tx = optimizer.adamw(
        0.0, 0.0, eps=1e-8, weight_decay=0.0, layer_decay=0.5, freeze=freeze
    )
    updates, _ = tx.update(ones, tx.init(ones), ones)
    np.testing.assert_allclose(updates["encoder"]["embedding"]["bias"], 0.5**3)
    np.testing.assert_allclose(updates["head"]["bias"], 1.0)
