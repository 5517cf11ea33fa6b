"""Reads the text of a compiled program: what it executes, and how often.

XLA's optimized HLO is a list of computations that call each other. A scanned layer is
one computation, the body of a `while`: its instructions run once per iteration. The
text of current versions starts with tables of the source lines that made them.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)"
    r"\((?P<operands>[^()]*)\)(?P<rest>.*)$"
)
_CALLED = re.compile(
    r"(?:calls|body|true_computation|false_computation)=%?([\w.-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
# An instruction whose attributes contain line ends goes on in the next lines.
_STARTS = re.compile(r"[A-Z%]|\d+ |\}?$|\s+(?:ROOT )?%?[\w.-]+ = ")
_ENTRY_OF_TABLE = re.compile(r"(\d+) (.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
# Layouts, and comments with element numbers, contain brackets; they are removed first.
_NOISE = re.compile(r"\{[\d,]*:[^{}]*\}|/\*.*?\*/")
# Operations that are estimated and scheduled as a whole.
_WHOLE = ("fusion", "async-start")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
        name: unique in the program.
        type: of the result, as `f32[2,3]` or a tuple of such.
        op: opcode, as `fusion`.
        operands: names of the instructions whose results it takes; of a constant, its
            value.
        rest: attributes, metadata and the compiler's notes.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str

    @property
    def bytes(self) -> int:
        """The size of the result: an array or a tuple of arrays, without padding."""
        total = 0
        for _, bits, shape in _ARRAY.findall(self.type):
            sizes = [int(size) for size in shape.split(",") if size]
            # Types without a number, such as pred, take a byte.
            total += max(int(bits or 8) // 8, 1) * math.prod(sizes)
        return total

    @property
    def called(self) -> list[str]:
        """The computations that it runs, except the condition of a loop."""
        if self.op == "call":
            return re.findall(r"to_apply=%?([\w.-]+)", self.rest)
        return [
            name.strip().removeprefix("%")
            for one, several in _CALLED.findall(self.rest)
            for name in (one or several).split(",")
        ]

    @property
    def op_name(self) -> str:
        """The path of JAX's names to the operation that it is made from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, if it has one; asynchronous operations overlap."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        overlaps = self.op.endswith(("-start", "-update", "-done"))
        return int(match[1]) if match and not overlaps else None


_NOTHING = Instruction("", "", "", (), "")


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction in its place in the program.

    Attributes:
        instruction: what is executed.
        computation: the name of the computation that it is in.
        times: how often.
        path: names of the loops and calls that it is in, from outside to inside.
        whole: the fusion or asynchronous operation that it is a part of, if any.
        unknown_loop: a loop around it whose length the text does not show.
    """

    instruction: Instruction
    computation: str
    times: int = 1
    path: tuple[str, ...] = ()
    whole: Instruction | None = None
    unknown_loop: str | None = None


class Program:
    """A compiled program.

    Attributes:
        computations: their instructions, by name, in the order of execution.
        instructions: all of them, by name.
        entry: the name of the computation that is the program.
    """

    def __init__(self, text: str):
        """Parses a text of `jax.stages.Compiled.as_text()`."""
        self.computations: dict[str, list[Instruction]] = {}
        self.instructions: dict[str, Instruction] = {}
        self.entry = ""
        tables, table = {}, {}
        instructions = []
        for line in _lines(text):
            if start := _COMPUTATION.match(line):
                instructions = self.computations[start[1]] = []
                self.entry = start[1] if line.startswith("ENTRY") else self.entry
            elif match := _INSTRUCTION.match(_NOISE.sub("", line)):
                fields = match.groupdict()
                operands = re.findall(r"%?([\w.-]+)(?:,|$)", fields.pop("operands"))
                x = Instruction(operands=tuple(operands), **fields)
                instructions.append(x)
                self.instructions[x.name] = x
            elif re.fullmatch(r"[A-Z]\w+", line):
                table = tables[line] = {}
            elif match := _ENTRY_OF_TABLE.match(line):
                table[match[1]] = match[2]
        self._tables = tables

    def executions(self) -> Iterator[Execution]:
        """Yields all that one execution of the program executes.

        Every branch of a condition counts as executed, and a loop whose length is
        unknown as one iteration.
        """
        yield from self._executions(self.entry, Execution(_NOTHING, self.entry))

    def _executions(self, name: str, caller: Execution) -> Iterator[Execution]:
        for x in self.computations[name]:
            here = dataclasses.replace(caller, instruction=x, computation=name)
            yield here
            if x.op.endswith(("-done", "-update")):
                continue  # these repeat what the first half of the operation calls
            inside = here
            if x.op in _WHOLE:
                inside = dataclasses.replace(here, whole=here.whole or x)
            elif x.called:
                inside = dataclasses.replace(here, path=(*here.path, x.name))
            if x.op == "while":
                length = self.trip_count(x)
                if length is None:
                    inside = dataclasses.replace(inside, unknown_loop=x.name)
                inside = dataclasses.replace(inside, times=here.times * (length or 1))
            for called in x.called:
                yield from self._executions(called, inside)

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns how often a `while` runs its body; None if the text does not show it.

        The text for TPUs lacks the number. A scan counts from 0 up to a constant.
        """
        if known := re.search(r"known_trip_count.*?\"n\":\"(\d+)\"", loop.rest):
            return int(known[1])
        condition = re.findall(r"condition=%?([\w.-]+)", loop.rest)[0]
        compared = [
            x.operands
            for x in self.computations[condition]
            if x.op == "compare" and "direction=LT" in x.rest
        ]
        constants = {
            x.name: x.operands[0]
            for x in self.computations[condition]
            # The text of an array, as {1, 2}, is not kept.
            if x.op == "constant" and x.operands
        }
        if len(compared) == 1 and compared[0][1] in constants:
            return int(constants[compared[0][1]])
        return None

    def input_bytes(self, x: Instruction) -> int:
        """Returns the size of the operands of an instruction."""
        known = (self.instructions.get(name) for name in x.operands)
        return sum(operand.bytes for operand in known if operand)

    def parts(self, x: Instruction) -> Iterator[Instruction]:
        """Yields the instructions of a fusion, also of fusions in it; otherwise x."""
        if x.op != "fusion":
            yield x
            return
        for name in x.called:
            for part in self.computations[name]:
                yield from self.parts(part)

    def source(self, x: Instruction, package: str) -> str:
        """Returns the line of code that made an instruction, as `package/vit.py:12`.

        Args:
            x: the instruction.
            package: the name of a folder. Of the calls that lead to the instruction,
                the innermost one in this folder counts, otherwise the innermost of all.

        Returns:
            File and line; empty if the text does not show them.
        """
        frame = _field("stack_frame_id", x.rest)
        lines = []
        while entry := self._tables.get("StackFrames", {}).get(frame):
            location = self._tables["FileLocations"][_field("file_location_id", entry)]
            file = self._tables["FileNames"][_field("file_name_id", location)]
            lines.append(f"{file.strip(chr(34))}:{_field('line', location)}")
            # The text counts parents from 1 for "none", frames from 1 for the first.
            frame = str(int(_field("parent_frame_id", entry)) - 1)
        for line in lines:
            before, found, after = line.rpartition(f"/{package}/")
            if found:
                return f"{package}/{after}"
        return lines[0] if lines else ""


def _field(name: str, text: str) -> str:
    match = re.search(rf"\b{name}=(\d+)", text)
    return match[1] if match else ""


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of a text, with instructions of several lines as one."""
    whole = ""
    for line in text.splitlines():
        if not _STARTS.match(line):
            whole += line
            continue
        yield whole
        whole = line
    yield whole
