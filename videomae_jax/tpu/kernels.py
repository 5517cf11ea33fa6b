"""Counts the matrix products of Pallas kernels, which XLA does not estimate.

A compiled program holds each kernel as a program of its own, in MLIR: what happens to
one block of the arguments, and the grid of blocks.
"""

import base64
import math
import re
from collections.abc import Iterator
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mosaic.python import tpu

from videomae_jax.tpu.program import Instruction


def is_kernel(x: Instruction) -> bool:
    """Returns True for the call of a Pallas kernel."""
    return 'custom_call_target="tpu_custom_call"' in x.rest


def product_flops(x: Instruction, unit: int) -> int:
    """Returns the operations of a kernel's matrix products, with the idle ones.

    The matrix unit holds `unit` by `unit` weights. What of the summed axis, and of the
    last axis of the result, does not fill them is idle: a head width of 64 fills half
    of a unit of 128. Every branch counts as taken.

    Args:
        x: the call of the kernel.
        unit: width of the matrix unit.
    """
    body = re.findall(r'"body":"([^"]*)"', x.rest)[0]
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        tpu.register_dialect(context)
        module = ir.Module.parse(base64.b64decode(body))
        kernel = module.body.operations[0]
        grid = []
        if "iteration_bounds" in kernel.attributes:
            grid = ir.DenseI64ArrayAttr(kernel.attributes["iteration_bounds"])
        return math.prod(grid) * sum(
            times * _flops(product, unit) for product, times in _products(kernel)
        )


def _products(operation: Any) -> Iterator[tuple[Any, int]]:
    """Yields the products in an operation, and how often each is computed."""
    for region in operation.regions:
        for block in region.blocks:
            for x in block.operations:
                if x.operation.name == "stable_mosaic.tpu.matmul":
                    yield x, 1
                for product, times in _products(x):
                    yield product, times * _trip_count(x)


def _trip_count(x: Any) -> int:
    """Returns the iterations of a loop between constants; otherwise 1."""
    if x.operation.name != "stable_mosaic.scf.for":
        return 1
    first, end, step = map(_constant, list(x.operation.operands)[:3])
    if first is None or end is None or step is None:
        return 1
    return len(range(first, end, step))


def _constant(value: Any) -> int | None:
    """Returns a constant, or the sum of two: Pallas adds the length to the start."""
    if not isinstance(value, ir.OpResult):
        return None
    x = value.owner
    if x.name == "stable_mosaic.arith.constant":
        return ir.IntegerAttr(x.attributes["value"]).value
    if x.name == "stable_mosaic.arith.addi":
        terms = [n for n in map(_constant, x.operands) if n is not None]
        return sum(terms) if len(terms) == 2 else None
    return None


def _flops(product: Any, unit: int) -> int:
    dimensions = str(product.attributes["dimension_numbers"])
    summed, _, _, columns, *_ = (
        [int(n) for n in re.findall(r"\d+", axes)]
        for axes in re.findall(r"\[([\d, ]*)\]", dimensions)
    )
    left, right = (ir.ShapedType(x.type).shape for x in list(product.operands)[:2])
    filled = [math.prod(left[i] for i in summed), math.prod(right[i] for i in columns)]
    wide = [-(-n // unit) * unit for n in filled]
    rows = math.prod(left) // filled[0]
    return 2 * rows * math.prod(wide)
