"""Judges damaged files in processes of their own, and counts the outcomes."""

import collections
import functools
import pathlib
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.datasets.process_pool import TaskFailure, process_map  # noqa: E402

SECONDS, BYTES = 20, 2e9  # that a file may take


def judged(
    function: Callable[[Any], tuple[str, str]],
    jobs: Sequence[Any],
    *,
    num_workers: int,
    timeout: float = SECONDS,
) -> Iterator[tuple[Any, str, str]]:
    """Yields each job, its outcome, and the reason.

    The outcome is "limits" if a job takes too long or too much memory, "exception" if
    it raises an error or its process dies.

    Args:
        function: returns the outcome of a job, and a reason, which may be empty; as in
            `process_map`.
        jobs: its arguments.
        num_workers: processes.
        timeout: seconds for a job.
    """
    function = functools.partial(_within_memory, function)
    results = process_map(function, jobs, num_workers=num_workers, timeout=timeout)
    for index, result in results:
        if isinstance(result, TaskFailure):
            kind = "limits" if result.kind == "timeout" else "exception"
            result = kind, result.reason
        yield jobs[index], *result


def _within_memory(
    function: Callable[[Any], tuple[str, str]], job: Any
) -> tuple[str, str]:
    outcome, reason = function(job)
    users = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    peak = max(resource.getrusage(user).ru_maxrss for user in users) * 1024
    return ("limits", f"{peak:.2g} bytes") if peak > BYTES else (outcome, reason)


class Table:
    """Counts of outcomes: a row for each kind of case, and one of all.

    Some outcomes must not be: these are the last columns.
    """

    def __init__(self, title: str, outcomes: Sequence[str], *, forbidden: int = 0):
        """Is empty.

        Args:
            title: of the first column.
            outcomes: the columns.
            forbidden: the number of outcomes that must not be.
        """
        self._title, self._outcomes = title, outcomes
        self._forbidden = set(outcomes[len(outcomes) - forbidden :])
        self._rows: dict[str, collections.Counter] = collections.defaultdict(
            collections.Counter
        )

    def add(self, row: str, outcome: str, details: str = "") -> None:
        """Counts a case; prints the details of one that must not be."""
        self._rows[row][outcome] += 1
        if details and outcome in self._forbidden:
            print(f"{outcome}: {details[:400]!a}", flush=True)

    def finish(self) -> None:
        """Prints the table; ends with exit code 1 if it has what must not be."""
        every = sum(self._rows.values(), collections.Counter())
        print(f"\n| {self._title} | number | {' | '.join(self._outcomes)} |")
        print("|---" * (2 + len(self._outcomes)) + "|")
        rows = [*self._rows.items(), ("all", every)]
        for name, count in rows if len(rows) > 2 else rows[:1]:
            row = [sum(count.values()), *(count[x] for x in self._outcomes)]
            print(f"| {name} | {' | '.join(map(str, row))} |")
        if any(every[outcome] for outcome in self._forbidden):
            sys.exit(1)
