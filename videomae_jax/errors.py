"""Errors the user can fix; `main.py` and the commands report them without a traceback.

All of them derive from `UserError`. Anything else that reaches the top is a defect of
this library and keeps its traceback.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MAX_DIFFERENCES = 8


class UserError(Exception):
    """An error the user can fix; the message says what is wrong and what to do.

    Attributes:
        exit_code: of the program that it ends; see cli/program.py.
    """

    exit_code = 1


class UsageError(UserError, ValueError):
    """Arguments of a command that do not fit each other."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """Config fields that fit neither each other nor the devices, or do not exist."""

    exit_code = 2


class RecordError(UserError, ValueError):
    """A list or data set that cannot be read; the message names the line."""


class LineError(RecordError):
    """A line that cannot be parsed or written; the message says what is expected."""


class VideoError(UserError, ValueError):
    """A video that cannot be read; the message names the file and the reason."""

    def __str__(self) -> str:
        """Returns the message as one line, whatever the name of the file contains."""
        return printable(super().__str__()).replace("\n", "\\n")


class NoReadableVideoError(UserError, RuntimeError):
    """None of many videos in a row could be read; the message names some of them."""


class TooManyBadVideosError(UserError, RuntimeError):
    """More videos than allowed could not be read; the message lists them."""


class InputError(UserError, ValueError):
    """An array of another shape, dtype or range than a model takes."""


class WorkerError(UserError, RuntimeError):
    """A process that reads videos has died or hangs; the message says how."""


class PretrainedError(UserError, ValueError):
    """A model that cannot be read, edited or written; the message says why."""


class OutputError(UserError, OSError):
    """A file that cannot be written; the message has the reason and what to do."""


class WorkdirInUseError(UserError, RuntimeError):
    """Another run writes to the work directory; the message names its process."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is missing or does not fit the model it is restored into."""


class CompleteRunError(UserError, ValueError):
    """A complete run was started with other settings, which have no effect."""

    exit_code = 2


class ClusterError(UserError, RuntimeError):
    """The processes of a run could not be joined into one cluster, or they disagree."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss or its gradient is not finite; the message says where to look."""


class TopologyError(UserError, ValueError):
    """Unknown TPU slice, or libtpu is not installed."""


class CompilerError(UserError, ValueError):
    """The TPU compiler refused a program; the message says why and what to try."""


def printable(text: str) -> str:
    """Escapes control characters and surrogates, which names of files may contain."""
    return "".join(
        x
        if x.isprintable() or x in "\n\t"
        else x.encode("unicode_escape").decode("ascii")
        for x in text
    )


def nearest(
    name: str,
    known: Iterable[str],
    *,
    cutoff: float = 0.6,
    shown: Callable[[str], str] = str,
) -> str:
    """Returns "; the nearest is ..." for a misspelt name; "" if none is similar.

    Args:
        name: the misspelt name.
        known: the right ones.
        cutoff: the least similarity, 0 to 1.
        shown: formats the nearest one.
    """
    found = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; the nearest is {shown(found[0])}" if found else ""


def shape_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns a line for each array whose shape is not as expected; "" if all are.

    Args:
        found: shapes of arrays by name.
        expected: the same.
    """
    names = [
        name
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    lines = [
        f"  {name}: {found.get(name, 'missing')}, expected "
        f"{expected.get(name, 'no such array')}"
        for name in names[:_MAX_DIFFERENCES]
    ]
    if left := len(names) - len(lines):
        lines.append(f"  and {left} more")
    return "\n".join(lines)
