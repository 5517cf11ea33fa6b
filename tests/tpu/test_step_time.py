"""Reading the time that the TPU compiler expects, in texts and in real programs."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from tests.helpers.libtpu import needs_libtpu, output_of
from videomae_jax.tpu import kinds, step_time, topology
from videomae_jax.tpu.chips import CHIPS, Chip
from videomae_jax.tpu.collectives import Traffic
from videomae_jax.tpu.program import Instruction, Program
from videomae_jax.training.reporting import PEAK_FLOPS

# A million cycles per second, and bytes.
SLOW = Chip(clock=1e6, units=1, width=128, memory=1e6, link=1e6)

PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%product (p: bf16[256,128], w: bf16[128,128]) -> bf16[256,128] {
  %p = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot = bf16[256,128]{1,0:T(8,128)(2,1)} convolution(%p, %w), dim_labels=bf_io->bf
}

%gathering (q: bf16[256,128]) -> bf16[64,128] {
  %q = bf16[256,128]{1,0} parameter(0)
  ROOT %taken = bf16[64,128]{1,0} gather(%q), slice_sizes={1,128}
}

%layer (state: (s32[], bf16[256,128])) -> (s32[], bf16[256,128]) {
  %state = (s32[], bf16[256,128]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[256,128] get-tuple-element(%state), index=1
  %fusion = bf16[256,128]{1,0} fusion(%x, %x), kind=kOutput, calls=%product, \
metadata={op_name="jit(train_step)/jvp(VideoMAE)/encoder/while/body/blocks/mlp/dot"}, \
backend_config={"window_config":{"estimated_cycles":"2000"}}
  ROOT %next = (s32[], bf16[256,128]) tuple(%i, %fusion)
}

%more (state.1: (s32[], bf16[256,128])) -> pred[] {
  %state.1 = (s32[], bf16[256,128]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %length = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %length), direction=LT
}

ENTRY %main (start: (s32[], bf16[256,128]), y: f32[2048]) -> f32[2048] {
  %start = (s32[], bf16[256,128]) parameter(0)
  %y = f32[2048] parameter(1)
  %sum-start = f32[2048] all-reduce-start(%y), to_apply=%add
  %loop = (s32[], bf16[256,128]) while(%start), condition=%more, body=%layer
  %sum-done = f32[2048] all-reduce-done(%sum-start)
  %out = bf16[256,128] get-tuple-element(%loop), index=1
  %copy-start = (bf16[256,128], bf16[256,128], u32[]) copy-start(%out)
  %copy-done = bf16[256,128] copy-done(%copy-start)
  %taken.1 = bf16[64,128] fusion(%copy-done), kind=kLoop, calls=%gathering
  %pad = bf16[264,128] pad(%out, %y), metadata={op_name="jit(train_step)/\
transpose(jvp(VideoMAE))/decoder/blocks/attention/pad"}, \
backend_config={"estimated_cycles":"500"}
  ROOT %summed = f32[2048] all-reduce(%sum-done), to_apply=%add
}
"""


def test_cycles_count_once_per_iteration():
    time = step_time.read(Program(PROGRAM), SLOW)
    assert time.cycles == 3 * 2000 + 500
    assert time.kinds["products"] == pytest.approx(0.006)
    assert time.kinds["padding"] == pytest.approx(0.0005)
    assert time.modules["encoder"] == pytest.approx(0.006)
    assert time.modules["decoder"] == pytest.approx(0.0005)
    largest = {x.name: x for x in time.largest}
    assert largest["fusion"].times == 3
    assert largest["fusion"].seconds == pytest.approx(0.006)


def test_collectives_count_unless_they_overlap():
    time = step_time.read(Program(PROGRAM), SLOW)
    # Each of 8 KiB, twice over the links.
    assert time.overlapped == pytest.approx(2 * 8192e-6)
    assert time.kinds["collectives"] == pytest.approx(2 * 8192e-6)
    assert time.seconds == pytest.approx(0.0065 + 2 * 8192e-6)
    nothing_between = PROGRAM.replace("%sum-start)\n", "%copy-done)\n")
    text = nothing_between.replace(
        "to_apply=%add\n  %loop",
        "to_apply=%add\n  %early = f32[2048] all-reduce-done(%sum-start)\n  %loop",
    )
    assert step_time.read(Program(text), SLOW).overlapped == 0


def test_what_has_no_estimate_is_listed():
    unknown = step_time.read(Program(PROGRAM), SLOW).unknown
    assert unknown == {
        "asynchronous copies, which overlap": Traffic(1, 2 * 256 * 128),
        "gather": Traffic(1, 2 * 64 * 128),
    }
    text = PROGRAM.replace("direction=LT", "direction=NE")
    time = step_time.read(Program(text), SLOW)
    assert time.cycles == 2000 + 500
    assert time.unknown["loops of unknown length, counted once"] == Traffic(1, 0)


