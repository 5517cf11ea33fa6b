"""How many floating-point operations the models' matrix products take.

A multiplication and an addition count as two. Everything else in a transformer is
small beside them, and is not counted; nor is what rematerialisation computes twice.
"""


def tower(tokens: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Of the blocks of a transformer for one clip."""
    projections = 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio))
    attention = 4 * tokens**2 * width
    return depth * (projections + attention)


def pretraining(model, num_tokens: int, visible: int) -> int:
    """Of the forward pass of a VideoMAE for one clip.

    Args:
        model: the VideoMAE.
        num_tokens: of the clip.
        visible: how many of them the encoder sees.
    """
    values = 3 * model.tubelet_size * model.patch_size**2
    decoder_ratio = model.decoder_mlp_ratio or model.mlp_ratio
    embedding = 2 * visible * values * model.width
    between = 2 * visible * model.width * model.decoder_width
    head = 2 * (num_tokens - visible) * model.decoder_width * values
    return (
        embedding
        + tower(visible, model.width, model.depth, model.mlp_ratio)
        + between
        + tower(num_tokens, model.decoder_width, model.decoder_depth, decoder_ratio)
        + head
    )


def classification(model, num_tokens: int) -> int:
    """Of the forward pass of a VideoClassifier for one clip; the head is left out."""
    values = 3 * model.tubelet_size * model.patch_size**2
    embedding = 2 * num_tokens * values * model.width
    return embedding + tower(num_tokens, model.width, model.depth, model.mlp_ratio)


def training(forward: int) -> int:
    """Of a training step: the backward pass takes two products for each one."""
    return 3 * forward
