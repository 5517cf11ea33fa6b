"""RoIAlign equals torchvision's and mmcv's, for degenerate boxes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import official
from videomae_jax.models.layers.roi_align import roi_align

VARIANTS = {
    "official": dict(bins=7, aligned=False),
    "mmaction": dict(bins=8, aligned=True),
}
STRIDE = 16

align = jax.jit(roi_align, static_argnames=("bins", "aligned"))


@pytest.fixture(scope="module")
def golden():
    return np.load(official.GOLDEN / "ava/roi_align.npz")


def per_clip(golden, clips):
    """Returns boxes [clips, boxes, 4] in cells, padded, and the place of each."""
    index = golden["boxes"][:, 0].astype(int)
    slot = np.array([(index[:i] == clip).sum() for i, clip in enumerate(index)])
    boxes = np.zeros((clips, slot.max() + 1, 4), np.float32)
    boxes[index, slot] = golden["boxes"][:, 1:] / STRIDE
    return boxes, (index, slot)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torchvision(golden, variant):
    features = golden["features_bchw"].transpose(0, 2, 3, 1)
    boxes, where = per_clip(golden, len(features))

    def objective(features, boxes):
        pooled = roi_align(features, boxes, **VARIANTS[variant])[where]
        pooled = jnp.moveaxis(pooled, -1, 1)
        return (pooled * golden[f"{variant}/cotangent"].astype("f4")).sum(), pooled

    run = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, pooled), (gradient, of_boxes) = run(features, boxes)
    np.testing.assert_allclose(pooled, golden[f"{variant}/pooled"], atol=1e-5)
    np.testing.assert_allclose(pooled.max((2, 3)), golden[f"{variant}/max"], atol=1e-5)
    theirs = golden[f"{variant}/features_grad"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, theirs, atol=1e-5)
    assert not np.any(of_boxes)


def sampled(line, low, high, bins, aligned):
    """RoIAlign of one axis as a loop over samples, in float64."""
    if aligned:
        low, high = low - 0.5, high - 0.5
    length = high - low if aligned else max(high - low, 1)
    samples, out = int(np.ceil(length / bins)), np.zeros(bins)
    for index in range(bins):
        for sample in range(samples):
            position = low + length / bins * (index + (sample + 0.5) / samples)
            if -1 <= position <= len(line):
                out[index] += np.interp(position, np.arange(len(line)), line) / samples
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_box_of_any_length(variant):
    """Also of hundreds of samples, of which only some are within the map."""
    rng = np.random.default_rng(0)
    length = 10 ** rng.uniform(-2, 3, 40)
    # Bins little longer than a cell have the closest samples: half a cell apart.
    length[::2] = VARIANTS[variant]["bins"] * rng.uniform(1, 1.02, 20)
    low = rng.uniform(-1, 1, 40) * (length + 9) + 4
    boxes = np.zeros((1, 40, 4), np.float32)
    boxes[0, :, 1], boxes[0, :, 3] = low, low + length
    boxes[0, :, 2] = 1
    line = rng.normal(size=9)
    features = np.broadcast_to(line[None, :, None, None], (1, 9, 3, 1))
    pooled = align(features.astype("f4"), boxes, **VARIANTS[variant])[0, ..., 0]
    ends = boxes[0].astype(np.float64)
    expected = [sampled(line, y1, y2, **VARIANTS[variant]) for _, y1, _, y2 in ends]
    np.testing.assert_allclose(pooled[:, :, 0], expected, atol=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_of_the_map_does_not_count(golden, variant):
    features = golden["features_bchw"].transpose(0, 2, 3, 1)
    boxes, _ = per_clip(golden, 2)
    options = VARIANTS[variant]
    padded = align(features, boxes, np.array([[6, 7], [9, 13]]), **options)
    cut = align(features[:1, :6, :7], boxes[:1], **options)
    np.testing.assert_allclose(padded[:1], cut, atol=1e-6)
    whole = align(features, boxes, **options)
    np.testing.assert_allclose(padded[1:], whole[1:], atol=1e-6)
    assert np.abs(padded[:1] - whole[:1]).max() > 0.1


def test_bfloat16_features_have_float32_weights(golden):
    features = golden["features_bchw"].transpose(0, 2, 3, 1)
    boxes, _ = per_clip(golden, 2)
    rounded = jnp.asarray(features, jnp.bfloat16)
    options = VARIANTS["official"]
    np.testing.assert_array_equal(
        align(rounded, boxes, **options),
        align(rounded.astype("f4"), boxes, **options),
    )
