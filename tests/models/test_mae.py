"""VideoMAE: outputs, gradients and parameter counts of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import apply, random_variables
from videomae_jax.errors import ConfigError, InputError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Patches


@pytest.fixture(scope="module")
def golden():
    return np.load(official.GOLDEN / "pretrain_step.npz")


@pytest.fixture(scope="module")
def inputs(golden):
    video = official.video(golden["video_uint8_bcthw"])
    return (video, *vmae.masking.ids_from_mask(golden["mask"]))


def loss_fn(params, model, video, visible, masked):
    prediction = model.apply({"params": params}, video, visible, masked)
    target = vmae.pixel_targets(
        video, masked, patch_size=model.patch_size, tubelet_size=model.tubelet_size
    )
    return vmae.reconstruction_loss(prediction, target)


jitted_loss = jax.jit(loss_fn, static_argnums=1)


def test_matches_reference(golden, inputs):
    params = official.parameters(golden)
    model = official.model()
    video, visible, masked = inputs
    tokens = apply(model, {"params": params}, video, visible, method="encode")
    prediction = apply(model, {"params": params}, *inputs)
    target = vmae.pixel_targets(video, masked, patch_size=16, tubelet_size=2)
    np.testing.assert_allclose(tokens, golden["encoder_tokens"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(prediction, golden["prediction"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(target, golden["target"], atol=5e-5, rtol=0)
    loss = jitted_loss(params, model, *inputs)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("remat", ["none", "dots", "blocks"])
def test_gradients_match_reference(golden, inputs, remat):
    params = official.parameters(golden)
    expected = official.parameters(golden, "grad/")
    grads = jax.jit(jax.grad(loss_fn), static_argnums=1)(
        params, official.model(remat=remat), *inputs
    )

    def check(path, ours, theirs):
        # Compares each layer by itself: the error of a small one would vanish in the
        # stack.
        stacked = "blocks" in jax.tree_util.keystr(path)
        pairs = zip(ours, theirs, strict=True) if stacked else [(ours, theirs)]
        for one, other in pairs:
            error = np.linalg.norm(one - other) / np.linalg.norm(other)
            assert error < 1e-4, (jax.tree_util.keystr(path), error)

    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map_with_path(check, grads, expected)


def test_normalized_floats_equal_raw_pixels(golden, inputs):
    params = official.parameters(golden)
    video, visible, masked = inputs
    floats = (video / 255 - vit.IMAGENET_MEAN) / vit.IMAGENET_STD
    one = jitted_loss(params, official.model(), video, visible, masked)
    other = jitted_loss(
        params, official.model(), floats.astype(np.float32), visible, masked
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_parameters(golden, inputs):
    model = official.model(dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    reference = official.parameters(golden)
    loss = jitted_loss(reference, model, *inputs)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, golden["loss"], rtol=2e-2)


# Parameter counts of the official code of VideoMAE and VideoMAE V2.
V2_DECODER = {"decoder_width": 512, "decoder_depth": 4, "decoder_heads": 8}


@pytest.mark.parametrize(
    "variant, overrides, encoder, bridge, decoder, total",
    [
        ("small", {}, 21_879_936, 73_920, 2_075_520, 24_029_376),
        ("base", {}, 86_227_200, 295_296, 7_688_448, 94_210_944),
        ("large", {}, 303_860_736, 524_800, 38_611_456, 342_996_992),
        ("large", V2_DECODER, 303_860_736, 524_800, 13_396_480, 317_782_016),
        ("huge", {}, 631_607_040, 819_840, 60_060_416, 692_487_296),
        ("huge", V2_DECODER, 631_607_040, 655_872, 13_396_480, 645_659_392),
        ("giant", {}, 1_011_610_752, 721_408, 13_974_400, 1_026_306_560),
    ],
)
def test_parameter_counts(variant, overrides, encoder, bridge, decoder, total):
    params = abstract_params(vmae.VideoMAE.from_variant(variant, **overrides))
    assert count(params["encoder"]) == encoder
    # The reference table counts the mask token with the bridge.
    assert count(params["encoder_to_decoder"]) + count(params["mask_token"]) == bridge
    assert count(params["decoder"]) == decoder
    assert count(params) == total


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def abstract_params(model, frames=16, size=224):
    grid = vit.token_grid((frames, size, size, 3), model.patch_size, 2)
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.uint8)
    key = jax.eval_shape(jax.random.key, 0)
    visible, masked = jax.eval_shape(
        lambda key: vmae.masking.tube(key, 1, grid=grid, ratio=0.9), key
    )
    return jax.eval_shape(model.init, key, video, visible, masked)["params"]


def lowered_hlo(depth):
    model = vmae.VideoMAE.from_variant("small", depth=depth, decoder_depth=depth)
    params = abstract_params(model)
    video = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.uint8)
    visible = jax.ShapeDtypeStruct((1, 160), jnp.int32)
    masked = jax.ShapeDtypeStruct((1, 1408), jnp.int32)
    step = jax.jit(jax.value_and_grad(loss_fn), static_argnums=1)
    return step.lower(params, model, video, visible, masked).as_text()


def test_program_does_not_grow_with_depth():
    shallow, deep = lowered_hlo(2), lowered_hlo(24)
    assert deep.count("\n") == shallow.count("\n")


def test_blocks_written_out_equal_the_loop(monkeypatch):
    heads = {"heads": 2, "decoder_heads": 2, "attention": "xla"}
    model = vmae.VideoMAE(
        width=8, depth=2, decoder_width=8, decoder_depth=1, patch_size=8, **heads
    )
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    ids = np.broadcast_to(np.arange(4), (2, 4))
    params = random_variables(model)["params"]

    def loss(params, remat):
        cloned = model.clone(remat=remat)
        arguments = video, ids[:, :1], ids[:, 1:]
        return jnp.square(cloned.apply({"params": params}, *arguments)).mean()

    looped = jax.jit(jax.grad(functools.partial(loss, remat="none")))(params)
    monkeypatch.setattr(vit, "platform", lambda: "tpu")
    for remat in ("none", "dots"):
        step = jax.jit(jax.grad(functools.partial(loss, remat=remat)))
        assert "while(" not in step.lower(params).compile().as_text()
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            looped,
            step(params),
        )


@pytest.mark.parametrize("frames, size", [(2, 32), (8, 64), (32, 48)])
def test_any_clip_length_and_image_size(frames, size):
    model = official.model()
    video = np.zeros((2, frames, size, size + 32, 3), np.uint8)
    grid = vit.token_grid(video.shape, 16, 2)
    visible, masked = vmae.masking.tube(jax.random.key(0), 2, grid=grid, ratio=0.75)
    inputs = video, visible, masked
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    out = jax.eval_shape(model.apply, variables, *inputs)
    assert out.shape == (2, masked.shape[1], 1536)


def test_masked_pixels_do_not_reach_the_prediction(golden, inputs):
    params = official.parameters(golden)
    video, visible, masked = inputs
    patches = np.array(vit.patchify(video, 16, 2))
    np.put_along_axis(patches, masked[..., None], 0, axis=1)
    blanked = vit.unpatchify(patches, (4, 4, 4), 16, 2)
    one, other = (
        apply(official.model(), {"params": params}, pixels, visible, masked)
        for pixels in (video, blanked)
    )
    np.testing.assert_array_equal(one, other)


def test_patchify_round_trip_and_order():
    video = np.arange(2 * 4 * 4 * 6 * 3).reshape(2, 4, 4, 6, 3).astype(np.float32)
    patches = vit.patchify(video, 2, 2)
    assert patches.shape == (2, 12, 24)
    # Token 1 is the second column of the first time slot; channel is fastest.
    np.testing.assert_array_equal(patches[0, 1], video[0, :2, :2, 2:4].reshape(-1))
    np.testing.assert_array_equal(vit.unpatchify(patches, (2, 2, 3), 2, 2), video)


def test_patches_give_what_their_video_gives(golden, inputs):
    params = official.parameters(golden)
    video, *ids = inputs
    patches = Patches(vit.patchify(video, 16, 2), (4, 4, 4))
    one, other = (
        apply(official.model(), {"params": params}, clips, *ids)
        for clips in (video, patches)
    )
    np.testing.assert_array_equal(one, other)
    _, video, _, masked = gray()
    for pixels in (video, video.astype(np.uint16), np.float32(video)):
        patches = Patches(vit.patchify(pixels, 8, 2), (1, 2, 4))
        one, other = (
            vmae.pixel_targets(
                clips, masked, patch_size=8, tubelet_size=2, mean=(0.5,), std=(0.25,)
            )
            for clips in (pixels, patches)
        )
        np.testing.assert_array_equal(one, other)


def test_initializers():
    model = official.model()
    video = jnp.zeros((1, 8, 64, 64, 3), jnp.uint8)
    visible, masked = vmae.masking.tube(
        jax.random.key(1), 1, grid=(4, 4, 4), ratio=0.75
    )
    params = jax.jit(model.init)(jax.random.key(0), video, visible, masked)["params"]
    qkv = params["encoder"]["blocks"]["attention"]["qkv"]["kernel"]
    assert qkv.shape == (2, 48, 144)
    bound = np.sqrt(6 / (48 + 144))  # Xavier over the fused matrix
    assert 0.95 * bound < np.abs(qkv).max() <= bound
    assert not np.array_equal(qkv[0], qkv[1])
    embedding = params["encoder"]["embedding"]
    bound = 1 / np.sqrt(1536)
    assert 0.95 * bound < np.abs(embedding["kernel"]).max() <= bound
    assert 0.5 * bound < np.abs(embedding["bias"]).max() <= bound
    assert 0 < np.abs(params["mask_token"]).max() <= 0.02
    bridge = params["encoder_to_decoder"]["kernel"]
    assert 0.95 / np.sqrt(48) < np.abs(bridge).max() <= 1 / np.sqrt(48)


# Sums of squares reach 2^24 and more here, beyond which float32 skips whole numbers.
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_targets_of_extreme_patches(dtype):
    top = np.iinfo(dtype).max
    patches = np.zeros((4, 2, 16, 16, 3), dtype)
    patches[0] = top  # one color
    patches[1, 0] = top  # half black, half white
    patches[2] = top
    patches[2, 0, 0, 0] = top - 1  # as little contrast as there is
    patches[3, 0, 0, 0] = 1
    values = patches.reshape(4, 512, 3).astype(np.float64) / top
    std = values.std(axis=1, ddof=1, keepdims=True)
    expected = (values - values.mean(axis=1, keepdims=True)) / (std + 1e-6)
    video = np.concatenate(patches, axis=2)[None]  # four patches side by side
    target = jax.jit(
        functools.partial(vmae.pixel_targets, patch_size=16, tubelet_size=2)
    )(video, np.arange(4)[None])
    atol = 1e-5 if dtype == "uint8" else 0.03  # few digits are left of 65,534
    np.testing.assert_allclose(target[0].reshape(4, 512, 3), expected, atol=atol)


def test_raw_pixel_targets():
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    masked = np.array([[1, 2]], np.int32)
    target = vmae.pixel_targets(
        video, masked, patch_size=16, tubelet_size=2, normalize=False
    )
    np.testing.assert_allclose(
        target[0, 0], video[0, :, :16, 16:].reshape(-1) / 255, rtol=1e-6
    )


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: vmae.VideoMAE.from_variant("basic"), "tiny, small, base"),
        (lambda: init(frames=7), "7 frames"),
        (lambda: init(size=60), "60x60"),
        (lambda: init(dtype=jnp.int32), "int32"),
        (lambda: init(remat="some"), "remat='some' is unknown"),
        (lambda: init(heads=5), "heads=5 must divide the width, 48"),
        (lambda: init(masked=10), "10 masked tokens must add up to the 64 tokens"),
    ],
)
def test_error_messages(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def init(frames=8, size=64, dtype=jnp.uint8, masked=48, heads=3, **overrides):
    model = official.model(**overrides).clone(heads=heads)
    ids = jnp.arange(64)[None]
    video = jnp.zeros((1, frames, size, size, 3), dtype)
    inputs = video, ids[:, :16], ids[:, 16 : 16 + masked]
    jax.eval_shape(model.init, jax.random.key(0), *inputs)


def gray(**fields):
    """A model of one channel, and clips for it that are not square."""
    model = vmae.VideoMAE(24, 1, 2, 24, 1, 2, patch_size=8, channels=1, **fields)
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 32, 1), np.uint8)
    ids = np.arange(8, dtype=np.int32)[None]
    return model, video, ids[:, :2], ids[:, 2:]


GRAY = {"pixel_mean": (0.5,), "pixel_std": (0.25,)}


def test_a_model_of_one_channel_predicts_gray_patches():
    model, *inputs = gray(**GRAY)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    kernel = variables["params"]["encoder"]["embedding"]["kernel"]
    assert kernel.shape == (2 * 8 * 8, 24)
    assert jax.eval_shape(model.apply, variables, *inputs).shape == (1, 6, 2 * 8 * 8)
    for channels in (3, 4):
        video = np.zeros((1, 2, 16, 32, channels), np.uint8)
        message = rf"\(1, 2, 16, 32, {channels}\); expected \[batch, .* width, 1\]"
        with pytest.raises(InputError, match=message):
            jax.eval_shape(model.apply, variables, video, *inputs[1:])


def test_each_channel_needs_a_mean_and_a_deviation():
    model, *inputs = gray()
    with pytest.raises(ConfigError, match=r"pixel_mean=.*for each of channels=1"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)


def test_8_and_16_bits_and_normalized_pixels_are_the_same():
    _, video, _, masked = gray()
    stats = {"mean": GRAY["pixel_mean"], "std": GRAY["pixel_std"]}
    deep = video.astype(np.uint16) * 257  # 255 becomes 65,535
    expected = (np.float32(video) / 255 - 0.5) / 0.25
    for pixels in (video, deep, expected):
        normalized = vit.normalize(pixels, **stats)
        np.testing.assert_allclose(normalized, expected, atol=1e-6)
        target = vmae.pixel_targets(
            pixels, masked, patch_size=8, tubelet_size=2, **stats
        )
        patches = np.asarray(vit.patchify(expected, 8, 2))[:, 2:]
        patches = patches - patches.mean(axis=-1, keepdims=True)
        patches /= patches.std(axis=-1, ddof=1, keepdims=True)
        np.testing.assert_allclose(target, patches, atol=1e-4)
