"""Linear layers over the last axis, and the GELU between them.

Each is one matrix product over all tokens of all clips. With several batch axes, XLA's
CPU backend copies the cotangent before it computes the kernel's gradient, which takes
several times as long as the product.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from videomae_jax.models.array_types import Array, Tokens
from videomae_jax.models.partitioning import keep_clips_in_place

# U(+-1/sqrt(fan_in)), PyTorch's default. The official code keeps it for the patch
# embedding and the projection to the decoder.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nn.initializers.xavier_uniform()
# Of models with a head, in all layers (official code).
truncated_normal = nn.initializers.truncated_normal(0.02)
# Rows of ones in a product that sums over tokens. XLA makes of a single one a sum on
# the vector unit, which takes longer than the product for the kernel's gradient.
_SUM_ROWS = 8


def scaled(init: nn.initializers.Initializer, factor: float) -> Any:
    """Returns an initializer whose values are multiplied by a factor."""
    return lambda *args: factor * init(*args)


class Dense(nn.Module):
    """A linear layer, with the parameters of `flax.linen.Dense`."""

    features: int
    use_bias: bool = True
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "batch *rest"]) -> Float[Array, "batch *out"]:
        """Applies the layer to every token."""
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape)
        out = _product(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return out
        bias = self.param("bias", self.bias_init, (self.features,))
        return add_bias(out, bias.astype(self.dtype))


class QueryKeyValue(nn.Module):
    """Three linear layers whose kernels are one matrix [dim, 3 * dim].

    The matrix is initialized as one, as in the official code.

    Attributes:
        scale: factor of the queries.
        dtype, kernel_init: as in Dense.
    """

    scale: float
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform

    @nn.compact
    def __call__(self, x: Tokens) -> list[Tokens]:
        """Returns query, key and value of every token, without a bias."""
        width, x = x.shape[-1], x.astype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (width, 3 * width))
        # Three products: the result of a single one would have to be cut.
        query, key, value = jnp.split(kernel, 3, axis=1)
        return [
            _product(x, part.astype(self.dtype))
            for part in (query * self.scale, key, value)
        ]


def _product(x: Array, kernel: Array) -> Array:
    x = keep_clips_in_place(x)
    out = x.reshape(-1, x.shape[-1]) @ kernel
    return keep_clips_in_place(out.reshape(*x.shape[:-1], kernel.shape[-1]))


@jax.custom_vjp
def add_bias(
    x: Float[Array, "batch *rest"], bias: Float[Array, "features"]
) -> Float[Array, "batch *rest"]:
    """Returns x + bias, whose gradient is summed by a matrix product."""
    return x + bias


def sum_over_tokens(x: Float[Array, "batch *rest"]) -> Float[Array, "features"]:
    """Returns the sum over all axes but the last, in float32."""
    x = keep_clips_in_place(x)
    rows = x.reshape(-1, x.shape[-1])
    ones = jnp.ones((_SUM_ROWS, len(rows)), x.dtype)
    return jnp.dot(
        ones,
        rows,
        # By default, a TPU would round float32 to bfloat16, and a GPU to TF32.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )[0]


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return x + bias, None


def _add_bias_backward(_: Any, gradient: Array) -> tuple[Array, Array]:
    return gradient, sum_over_tokens(gradient).astype(gradient.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the exact GELU in float32, with erf; erfc would be slower."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.sqrt(0.5)))).astype(x.dtype)
