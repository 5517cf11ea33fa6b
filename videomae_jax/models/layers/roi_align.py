"""RoIAlign: features of boxes, bilinearly sampled and averaged in the bins of a grid.

The samples of a box form a grid, and bilinear weights are products, so the features of
a box are `rows @ map @ columns`: two small matrices per box and two products. Nothing
is gathered, and no shape depends on a box, however many samples it has.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Num

from videomae_jax.models.array_types import Array

# Samples of a bin with several are half a cell apart or more, so that so many reach all
# that contribute to a cell: those within one cell of it, and one for rounding.
_NEAR = 6


def roi_align(
    features: Float[Array, "batch rows columns dim"],
    boxes: Num[Array, "batch boxes 4"],
    sizes: Num[Array, "batch 2"] | None = None,
    *,
    bins: int,
    aligned: bool,
) -> Float32[Array, "batch boxes {bins} {bins} dim"]:
    """Returns the features of each box of each clip, as torchvision's `roi_align`.

    The number of samples of a bin adapts to the box (`sampling_ratio=0`): along each
    axis, the length of the bin in cells, rounded up.

    Args:
        features: a map of each clip.
        boxes: x1, y1, x2, y2 in cells of the map, of any size and place. They get no
            gradient.
        sizes: rows and columns of each map, counted from the first; the rest is
            padding, which must be finite. None for all.
        bins: along each axis.
        aligned: cells have their centers at 0.5, 1.5, ... of the coordinates of boxes,
            and inverted boxes the features 0. Without it, cells are at 0, 1, ..., and
            boxes at least one cell long.
    """
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array(features.shape[1:3]), (len(features), 2))
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    grid = bins, aligned
    rows = _matrices(y1, y2, sizes[:, :1], features.shape[1], *grid)
    columns = _matrices(x1, x2, sizes[:, 1:], features.shape[2], *grid)
    # By default, a TPU would round float32 to bfloat16, and a GPU to TF32.
    of_rows = jnp.einsum(
        "bnpr,brcd->bnpcd",
        rows,
        features.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.einsum(
        "bnqc,bnpcd->bnpqd", columns, of_rows, precision=jax.lax.Precision.HIGHEST
    )


def _matrices(
    low: Float32[Array, "batch boxes"],
    high: Float32[Array, "batch boxes"],
    size: Num[Array, "batch 1"],
    cells: int,
    bins: int,
    aligned: bool,
) -> Float32[Array, "batch boxes {bins} {cells}"]:
    """Returns what each cell along an axis gives to each bin of each box.

    Args:
        low, high: ends of the boxes.
        size: cells that are not padding.
        cells: their number, with padding.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
    length = high - low if aligned else jnp.maximum(high - low, 1)
    # Axes: batch, boxes, bins, cells, samples.
    low, length, size = (x[..., None, None, None] for x in (low, length, size))
    samples = jnp.ceil(length / bins)
    step = length / bins / jnp.maximum(samples, 1)
    start = low + jnp.arange(bins, dtype=jnp.float32)[:, None, None] * (length / bins)
    cell = jnp.arange(cells, dtype=jnp.float32)[:, None]
    # The last sample before the cells that a cell shares a sample with.
    nearest = jnp.floor((cell - 1 - start) / jnp.where(step > 0, step, 1) - 0.5)
    sample = jnp.where(samples > 1, nearest, 0) + jnp.arange(_NEAR)
    position = start + (sample + 0.5) * step
    counts = (sample >= 0) & (sample < samples) & (position >= -1) & (position <= size)
    # Beyond the first and last cell, up to a cell away, their values continue.
    position = jnp.clip(position, 0, size - 1)
    weight = jnp.maximum(1 - jnp.abs(position - cell), 0)
    return jnp.where(counts, weight, 0).sum(axis=-1) / jnp.maximum(samples[..., 0], 1)
