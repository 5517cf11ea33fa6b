"""A function applied to items in processes that may crash or hang without harm.

A damaged video can crash the process that decodes it, keep it busy for ever, or take
all memory, and no `except` sees that. Here, whatever becomes of the process that has an
item, only this item fails: a new process goes on with the others. (`concurrent.futures`
gives up all work when one of its processes dies, and cannot end one that hangs.)
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import pathlib
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import Any, Literal

from videomae_jax.processes import exit_with_parent

# Not fork: a copy of a process with threads, such as JAX's, may lock up.
_CONTEXT = multiprocessing.get_context("spawn")
_START_SECONDS = 300  # to import what the function needs; minutes on a busy file system
# After which Python looks whether it was interrupted.
_LONGEST_WAIT_SECONDS = 2
_START_ATTEMPTS = 3
_EXIT_SECONDS = 10  # from closing the pipe to the end of a process


@dataclasses.dataclass(frozen=True, slots=True)
class TaskFailure:
    """What became of an item in place of a result.

    Attributes:
        kind: "error", the function raised; "crash", its process died; "timeout", it
            was ended because it took too long.
        reason: a line for people.
    """

    kind: Literal["error", "crash", "timeout"]
    reason: str


def process_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    num_workers: int,
    timeout: float,
    ahead: int | None = None,
) -> Iterator[tuple[int, Any | TaskFailure]]:
    """Applies a function to each item, in worker processes.

    Every index comes exactly once, whatever the items do. An item whose process died is
    tried once more in another one, for it may have been a bystander: where memory ran
    out, or after damage that an earlier item left. So the function must bear to be
    repeated. It should not start processes, which would outlive a worker's end.

    Workers end with the generator: close it, or wrap it in `contextlib.closing`, if it
    is not used up. They also end with this process, however that dies, and leave Ctrl-C
    to it.

    Args:
        function: at the top level of a module, or a `functools.partial` of such a one.
            It, the items and the results are pickled.
        items: what to apply it to, begun in this order.
        num_workers: processes, at least 1.
        timeout: seconds that an item may take, finite; starting a process not included.
        ahead: None gives results as they come, for small ones. A number gives them in
            the order of the items, and holds few in memory: an item is begun only when
            it is less than so many places, at least 1, after the first one that has no
            result yet.

    Yields:
        (index of the item, result or TaskFailure).

    Raises:
        RuntimeError: if processes do not even start, three times in a row.
    """
    todo = collections.deque(range(len(items)))
    died_once = set()
    failed_starts = 0
    results: dict[int, Any | TaskFailure] = {}  # that are not given yet
    first = 0  # index of the next result to give, if they are given in order
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
                            f"worker processes do not start: {outcome.reason}. In a "
                            'script, call this below `if __name__ == "__main__":`'
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
            if ahead is None:
                given = list(results)
            else:
                following = itertools.count(first)
                given = list(itertools.takewhile(results.__contains__, following))
            first += len(given)
            # Before they are given: all workers are busy while the caller is.
            while idle and todo and (ahead is None or todo[0] < first + ahead):
                worker = idle.pop()
                busy.append(worker)
                worker.give(todo[0], items[todo.popleft()], timeout)
            while idle and not todo:
                idle.pop().kill()
            for index in given:
                yield index, results.pop(index)
    finally:
        for worker in busy + idle:
            worker.kill()


class _Worker:
    """A process, and what it is doing.

    Attributes:
        pipe: readable when there is something to `receive`.
        index: of the item in work; None while the process starts.
        deadline: when to give it up, as `time.monotonic` counts.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.index: int | None = None
        self.pipe, theirs = _CONTEXT.Pipe()
        # A daemon, so that none is left if an interrupt comes before it is noted.
        self._process = _CONTEXT.Process(
            target=_work, args=(theirs, function), daemon=True
        )
        with _interrupts_held_back():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._set_timeout(_START_SECONDS)

    def give(self, index: int, item: Any, timeout: float) -> None:
        """Sends the item to begin with."""
        self.index = index
        self._set_timeout(timeout)
        with contextlib.suppress(ConnectionError):  # If it has died, `receive` tells.
            self.pipe.send(item)

    def receive(self) -> Any | TaskFailure:
        """What became of the item, or, from a process that has started, None.

        Only for a worker that `_wait` found to have something or to be late.
        """
        if not self.pipe.poll():
            return TaskFailure(
                "timeout", f"hangs: no result within {self._timeout:g} s"
            )
        try:
            succeeded, value = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(_EXIT_SECONDS)
            return TaskFailure("crash", _describe_exit(self._process.exitcode))
        return value if succeeded else TaskFailure("error", value)

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()

    def _set_timeout(self, seconds: float) -> None:
        self._timeout, self.deadline = seconds, time.monotonic() + seconds


def _wait(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits for workers that have sent something, died, or are late; not for long."""
    deadline = min(worker.deadline for worker in workers)
    # Ctrl-C in the moment before the system call does not end it.
    patience = min(max(deadline - time.monotonic(), 0), _LONGEST_WAIT_SECONDS)
    ready = connection.wait([worker.pipe for worker in workers], patience)
    now = time.monotonic()
    return [w for w in workers if w.pipe in ready or w.deadline <= now]


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keeps Ctrl-C from a process that is started meanwhile, for all its life.

    A terminal sends it to all processes, and each would print a traceback.
    """
    resource_tracker.ensure_running()  # It would lift the mask when it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: connection.Connection, function: Callable[[Any], Any]) -> None:
    """What a worker process does: answers each item until it is killed."""
    exit_with_parent()
    # When memory runs out, Linux shall end a worker and neither the parent, which takes
    # no notice of videos' sizes, nor something else that runs here.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(EOFError, ConnectionError):  # The parent has ended.
        pipe.send((True, None))
        while True:
            item = pipe.recv()
            try:
                answer = pickle.dumps((True, function(item)))
            except BaseException as error:  # also sys.exit: the process can go on
                text = f"{type(error).__name__}: {error}".rstrip(": ")
                answer = pickle.dumps((False, text))
            pipe.send_bytes(answer)


def _describe_exit(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"crashes: the process that had it ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    memory = " (as when memory runs out)" if -exitcode == signal.SIGKILL else ""
    return f"crashes: the process that had it was ended by {name}{memory}"