@pytest.mark.parametrize(
    ("type", "op", "path", "kind", "module"),
    [
        ("u8[2,8,3]", "copy", "batch['patches']", "patches", "other"),
        ("f32[9]", "add", "jit(train_step)/mul", "optimizer", "optimizer"),
        (
            "f32[9]",
            "add",
            "jit(train_step)/while/body/add",
            "sum of gradients",
            "other",
        ),
        (
            *("f32[9]", "reduce", "jit(train_step)/jvp()/dot_general"),
            *("targets and loss", "targets and loss"),
        ),
        ("f32[9]", "add", "jvp(M)/encoder/blocks/norm1/mul", "LayerNorm", "encoder"),
        ("f32[9]", "add", "jvp(M)/decoder/norm/mul", "LayerNorm", "decoder"),
        ("f32[9]", "copy", "jvp(M)/encoder_to_decoder/mul", "copies", "decoder"),
        (
            *("bf16[9]", "convolution", "jvp(M)/encoder/attention/bhqd,bhkd->bhqk/dot"),
            *("attention products", "encoder"),
        ),
        (
            *("f32[2,9]", "fusion", "encoder/while/body/dynamic_update_index_in_dim/x"),
            *("stacking of layers", "other"),
        ),
        ("f32[9]", "reduce", "a/decoder/out/reduce_sum", "bias gradients", "decoder"),
        ("f32[9]", "slice", "a/decoder/attention/split", "q, k, v split", "decoder"),
        ("f32[9]", "convert", "", "casts and fills", "other"),
        ("f32[9]", "add", "a/encoder/attention/mul", "attention, other", "encoder"),
    ],
)
def test_kinds_follow_from_names(type, op, path, kind, module):
    x = Instruction("x", type, op, (), f', metadata={{op_name="{path}"}}')
    assert kinds.kind(Program(""), x) == kind
    assert kinds.module(x) == module


def test_clocks_and_units_give_the_published_peak():
    for kind, chip in CHIPS.items():
        assert chip.peak == pytest.approx(PEAK_FLOPS[kind], rel=0.003)


SIDE, LAYERS = 4096, 6


@functools.cache
def expected() -> dict:
    """Returns what the compiler of v5e expects of some functions, in seconds."""
    return output_of("tests.tpu.test_step_time")


@needs_libtpu
@pytest.mark.slow
def test_compiler_is_near_paper_for_a_large_product():
    assert 1 < expected()["product"] / (2 * SIDE**3 / V5E.peak) < 1.3


@needs_libtpu
@pytest.mark.slow
def test_compiler_is_near_paper_for_a_large_copy():
    read_and_written = 2 * 4 * SIDE**2
    assert 1 < expected()["copy"] / (read_and_written / V5E.memory) < 1.6


@needs_libtpu
@pytest.mark.slow
def test_scan_takes_as_long_as_its_products():
    paper = LAYERS * 2 * SIDE * 2048**2 / V5E.peak
    assert 1 < expected()["scan"] / paper < 2
    assert expected()["longer scan"] / expected()["scan"] == pytest.approx(2, rel=0.05)


@needs_libtpu
@pytest.mark.slow
def test_small_kernel_takes_as_long_as_its_arrays():
    read_and_written = 2 * SIDE * 128 + 2 * 128 * 128 + 4 * SIDE * 128
    assert expected()["kernel"] == pytest.approx(read_and_written / V5E.memory)


V5E = CHIPS["TPU v5 lite"]


def _seconds(function, *shapes) -> float:
    device = topology.devices("v5e-4")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes
    ]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return step_time.read(Program(text), V5E).seconds


if __name__ == "__main__":

    def scan(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    def kernel(x, weights, out):
        out[...] = jnp.dot(x[...], weights[...], preferred_element_type=jnp.float32)

    def call(x, weights):
        shape = jax.ShapeDtypeStruct((SIDE, 128), jnp.float32)
        return pl.pallas_call(kernel, out_shape=shape)(x, weights)

    half = jnp.bfloat16
    print(
        json.dumps(
            {
                "product": _seconds(jnp.matmul, *[((SIDE, SIDE), half)] * 2),
                "copy": _seconds(lambda x: x + 1, ((SIDE, SIDE), jnp.float32)),
                **{
                    name: _seconds(
                        scan, ((SIDE, 2048), half), ((length, 2048, 2048), half)
                    )
                    for name, length in (("scan", LAYERS), ("longer scan", 2 * LAYERS))
                },
                "kernel": _seconds(call, ((SIDE, 128), half), ((128, 128), half)),
            }
        )
    )
