"""Counts the collectives of a compiled program.

Many collective-permutes are no sign of a bad sharding: in a ring of them, XLA sums or
gathers a matrix piece by piece, at the same time as the product that yields or uses it
(the text then calls the loop `windowed_dot_general`).

Between TPU slices, each device sends its part of an array, after a collective within
its slice, to the host, which does the rest: kinds such as "between slices: all-reduce".
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from videomae_jax.tpu.program import Execution, Program

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
)

_BETWEEN_SLICES = re.compile(r"_xla_megascale_transfer_type=\"(\w+)\"")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in one execution of a program.

    Attributes:
        count: number of collectives executed.
        bytes: size of the whole arrays, before scattering or after gathering, per
            device; between slices, size of what a device sends. In one-to-one transfers
            only some devices may send.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective in its place in the program.

    Attributes:
        kind: one of KINDS, or such as "between slices: all-reduce".
        bytes: as those of Traffic, of one execution.
        execution: the instruction, and how often it is executed.
        overlapped: True if other operations are scheduled to run at the same time.
    """

    kind: str
    bytes: int
    execution: Execution
    overlapped: bool


def read(program: Program) -> dict[str, Traffic]:
    """Returns the collectives of a compiled program, by kind.

    Raises:
        ValueError: a collective is in a loop whose length the text does not show.
    """
    counts, sizes = collections.Counter(), collections.Counter()
    for x in each(program):
        if loop := x.execution.unknown_loop:
            raise ValueError(
                f"collectives are in the loop {loop}, whose length is not known"
            )
        counts[x.kind] += x.execution.times
        sizes[x.kind] += x.execution.times * x.bytes
    return {
        kind: Traffic(counts[kind], sizes[kind])
        for kind in (*KINDS, *sorted(counts.keys() - set(KINDS)))
        if kind in counts
    }


def each(program: Program) -> Iterator[Collective]:
    """Yields the collectives of a program."""
    chains = set()
    for execution in program.executions():
        x = execution.instruction
        kind = x.op.removesuffix("-start")
        if kind in KINDS:
            if chain := re.search(r"chain_id=\"(\d+)\"", x.rest):
                # On TPUs a collective can be interleaved with fusions, each of which
                # repeats it.
                channel = re.findall(r"channel_id=(\d+)", x.rest)[0]
                part = execution.path, kind, chain[1], channel
                if part in chains:
                    continue
                chains.add(part)
            input_size, output_size = program.input_bytes(x), x.bytes
            if x.op.endswith("-start") and kind != "all-reduce":
                output_size -= input_size  # they also return their operands
            if kind == "all-reduce" and execution.computation.startswith(
                "all-reduce-scatter"
            ):
                kind = "reduce-scatter"  # the form on TPUs: a slice is kept
            size = max(input_size, output_size)
            overlapped = bool(chain) or _overlaps(program, execution)
            yield Collective(kind, size, execution, overlapped)
        elif x.op == "send" and (between := _BETWEEN_SLICES.search(x.rest)):
            kind = f"between slices: {between[1].lower().replace('_', '-')}"
            size, overlapped = program.input_bytes(x), _overlaps(program, execution)
            yield Collective(kind, size, execution, overlapped)


def _overlaps(program: Program, execution: Execution) -> bool:
    """Returns True if other work is scheduled between start and end of a collective."""
    start = execution.instruction
    if execution.whole and execution.whole.op == "async-start":
        start = execution.whole
    if start.op != "send" and not start.op.endswith("-start"):
        return False
    computation = next(x for x in program.computations.values() if start in x)
    started = {start.name}
    for x in computation[computation.index(start) + 1 :]:
        if started.intersection(x.operands):
            if x.op.endswith("-done"):
                return False
            if x.op.endswith("-update"):
                started.add(x.name)
        if x.cycles or x.op in ("while", "custom-call"):
            return True
    return False
