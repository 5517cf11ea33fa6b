"""Background threads: how far ahead they iterate, their errors, and their end."""

import gc
import threading
import time
import weakref

import pytest

from videomae_jax.data import threads
from videomae_jax.data.threads import iterate_ahead


def test_no_more_items_than_asked_for_are_computed_ahead():
    taken = []

    def items():
        for i in range(9):
            taken.append(i)
            yield i

    with iterate_ahead([items()], size=1) as ahead:
        for i in range(4):
            assert next(ahead) == i
            deadline = time.monotonic() + 30
            while taken[-1] <= i and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # in which it might compute another one
            assert taken[-1] == i + 1


@pytest.mark.parametrize("num_threads", [1, 3])
def test_items_of_an_iterable_keep_their_order(num_threads):
    iterables = ([(i, j) for j in range(20)] for i in range(10))
    with iterate_ahead(iterables, size=4, num_threads=num_threads) as ahead:
        items = list(ahead)
    if num_threads == 1:
        assert items == sorted(items)
    for i in range(10):
        assert [j for k, j in items if k == i] == list(range(20))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_errors_come_after_the_items_before_them(num_threads):
    def items():
        yield from range(3)
        raise KeyError("on purpose")

    def iterables():
        yield items()
        raise ValueError("never reached")

    before = threading.active_count()
    with (
        pytest.raises(
            (KeyError, ValueError), match="on purpose|never reached"
        ) as raised,
        iterate_ahead(iterables(), size=4, num_threads=num_threads) as ahead,
    ):
        for i in range(9):
            assert next(ahead) == i
    assert num_threads > 1 or raised.type is KeyError
    assert threading.active_count() == before


def test_threads_that_wait_for_room_end_with_the_block():
    before = threading.active_count()
    with iterate_ahead([range(99)] * 9, size=2, num_threads=4) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before


def test_a_thread_that_hangs_is_left_behind():
    release = threading.Event()

    def items():
        yield 0
        release.wait(60)
        yield 1

    start = time.monotonic()
    with iterate_ahead([items()], size=1, join_seconds=0.1) as ahead:
        assert next(ahead) == 0
    assert time.monotonic() - start < 30
    release.set()


def test_a_consumer_that_waits_is_told_how_long(monkeypatch):
    monkeypatch.setattr(threads, "WATCH_SECONDS", 0.05)
    release, waited = threading.Event(), []

    def items():
        yield 0
        release.wait(60)
        yield 1

    def watch(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            release.set()

    with iterate_ahead([items()], size=1, watch=watch) as ahead:
        assert list(ahead) == [0, 1]
    assert waited[:3] == [0.05, 0.1, pytest.approx(0.15)]


def test_the_threads_do_not_keep_items():
    """A batch is large: only the consumer should hold it."""

    class Item:
        pass

    def items():
        for _ in range(3):
            yield Item()

    with iterate_ahead([items()], size=1) as ahead:
        first = next(ahead)
        next(ahead)  # so the iterator has let go of the first, too
        reference = weakref.ref(first)
        del first
        gc.collect()
        assert reference() is None
