"""What a compiled program moves between devices, read from its text.

XLA's optimised HLO is a list of computations that call each other. A scanned layer is
one computation, the body of a `while`: what it moves counts once for each iteration.

Not every collective-permute is a waste: in a ring of them XLA sums or gathers a matrix
piece by piece while the product that makes or takes it goes on (the text then calls
the loop `windowed_dot_general`).

Between TPU slices, what each device has of an array after a collective within its slice
is sent to the host, which does the rest: kinds such as "between slices: all-reduce".
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
# Layouts hold brackets, and so do numbers of elements in comments.
_NOISE = re.compile(r"\{[\d,]*:[^{}]*\}|/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one run of a program.

    Attributes:
        count: how many run.
        bytes: of the whole arrays, before they are scattered or after they are
            gathered, that each device takes part in summing or moving; between slices,
            of what a device gives of its own. One-to-one, only some may send.
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
    """The collectives of a compiled program, by kind, those that there are.

    Args:
        hlo: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: if one is in a loop whose length the text does not tell.
    """
    computations, entry = _parse(hlo)
    found = _Reader(computations).inside(entry)
    kinds = {name for name, _ in found}
    return {
        kind: Traffic(
            sum(times for (name, _), times in found.items() if name == kind),
            sum(size * times for (name, size), times in found.items() if name == kind),
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


class _Reader:
    """Counts (kind, bytes) in computations, those that they call included."""

    def __init__(self, computations: dict[str, list[_Instruction]]):
        self._computations = computations

    def inside(self, name: str, chains: set | None = None) -> collections.Counter:
        """What one run of a computation moves.

        Args:
            name: of the computation.
            chains: parts of collectives that its caller has met. A TPU interleaves one
                with fusions, in each of which it is written again.
        """
        chains = set() if chains is None else chains
        sizes = {x.name: _bytes(x.type) for x in self._computations[name]}
        found = collections.Counter()
        for x in self._computations[name]:
            kind = x.op.removesuffix("-start")
            if kind in KINDS:
                if chain := re.search(r"chain_id=\"(\d+)\"", x.rest):
                    part = kind, chain[1], re.search(r"channel_id=(\d+)", x.rest)[1]
                    if part in chains:
                        continue
                    chains.add(part)
                taken = sum(sizes[operand] for operand in x.operands)
                made = sizes[x.name]
                if x.op.endswith("-start") and kind != "all-reduce":
                    made -= taken  # They return what they took, too.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"  # How a TPU writes it: it keeps a slice.
                found[kind, max(taken, made)] += 1
            if x.op == "send" and (between := _BETWEEN_SLICES.search(x.rest)):
                kind = between[1].lower().replace("_", "-")
                taken = sum(sizes[operand] for operand in x.operands)
                found[f"between slices: {kind}", taken] += 1
            if x.op.endswith(("-done", "-update")):
                continue
            for called in _called(x):
                own = chains if x.op == "fusion" else None
                inside = self.inside(called, own)
                times = self._trips(x) if x.op == "while" and inside else 1
                for key in inside:
                    found[key] += times * inside[key]
        return found

    def _trips(self, loop: _Instruction) -> int:
        if known := re.search(r"known_trip_count.*?\"n\":\"(\d+)\"", loop.rest):
            return int(known[1])
        # The TPU's text does not tell. A scan counts from 0 up to a constant.
        condition = re.search(r"condition=%?([\w.-]+)", loop.rest)[1]
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
            f"collectives run in the loop {loop.name}, whose length is not known"
        )


def _called(x: _Instruction) -> list[str]:
    return [
        name.strip().removeprefix("%")
        for one, several in _CALLED.findall(x.rest)
        for name in (one or several).split(",")
    ]


def _bytes(type: str) -> int:
    """Bytes of an array or a tuple of arrays, as `(f32[2,3], bf16[4])`."""
    total = 0
    for _, bits, shape in _ARRAY.findall(type):
        sizes = [int(size) for size in shape.split(",") if size]
        # Those without a number are pred and token-like: a byte.
        total += max(int(bits or 8) // 8, 1) * math.prod(sizes)
    return total
