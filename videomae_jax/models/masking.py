"""Which tokens of a clip are hidden, as token ids.

Every function returns `(visible, masked)`: int32 [B, V] and int32 [B, M], ascending,
with V and M fixed by grid and ratio, so that every step compiles to the same program.
A grid is (time, rows, columns) in tokens; token ids count columns fastest.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int, int]


def tube(
    key: jax.Array, batch: int, grid: Grid, ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Hides the same places in every time slot (VideoMAE, section 3.3).

    floor(ratio * rows * columns) places are hidden, drawn anew for every clip.

    Raises:
        ValueError: if the ratio leaves no place visible or none masked.
    """
    time, rows, columns = grid
    places = rows * columns
    visible, masked = _split(key, batch, places, _count(places, ratio))

    def through_time(ids):
        slots = jnp.arange(time, dtype=jnp.int32)[:, None] * places
        return (slots + ids[:, None, :]).reshape(batch, -1)

    return through_time(visible), through_time(masked)


def random(
    key: jax.Array, batch: int, grid: Grid, ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Hides floor(ratio * tokens) tokens anywhere, drawn anew for every clip.

    Raises:
        ValueError: if the ratio leaves no token visible or none masked.
    """
    tokens = math.prod(grid)
    return _split(key, batch, tokens, _count(tokens, ratio))


KINDS = {"tube": tube, "random": random}


def ids_from_mask(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns a boolean mask [B, N] (True = masked) into token ids, on the host.

    Raises:
        ValueError: if the mask is not 2-D, not boolean (or 0 and 1), or the clips
            have different numbers of masked tokens: they could not share one array,
            and cutting them to size would mix clips up.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape [batch, tokens], not {mask.shape}")
    if mask.dtype != bool:
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("a mask holds True/1 (masked) and False/0 (visible) only")
        mask = mask.astype(bool)
    counts = np.unique(mask.sum(axis=1))
    if len(counts) > 1:
        raise ValueError(
            f"every clip of a batch must hide equally many tokens; here they hide "
            f"between {counts[0]} and {counts[-1]}"
        )
    batch = len(mask)
    visible = np.nonzero(~mask)[1].reshape(batch, -1)
    masked = np.nonzero(mask)[1].reshape(batch, -1)
    return visible.astype(np.int32), masked.astype(np.int32)


def _count(total: int, ratio: float) -> int:
    masked = int(ratio * total)
    if not 0 < masked < total:
        raise ValueError(
            f"mask ratio {ratio} hides {masked} of {total}: at least one must be "
            "hidden and one visible"
        )
    return masked


def _split(key, batch, total, num_masked):
    noise = jax.random.uniform(key, (batch, total))
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    masked = jnp.sort(order[:, :num_masked], axis=1)
    return jnp.sort(order[:, num_masked:], axis=1), masked
