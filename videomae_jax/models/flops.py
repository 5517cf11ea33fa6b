"""Counts the floating-point operations of the models' matrix products, per clip.

A multiplication and an addition count as two. The other operations of a transformer are
few in comparison and are not counted, nor is what rematerialization computes again.
"""

from videomae_jax.models.classifier import VideoClassifier
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


def training(forward: int) -> int:
    """Returns the operations of a training step, given those of the forward pass.

    The backward pass computes two matrix products for each one of the forward pass.
    """
    return 3 * forward


def _encoder(model: VideoMAE | VideoClassifier, tokens: int) -> int:
    embedding = 2 * tokens * _patch_values(model) * model.width
    return embedding + transformer(
        tokens, width=model.width, depth=model.depth, mlp_ratio=model.mlp_ratio
    )


def _patch_values(model: VideoMAE | VideoClassifier) -> int:
    return model.channels * model.tubelet_size * model.patch_size**2
