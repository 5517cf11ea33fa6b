"""Attribution maps, compared with those computed by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

import videomae_jax as vmae
from tests.helpers.models import apply, random_variables
from videomae_jax.errors import PretrainedError
from videomae_jax.inference import attribution
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit

SIZES = {"width": 24, "depth": 2, "heads": 2, "patch_size": 8}
GRID = (2, 4, 4)
HEADS = [
    {"pooling": "mean", "head_norm": "layer"},
    {"pooling": "mean", "head_norm": "batch"},
    {"pooling": "mean", "head_norm": "none"},
    {"pooling": "attentive", "head_norm": "none"},
    {"pooling": "attentive", "head_norm": "layer"},
]


@pytest.fixture(scope="module")
def video():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)


def classifier(**fields):
    """A classifier of five classes whose parameters are all random, none zero."""
    model = vmae.VideoClassifier(num_classes=5, **SIZES, **fields)
    variables = random_variables(model)
    batch_stats = variables.get("batch_stats", {})
    return Pretrained(model, variables["params"], batch_stats=batch_stats)


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return (
        x / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]
    )


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def split_heads(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def test_attention_maps_are_the_softmax_of_queries_and_keys(video):
    pretrained = classifier()
    model, params = pretrained.model, pretrained.params
    maps = apply(model, {"params": params}, video, method="attention_maps")
    assert maps.shape == (2, 2, 32, 32) and maps.dtype == np.float32

    encoder = jax.tree.map(np.asarray, params["encoder"])
    patches = vit.normalize(vit.patchify(video, 8, 2))
    first = np.asarray(patches) @ encoder["embedding"]["kernel"]
    first += encoder["embedding"]["bias"] + vit.position_table(GRID, 24, None)
    # The input of block 1 is the output of a model of block 0 alone.
    one_block = encoder | {"blocks": jax.tree.map(lambda x: x[:1], encoder["blocks"])}
    variables = {"params": {"encoder": one_block}}
    second = apply(model.clone(depth=1), variables, video, method="tokens")
    for layer, x in enumerate((first, np.asarray(second))):
        block = jax.tree.map(lambda x, i=layer: x[i], encoder["blocks"])
        attention = block["attention"]
        qkv = layer_norm(x, block["norm1"]) @ attention["qkv"]["kernel"]
        query = split_heads(qkv[..., :24] + attention["q_bias"], 2)
        key = split_heads(qkv[..., 24:48], 2)
        weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(12)).mean(axis=1)
        np.testing.assert_allclose(maps[layer], weights, atol=2e-5)


def roll_out(maps):
    """The product of (A + I) / 2 over the blocks, the last on the left; [B, N, N]."""
    product = np.eye(maps.shape[-1])
    for attention in np.asarray(maps, np.float64):
        matrix = 0.5 * attention + 0.5 * np.eye(maps.shape[-1])
        product = matrix / matrix.sum(-1, keepdims=True) @ product
    return product


@pytest.mark.parametrize("pooling", ["mean", "first_token", "attentive", "mae"])
def test_rollout_multiplies_the_blocks_attention(video, pooling):
    if pooling == "mae":
        decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
        model = vmae.VideoMAE(**SIZES, **decoder)
        params = random_variables(model)["params"]
        pretrained = Pretrained(model, params)
    else:
        pretrained = classifier(pooling=pooling)
    model, params = pretrained.model, pretrained.params
    rollout = attribution.attention_rollout(pretrained, video)
    assert rollout.shape == (2, *GRID) and rollout.dtype == np.float32
    assert rollout.min() >= 0
    np.testing.assert_allclose(rollout.sum(axis=(1, 2, 3)), 1, atol=1e-5)

    maps = apply(model, {"params": params}, video, method="attention_maps")
    rows = roll_out(maps)
    if pooling == "first_token":
        expected = rows[:, 0]
    elif pooling == "attentive":
        tokens = np.asarray(apply(model, {"params": params}, video, method="tokens"))
        pool = jax.tree.map(np.asarray, params["pool"])
        key = layer_norm(tokens, pool["norm1"]) @ pool["key_value"]["kernel"][:, :24]
        key += pool["key_value"]["bias"][:24]
        query = pool["query"] @ pool["query_projection"]["kernel"]
        query = split_heads((query + pool["query_projection"]["bias"])[None], 2)
        logits = query @ split_heads(key, 2).swapaxes(-1, -2) / np.sqrt(12)
        weights = softmax(logits).mean(axis=1)  # [B, 1, N]
        assert np.ptp(weights) > 0.01
        expected = (weights @ rows)[:, 0]
    else:
        expected = rows.mean(axis=1)
    np.testing.assert_allclose(rollout.reshape(2, -1), expected, atol=1e-6)


def test_rollout_in_bfloat16_sums_to_one(video):
    pretrained = classifier(dtype="bfloat16")
    rollout = attribution.attention_rollout(pretrained, video)
    np.testing.assert_allclose(rollout.sum(axis=(1, 2, 3)), 1, atol=1e-5)


def logits_of(pretrained, tokens):
    pooled = apply(pretrained.model, pretrained.variables, tokens, method="pool_tokens")
    return apply(pretrained.model, pretrained.variables, pooled, method="classify")


@pytest.mark.parametrize("fields", HEADS, ids=lambda fields: "-".join(fields.values()))
def test_activation_is_the_loss_from_the_average_token_in_its_place(video, fields):
    pretrained = classifier(**fields)
    values = attribution.class_activation(pretrained, video, class_index=[1, 4])
    assert values.shape == (2, *GRID) and values.dtype == np.float32
    tokens = apply(pretrained.model, pretrained.variables, video, method="tokens")
    step = 0.05
    for clip, class_index in enumerate([1, 4]):
        # Clip n of a batch of 32 has token n moved a step towards the average.
        x = np.asarray(tokens[clip], np.float64)
        towards = step * np.eye(32)[..., None] * (x.mean(axis=0) - x)
        logits = [
            np.asarray(logits_of(pretrained, np.float32(x + sign * towards)))
            for sign in (-1, 1)
        ]
        loss = (logits[0] - logits[1])[:, class_index] / (2 * step)
        scale = np.abs(loss).max()
        assert (loss < -0.1 * scale).any()
        np.testing.assert_allclose(
            values[clip].reshape(-1), np.maximum(loss, 0), atol=0.02 * scale
        )


def test_activation_divides_a_linear_logit_among_the_tokens(video):
    pretrained = classifier(head_norm="none")
    tokens = apply(pretrained.model, pretrained.variables, video, method="tokens")
    head = pretrained.params["head"]
    shares = np.asarray(tokens @ head["kernel"][:, 3]) / 32
    logits = apply(pretrained.model, pretrained.variables, video)[:, 3]
    np.testing.assert_allclose(shares.sum(1), logits - head["bias"][3], rtol=1e-4)
    values = attribution.class_activation(pretrained, video, class_index=3).reshape(
        2, -1
    )
    expected = np.maximum(shares - shares.mean(axis=1, keepdims=True), 0)
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_activation_behind_a_layer_norm_is_gradient_times_activation(video):
    pretrained = classifier()
    tokens = apply(pretrained.model, pretrained.variables, video, method="tokens")
    gradient = jax.grad(lambda x: logits_of(pretrained, x)[:, 2].sum())(tokens)
    products = np.asarray((gradient * tokens).sum(-1))
    values = attribution.class_activation(pretrained, video, class_index=2).reshape(
        2, -1
    )
    np.testing.assert_allclose(values, np.maximum(products, 0), atol=1e-5)


@pytest.mark.parametrize("fields", HEADS[:3], ids=lambda fields: fields["head_norm"])
def test_activation_peaks_where_the_evidence_is(fields):
    model = vmae.VideoClassifier(num_classes=2, **SIZES, **fields)
    clips = np.full((2, 4, 32, 32, 3), 60, np.uint8)
    clips[0, 2:, 8:16, 24:] = 255  # tubelet 1, row 1, column 3
    clips[1, :2, 24:, :8] = 255  # tubelet 0, row 3, column 0
    variables = random_variables(model)
    params = jax.tree.map(np.zeros_like, variables["params"])
    # Blocks that add nothing; the first value of a token is its patch's brightness,
    # which speaks for class 1 and against class 0.
    params["encoder"]["embedding"]["kernel"][:, 0] = 0.1
    if "norm" in params:
        params["norm"]["scale"][:] = 1
    params["head"]["kernel"][0] = -1, 1
    pretrained = Pretrained(
        model, params, batch_stats=dict(variables).get("batch_stats", {})
    )
    values = attribution.class_activation(pretrained, clips, class_index=1)
    for clip, position in zip(values, [(1, 1, 3), (0, 3, 0)], strict=True):
        assert np.unravel_index(clip.argmax(), GRID) == position
        assert clip[position] > 10 * np.sort(clip, axis=None)[-2]
    against = attribution.class_activation(pretrained, clips, class_index=0)
    assert against[0, 1, 1, 3] == 0 and against[1, 0, 3, 0] == 0


def test_activation_needs_a_class_and_tokens_that_reach_it(video):
    pretrained = classifier()
    for wrong in (5, -1, [0, 7]):
        with pytest.raises(ValueError, match="must be in 0 to 4"):
            attribution.class_activation(pretrained, video, class_index=wrong)
    with pytest.raises(ValueError, match="shape"):
        attribution.class_activation(pretrained, video, class_index=[0, 1, 2])
    encoder = pretrained.model.clone(num_classes=0)
    decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    for model in (encoder, vmae.VideoMAE(**SIZES, **decoder)):
        headless = dataclasses.replace(pretrained, model=model, source="a.pth")
        with pytest.raises(PretrainedError, match="a.pth has no classes"):
            attribution.class_activation(headless, video, class_index=0)
    with pytest.raises(PretrainedError, match="pools only its first token"):
        attribution.class_activation(
            classifier(pooling="first_token"), video, class_index=0
        )


def test_overlay_colours_follow_the_map():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (2, 4, 32, 48, 1), np.uint8)
    frames = np.repeat(grey, 3, axis=-1)
    maps = np.full((2, 2, 4, 6), 0.25, np.float32)
    maps[0, 1, 2, 3] = 7
    out = attribution.overlay(frames, maps)
    assert out.shape == frames.shape and out.dtype == np.uint8

    def blend(pixels, value):
        colour = 255 * np.array(colormaps["inferno"](value)[:3])
        return np.rint(pixels / 2 + colour / 2)

    # A constant map is black everywhere.
    np.testing.assert_allclose(out[1], blend(frames[1], 0.0), atol=1)
    np.testing.assert_allclose(out[0, :, :8], blend(frames[0, :, :8], 0.0), atol=1)
    # Linear between the centres of patches (8 pixels) and tubelets (2 frames): near
    # the centre 15/16 each, and constant from the last centre to the end.
    for frame, share in enumerate([0, 0.25, 0.75, 1]):
        value = share * (15 / 16) ** 2
        np.testing.assert_allclose(
            out[0, frame, 19:21, 27:29],
            blend(frames[0, frame, 19:21, 27:29], value),
            atol=1,
        )
    # Frames are shown in grey.
    red = np.zeros((1, 2, 8, 8, 3), np.uint8)
    red[..., 0] = 200
    shown = attribution.overlay(red, np.zeros((1, 1, 1, 1), np.float32))
    expected = np.broadcast_to(blend(0.299 * 200, 0.0), shown.shape)
    np.testing.assert_allclose(shown, expected, atol=1)


def test_overlays_are_saved_beside_the_frames(video, tmp_path):
    maps = attribution.attention_rollout(classifier(), video)
    files = attribution.save_overlays(tmp_path / "clip", video, maps, fps=10)
    assert files == [tmp_path / "clip.gif", tmp_path / "clip.png"]
    with Image.open(files[0]) as animation:
        assert animation.n_frames == 4 and animation.size == (258, 258)
        assert animation.info["duration"] == 100
    with Image.open(files[1]) as image:
        strip = np.asarray(image)
    np.testing.assert_array_equal(strip[:128:4, :128:4], video[0, 0])
    overlaid = attribution.overlay(video, maps)
    np.testing.assert_array_equal(strip[130:258:4, :128:4], overlaid[0, 0])
