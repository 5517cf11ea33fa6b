"""Reading programs in texts as XLA writes them."""

import pathlib

import jax
import jax.numpy as jnp

from videomae_jax.tpu.program import Program

# Two loops, one in the other, and attributes of several lines.
NESTED = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/run.py"
2 "/home/me/videomae_jax/models/vit.py"
3 "/lib/flax/linear.py"

FunctionNames
1 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=120 end_line=120 column=1 end_column=9}
3 {file_name_id=3 function_name_id=1 line=7 end_line=7 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%inside (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(256)} parameter(0)
  ROOT %twice = f32[8]{0:T(256)} add(%p, %p)
}

%layer (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0:T(256)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0:T(256)} get-tuple-element(%state), index=1
  %sum = f32[8]{0:T(256)} fusion(%x), kind=kLoop, calls=%inside, \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(step)/sum" stack_frame_id=3}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %copy-start = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%sum), \
backend_config={"estimated_cycles":"7"}
  %copy-done = f32[8]{0:T(256)} copy-done(%copy-start)
  ROOT %next = (s32[], f32[8]{0:T(256)}) tuple(%i, %copy-done)
}

%more (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0:T(256)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %length = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %length), direction=LT
}

%batch (state.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.2 = (s32[], f32[8]{0:T(256)}) parameter(0)
  ROOT %layers = (s32[], f32[8]{0}) while(%state.2), condition=%more, body=%layer
}

%more.2 (state.3: (s32[], f32[8])) -> pred[] {
  %state.3 = (s32[], f32[8]{0:T(256)}) parameter(0)
  %i.3 = s32[] get-tuple-element(%state.3), index=0
  %length.3 = s32[]{:T(128)} constant(5)
  ROOT %less.3 = pred[]{:T(512)} compare(%i.3, %length.3), direction=LT
}

ENTRY %main (start: (s32[], f32[8])) -> (s32[], f32[8]) {
  %start = (s32[], f32[8]{0:T(256)}) parameter(0)
  ROOT %batches = (s32[], f32[8]{0}) while(%start), condition=%more.2, body=%batch
}
"""


def executions(program: Program) -> dict:
    return {x.instruction.name: x for x in program.executions()}


def test_nested_loops_multiply():
    found = executions(Program(NESTED))
    assert found["batches"].times == 1 and found["layers"].times == 5
    assert found["sum"].times == 15
    assert found["sum"].path == ("batches", "layers")


def test_instructions_of_several_lines_keep_what_follows():
    program = Program(NESTED)
    x = program.instructions["sum"]
    assert x.cycles == 100 and x.op_name == "jit(step)/sum" and x.bytes == 32
    assert program.input_bytes(x) == 32
    assert program.instructions["copy-start"].cycles is None


def test_parts_of_fusions_are_found():
    program = Program(NESTED)
    fusion = program.instructions["sum"]
    assert [x.name for x in program.parts(fusion)] == ["p", "twice"]
    assert executions(program)["twice"].whole == fusion
    assert executions(program)["copy-done"].whole is None


def test_source_is_the_innermost_line_of_the_package():
    program = Program(NESTED)
    x = program.instructions["sum"]
    assert program.source(x, "videomae_jax") == "videomae_jax/models/vit.py:120"
    assert program.source(x, "elsewhere") == "/lib/flax/linear.py:7"
    assert program.source(program.instructions["copy-done"], "videomae_jax") == ""


def test_source_of_a_program_of_this_version():
    elsewhere = {"jnp": jnp}
    exec(compile("def sort(x): return jnp.sort(x)", "/lib/sort.py", "exec"), elsewhere)

    def step(x):
        return elsewhere["sort"](x)  # this line

    lines = pathlib.Path(__file__).read_text().splitlines()
    line = next(i for i, x in enumerate(lines, 1) if x.endswith("# this line"))
    # A program from the cache would have the lines of when it was compiled.
    x = jax.ShapeDtypeStruct((1000 + line,), jnp.float32)
    program = Program(jax.jit(step).lower(x).compile().as_text())
    [sort] = [x for x in program.instructions.values() if x.op == "sort"]
    assert program.source(sort, "videomae_jax") == "/lib/sort.py:1"
    assert program.source(sort, "tests") == f"tests/tpu/test_program.py:{line}"
