"""Mixup, cutmix and the losses between logits and soft targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.errors import ConfigError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Patches
from videomae_jax.training import losses, mixup

SIZE = (16, 24)


def draw(seed, batch=6, **fields):
    fields = {"mixup": 0.8, "cutmix": 1.0} | fields
    return mixup.draw(jax.random.key(seed), batch, size=SIZE, **fields)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 256, (6, 4, *SIZE, 3), np.uint8)


def mixed(video, mix, **stats):
    """Mixes the patches of clips, each with those of its pair; returns a video."""
    patches = Patches(vit.patchify(video, 8, 2), (2, 2, 3))
    pair = patches.replace(values=patches.values[::-1])
    result = mixup.mix_patches(
        patches, pair, mix, jnp.float32, patch_shape=(2, 8), **stats
    )
    return np.asarray(vit.unpatchify(result.values, result.grid, 8, 2))


def test_mixup_blends_in_proportion_to_its_label_weight(video):
    mix = draw(0, cutmix=0.0)
    own = np.asarray(vit.normalize(video))
    (weight,) = set(np.asarray(mix.weight).tolist())
    assert 0 < weight < 1
    np.testing.assert_allclose(
        mixed(video, mix), weight * own + (1 - weight) * own[::-1], atol=1e-5
    )
    np.testing.assert_allclose(mix.label_weight, weight)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_one_box_into_all_frames(video, seed):
    mix = draw(seed, mixup=0.0)
    own = np.asarray(vit.normalize(video))
    result = mixed(video, mix)
    top, left, bottom, right = np.asarray(mix.box[0])
    assert 0 <= top <= bottom <= SIZE[0] and 0 <= left <= right <= SIZE[1]
    expected = own.copy()
    expected[:, :, top:bottom, left:right] = own[::-1, :, top:bottom, left:right]
    np.testing.assert_array_equal(result, expected)
    # The label weight counts pixels, also if the border crops the box.
    share = 1 - (bottom - top) * (right - left) / (SIZE[0] * SIZE[1])
    np.testing.assert_allclose(mix.label_weight, share, atol=1e-6)


def test_boxes_are_cropped_at_the_border():
    mix = draw(1, 20_000, mixup=0.0, mode="sample")
    touching = np.mean(np.asarray(mix.box[:, 0]) == 0)
    assert touching > 0.3
    # Without cropping, the mean would be 0.5.
    assert 0.5 < np.mean(mix.label_weight) < 0.75


def test_modes_draw_once_for_all_clips_or_for_each():
    assert len(set(np.asarray(draw(0).label_weight).tolist())) == 1
    mix = draw(0, 400, mode="sample")
    assert len(set(np.asarray(mix.label_weight).tolist())) > 200
    cut = np.any(np.asarray(mix.box) != 0, axis=1)
    assert 0.4 < cut.mean() < 0.6


def test_probabilities():
    none = draw(0, 50, probability=0.0, mode="sample")
    np.testing.assert_array_equal(none.weight, 1)
    np.testing.assert_array_equal(none.label_weight, 1)
    assert not np.any(none.box)
    half = draw(0, 2000, probability=0.5, mode="sample")
    assert 0.4 < np.mean(np.asarray(half.label_weight) == 1) < 0.6
    mixups = draw(0, 2000, switch_probability=0.1, mode="sample")
    assert 0.05 < np.mean(np.any(np.asarray(mixups.box) != 0, axis=1)) < 0.15


def test_targets_are_mixed_like_the_pixels():
    targets = losses.soft_targets(jnp.array([0, 1, 2]), 4, 0.1)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0], [0.925, 0.025, 0.025, 0.025], atol=1e-6)
    mix = mixup.Mix(jnp.ones(3), jnp.zeros((3, 4), jnp.int32), jnp.array([0.7] * 3))
    both = mixup.mix_targets(targets, targets[::-1], mix)
    np.testing.assert_allclose(both[0], [0.655, 0.025, 0.295, 0.025], atol=1e-6)
    np.testing.assert_allclose(both[1], targets[1], atol=1e-6)


def test_cross_entropy_of_hard_labels():
    logits = jnp.array([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    targets = losses.soft_targets(jnp.array([0, 2]), 3, 0.0)
    expected = [np.log(1 + np.exp(-2) + np.exp(-3)), np.log(3)]
    np.testing.assert_allclose(
        losses.cross_entropy(logits, targets), np.mean(expected), rtol=1e-6
    )
    weights = jnp.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(
        losses.cross_entropy(logits, targets, weights),
        (0.5 * expected[0] + 2 * expected[1]) / 2,
        rtol=1e-6,
    )


def test_binary_cross_entropy_is_a_mean_over_classes():
    logits = jnp.array([[3.0, -2.0]])
    value = losses.binary_cross_entropy(logits, jnp.array([[1.0, 1.0]]))
    expected = (np.log(1 + np.exp(-3)) + np.log(1 + np.exp(2))) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_class_weights():
    counts = np.array([1000, 10, 0])
    np.testing.assert_allclose(losses.class_weights(counts, 0.0), [1, 1, 0])
    weights = losses.class_weights(counts, 0.999)
    effective = [(1 - 0.999**1000) / 0.001, (1 - 0.999**10) / 0.001]
    assert weights[2] == 0 and np.isclose(weights[:2].mean(), 1)
    np.testing.assert_allclose(weights[1] / weights[0], effective[0] / effective[1])
    inverse_counts = losses.class_weights(counts, 1 - 1e-9)
    np.testing.assert_allclose(inverse_counts[1] / inverse_counts[0], 100, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"class_balance=1.0 must be in \[0, 1\)"):
        losses.class_weights(counts, 1.0)


def test_targets_of_several_labels():
    targets = losses.soft_targets(jnp.array([[2, 0], [1, -1]]), 3, 0.0)
    np.testing.assert_array_equal(targets, [[1, 0, 1], [0, 1, 0]])


def test_other_channels_are_normalized_by_their_own_statistics():
    gray = np.random.default_rng(0).integers(0, 65536, (2, 4, *SIZE, 1))
    gray = gray.astype(np.uint16)
    mix = draw(0, batch=2, cutmix=0.0)
    own = (gray / 65535 - 0.5) / 0.25
    weight = float(mix.weight[0])
    result = mixed(gray, mix, mean=(0.5,), std=(0.25,))
    expected = weight * own + (1 - weight) * own[::-1]
    np.testing.assert_allclose(result, expected, atol=1e-5)
