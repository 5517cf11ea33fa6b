"""Batches in flight: their order, and how many at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.inference import batching


@pytest.mark.parametrize("in_flight", [0, 1, 2, 9])
def test_results_are_fetched_in_order_and_late(in_flight):
    sent = []

    def compute(number):
        sent.append(number)
        return number, jnp.full(2, number)

    fetched = 0
    for number, array in batching.fetch(map(compute, range(5)), in_flight):
        assert number == fetched
        assert isinstance(array, np.ndarray) and array.tolist() == [number] * 2
        assert sent == list(range(min(fetched + in_flight + 1, 5)))
        fetched += 1
    assert fetched == 5


def test_objects_pass_through():
    batch = object()
    [(same, nothing)] = batching.fetch([(batch, None)])
    assert same is batch and nothing is None


def test_batches_are_padded_with_the_last_row():
    assert batching.pad([1, 2, 3], 3) == [1, 2, 3]
    assert batching.pad([1], 3) == [1, 1, 1]
