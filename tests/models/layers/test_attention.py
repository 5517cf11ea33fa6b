"""All implementations of attention compute the same output and gradients."""

import functools
import os

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from videomae_jax.distributed import sharding
from videomae_jax.errors import ConfigError
from videomae_jax.models.layers import attention
from videomae_jax.models.layers.fused_attention import fits
from videomae_jax.models.mae import VideoMAE


def inputs(batch, heads, tokens, width, dtype=np.float32, seed=0):
    """Returns query, key, value and a gradient of the output."""
    rng = np.random.default_rng(seed)
    shape = (batch, heads, tokens, width)
    return [rng.normal(size=shape).astype(dtype) for _ in range(4)]


def reference(query, key, value, gradient):
    """Computes attention and its gradients in float64, step by step."""
    query, key, value, gradient = (
        np.asarray(x, np.float64) for x in (query, key, value, gradient)
    )
    scale = query.shape[-1] ** -0.5
    logits = scale * query @ key.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = gradient @ value.swapaxes(-1, -2)
    d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    return (
        weights @ value,
        scale * d_logits @ key,
        scale * d_logits.swapaxes(-1, -2) @ query,
        weights.swapaxes(-1, -2) @ gradient,
    )


def with_gradients(attend, query, key, value, gradient):
    out, backward = jax.vjp(attend, query, key, value)
    return out, *backward(gradient)


def of_heads(attend, query, key, value):
    """Calls attend with arrays [batch, heads, tokens, head_dim]."""
    batch, heads, tokens, _ = query.shape
    arrays = (x.swapaxes(1, 2).reshape(batch, tokens, -1) for x in (query, key, value))
    return attention.split_heads(attend(*arrays, heads), heads)


def ours(implementation, valid=None):
    """Returns an implementation as a function of arrays with an axis for the heads."""

    def attend(query, key, value, heads):
        query = query * (query.shape[-1] // heads) ** -0.5
        return attention.attend(
            query, key, value, valid, heads=heads, implementation=implementation
        )

    return functools.partial(of_heads, attend)


def interpreted(kernel):
    """Runs a TPU kernel in the interpreter, on the CPU."""

    def attend(query, key, value):
        query = query * query.shape[-1] ** -0.5
        interpret = functools.partial(kernel, interpret=True)
        return of_heads(interpret, query, key, value)

    return attend


IMPLEMENTATIONS = {
    "xla": ours("xla"),
    "by_head": ours("by_head"),
    "fused": interpreted(attention._fused),
    "splash": interpreted(attention._splash),
}


@pytest.mark.parametrize(
    ("name", "heads", "tokens", "width"),
    [
        # 200 tokens end within a block of 128; 128 tokens fill one.
        *((name, 3, tokens, 16) for name in IMPLEMENTATIONS for tokens in (128, 200)),
        # Two blocks of heads, and three of queries.
        ("fused", 4, 300, 64),
    ],
)
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("bfloat16", 0.04)])
def test_equals_float64(name, dtype, atol, tokens, heads, width):
    arrays = [jnp.asarray(x, dtype) for x in inputs(2, heads, tokens, width)]
    attend = jax.jit(functools.partial(with_gradients, IMPLEMENTATIONS[name]))
    for actual, expected in zip(attend(*arrays), reference(*arrays), strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=atol)


