"""Counting the products of Pallas kernels, compiled for no TPU."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from videomae_jax.tpu import kernels
from videomae_jax.tpu.program import Instruction

BLOCKS = {
    "grid": (4,),
    "in_specs": [
        pl.BlockSpec((128, 64), lambda i: (i, 0)),
        pl.BlockSpec((5, 64, 128), lambda i: (0, 0, 0)),
    ],
    "out_specs": pl.BlockSpec((128, 128), lambda i: (i, 0)),
}


def call(kernel, blocks) -> Instruction:
    """Returns the call of a kernel with [512, 64] and [5, 64, 128]."""

    def function(x, weights):
        shape = jax.ShapeDtypeStruct((512, 128), jnp.float32)
        return pl.pallas_call(kernel, out_shape=shape, **blocks)(x, weights)

    shapes = (
        jax.ShapeDtypeStruct((512, 64), jnp.bfloat16),
        jax.ShapeDtypeStruct((5, 64, 128), jnp.bfloat16),
    )
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    body = re.findall(r"body\\22: ?\\22([^\\]*)", lowered.as_text())[0]
    rest = f', custom_call_target="tpu_custom_call", {{"body":"{body}"}}'
    return Instruction("kernel", "f32[512,128]", "custom-call", (), rest)


def one_product(x, weights, out):
    out[...] = jnp.dot(x[...], weights[0], preferred_element_type=jnp.float32)


def loop(x, weights, out):
    def add(i, total):
        return total + jnp.dot(x[...], weights[i], preferred_element_type=jnp.float32)

    out[...] = jax.lax.fori_loop(0, 5, add, jnp.zeros_like(out))


@pytest.mark.parametrize(
    ("kernel", "blocks", "times"),
    [(one_product, BLOCKS, 1), (loop, BLOCKS, 5), (one_product, {}, 1)],
)
def test_products_fill_whole_units(kernel, blocks, times):
    x = call(kernel, blocks)
    assert kernels.is_kernel(x)
    assert kernels.product_flops(x, 64) == 2 * 512 * 64 * 128 * times
    # The head width of 64 fills half of a unit of 128, the result one of 128.
    assert kernels.product_flops(x, 128) == 2 * 512 * 128 * 128 * times
    assert kernels.product_flops(x, 256) == 2 * 512 * 256 * 256 * times


def test_calls_of_other_kinds_are_no_kernels():
    rest = ', custom_call_target="AllocateBuffer"'
    assert not kernels.is_kernel(Instruction("x", "f32[8]", "custom-call", (), rest))
