"""Iterates in background threads, ahead of the consumer."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

WATCH_SECONDS = 60

_T = TypeVar("_T")
_END = object()


@contextlib.contextmanager
def iterate_ahead(
    iterables: Iterable[Iterable[_T]],
    *,
    size: int,
    num_threads: int = 1,
    join_seconds: float | None = None,
    watch: Callable[[float], None] | None = None,
) -> Iterator[Iterator[_T]]:
    """Starts threads that iterate ahead of the consumer, and stops them at the end.

    Each thread takes one iterable at a time and yields its items in their order; those
    of several iterables are mixed if there are several threads. An error in a thread is
    raised to the consumer, after the items before it.

    Args:
        iterables: taken by one thread at a time, lazily.
        size: the most items, ready or being computed, ahead of the one that the
            consumer has taken last.
        num_threads: the number of threads.
        join_seconds: how long to wait for each thread at the end; None for as long as
            its current item takes. The threads are daemons: one that hangs does not
            keep the process from ending.
        watch: called every WATCH_SECONDS that the consumer waits for an item, with the
            seconds it has waited; may raise.
    """
    remaining, lock = iter(iterables), threading.Lock()
    slots, ready = threading.Semaphore(size), queue.SimpleQueue()
    stopped = threading.Event()

    def compute_next(iterator: Iterator[_T]) -> bool:
        """Computes an item as soon as there is room; returns False at the end."""
        slots.acquire()
        if stopped.is_set():
            return False
        item = next(iterator, _END)
        if item is _END:
            slots.release()
            return False
        ready.put((item, None))
        return True  # the thread does not keep the item, which may be large

    def work():
        try:
            while not stopped.is_set():
                with lock:
                    iterable = next(remaining, None)
                if iterable is None:
                    break
                iterator = iter(iterable)
                while compute_next(iterator):
                    pass
            ready.put((_END, None))
        except BaseException as error:
            ready.put((_END, error))

    def take() -> Iterator[_T]:
        running, waited = num_threads, 0
        while running:
            try:
                item, error = ready.get(timeout=WATCH_SECONDS)
            except queue.Empty:
                waited += WATCH_SECONDS
                if watch is not None:
                    watch(waited)
                continue
            waited = 0
            if error is not None:
                raise error
            if item is _END:
                running -= 1
            else:
                slots.release()
                yield item

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        slots.release(num_threads)
        for thread in threads:
            thread.join(join_seconds)