@pytest.mark.parametrize("name", ["xla", "by_head"])
def test_only_valid_tokens_are_attended_to(name):
    arrays = inputs(2, 2, 40, 8)
    valid = np.random.default_rng(1).random((2, 40)) < 0.7
    arrays[3] *= valid[:, None, :, None]  # nobody uses the outputs of the others

    @jax.jit
    def outputs(valid, *arrays):
        return with_gradients(ours(name, valid), *arrays)

    actual = outputs(valid, *arrays)
    for clip, tokens in enumerate(valid):
        kept = [x[[clip]][:, :, tokens] for x in arrays]
        for mine, theirs in zip(actual, reference(*kept), strict=True):
            rows = np.asarray(mine)[[clip]][:, :, tokens]
            np.testing.assert_allclose(rows, theirs, atol=2e-5)
    for gradient in actual[1:]:
        assert not np.any(np.where(valid[:, None, :, None], 0, gradient))
    # All are valid: the implementation itself.
    for mine, theirs in zip(
        outputs(np.ones_like(valid), *arrays), reference(*arrays), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.skipif(
    os.environ["JAX_PLATFORMS"] == "cpu", reason="needs a GPU: gpu_report.sh"
)
@pytest.mark.parametrize("tokens", [160, 1568])
def test_cudnn_equals_float64(tokens):
    arrays = [jnp.asarray(x, "bfloat16") for x in inputs(2, 3, tokens, 64)]
    outputs = jax.jit(functools.partial(with_gradients, ours("cudnn")))(*arrays)
    for actual, expected in zip(outputs, reference(*arrays), strict=True):
        assert actual.dtype == "bfloat16"
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=0.04)


@hypothesis.given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.integers(1, 9),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_by_head_equals_float64_for_all_shapes(batch, heads, tokens, width, size):
    query, key, value, gradient = inputs(batch, heads, tokens, width)
    arrays = size * query, size * key, value, gradient
    for actual, expected in zip(
        with_gradients(IMPLEMENTATIONS["by_head"], *arrays),
        reference(*arrays),
        strict=True,
    ):
        # The wider the logits are spread, the fewer digits float32 has of each.
        np.testing.assert_allclose(actual, expected, atol=2e-5 * max(size**2, 1))


def test_by_head_in_chunks(monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK", 16)
    arrays = inputs(2, 2, 40, 8)  # chunks of 14, 13 and 13
    for actual, expected in zip(
        with_gradients(IMPLEMENTATIONS["by_head"], *arrays),
        reference(*arrays),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.eight_devices
def test_clips_with_padding_stay_on_their_devices():
    arrays = inputs(8, 2, 40, 16)
    valid = np.random.default_rng(1).random((8, 40)) < 0.7
    mesh = sharding.make_mesh(2)
    placed = jax.device_put([valid, *arrays], sharding.batch_sharding(mesh))

    def outputs(valid, *arrays):
        return with_gradients(ours("by_head", valid), *arrays)

    with jax.set_mesh(mesh):
        step = jax.jit(outputs)
        text = step.lower(*placed).compile().as_text()
        actual = step(*placed)
    # One bit of each device is shared: whether all of its tokens are valid.
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    expected = jax.jit(outputs)(valid, *arrays)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-5), actual, expected
    )


@pytest.mark.eight_devices
def test_clips_stay_on_their_devices():
    arrays = inputs(8, 2, 40, 16)
    mesh = sharding.make_mesh(2)
    placed = jax.device_put(arrays, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(with_gradients, IMPLEMENTATIONS["by_head"]))
        text = step.lower(*placed).compile().as_text()
        outputs = step(*placed)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    for actual, expected in zip(outputs, reference(*arrays), strict=True):
        assert actual.sharding.is_equivalent_to(placed[0].sharding, 4)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("tokens", [160, 1568, 2048, 2400])
@pytest.mark.parametrize("name", ["fused", "splash"])
def test_kernels_lower_for_tpus(name, tokens):
    arrays = [jax.ShapeDtypeStruct((2, 2, tokens, 64), "bfloat16")] * 3
    attend = ours(name)

    def gradient(*arrays):
        return jax.grad(lambda *x: attend(*x).astype("float32").sum(), (0, 1, 2))(
            *arrays
        )

    lowered = jax.jit(gradient).trace(*arrays).lower(lowering_platforms=("tpu",))
    # Of splash the forward pass, dq, dk with dv. Those of fused need no forward pass.
    assert lowered.as_text().count("tpu_custom_call") == {"fused": 1, "splash": 3}[name]


