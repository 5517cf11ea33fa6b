"""LayerNorm, whose backward pass keeps its input and two numbers per token."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from videomae_jax.models.array_types import Array
from videomae_jax.models.layers.linear import sum_over_tokens


class LayerNorm(nn.Module):
    """Normalizes the last axis, with the parameters of `flax.linen.LayerNorm`.

    Mean and variance are computed in float32, whatever the dtype.
    """

    epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch *rest"]) -> Float[Array, "batch *rest"]:
        """Normalizes every token."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return _normalize(x, scale, bias, self.epsilon, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x, scale, bias, epsilon, dtype):
    return _forward(x, scale, bias, epsilon, dtype)[0]


def _forward(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    # Not as E[x^2] - E[x]^2, which would save a pass over x: on a CPU, its last digits
    # depend on the size of the batch.
    variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    out = ((wide - mean) * inverse * scale + bias).astype(dtype)
    return out, (x, scale, mean, inverse)


def _backward(epsilon, dtype, residuals, gradient):
    del epsilon, dtype
    x, scale, mean, inverse = residuals
    normalized = (x.astype(jnp.float32) - mean) * inverse
    gradient = gradient.astype(jnp.float32)
    scaled = gradient * scale
    x_gradient = inverse * (
        scaled
        - scaled.mean(axis=-1, keepdims=True)
        - normalized * (scaled * normalized).mean(axis=-1, keepdims=True)
    )
    return (
        x_gradient.astype(x.dtype),
        sum_over_tokens((gradient * normalized).astype(x.dtype)),
        sum_over_tokens(gradient.astype(x.dtype)),
    )


_normalize.defvjp(_forward, _backward)
