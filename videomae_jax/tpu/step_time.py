"""Reads from a compiled step how long its compiler expects it to take.

XLA's TPU compiler notes the cycles that it expects of almost every operation. Nothing
of this is measured: on a chip, operations also wait for memory and for each other.
"""

import collections
import dataclasses
import re

from videomae_jax.tpu import kernels, kinds
from videomae_jax.tpu.chips import Chip
from videomae_jax.tpu.collectives import KINDS, Collective, Traffic, each
from videomae_jax.tpu.program import Instruction, Program

# What takes no time of its own.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
}
_FREE_CALL = re.compile(r'custom_call_target="(AllocateBuffer|\w*Bitcast)"')
# Results that fill at most one register of the vector unit are not listed as unknown.
_SMALL = 4096
_LARGEST = 20


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a step.

    Attributes:
        name: of the instruction.
        kind: of work; see kinds.py.
        module: part of the step; see kinds.py.
        times: how often it runs.
        seconds: of all these times.
        type: of the result.
        source: file and line of the code that made it; empty if unknown.
    """

    name: str
    kind: str
    module: str
    times: int
    seconds: float
    type: str
    source: str


@dataclasses.dataclass(frozen=True)
class StepTime:
    """How long a device is expected to take for a step.

    Attributes:
        seconds: of the step.
        cycles: of the operations that the compiler estimates.
        kinds, modules: seconds by kind of work and by part of the step. Besides the
            operations that the compiler estimates these are "kernels" of Pallas: their
            matrix products or reading arguments and writing results, whichever is
            longer; and "collectives": bytes over the bandwidth of the links.
        overlapped: seconds of collectives that run beside operations, and do not count.
        largest: the operations that take the most time.
        unknown: what is left out, by opcode, with the bytes of its results.
    """

    seconds: float
    cycles: int
    kinds: dict[str, float]
    modules: dict[str, float]
    overlapped: float
    largest: list[Operation]
    unknown: dict[str, Traffic]


def read(program: Program, chip: Chip) -> StepTime:
    """Returns the time that the compiler of a program expects of it.

    A loop whose length the text does not show counts once, and is listed as unknown.
    """
    operations, cycles, overlapped = [], 0, 0.0
    counts, sizes = collections.Counter(), collections.Counter()

    def add(x: Instruction, kind: str, module: str, times: int, seconds: float):
        source = program.source(x, "videomae_jax")
        operations.append(
            Operation(x.name, kind, module, times, times * seconds, x.type, source)
        )

    def add_unknown(name: str, times: int, size: int):
        counts[name] += times
        sizes[name] += times * size

    for execution in program.executions():
        x, times = execution.instruction, execution.times
        if x.op == "while" and program.trip_count(x) is None:
            add_unknown("loops of unknown length, counted once", times, 0)
        if execution.whole or x.op in _FREE or _FREE_CALL.search(x.rest):
            continue
        if kernels.is_kernel(x):
            flops = kernels.product_flops(x, chip.width)
            moved = program.input_bytes(x) + x.bytes
            seconds = max(flops / chip.peak, moved / chip.memory)
            add(x, "kernels", kinds.module(x), times, seconds)
        elif x.cycles is not None:
            cycles += times * x.cycles
            seconds = x.cycles / chip.clock
            add(x, kinds.kind(program, x), kinds.module(x), times, seconds)
        elif x.bytes > _SMALL and (name := _unknown(program, x)):
            add_unknown(name, times, x.bytes)
    for x in each(program):
        times = x.execution.times
        if (seconds := _collective_seconds(x, chip)) is None:
            add_unknown(x.kind, times, x.bytes)
        elif x.overlapped:
            overlapped += times * seconds
        else:
            add(x.execution.instruction, "collectives", "collectives", times, seconds)
    by_kind, by_module = collections.Counter(), collections.Counter()
    for x in operations:
        by_kind[x.kind] += x.seconds
        by_module[x.module] += x.seconds
    return StepTime(
        seconds=sum(x.seconds for x in operations),
        cycles=cycles,
        kinds=dict(by_kind.most_common()),
        modules=dict(by_module.most_common()),
        overlapped=overlapped,
        largest=sorted(operations, key=lambda x: -x.seconds)[:_LARGEST],
        unknown={
            name: Traffic(counts[name], size) for name, size in sizes.most_common()
        },
    )


def _collective_seconds(x: Collective, chip: Chip) -> float | None:
    """Returns the time of one execution; between slices None: no rate is known."""
    if x.kind not in KINDS:
        return None
    # In a ring, a sum passes each link twice: to add the parts, and to return them.
    passes = 2 if x.kind == "all-reduce" else 1
    return passes * x.bytes / chip.link


def _unknown(program: Program, x: Instruction) -> str:
    """Returns the name to list an operation without an estimate under; "" for none."""
    if x.op.endswith(("-start", "-update")):
        return ""
    op = x.op.removesuffix("-done")
    if op in KINDS or op in ("send", "recv"):
        return ""  # counted as collectives
    if op != x.op:
        return "asynchronous copies, which overlap"
    if op == "custom-call":
        return re.findall(r'custom_call_target="([^"]*)"', x.rest)[0]
    parts = {part.op for part in program.parts(x)}
    return next((name for name in ("gather", "scatter", "sort") if name in parts), op)