@pytest.mark.eight_devices
@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("name", ["fused", "splash"])
def test_kernels_within_the_training_step_lower_for_tpus(name, fsdp):
    """The step is mapped over the copies of the parameters, of `fsdp` devices each."""
    mesh = sharding.make_mesh(fsdp)
    axes = sharding.replica_axes(mesh)
    array = jax.ShapeDtypeStruct((8, 2, 160, 64), "bfloat16")

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=P(axes),
        out_specs=P(axes),
        axis_names=set(axes),
        check_vma=False,
    )
    def gradient(x):
        return jax.grad(lambda x: ours(name)(x, x, x).sum())(x)

    lowered = jax.jit(gradient).trace(array).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == {"fused": 1, "splash": 3}[name]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "blocks"])
def test_encoder_and_decoder_choose_attention_independently(remat):
    sizes = dict(width=24, depth=2, heads=3, decoder_heads=2)
    model = VideoMAE(
        **sizes, decoder_width=16, decoder_depth=1, decoder_remat=remat, patch_size=8
    )
    other = model.clone(attention="by_head", decoder_attention="xla")
    key = jax.random.key(0)
    video = jax.random.normal(key, (2, 4, 32, 32, 3))
    ids = jnp.broadcast_to(jnp.arange(32), (2, 32))
    arguments = video, ids[:, ::4], jnp.sort(jnp.delete(ids, ids[0, ::4], axis=1))
    params = jax.jit(model.init)(key, *arguments)

    def loss(model, params):
        return jnp.mean(model.apply(params, *arguments) ** 2)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        *(
            jax.jit(jax.grad(functools.partial(loss, model)))(params)
            for model in (model, other)
        ),
    )
    maps = [
        jax.jit(functools.partial(model.apply, method="attention_maps"))(
            params, *arguments[:2]
        )
        for model in (model, other)
    ]
    np.testing.assert_allclose(*maps, atol=1e-6)


@pytest.mark.eight_devices
def test_fewer_clips_than_devices_are_computed_on_all():
    arrays = inputs(3, 2, 40, 16)
    with jax.set_mesh(sharding.make_mesh()):
        # Three clips do not split over 8 devices, so xla runs, which needs no TPU.
        out = jax.jit(ours("splash"))(*arrays[:3])
    np.testing.assert_allclose(out, reference(*arrays)[0], atol=2e-5)


def test_unknown_implementation_is_refused():
    arrays = inputs(1, 1, 4, 4)[:3]
    message = "attention='flash' is unknown. Use xla, by_head, cudnn, fused, splash, or"
    with pytest.raises(ConfigError, match=message):
        ours("flash")(*arrays)


def test_fused_is_for_what_fits_into_vector_memory():
    for tokens, width, heads in [(160, 768, 12), (160, 1408, 16), (1568, 384, 6)]:
        assert fits(tokens, width, heads, 2)
    # V2's 64 frames; a wide block, as 80 and 128 have no smaller common multiple.
    for tokens, width, heads in [(6272, 768, 12), (1568, 1280, 16)]:
        assert not fits(tokens, width, heads, 2)
    assert fits(2400, 768, 12, 2)
    assert not fits(2400, 768, 12, 4)  # float32


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_kernels_need_their_device(device):
    for kernel, kind in (("cudnn", "gpu"), ("fused", "tpu"), ("splash", "tpu")):
        if device == kind:
            attention.check(kernel, device)
            continue
        message = (
            f"config.x='{kernel}' needs a {kind.upper()}, but the devices are "
            f"{device.upper()}s. Use xla"
        )
        with pytest.raises(ConfigError, match=message) as error:
            attention.check(kernel, device, name="config.x")
        assert kernel not in str(error.value).partition("Use ")[2]
    for portable in ("xla", "by_head", None):
        attention.check(portable, device)
