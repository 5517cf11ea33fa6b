"""Counts the collectives of a compiled program, from its text.

XLA's optimized HLO is a list of computations that call each other. A scanned layer is
one computation, the body of a `while`: its collectives count once per iteration.

Many collective-permutes are no sign of a bad sharding: in a ring of them, XLA sums or
gathers a matrix piece by piece, at the same time as the product that yields or uses it
(the text then calls the loop `windowed_dot_general`).

Between TPU slices, each device sends its part of an array, after a collective within
its slice, to the host, which does the rest: kinds such as "between slices: all-reduce".
"""

import collections
import dataclasses
import math
import re

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
)

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)"
    r"\((?P<operands>[^()]*)\)(?P<rest>.*)$"
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_BETWEEN_SLICES = re.compile(r"_xla_megascale_transfer_type=\"(\w+)\"")
# Layouts, and comments with element numbers, contain brackets; they are removed first.
_NOISE = re.compile(r"\{[\d,]*:[^{}]*\}|/\*.*?\*/")


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
class _Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str


def read(hlo: str) -> dict[str, Traffic]:
    """Returns the collectives of a compiled program, by kind.

    Args:
        hlo: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: a collective is in a loop whose length the text does not show.
    """
    computations, entry = _parse(hlo)
    counts = _Counter(computations).count(entry)
    kinds = {name for name, _ in counts}
    return {
        kind: Traffic(
            sum(times for (name, _), times in counts.items() if name == kind),
            sum(size * times for (name, size), times in counts.items() if name == kind),
        )
        for kind in (*KINDS, *sorted(kinds.difference(KINDS)))
        if kind in kinds
    }


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations, entry = {}, ""
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            instructions = computations[start[1]] = []
            entry = start[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(_NOISE.sub("", line)):
            fields = match.groupdict()
            operands = re.findall(r"%?([\w.-]+)(?:,|$)", fields.pop("operands"))
            instructions.append(_Instruction(operands=tuple(operands), **fields))
    return computations, entry


class _Counter:
    """Counts collectives as (kind, bytes), including those of called computations."""

    def __init__(self, computations: dict[str, list[_Instruction]]):
        self._computations = computations

    def count(self, name: str, chains: set | None = None) -> collections.Counter:
        """Counts the collectives in one execution of a computation.

        Args:
            name: of the computation.
            chains: parts of collectives that the caller has already counted. On TPUs a
                collective can be interleaved with fusions, each of which repeats it.
        """
        chains = set() if chains is None else chains
        sizes = {x.name: _bytes(x.type) for x in self._computations[name]}
        counts = collections.Counter()
        for x in self._computations[name]:
            kind = x.op.removesuffix("-start")
            if kind in KINDS:
                if chain := re.search(r"chain_id=\"(\d+)\"", x.rest):
                    channel = re.findall(r"channel_id=(\d+)", x.rest)[0]
                    part = kind, chain[1], channel
                    if part in chains:
                        continue
                    chains.add(part)
                input_size = sum(sizes[operand] for operand in x.operands)
                output_size = sizes[x.name]
                if x.op.endswith("-start") and kind != "all-reduce":
                    output_size -= input_size  # they also return their operands
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"  # the form on TPUs: a slice is kept
                counts[kind, max(input_size, output_size)] += 1
            if x.op == "send" and (between := _BETWEEN_SLICES.search(x.rest)):
                kind = between[1].lower().replace("_", "-")
                input_size = sum(sizes[operand] for operand in x.operands)
                counts[f"between slices: {kind}", input_size] += 1
            if x.op.endswith(("-done", "-update")):
                continue
            for called in _called(x):
                called_counts = self.count(called, chains if x.op == "fusion" else None)
                times = self._trip_count(x) if x.op == "while" and called_counts else 1
                for key in called_counts:
                    counts[key] += times * called_counts[key]
        return counts

    def _trip_count(self, loop: _Instruction) -> int:
        if known := re.search(r"known_trip_count.*?\"n\":\"(\d+)\"", loop.rest):
            return int(known[1])
        # The text for TPUs lacks it. A scan counts from 0 up to a constant.
        condition = re.findall(r"condition=%?([\w.-]+)", loop.rest)[0]
        compared = [
            x.operands
            for x in self._computations[condition]
            if x.op == "compare" and "direction=LT" in x.rest
        ]
        constants = {
            x.name: x.operands[0]
            for x in self._computations[condition]
            if x.op == "constant"
        }
        if len(compared) == 1 and compared[0][1] in constants:
            return int(constants[compared[0][1]])
        raise ValueError(
            f"collectives are in the loop {loop.name}, whose length is not known"
        )


def _called(x: _Instruction) -> list[str]:
    return [
        name.strip().removeprefix("%")
        for one, several in _CALLED.findall(x.rest)
        for name in (one or several).split(",")
    ]


def _bytes(type: str) -> int:
    """Returns the size of an array or a tuple of arrays, as `(f32[2,3], bf16[4])`."""
    total = 0
    for _, bits, shape in _ARRAY.findall(type):
        sizes = [int(size) for size in shape.split(",") if size]
        # Types without a number, such as pred, take a byte.
        total += max(int(bits or 8) // 8, 1) * math.prod(sizes)
    return total
