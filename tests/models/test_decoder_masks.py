"""Masks of the decoder (VideoMAE V2): the reference's patterns, outputs, gradients."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import videomae_jax as vmae
from tests.helpers import official
from videomae_jax.errors import ConfigError
from videomae_jax.models import masking
from videomae_jax.models.mae import Decoder

MASKS = np.load(official.V2 / "masks.npz")
CELLS = sorted(name for name in MASKS if name.startswith("cell/"))


def grid_of(name):
    return tuple(map(int, name.split("/")[-2].split("x")))


@pytest.mark.parametrize("name", CELLS)
def test_running_cells_match_the_reference(name):
    grid, ratio = grid_of(name), float(name.rpartition("/")[2])
    for start in range(4):
        mask = masking.running_cell_mask(grid=grid, ratio=ratio, start=start)
        np.testing.assert_array_equal(mask.reshape(grid[0], -1), MASKS[name][start])
    decoded = np.asarray(
        masking.running_cell(jax.random.key(0), 64, grid=grid, ratio=ratio)
    )
    assert decoded.dtype == np.int32
    drawn = {tuple(row) for row in decoded}
    kept = [tuple(np.flatnonzero(~mask)) for mask in MASKS[name].reshape(4, -1)]
    assert drawn == set(kept)  # each start was drawn


def test_counts_match_the_reference():
    facts = json.loads((official.V2 / "mask_facts.json").read_text())
    for fact in facts["running_cell"]:
        grid, ratio = tuple(fact["grid"]), fact["decoder_mask_ratio"]
        masks = [
            masking.running_cell_mask(grid=grid, ratio=ratio, start=i) for i in range(4)
        ]
        assert [int(x.sum()) for x in masks] == fact["masked_per_clip"]
        times = sum(~x for x in masks[0])
        assert [times.min(), times.max()] == fact["times_a_place_is_decoded"]
        union = np.any([~x for x in masks], axis=0).all()
        assert union == fact["union_of_4_starts_covers_all"]


def test_ratios_are_rounded_down_to_quarters():
    grid = (8, 14, 14)
    for ratio, rounded in ((0.3, 0.25), (0.6, 0.5), (0.9, 0.75)):
        one, other = (
            masking.running_cell_mask(grid=grid, ratio=x, start=2)
            for x in (ratio, rounded)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ConfigError, match=rf"ratio={ratio} must be in \[0.25, 1\)"):
        masking.running_cell_mask(grid=(8, 14, 14), ratio=ratio, start=0)


@pytest.mark.parametrize("sides", [(15, 14), (14, 15), (1, 4)])
def test_odd_sides_are_refused(sides):
    with pytest.raises(ConfigError, match=f"even .* {sides[0]} x {sides[1]}"):
        masking.running_cell(jax.random.key(0), 2, grid=(8, *sides), ratio=0.5)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_loss_tokens_match_the_reference(seed):
    hidden = MASKS[f"pair/encoder/8x14x14/seed{seed}"].reshape(8, -1)
    starts = MASKS[f"pair/decoder_start/8x14x14/seed{seed}"]
    cells = MASKS["cell/8x14x14/0.5"].reshape(4, -1)
    decoded = np.stack([np.flatnonzero(~cells[start]) for start in starts])
    weight = np.asarray(masking.loss_weight(masking.ids_from_mask(hidden)[0], decoded))
    expected = MASKS[f"pair/loss_tokens/8x14x14/seed{seed}"]
    np.testing.assert_array_equal(weight.sum(axis=1), expected)
    seen = MASKS[f"pair/visible_and_decoded/8x14x14/seed{seed}"]
    np.testing.assert_array_equal((weight == 0).sum(axis=1), seen)


@settings(deadline=None, max_examples=8)
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_random_decoded_tokens(ratio, seed):
    decoded = masking.random_decoded(
        jax.random.key(seed), 3, grid=(2, 3, 5), ratio=ratio
    )
    assert decoded.shape == (3, 30 - int(30 * ratio))
    assert (np.diff(decoded) > 0).all() and np.all(decoded < 30)


@pytest.fixture(scope="module", params=["dual_step_giant_like", "dual_step_uneven"])
def golden(request):
    return request.param, np.load(official.V2 / f"{request.param}.npz")


def inputs_of(golden):
    video = official.video(golden["video_uint8_bcthw"])
    visible, masked = vmae.masking.ids_from_mask(golden["mask"])
    return video, visible, masked, vmae.masking.ids_from_mask(golden["decode_mask"])[0]


def loss_of(model, params, video, visible, masked, decoded, weight):
    prediction = model.apply(
        {"params": params}, video, visible, masked, decoded=decoded
    )
    target = vmae.pixel_targets(
        video,
        masked if decoded is None else decoded,
        patch_size=model.patch_size,
        tubelet_size=model.tubelet_size,
    )
    return vmae.reconstruction_loss(prediction, target, weight), (prediction, target)


def test_step_matches_the_reference(golden):
    name, golden = golden
    model, params = official.v2_model(name), official.parameters(golden)
    video, visible, masked, decoded = inputs_of(golden)
    weight = masking.loss_weight(visible, decoded)
    np.testing.assert_array_equal(weight, golden["loss_weight"])
    seen_by_decoder = []

    def watch(next_function, args, kwargs, context):
        if isinstance(context.module, Decoder) and context.method_name == "__call__":
            seen_by_decoder.append(args[0])
        return next_function(*args, **kwargs)

    @jax.jit
    def step(params):
        seen_by_decoder.clear()
        with nn.intercept_methods(watch):
            loss, outputs = loss_of(
                model, params, video, visible, masked, decoded, weight
            )
        tokens = model.apply({"params": params}, video, visible, method="encode")
        return loss, (*outputs, tokens, seen_by_decoder[0])

    (loss, outputs), grads = jax.value_and_grad(step, has_aux=True)(params)
    names = ("prediction", "target", "encoder_tokens", "decoder_input")
    for key, ours in zip(names, outputs, strict=True):
        np.testing.assert_allclose(ours, golden[key], atol=2e-5, rtol=0, err_msg=key)
    np.testing.assert_allclose(loss, golden["loss"], atol=2e-6, rtol=0)
    expected = official.parameters(golden, "grad/")
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0
        ),
        grads,
        expected,
    )
    wrong = float(vmae.reconstruction_loss(*outputs[:2]))
    np.testing.assert_allclose(wrong, golden["loss_over_all_decoded_tokens"], atol=2e-6)
    assert abs(wrong - loss) > 5e-4


def test_without_a_decoder_mask_the_masked_tokens_are_decoded(golden):
    name, golden = golden
    model, params = official.v2_model(name), official.parameters(golden)
    video, visible, masked, _ = inputs_of(golden)
    step = jax.jit(loss_of, static_argnums=0)
    loss, _ = step(model, params, video, visible, masked, None, None)
    np.testing.assert_allclose(loss, golden["loss_decoder_mask_off"], atol=2e-6)


def test_tokens_that_count_for_nothing_have_no_effect():
    golden = np.load(official.V2 / "dual_step_uneven.npz")
    prediction, weight = golden["prediction"], np.float32(golden["loss_weight"])
    noise = np.where(weight[..., None] == 0, 1e6, 0)
    one, other = (
        vmae.reconstruction_loss(x, golden["target"], weight)
        for x in (prediction, prediction + noise)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
