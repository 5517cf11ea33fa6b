"""Every form of attention computes the same, and its gradient."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from videomae_jax.distributed import sharding
from videomae_jax.models import attention
from videomae_jax.models.mae import VideoMAE


def inputs(batch, heads, tokens, width, dtype=np.float32, seed=0):
    """Query, key, value and a gradient of the output."""
    rng = np.random.default_rng(seed)
    shape = (batch, heads, tokens, width)
    return [rng.normal(size=shape).astype(dtype) for _ in range(4)]


def reference(query, key, value, gradient):
    """Attention and its gradients, in float64 and by hand."""
    query, key, value, gradient = (
        np.asarray(x, np.float64) for x in (query, key, value, gradient)
    )
    scale = query.shape[-1] ** -0.5
    logits = scale * query @ key.swapaxes(-1, -2)
    given = np.exp(logits - logits.max(axis=-1, keepdims=True))
    given /= given.sum(axis=-1, keepdims=True)
    of_given = gradient @ value.swapaxes(-1, -2)
    of_logits = given * (of_given - (given * of_given).sum(axis=-1, keepdims=True))
    return (
        given @ value,
        scale * of_logits @ key,
        scale * of_logits.swapaxes(-1, -2) @ query,
        given.swapaxes(-1, -2) @ gradient,
    )


def with_gradients(attend, query, key, value, gradient):
    out, backward = jax.vjp(attend, query, key, value)
    return out, *backward(gradient)


def interpreted_splash(query, key, value):
    """The TPU kernel, step by step on this CPU."""
    query = query * query.shape[-1] ** -0.5
    return attention._splash(query, key, value, interpret=True)


FORMS = {
    "xla": functools.partial(attention.attend, implementation="xla"),
    "by_head": functools.partial(attention.attend, implementation="by_head"),
    "splash": interpreted_splash,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("bfloat16", 0.04)])
# 160 and 200 tokens end within a block of 128, 128 fill one.
@pytest.mark.parametrize("tokens", [128, 200])
def test_equals_float64(form, dtype, atol, tokens):
    arrays = [jnp.asarray(x, dtype) for x in inputs(2, 3, tokens, 16)]
    wanted = reference(*arrays)
    for found, want in zip(
        jax.jit(functools.partial(with_gradients, FORMS[form]))(*arrays),
        wanted,
        strict=True,
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), want, atol=atol)


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
    for found, want in zip(
        with_gradients(FORMS["by_head"], *arrays), reference(*arrays), strict=True
    ):
        # Far apart logits leave float32 fewer digits of each.
        np.testing.assert_allclose(found, want, atol=2e-5 * max(size**2, 1))


def test_by_head_in_parts(monkeypatch):
    monkeypatch.setattr(attention, "_QUERIES", 16)
    arrays = inputs(2, 2, 40, 8)  # parts of 14, 13 and 13
    for found, want in zip(
        with_gradients(FORMS["by_head"], *arrays), reference(*arrays), strict=True
    ):
        np.testing.assert_allclose(found, want, atol=2e-5)


def test_clips_stay_on_their_devices():
    arrays = inputs(8, 2, 40, 16)
    mesh = sharding.make_mesh(2)
    placed = jax.device_put(arrays, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(with_gradients, FORMS["by_head"]))
        text = step.lower(*placed).compile().as_text()
        found = step(*placed)
    for move in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert move not in text
    for one, want in zip(found, reference(*arrays), strict=True):
        assert one.sharding.is_equivalent_to(placed[0].sharding, 4)
        np.testing.assert_allclose(one, want, atol=2e-5)


@pytest.mark.parametrize("tokens", [160, 1568, 2048, 2400])
def test_splash_is_accepted_for_tpus(tokens):
    arrays = [jax.ShapeDtypeStruct((2, 2, tokens, 64), "bfloat16")] * 3
    attend = functools.partial(attention.attend, implementation="splash")

    def gradient(*arrays):
        return jax.grad(lambda *x: attend(*x).astype("float32").sum(), (0, 1, 2))(
            *arrays
        )

    lowered = jax.jit(gradient).trace(*arrays).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.parametrize("remat", ["none", "dots", "blocks"])
def test_towers_choose_for_themselves(remat):
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


def test_few_clips_are_computed_everywhere():
    arrays = inputs(3, 2, 40, 16)
    with jax.set_mesh(sharding.make_mesh()):
        # No TPU is asked for: the kernel could not be cut into three for 8 devices.
        step = functools.partial(attention.attend, implementation="splash")
        found = jax.jit(step)(*arrays[:3])
    np.testing.assert_allclose(found, reference(*arrays)[0], atol=2e-5)


def test_what_is_not_there_is_told():
    arrays = inputs(1, 1, 4, 4)[:3]
    with pytest.raises(ValueError, match="'flash'; one of: xla, by_head"):
        attention.attend(*arrays, "flash")


@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_kernels_are_for_their_devices(device):
    for kernel, kind in (("cudnn", "gpu"), ("splash", "tpu")):
        if device == kind:
            attention.check(kernel, device)
            continue
        message = f"config.x is '{kernel}', which is for a {kind.upper()}, not for a "
        with pytest.raises(ValueError, match=message + device.upper()) as error:
            attention.check(kernel, device, "config.x")
        assert kernel not in str(error.value).partition("one of:")[2]
    for everywhere in ("xla", "by_head", None):
        attention.check(everywhere, device)
