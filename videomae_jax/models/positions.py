"""The fixed position table, and its interpolation to other image sizes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from videomae_jax.errors import ConfigError
from videomae_jax.models.array_types import Array, Grid, ValidTokens

# Parameter of the bicubic kernel, as in PyTorch's `interpolate(mode="bicubic")`; JAX's
# cubic resizing uses -0.5.
_CUBIC = -0.75


@functools.lru_cache(maxsize=16)
def sincos_positions(
    num_tokens: int, width: int
) -> Float32[np.ndarray, "num_tokens width"]:
    """Returns the fixed 1-D position table over the flattened token index.

    Channel j of position p holds sin (even j) or cos (odd j) of
    p / 10000^(2 * floor(j / 2) / D), interleaved, computed in float64 (official code).
    """
    channel = np.arange(width)
    frequency = 10000.0 ** (-2.0 * (channel // 2) / width)
    angle = np.arange(num_tokens, dtype=np.float64)[:, None] * frequency
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return table.astype(np.float32)


@functools.lru_cache(maxsize=16)
def position_table(
    grid: Grid, width: int, trained_grid: tuple[int, int] | None = None
) -> Float32[np.ndarray, "tokens width"]:
    """Returns the position table of a token grid.

    More frames than in pretraining append rows to the table, fewer frames drop rows.
    Another image size would give every token a new position, as in the official V1
    code. With `trained_grid`, tokens along height and width in pretraining, the table
    of that size is interpolated instead, bicubically and for each time by itself (as in
    MMAction2).
    """
    if trained_grid is None or trained_grid == grid[1:]:
        return sincos_positions(int(np.prod(grid)), width)
    table = sincos_positions(grid[0] * int(np.prod(trained_grid)), width)
    rows = _bicubic(trained_grid[0], grid[1])
    columns = _bicubic(trained_grid[1], grid[2])
    table = table.reshape(grid[0], *trained_grid, width)
    table = np.einsum("hr,wc,trcd->thwd", rows, columns, table, optimize=True)
    return table.reshape(-1, width).astype(np.float32)


def padded_positions(
    grid: Grid,
    width: int,
    trained_grid: tuple[int, int] | None,
    sizes: Int[Array, "batch 2"],
) -> tuple[Float32[Array, "batch tokens width"], ValidTokens]:
    """Returns `position_table` of each clip's own size, padded to the grid.

    Args:
        grid, width, trained_grid: as in `position_table`.
        sizes: rows and columns of each clip, at least 1, the first ones of the grid.

    Returns:
        The tables, finite in the padding; and which tokens are not padding.
    """
    if trained_grid is None:
        raise ConfigError("position_size=None has no positions of several image sizes")
    table = sincos_positions(grid[0] * int(np.prod(trained_grid)), width)
    rows, columns = (
        _bicubic(trained_grid[axis], sizes[:, axis, None], grid[1 + axis], jnp)
        for axis in range(2)
    )
    table = jnp.einsum(
        "bhr,bwc,trcd->bthwd",
        rows,
        columns,
        table.reshape(grid[0], *trained_grid, width),
        precision=jax.lax.Precision.HIGHEST,
    )
    _, row, column = np.unravel_index(np.arange(np.prod(grid)), grid)
    valid = (row < sizes[:, :1]) & (column < sizes[:, 1:])
    return table.reshape(len(sizes), -1, width), valid


def _bicubic(
    size: int, new_size: Any, length: int | None = None, xp: Any = np
) -> Float[Array, "*batch rows {size}"]:
    """Returns the matrix that resizes an axis, without antialiasing.

    Args:
        size: of the axis.
        new_size: a number, or one [..., 1] for each of several matrices.
        length: the rows of the matrix, of which those from new_size on are padding;
            None for new_size.
        xp: NumPy computes in float64, `jax.numpy` in float32.
    """
    center = (xp.arange(length or new_size) + 0.5) * size / new_size - 0.5
    index = xp.floor(center)[..., None] + xp.arange(-1, 3)
    weight = _kernel(xp.abs(center[..., None] - index), xp)
    # The border value is repeated beyond the border.
    is_read = xp.clip(index, 0, size - 1)[..., None] == xp.arange(size)
    return (weight[..., None] * is_read).sum(axis=-2)


def _kernel(x: Any, xp: Any) -> Any:
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    return xp.where(x <= 1, near, _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4))
