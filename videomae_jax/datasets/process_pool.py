"""A process pool that survives workers that crash or hang.

A damaged video can crash the process that decodes it, keep it busy forever, or use up
all memory; `except` catches none of these. In this pool only the item being processed
fails, and a new process continues with the others. (`concurrent.futures` aborts all
work when one process dies, and cannot stop a process that hangs.)
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import pathlib
import pickle
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection
from typing import Any, Literal

from videomae_jax.processes import (
    describe_exit,
    exit_with_parent,
    set_up_worker,
    signals_blocked,
)

# Forking a process with threads, such as JAX's, may deadlock.
_CONTEXT = multiprocessing.get_context("spawn")
# For the imports of the function's module; minutes on a busy file system.
_START_SECONDS = 300
_POLL_SECONDS = 2  # between checks for Ctrl-C
_START_ATTEMPTS = 3
_EXIT_SECONDS = 10  # from closing the pipe to the end of a process


@dataclasses.dataclass(frozen=True, slots=True)
class TaskFailure:
    """Takes the place of the result of an item that failed."""

    # The function raised, its process died, or it took too long and was killed.
    kind: Literal["error", "crash", "timeout"]
    reason: str  # one line to show to the user


def process_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    num_workers: int,
    timeout: float,
    ahead: int | None = None,
) -> Generator[tuple[int, Any | TaskFailure], None, None]:
    """Applies a function to each item, in worker processes.

    Every index is yielded exactly once, whatever the items do. An item whose process
    died is tried once more in another process: it may not be the cause, for example if
    memory ran out or an earlier item corrupted the process. The function must therefore
    be idempotent. It should not start processes, which would outlive a killed worker.

    The workers end with the generator: close it, or wrap it in `contextlib.closing`, if
    it is not exhausted. They also end when this process dies in any way, and ignore
    Ctrl-C, which this process handles.

    Args:
        function: defined at the top level of a module, or a `functools.partial` of such
            a function. It, the items and the results are pickled.
        items: its arguments, processed in this order.
        num_workers: at least 1.
        timeout: finite limit in seconds per item, without the start of a process.
        ahead: if None, results are yielded as they arrive. If a number, they are
            yielded in the order of the items, and an item is started only if fewer than
            `ahead` (at least 1) items separate it from the first one without a result;
            this bounds the results held in memory.

    Yields:
        (index of the item, result or TaskFailure).

    Raises:
        RuntimeError: if processes fail to start three times in a row.
    """
    todo = collections.deque(range(len(items)))
    died_once = set()
    failed_starts = 0
    results: dict[int, Any | TaskFailure] = {}  # not yielded yet
    first = 0  # index of the next result to yield, if yielded in order
    busy: list[_Worker] = []  # starting, or with an item
    idle: list[_Worker] = []
    try:
        for _ in range(min(num_workers, len(items))):
            busy.append(_Worker(function))
        while busy:
            for worker in _wait(busy):
                index, outcome = worker.index, worker.receive()
                lost = isinstance(outcome, TaskFailure) and outcome.kind != "error"
                if index is None:
                    failed_starts = failed_starts + 1 if lost else 0
                    if todo and failed_starts == _START_ATTEMPTS:
                        raise RuntimeError(
                            f"worker processes do not start: {outcome.reason}. A "
                            'script must call this below `if __name__ == "__main__":`'
                        )
                elif lost and outcome.kind == "crash" and index not in died_once:
                    died_once.add(index)
                    todo.appendleft(index)
                else:
                    results[index] = outcome
                busy.remove(worker)
                if not lost:
                    idle.append(worker)
                else:
                    worker.kill()
                    if todo:
                        busy.append(_Worker(function))
            following = results if ahead is None else itertools.count(first)
            ready = list(itertools.takewhile(results.__contains__, following))
            first += len(ready)
            # Assign new items before yielding: the caller may take long.
            while idle and todo and (ahead is None or todo[0] < first + ahead):
                worker = idle.pop()
                busy.append(worker)
                worker.assign(todo[0], items[todo.popleft()], timeout)
            while idle and not todo:
                idle.pop().kill()
            for index in ready:
                yield index, results.pop(index)
    finally:
        for worker in busy + idle:
            worker.kill()


class _Worker:
    """A process and the item that it works on.

    `deadline` says when to kill the process, in seconds of `time.monotonic`.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.index: int | None = None  # of the item; None while the process starts
        self.pipe, child_pipe = _CONTEXT.Pipe()  # readable if `receive` has a result
        # A daemon also ends if Ctrl-C arrives before the caller has stored this object.
        self._process = _CONTEXT.Process(
            target=_work, args=(child_pipe, function), daemon=True
        )
        with signals_blocked(signal.SIGINT):
            self._process.start()
        child_pipe.close()  # so that reading reports the end of the process
        self._set_timeout(_START_SECONDS)

    def assign(self, index: int, item: Any, timeout: float) -> None:
        """Sends the next item to the process."""
        self.index = index
        self._set_timeout(timeout)
        with contextlib.suppress(ConnectionError):  # `receive` reports a dead process
            self.pipe.send(item)

    def receive(self) -> Any | TaskFailure:
        """Returns the result of the item, or None from a process that has started.

        Only for workers that `_wait` has returned.
        """
        hang = TaskFailure("timeout", f"hangs: no result within {self._timeout:g} s")
        if not self.pipe.poll():
            return hang
        # It may also hang in the middle of a result.
        patience = max(self.deadline - time.monotonic(), _EXIT_SECONDS)
        timer = threading.Timer(patience, self._process.kill)
        timer.start()
        try:
            succeeded, value = self.pipe.recv()
        except (EOFError, OSError):
            if time.monotonic() >= self.deadline:
                return hang
            self._process.join(_EXIT_SECONDS)
            return TaskFailure(
                "crash", f"crashes: its process {describe_exit(self._process.exitcode)}"
            )
        finally:
            timer.cancel()
        return value if succeeded else TaskFailure("error", value)

    def kill(self) -> None:
        """Kills the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()

    def _set_timeout(self, seconds: float) -> None:
        self._timeout, self.deadline = seconds, time.monotonic() + seconds


def _wait(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits briefly; returns workers that sent a result, died, or are overdue."""
    deadline = min(worker.deadline for worker in workers)
    # Not for long: Ctrl-C just before the system call would not interrupt it.
    patience = min(max(deadline - time.monotonic(), 0), _POLL_SECONDS)
    ready = connection.wait([worker.pipe for worker in workers], patience)
    now = time.monotonic()
    return [w for w in workers if w.pipe in ready or w.deadline <= now]


def _work(pipe: connection.Connection, function: Callable[[Any], Any]) -> None:
    """Processes items until it is killed; runs in a worker process."""
    exit_with_parent()
    set_up_worker()
    # If memory runs out, Linux should kill a worker rather than the parent or another
    # program of the machine.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended
        pipe.send((True, None))
        while True:
            item = pipe.recv()
            try:
                message = pickle.dumps((True, function(item)))
            except BaseException as error:  # also sys.exit: the process can continue
                text = f"{type(error).__name__}: {error}".rstrip(": ")
                message = pickle.dumps((False, text))
            pipe.send_bytes(message)
