"""Counting the collectives in texts as XLA writes them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from videomae_jax.tpu import collectives
from videomae_jax.tpu.collectives import Traffic
from videomae_jax.tpu.program import Program

ADD = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

"""

# A layer scanned three times, in the form of the CPU and that of the TPU.
LOOP = (
    ADD
    + """\
%layer (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0:T(256)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0:T(256)S(1)} get-tuple-element(%state), index=1
  %summed = f32[8]{0:T(256)} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, \
to_apply=%add
  ROOT %next = (s32[], f32[8]{0:T(256)}) tuple(%i, %summed)
}

%more (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0:T(256)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %length = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %length), direction=LT
}

ENTRY %main (start: (s32[], f32[8])) -> (s32[], f32[8]) {
  %start = (s32[], f32[8]{0:T(256)}) parameter(0)
  ROOT %loop = (s32[], f32[8]{0:T(256)}) while(%start), condition=%more, body=%layer
}
"""
)
TRIPS = 'body=%layer, backend_config={"known_trip_count":{"n":"5"}}'

PAIRS = (
    ADD
    + """\
ENTRY %main.2 (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[] constant(1)
  %sum-start = (bf16[4,8]{1,0}, f32[]) all-reduce-start(%p, %q), to_apply=%add
  %sum-done = (bf16[4,8]{1,0}, f32[]) all-reduce-done(%sum-start)
  %all-start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), dimensions={0}
  %all-done = bf16[16,8]{1,0} all-gather-done(%all-start)
  %next-start = (bf16[4,8], bf16[4,8], u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%p), source_target_pairs={{0,1}}
  %next-done = bf16[4,8] collective-permute-done(%next-start)
  %slice = bf16[1,8]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %swapped = bf16[4,8]{1,0} all-to-all(%p), dimensions={0}
  ROOT %out = bf16[16,8]{1,0} copy(%all-done)
}
"""
)

# A gather that is spread over two fusions, and a sum of which each chip keeps a slice.
TPU = (
    ADD
    + """\
%all-reduce-scatter.1 (a: f32[8,8]) -> f32[4,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %whole = f32[8,8]{1,0} all-reduce(%a), channel_id=1, to_apply=%add
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%whole), dynamic_slice_sizes={4,8}
}

%async_collective_fusion (b: f32[4,8]) -> f32[8,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %gathered = f32[8,8]{1,0} all-gather(%b), channel_id=2, \
frontend_attributes={chain_id="0"}
}

%async_collective_fusion.1 (c: f32[4,8]) -> f32[8,8] {
  %c = f32[4,8]{1,0} parameter(0)
  ROOT %gathered.1 = f32[8,8]{1,0} all-gather(%c), channel_id=2, \
frontend_attributes={chain_id="0"}
}

ENTRY %main.3 (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %kept = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %first = f32[8,8]{1,0} fusion(%kept), kind=kCustom, calls=%async_collective_fusion
  ROOT %second = f32[8,8]{1,0} fusion(%kept), kind=kCustom, \
calls=%async_collective_fusion.1
}
"""
)

# Two slices sum an array in a loop, and gather another after it.
SLICES = """\
HloModule jit_step, is_scheduled=true

%layer (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %order = token[] after-all()
  %send = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%x, %order), \
channel_id=2, is_host_transfer=true, frontend_attributes={\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%order), \
channel_id=1, is_host_transfer=true, frontend_attributes={\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %received = (bf16[4,8]{1,0}, token[]) recv-done(%recv), channel_id=1
  %summed = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%received), index=0
  ROOT %next = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%i, %summed)
}

%more (state.1: (s32[], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %length = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %length), direction=LT
}

ENTRY %main (start: (s32[], bf16[4,8]), y: f32[16]) -> token[] {
  %start = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %y = f32[16]{0:T(256)} parameter(1)
  %loop = (s32[], bf16[4,8]{1,0}) while(%start), condition=%more, body=%layer
  %first = token[] after-all()
  %send.1 = (f32[16]{0:T(256)}, u32[]{:S(2)}, token[]) send(%y, %first), \
channel_id=4, is_host_transfer=true, frontend_attributes={\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  ROOT %sent.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
}
"""


def read(text: str) -> dict[str, Traffic]:
    return collectives.read(Program(text))


def test_collectives_in_a_loop_count_once_per_iteration():
    assert read(LOOP) == {"all-reduce": Traffic(3, 3 * 32)}
    with_count = LOOP.replace("body=%layer", TRIPS)
    assert read(with_count) == {"all-reduce": Traffic(5, 5 * 32)}


def test_collectives_in_a_loop_of_unknown_length_raise():
    unknown = LOOP.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="loop loop, whose length is not known"):
        read(unknown)
    still = unknown.replace("all-reduce(%x)", "negate(%x)")
    assert read(still) == {}


def test_asynchronous_pairs_count_once():
    assert read(PAIRS) == {
        "all-reduce": Traffic(1, 64 + 4),
        "reduce-scatter": Traffic(1, 64),
        "all-gather": Traffic(1, 256),
        "all-to-all": Traffic(1, 64),
        "collective-permute": Traffic(1, 64 + 8),
    }


def test_collective_spread_over_fusions_counts_once():
    assert read(TPU) == {
        "reduce-scatter": Traffic(1, 256),
        "all-gather": Traffic(1, 256),
    }


def test_traffic_between_slices_has_its_own_kinds():
    assert read(SLICES) == {
        "between slices: all-reduce": Traffic(3, 3 * 64),
        "between slices: all-gather": Traffic(1, 64),
    }


def test_program_compiled_for_cpus():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    split = NamedSharding(mesh, P("data"))

    def step(x):
        return jax.lax.scan(lambda x, _: (x / x.sum(), None), x, length=7)[0]

    x = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split)
    text = jax.jit(step).lower(x).compile().as_text()
    assert read(text) == {"all-reduce": Traffic(7, 7 * 4)}
