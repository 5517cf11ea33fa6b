"""A TPU kernel for attention over all tokens of a clip.

The heads lie side by side in the last axis, as the products before and after leave
them: nothing is transposed, split or padded in memory. All keys of a head are in vector
memory at once, so that the softmax is a plain one, and the backward pass needs nothing
but the inputs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from videomae_jax.models.array_types import Array, Tokens

# The lanes of the vector unit, and the width of what is loaded at once.
_LANES = 128
# Up to this many tokens, all heads and queries of a clip are computed at once.
_FEW_TOKENS = 256
# Bytes of vector memory that the compiler gives a kernel, by default on all TPUs.
_VECTOR_MEMORY = 16 * 2**20


def fits(tokens: int, width: int, heads: int, itemsize: int) -> bool:
    """Returns whether vector memory has room for the keys of a block of heads.

    Args:
        tokens, width, heads: as in `fused_attention`.
        itemsize: bytes of a number.
    """
    rows, lanes = _block(tokens, width, heads)
    # Of keys, values and their gradients two copies, as the next are loaded meanwhile,
    # and two sums in float32; and six arrays like the weights, in float32.
    return tokens * ((8 * itemsize + 8) * lanes + 24 * rows) <= _VECTOR_MEMORY


def _block(tokens: int, width: int, heads: int) -> tuple[int, int]:
    """Returns the queries, and the numbers of each, that are computed at once.

    The latter are a whole number of heads and fill the lanes, or are all.
    """
    lanes = math.lcm(width // heads, _LANES)
    if tokens <= _FEW_TOKENS or width % lanes:
        lanes = width
    return tokens if tokens <= _FEW_TOKENS else _LANES, lanes


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fused_attention(
    query: Tokens, key: Tokens, value: Tokens, heads: int, interpret: bool = False
) -> Tokens:
    """Computes softmax attention, given a scaled query.

    Args:
        query, key, value: [batch, tokens, width], the heads side by side.
        heads: their number.
        interpret: run the kernel as plain JAX, on any device; slow.
    """
    return _call(_forward, (query, key, value), heads, interpret)[0]


def _call(
    kernel: Callable, arrays: tuple[Array, ...], heads: int, interpret: bool
) -> tuple[Array, ...]:
    """Runs a kernel over clips, groups of heads, and blocks of queries."""
    query = arrays[0]
    batch, tokens, width = query.shape
    rows, lanes = _block(tokens, width, heads)
    of_queries = pl.BlockSpec((None, rows, lanes), lambda b, h, i: (b, i, h))
    of_keys = pl.BlockSpec((None, tokens, lanes), lambda b, h, i: (b, 0, h))
    is_backward = kernel is _backward
    out_specs = [of_queries, of_keys, of_keys] if is_backward else [of_queries]
    products = 5 if is_backward else 2
    call: Any = pl.pallas_call(
        functools.partial(kernel, head_dim=width // heads, tokens=tokens),
        grid=(batch, width // lanes, pl.cdiv(tokens, rows)),
        in_specs=[of_queries, of_keys, of_keys, of_queries][: len(arrays)],
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype) for _ in out_specs],
        scratch_shapes=[pltpu.VMEM((tokens, lanes), jnp.float32)] * 2 * is_backward,
        compiler_params=pltpu.CompilerParams(
            # The gradients of keys and values are summed over the blocks of queries.
            dimension_semantics=("parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * batch * tokens**2 * width,
            transcendentals=batch * heads * tokens**2,
            bytes_accessed=(len(arrays) + len(out_specs)) * query.nbytes,
        ),
        interpret=interpret,
        name=f"attention{kernel.__name__}",
    )
    return tuple(call(*arrays))


def _forward(query_ref, key_ref, value_ref, out_ref, *, head_dim, tokens):
    del tokens  # what is read beyond them stays in rows that are not written
    for head in _heads(query_ref, head_dim):
        logits = _dot(query_ref[:, head], key_ref[:, head], 1, 1)
        unnormalized = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        total = unnormalized.sum(axis=1, keepdims=True)
        out = _dot(unnormalized.astype(value_ref.dtype), value_ref[:, head], 1, 0)
        out_ref[:, head] = (out / total).astype(out_ref.dtype)


def _backward(
    query_ref,
    key_ref,
    value_ref,
    gradient_ref,
    query_gradient_ref,
    key_gradient_ref,
    value_gradient_ref,
    key_sum,
    value_sum,
    *,
    head_dim,
    tokens,
):
    block, rows = pl.program_id(2), query_ref.shape[0]

    @pl.when(block == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    for head in _heads(query_ref, head_dim):
        query, gradient = query_ref[:, head], gradient_ref[:, head]
        if tokens % rows:  # beyond the last query, memory holds anything
            row = jax.lax.broadcasted_iota(jnp.int32, query.shape, 0)
            exists = block * rows + row < tokens
            query = jnp.where(exists, query, jnp.zeros_like(query))
            gradient = jnp.where(exists, gradient, jnp.zeros_like(gradient))
        key = key_ref[:, head]
        # Keys down, queries across: one product transposes its operand, not two.
        logits = _dot(key, query, 1, 1)
        unnormalized = jnp.exp(logits - logits.max(axis=0, keepdims=True))
        weights = unnormalized * (1 / unnormalized.sum(axis=0, keepdims=True))
        weights_gradient = _dot(value_ref[:, head], gradient, 1, 1)
        # The softmax subtracts this from the gradient of each query's logits.
        common = (weights * weights_gradient).sum(axis=0, keepdims=True)
        logits_gradient = (weights * (weights_gradient - common)).astype(query.dtype)
        value_sum[:, head] += _dot(weights.astype(query.dtype), gradient, 1, 0)
        key_sum[:, head] += _dot(logits_gradient, query, 1, 0)
        query_gradient = _dot(logits_gradient, key, 0, 0)
        query_gradient_ref[:, head] = query_gradient.astype(query.dtype)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        key_gradient_ref[...] = key_sum[...].astype(key_gradient_ref.dtype)
        value_gradient_ref[...] = value_sum[...].astype(value_gradient_ref.dtype)


def _heads(ref, head_dim):
    return [slice(i, i + head_dim) for i in range(0, ref.shape[1], head_dim)]


def _dot(a, b, axis_of_a, axis_of_b):
    """Returns the product over one axis of each, in float32."""
    axes = ((axis_of_a,), (axis_of_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _save_inputs(query, key, value, heads, interpret):
    out = fused_attention(query, key, value, heads, interpret)
    return out, (query, key, value)


def _gradients(heads, interpret, inputs, gradient):
    return _call(_backward, (*inputs, gradient), heads, interpret)


fused_attention.defvjp(_save_inputs, _gradients)
