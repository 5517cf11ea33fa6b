"""Draws which tokens of a clip are masked, as token ids, and gathers tokens by ids.

Functions that draw what the encoder sees return `(visible, masked)`, those that draw
what the decoder predicts (VideoMAE V2, section 3.2) return `decoded`: ascending token
ids. Grid and ratio fix how many there are, so that all steps run the same compiled
program. A grid is (time, rows, columns) in tokens; token ids count columns fastest. A
ratio that leaves nothing visible, masked or decoded raises ConfigError.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, Num, PRNGKeyArray
from numpy.typing import ArrayLike

from videomae_jax.errors import ConfigError, InputError
from videomae_jax.models.array_types import Array, DecodedIds, Grid, VisibleIds

_CELL = 4  # places of a running cell, 2 x 2

Ids = tuple[Int32[Array, "batch visible"], Int32[Array, "batch masked"]]


def take_tokens(
    x: Num[Array, "batch tokens *rest"], ids: VisibleIds
) -> Num[Array, "batch visible *rest"]:
    """Gathers tokens by their ids."""
    # "clip" saves the check whether each id is within the clip.
    return jnp.take_along_axis(x, ids[..., None], axis=1, mode="clip")


def check_ids(name: str, ids: Any, num_clips: Any) -> None:
    """Raises InputError unless there is a row of token ids for each clip."""
    if len(ids.shape) != 2 or ids.shape[0] != num_clips:
        raise InputError(
            f"{name} has the shape {tuple(ids.shape)}; expected token ids [batch, "
            f"number], for the {num_clips} clips of the video"
        )


def tube(key: PRNGKeyArray, batch: int, *, grid: Grid, ratio: float) -> Ids:
    """Masks the same positions at all times (VideoMAE, section 3.3).

    Draws floor(ratio * rows * columns) positions anew for every clip.
    """
    time, rows, columns = grid
    positions = rows * columns
    visible, masked = _split(key, batch, positions, _count(positions, ratio))

    def at_all_times(ids):
        offsets = jnp.arange(time, dtype=jnp.int32)[:, None] * positions
        return (offsets + ids[:, None, :]).reshape(batch, -1)

    return at_all_times(visible), at_all_times(masked)


def random(key: PRNGKeyArray, batch: int, *, grid: Grid, ratio: float) -> Ids:
    """Masks floor(ratio * tokens) tokens anywhere, drawn anew for every clip."""
    tokens = math.prod(grid)
    return _split(key, batch, tokens, _count(tokens, ratio))


def running_cell_mask(
    *, grid: Grid, ratio: float, start: int
) -> Bool[np.ndarray, "time rows columns"]:
    """Returns which tokens are not decoded (VideoMAE V2, section 3.2).

    The grid is tiled with cells of 2 x 2 places, numbered in reading order. Of each
    cell, a window of floor(4 * ratio) places is hidden; it moves back by one place per
    step in time. `start`, 0 to 3, is where it is at first.

    Raises:
        ConfigError: the grid has an odd side, or the ratio is not in [0.25, 1).
    """
    if grid[1] % 2 or grid[2] % 2:
        raise ConfigError(
            f"running-cell masks need an even number of patches along height and "
            f"width, got {grid[1]} x {grid[2]}: change the image size or patch size"
        )
    hidden = int(_CELL * ratio)
    if not 0 < hidden < _CELL:
        raise ConfigError(
            f"decoder mask ratio={ratio} must be in [0.25, 1): it is rounded down to "
            "quarters, the places of a cell"
        )
    time, row, column = np.indices(grid)
    # The pattern has moved once before the first step in time (official code).
    place = 2 * (row % 2) + column % 2 + start + time + 1
    return place % _CELL < hidden


def running_cell(
    key: PRNGKeyArray, batch: int, *, grid: Grid, ratio: float
) -> Int32[Array, "batch decoded"]:
    """Decodes what running cells leave, with a start drawn for every clip."""
    masks = (running_cell_mask(grid=grid, ratio=ratio, start=i) for i in range(_CELL))
    decoded = np.stack([np.flatnonzero(~mask) for mask in masks]).astype(np.int32)
    return jnp.asarray(decoded)[jax.random.randint(key, (batch,), 0, _CELL)]


def random_decoded(
    key: PRNGKeyArray, batch: int, *, grid: Grid, ratio: float
) -> Int32[Array, "batch decoded"]:
    """Decodes all but floor(ratio * tokens) tokens, drawn anew for every clip."""
    return random(key, batch, grid=grid, ratio=ratio)[0]


def loss_weight(
    visible: VisibleIds, decoded: DecodedIds
) -> Float32[Array, "batch decoded"]:
    """Returns 1 for each decoded token that the encoder does not see, otherwise 0."""
    seen = (decoded[:, :, None] == visible[:, None, :]).any(axis=-1)
    return 1.0 - seen.astype(jnp.float32)


KINDS = {"tube": tube, "random": random}
DECODER_KINDS = {"running_cell": running_cell, "random": random_decoded}


def draw(
    key: PRNGKeyArray,
    batch: int,
    *,
    grid: Grid,
    kind: str,
    ratio: float,
    decoder_kind: str = "",
    decoder_ratio: float = 0.5,
) -> dict[str, Array]:
    """Draws the masks of a training step, for all its clips.

    Args:
        key: of the random numbers.
        batch: number of clips, of all devices and micro-batches.
        grid: of the tokens.
        kind, ratio: what the encoder does not see; kind is a key of KINDS.
        decoder_kind, decoder_ratio: what the decoder does not predict; a key of
            DECODER_KINDS, or empty to predict all masked tokens.

    Returns:
        Token ids "visible", "masked" and "decoded". With a decoder_kind also "weight"
        [batch, decoded], `loss_weight` with a mean of 1 over all clips: so each token
        that counts weighs the same, however the clips are then split over devices and
        micro-batches.
    """
    decoder_key = None
    if decoder_kind:
        key, decoder_key = jax.random.split(key)
    visible, masked = KINDS[kind](key, batch, grid=grid, ratio=ratio)
    ids = {"visible": visible, "masked": masked, "decoded": masked}
    if decoder_key is None:
        return ids
    decoded = DECODER_KINDS[decoder_kind](
        decoder_key, batch, grid=grid, ratio=decoder_ratio
    )
    weight = loss_weight(visible, decoded)
    weight *= weight.size / jnp.maximum(weight.sum(), 1)
    return ids | {"decoded": decoded, "weight": weight}


def ids_from_mask(mask: ArrayLike) -> Ids:
    """Converts a mask [batch, tokens] (True = masked) to token ids, on the host.

    Raises:
        InputError: if the mask is not 2-D, not boolean (or 0 and 1), or the clips have
            different numbers of masked tokens, which cannot share one array.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"mask must have the shape [batch, tokens], got {mask.shape}")
    if mask.dtype != bool:
        if not np.isin(mask, (0, 1)).all():
            raise InputError(
                "mask must hold only True/1 (masked) and False/0 (visible)"
            )
        mask = mask.astype(bool)
    counts = np.unique(mask.sum(axis=1))
    if len(counts) > 1:
        raise InputError(
            "mask must hide equally many tokens in every clip of a batch, got between "
            f"{counts[0]} and {counts[-1]}"
        )
    batch = len(mask)
    visible = np.nonzero(~mask)[1].reshape(batch, -1)
    masked = np.nonzero(mask)[1].reshape(batch, -1)
    return visible.astype(np.int32), masked.astype(np.int32)


def _count(total: int, ratio: float) -> int:
    masked = int(ratio * total)
    if not 0 < masked < total:
        raise ConfigError(
            f"mask ratio={ratio} hides {masked} of {total} positions; at least one "
            "must be hidden and one visible"
        )
    return masked


def _split(key: PRNGKeyArray, batch: int, total: int, num_masked: int) -> Ids:
    noise = jax.random.uniform(key, (batch, total))
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    masked = jnp.sort(order[:, :num_masked], axis=1)
    return jnp.sort(order[:, num_masked:], axis=1), masked
