"""The classifier: reference outputs, other sizes, drop-path and dropout."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers import official
from tests.helpers.models import apply, random_variables
from videomae_jax.distributed import sharding
from videomae_jax.errors import ConfigError
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.positions import _bicubic, position_table, sincos_positions
from videomae_jax.models.vit import drop_path_scales
from videomae_jax.training import losses

# interpolate(IMAGE, size=(5, 3), mode="bicubic") of torch.nn.functional, PyTorch 2.13.
IMAGE = [[0, 1, 4, 9], [2, 3, 5, 7], [8, 6, 1, 0]]
PYTORCH = [
    [-0.10223148, 1.95400000, 8.48682407],
    [0.46442130, 2.85212500, 8.20056019],
    [2.10879630, 3.90625000, 6.74768519],
    [5.73692130, 3.72850000, 2.53856019],
    [8.34610185, 3.35825000, -0.58562037],
]
SMALL = dict(width=24, depth=2, heads=2, num_classes=5, patch_size=8)


@pytest.fixture(scope="module")
def golden():
    return np.load(official.GOLDEN / "finetune_step.npz")


@pytest.fixture(scope="module")
def video(golden):
    return official.video(golden["video_uint8_bcthw"])


def assert_close(ours, theirs, tolerance):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_matches_reference(golden, video, remat):
    model = official.classifier(remat=remat)
    params = jax.tree.map(jnp.asarray, official.classifier_parameters(golden))

    def loss(params):
        targets = losses.soft_targets(golden["labels"], 10, 0.1)
        return losses.cross_entropy(model.apply({"params": params}, video), targets)

    variables = {"params": params}
    features = apply(model, variables, video, method="features")
    np.testing.assert_allclose(features, golden["features"], atol=5e-5)
    np.testing.assert_allclose(
        apply(model, variables, video), golden["logits"], atol=5e-5
    )
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, golden["loss_label_smoothing_0.1"], atol=1e-5)
    theirs = official.classifier_parameters(golden, "grad/")
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), grads, theirs)


@pytest.mark.parametrize(
    "variant, classes, parameters",
    [
        ("small", 400, 22_033_936),
        ("base", 400, 86_534_800),
        ("base", 101, 86_304_869),
        ("large", 174, 304_039_086),
        ("huge", 400, 632_119_440),
        ("giant", 710, 1_012_611_142),
    ],
)
def test_published_sizes(variant, classes, parameters):
    model = VideoClassifier.from_variant(variant, classes)
    side = 14 * model.patch_size
    video = jax.ShapeDtypeStruct((1, 16, side, side, 3), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters


def initial(model, shape=(2, 4, 16, 16, 3)):
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return random_variables(model), video


def test_initial_prediction_is_nearly_uniform():
    model = VideoClassifier(**SMALL)
    _, video = initial(model)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    logits = apply(model, variables, video)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert 0 < np.abs(logits).max() < 1e-2


@pytest.mark.parametrize("pooling", ["mean", "first_token", "attentive"])
def test_poolings(pooling):
    model = VideoClassifier(**SMALL, pooling=pooling)
    variables, video = initial(model)
    tokens = apply(model, variables, video, method="tokens")
    features = apply(model, variables, video, method="features")
    assert tokens.shape == (2, 8, 24) and features.shape == (2, 24)
    params = variables["params"]
    assert ("norm" in params["encoder"]) == (pooling == "first_token")
    assert ("norm" in params) == (pooling != "first_token")
    if pooling == "mean":
        mean = np.asarray(tokens).mean(axis=1)
        expected = (mean - mean.mean(1, keepdims=True)) / np.sqrt(
            mean.var(1, keepdims=True) + 1e-6
        )
        expected = expected * params["norm"]["scale"] + params["norm"]["bias"]
        np.testing.assert_allclose(features, expected, atol=1e-5)
    elif pooling == "first_token":
        np.testing.assert_allclose(features, tokens[:, 0], atol=1e-6)


@pytest.mark.parametrize("field", ["pooling", "head_norm"])
def test_unknown_head_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field}='cls' is unknown; expected one of"):
        initial(VideoClassifier(**SMALL, **{field: "cls"}))


def test_batch_norm_uses_running_statistics():
    model = VideoClassifier(**SMALL, head_norm="batch")
    variables, video = initial(model, (8, 4, 16, 16, 3))
    assert "norm" not in variables["params"]  # neither scale nor bias
    keys = jax.random.split(jax.random.key(1), 8)
    train = jax.jit(lambda v: model.apply(v, video, keys, mutable=["batch_stats"]))
    for _ in range(200):
        _, changed = train(variables)
        variables = variables | changed
    features = apply(model, variables, video, method="features")
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-2)


def test_more_frames_append_positions_and_fewer_drop_them():
    table = position_table((8, 14, 14), 24)
    np.testing.assert_array_equal(table, sincos_positions(1568, 24))
    np.testing.assert_array_equal(position_table((16, 14, 14), 24)[:1568], table)
    np.testing.assert_array_equal(position_table((4, 14, 14), 24), table[: 4 * 196])


def test_positions_of_other_image_sizes():
    plain = position_table((8, 20, 20), 24)
    np.testing.assert_array_equal(plain, sincos_positions(3200, 24))
    table = position_table((8, 20, 20), 24, (14, 14))
    assert table.shape == (3200, 24)
    np.testing.assert_array_equal(
        position_table((8, 14, 14), 24, (14, 14)), position_table((8, 14, 14), 24)
    )
    # Each time slot is interpolated by itself.
    trained = sincos_positions(8 * 196, 24).reshape(8, 14, 14, 24)
    resized = table.reshape(8, 20, 20, 24)
    np.testing.assert_allclose(
        resized.mean(axis=(1, 2)), trained.mean(axis=(1, 2)), atol=2e-2
    )


def test_bicubic_interpolation_matches_pytorch():
    ours = _bicubic(3, 5) @ IMAGE @ _bicubic(4, 3).T
    np.testing.assert_allclose(ours, PYTORCH, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 3), (1, 8, 16, 16, 3)])
@pytest.mark.parametrize("side", [16, 24])
def test_other_clip_and_image_sizes_share_parameters(shape, side):
    model = VideoClassifier(**SMALL, position_size=(16, 16))
    variables, _ = initial(model)
    video = np.zeros((1, shape[1], side, side, 3), np.uint8)
    assert np.isfinite(apply(model, variables, video)).all()


def test_drop_path_rises_with_depth_and_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 20_000)
    scales = drop_path_scales(keys, 0.4, 5)
    assert scales.shape == (5, 20_000, 2)
    np.testing.assert_array_equal(scales[0], 1)
    dropped = np.mean(np.asarray(scales) == 0, axis=1)
    np.testing.assert_allclose(
        dropped, np.linspace(0, 0.4, 5)[:, None] * [1, 1], atol=0.02
    )
    np.testing.assert_allclose(np.mean(scales, axis=1), 1, atol=0.02)


def test_dropped_parts_of_a_clip_depend_on_its_key_only():
    model = VideoClassifier(**SMALL, drop_path=0.5, dropout=0.5, head_init_scale=1.0)
    variables, video = initial(model, (8, 4, 16, 16, 3))
    keys = jax.random.split(jax.random.key(1), 8)
    whole = apply(model, variables, video, keys)
    parts = [apply(model, variables, video[i : i + 2], keys[i : i + 2]) for i in (0, 6)]
    np.testing.assert_allclose(whole[:2], parts[0], atol=1e-5)
    np.testing.assert_allclose(whole[6:], parts[1], atol=1e-5)
    assert np.abs(whole - apply(model, variables, video)).max() > 1e-3


@pytest.mark.parametrize("attention", ["xla", "by_head"])
def test_is_exported_for_batches_of_any_size(attention):
    model = VideoClassifier(**SMALL | {"depth": 1}, attention=attention)
    variables, video = initial(model, (3, 4, 16, 16, 3))
    shape = jax.export.symbolic_shape("batch,4,16,16,3")
    exported = jax.export.export(jax.jit(model.apply))(
        variables, jax.ShapeDtypeStruct(shape, "uint8")
    )
    for clips in (video, video[:1]):
        logits = exported.call(variables, clips)
        assert_close(logits, apply(model, variables, clips), 1e-5)


@pytest.mark.eight_devices
def test_batch_norm_sees_the_clips_of_all_devices():
    model = VideoClassifier(**SMALL, head_norm="batch")
    norm = {"mean": jnp.zeros(24), "var": jnp.ones(24)}

    def pool(tokens):
        return model.apply(
            {"batch_stats": {"norm": norm}},
            tokens,
            train=True,
            method="pool_tokens",
            mutable=["batch_stats"],
        )

    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2, 24)), jnp.float32)
    rows = sharding.batch_sharding(mesh := sharding.make_mesh(2)).spec
    mapped = jax.shard_map(
        pool, mesh=mesh, in_specs=rows, out_specs=(rows, P()), check_vma=False
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
        jax.jit(mapped)(tokens),
        pool(tokens),
    )
