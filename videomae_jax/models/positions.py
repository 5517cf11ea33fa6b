"""The fixed position table, and its interpolation to other image sizes."""

import functools

import numpy as np
from jaxtyping import Float32, Float64

from videomae_jax.models.array_types import Grid

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


def _bicubic(size: int, new_size: int) -> Float64[np.ndarray, "new_size size"]:
    """Returns the matrix that resizes an axis, without antialiasing."""
    centers = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    matrix = np.zeros((new_size, size))
    for row, center in enumerate(centers):
        first = int(np.floor(center)) - 1
        for index in range(first, first + 4):
            # The border value is repeated beyond the border.
            matrix[row, min(max(index, 0), size - 1)] += _kernel(abs(center - index))
    return matrix


def _kernel(x: float) -> float:
    if x <= 1:
        return (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    return _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
