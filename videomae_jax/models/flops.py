"""Counts the floating-point operations of the models' matrix products, per clip.

A multiplication and an addition count as two. The other operations of a transformer are
few in comparison and are not counted, nor is what rematerialization computes again.
"""

import math

from videomae_jax.models.array_types import Grid
from videomae_jax.models.build import Model
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE


def transformer(tokens: int, *, width: int, depth: int, mlp_ratio: float) -> int:
    """Returns the operations of the blocks of a transformer."""
    projections = 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio))
    attention = 4 * tokens**2 * width
    return depth * (projections + attention)


def pretraining(model: VideoMAE, *, num_visible: int, num_decoded: int) -> int:
    """Returns the operations of the forward pass of a VideoMAE."""
    decoder = transformer(
        num_visible + num_decoded,
        width=model.decoder_width,
        depth=model.decoder_depth,
        mlp_ratio=model.decoder_mlp_ratio or model.mlp_ratio,
    )
    encoder_to_decoder = 2 * num_visible * model.width * model.decoder_width
    head = 2 * num_decoded * model.decoder_width * _patch_values(model)
    return _encoder(model, num_visible) + encoder_to_decoder + decoder + head


def classification(model: VideoClassifier, num_tokens: int) -> int:
    """Returns the operations of the forward pass of a VideoClassifier, without head."""
    return _encoder(model, num_tokens)


def detection(model: ActionDetector, grid: Grid, boxes: int) -> int:
    """Returns the operations of the forward pass of an ActionDetector.

    Args:
        grid: tokens of a clip, with padding.
        boxes: of a clip, with padding.
    """
    return _encoder(model, math.prod(grid)) + box_head(model, grid, boxes)


def box_head(model: ActionDetector, grid: Grid, boxes: int) -> int:
    """Returns the operations of RoIAlign and the head; see `detection`."""
    _, rows, columns = grid
    bins = model.roi_bins
    of_rows = bins * rows * columns * model.width
    of_columns = bins * bins * columns * model.width
    return 2 * boxes * (of_rows + of_columns + model.width * model.num_classes)


def training(forward: int) -> int:
    """Returns the operations of a training step, given those of the forward pass.

    The backward pass computes two matrix products for each one of the forward pass.
    """
    return 3 * forward


def _encoder(model: Model, tokens: int) -> int:
    embedding = 2 * tokens * _patch_values(model) * model.width
    return embedding + transformer(
        tokens, width=model.width, depth=model.depth, mlp_ratio=model.mlp_ratio
    )


def _patch_values(model: Model) -> int:
    return model.channels * model.tubelet_size * model.patch_size**2
