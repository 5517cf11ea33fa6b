"""Linear layers and LayerNorm equal Flax's, with their gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.models.layers.linear import Dense, QueryKeyValue
from videomae_jax.models.layers.norm import LayerNorm


def outputs(layer, params, x):
    """Returns the output of a layer, and gradients of a sum of it."""

    def loss(params, x):
        out = layer.apply({"params": params}, x)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out), gradients = run(params, x)
    return out, gradients


@pytest.mark.parametrize("bias", [True, False])
def test_dense_equals_that_of_flax(bias):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    params = {"kernel": jax.random.normal(jax.random.key(1), (6, 4))}
    if bias:
        params["bias"] = jnp.arange(4.0)
    expected = outputs(nn.Dense(4, use_bias=bias), params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        outputs(Dense(4, use_bias=bias), params, x),
        expected,
    )


def test_query_key_value_equals_one_layer():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    params = {"kernel": jax.random.normal(jax.random.key(1), (6, 18))}
    parts = QueryKeyValue(0.3).apply({"params": params}, x)
    expected = np.split(np.asarray(x @ params["kernel"]), 3, axis=-1)
    for part, other, scale in zip(parts, expected, (0.3, 1, 1), strict=True):
        np.testing.assert_allclose(part, scale * other, atol=1e-5)


# The mean of a token may be several times its deviation.
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_layer_norm_equals_that_of_flax(offset):
    x = offset + jax.random.normal(jax.random.key(0), (2, 5, 64))
    keys = jax.random.split(jax.random.key(1))
    params = {
        name: jax.random.normal(key, (64,))
        for name, key in zip(("scale", "bias"), keys, strict=True)
    }
    expected = outputs(nn.LayerNorm(1e-6, use_fast_variance=False), params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * (1 + offset)),
        outputs(LayerNorm(1e-6), params, x),
        expected,
    )


def test_layer_norm_of_equal_values_is_its_bias():
    x = jnp.full((1, 2, 16), 7.25)
    params = {"scale": jnp.ones(16), "bias": jnp.arange(16.0)}
    out, (_, gradient) = outputs(LayerNorm(1e-6), params, x)
    np.testing.assert_allclose(out, np.broadcast_to(np.arange(16), x.shape), atol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("layer", [Dense(4, dtype="bfloat16"), LayerNorm(1e-6)])
def test_gradients_have_the_dtype_of_what_they_are_of(layer):
    x = jnp.ones((2, 5, 6), "bfloat16")
    params = layer.init(jax.random.key(0), x)["params"]
    out, gradients = outputs(layer, params, x)
    assert out.dtype == layer.dtype
    assert gradients[1].dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(gradients[0])} == {jnp.dtype("float32")}
