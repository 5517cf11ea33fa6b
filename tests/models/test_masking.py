"""Masks as token ids: counts, order, and conversion of boolean masks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomae_jax.errors import ConfigError
from videomae_jax.models import masking

grids = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


@pytest.mark.parametrize(
    "grid, ratio, visible, masked",
    [  # counts of the official code
        ((8, 14, 14), 0.75, 392, 1176),
        ((8, 14, 14), 0.90, 160, 1408),
        ((8, 14, 14), 0.95, 80, 1488),
        ((8, 16, 16), 0.90, 208, 1840),
        ((8, 20, 20), 0.90, 320, 2880),
    ],
)
def test_tube_counts(grid, ratio, visible, masked):
    ids = masking.tube(jax.random.key(0), 2, grid=grid, ratio=ratio)
    assert [x.shape for x in ids] == [(2, visible), (2, masked)]


@settings(deadline=None, max_examples=12)
@given(
    grid=grids, ratio=st.floats(0.01, 0.99), kind=st.sampled_from(["tube", "random"])
)
def test_ids_are_an_ascending_partition(grid, ratio, kind):
    draw = masking.KINDS[kind]
    total = np.prod(grid) if kind == "random" else grid[1] * grid[2]
    if not 0 < int(ratio * total) < total:
        with pytest.raises(ConfigError, match="at least one"):
            draw(jax.random.key(0), 3, grid=grid, ratio=ratio)
        return
    visible, masked = draw(jax.random.key(0), 3, grid=grid, ratio=ratio)
    assert visible.dtype == masked.dtype == np.int32
    for row in range(3):
        both = np.concatenate([visible[row], masked[row]])
        assert sorted(both) == list(range(np.prod(grid)))
        assert (np.diff(visible[row]) > 0).all() and (np.diff(masked[row]) > 0).all()


def test_tube_masks_the_same_positions_at_all_times():
    _, masked = masking.tube(jax.random.key(3), 4, grid=(8, 14, 14), ratio=0.9)
    slots = np.asarray(masked).reshape(4, 8, 176)
    np.testing.assert_array_equal(
        slots % 196, slots[:, :1] % 196 + np.zeros_like(slots)
    )
    np.testing.assert_array_equal(slots // 196, np.arange(8)[:, None] + slots * 0)
    assert len({tuple(slots[i, 0]) for i in range(4)}) == 4  # differs between clips


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_every_position_is_masked_equally_often(kind):
    _, masked = masking.KINDS[kind](jax.random.key(0), 2000, grid=(1, 3, 4), ratio=0.5)
    frequency = np.bincount(np.asarray(masked).ravel(), minlength=12) / 2000
    np.testing.assert_allclose(frequency, 0.5, atol=0.06)


def test_same_key_same_mask():
    one = masking.tube(jax.random.key(7), 2, grid=(2, 4, 4), ratio=0.75)
    two = masking.tube(jax.random.key(7), 2, grid=(2, 4, 4), ratio=0.75)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_ids_from_mask_round_trip():
    visible, masked = masking.random(jax.random.key(0), 3, grid=(2, 4, 4), ratio=0.6)
    mask = np.zeros((3, 32), bool)
    np.put_along_axis(mask, np.asarray(masked), True, axis=1)
    for given_mask in (mask, mask.astype(int), mask.astype(float).tolist()):
        ids = masking.ids_from_mask(given_mask)
        np.testing.assert_array_equal(ids[0], visible)
        np.testing.assert_array_equal(ids[1], masked)


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[True, False, False], [True, True, False]], "between 1 and 2"),
        ([True, False], "shape"),
        ([[0, 2]], "True/1"),
    ],
)
def test_ids_from_mask_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        masking.ids_from_mask(mask)
