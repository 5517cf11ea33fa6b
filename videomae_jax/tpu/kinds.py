"""Sorts the operations of a training step by kind of work and by part of the step.

Both follow from what a fusion contains, and from the path of JAX's names to its result,
such as `jit(train_step)/transpose(jvp(VideoMAE))/decoder/while/body/.../norm1/sub`. A
fusion that does several things counts as the first of them in `kind`.
"""

import re

from videomae_jax.tpu.kernels import is_kernel
from videomae_jax.tpu.program import Instruction, Program

# Operations that only move values, or convert them.
_MOVES = {
    *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "fusion"),
    *("copy", "transpose", "reshape", "slice", "concatenate", "convert"),
}
_FILLS = {"broadcast", "convert", "iota"}
# The type of raw pixels.
_RAW = re.compile(r"u(8|16)\[")


def kind(program: Program, x: Instruction) -> str:
    """Returns the kind of work of an operation that takes time."""
    ops = {part.op for part in program.parts(x)}
    path, part = x.op_name, module(x)
    last = path.rpartition("/")[2]
    if is_kernel(x):
        return "kernels"
    if _RAW.match(x.type) and ops <= _MOVES:
        return "patches"
    if part in ("optimizer", "targets and loss"):
        return part
    if ops & {"convolution", "dot"}:
        # Attention names its axes, as in bhqk,bhkd->bhqd.
        return "attention products" if "->" in path else "products"
    if "dynamic-update-slice" in ops or re.search(r"dynamic_\w*index_in_dim", path):
        return "stacking of layers"
    if "while/body" in path and "jvp(" not in path:
        return "sum of gradients"
    if last == "pad":
        return "padding"
    if re.search(r"/\w*norm\w*/", path):
        return "LayerNorm"
    if last == "reduce_sum":
        return "bias gradients"
    if last == "split":
        return "q, k, v split"
    if x.op in _FILLS:
        return "casts and fills"
    if ops <= _MOVES:
        return "copies"
    return "attention, other" if "/attention/" in path else "other"


def module(x: Instruction) -> str:
    """Returns the part of the step that an operation belongs to."""
    path = x.op_name
    for name in ("encoder", "decoder"):
        if re.search(rf"/(encoder_to_)?{name}/", path):
            return name
    if "jvp()" in path:
        return "targets and loss"
    # What is not differentiated, and not in the loop over micro-batches.
    if path.startswith("jit(train_step)/") and not re.search(r"jvp\(|while/", path):
        return "optimizer"
    return "other"
