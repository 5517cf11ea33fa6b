"""Batches of one shape, several of them in flight on the devices."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

_Row = TypeVar("_Row")


def pad(rows: list[_Row], size: int) -> list[_Row]:
    """Repeats the last row up to `size` rows: another shape would compile again.

    Example:
        >>> pad([1, 2], 4)
        [1, 2, 2, 2]
    """
    return rows + rows[-1:] * (size - len(rows))


def fetch(results: Iterable[Any], in_flight: int = 2) -> Iterator[Any]:
    """Fetches results from the devices in order, each as late as possible.

    The devices then compute while the host reads the next batches.

    Args:
        results: trees with arrays, lazily: taking one sends a batch to the devices, as
            `map(compute, batches)` does, and does not wait for them.
        in_flight: results to take before waiting for the oldest one. 2 keep a device
            busy between two batches.

    Yields:
        The trees, with NumPy arrays; other leaves are passed through.
    """
    pending: collections.deque[Any] = collections.deque()
    for result in results:
        pending.append(result)
        if len(pending) > in_flight:
            yield jax.device_get(pending.popleft())
    while pending:
        yield jax.device_get(pending.popleft())
