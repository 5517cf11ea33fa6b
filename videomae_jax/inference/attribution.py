"""Where a model looks: attention rollout, class activation, and overlays on frames.

Maps are float32 [B, T', H', W'], a value for each token of the clip: T' tubelets of H'
rows and W' columns of patches.
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE

# TPUs and GPUs would otherwise round the factors of these products to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, precision="highest")


def attention_rollout(pretrained: Pretrained, video: np.ndarray) -> np.ndarray:
    """How much of each token attention carries into the model's output.

    Abnar & Zuidema 2020 ("Quantifying Attention Flow in Transformers"): each block
    takes half of a token from the token itself, over the residual connection, and half
    from all tokens by the attention weights, averaged over the heads; the blocks'
    matrices (A + I) / 2 are multiplied. Of the product's rows, those are averaged that
    the output is made of: all for a VideoMAE, which sees the whole clip here, and for
    mean pooling; the first token's, or the pooling's own attention, for the others.

    The MLPs and the signs of what attention carries are left out, so it shows where
    information may come from, for no class in particular.

    Args:
        pretrained: a model of either kind with its weights.
        video: [B, T, H, W, 3], uint8 (raw pixels) or floating point (normalised).

    Returns:
        float32 [B, T', H', W'], not negative; each clip's values sum to 1.

    Raises:
        ValueError: if the video's sizes do not divide into patches, or its dtype is
            neither uint8 nor floating point.

    Example:
        >>> model = VideoClassifier(width=24, depth=2, heads=2, num_classes=3)
        >>> video = np.zeros((1, 4, 32, 48, 3), np.uint8)
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> attention_rollout(Pretrained(model, params), video).shape
        (1, 2, 2, 3)
    """
    return np.asarray(_rollout(pretrained.model, pretrained.variables, video))


@functools.partial(jax.jit, static_argnums=0)
def _rollout(model, variables, video):
    maps = model.apply(variables, video, method="attention_maps")
    batch, tokens = maps.shape[1:3]
    pooling = model.pooling if isinstance(model, VideoClassifier) else "mean"
    if pooling == "first_token":
        weights = jnp.zeros((batch, tokens)).at[:, 0].set(1)
    elif pooling == "attentive":
        weights = _pooling_attention(model, variables, video)
    else:
        weights = jnp.full((batch, tokens), 1 / tokens)

    def through_block(weights, attention):
        # From the output backwards, only the wanted mixture of rows is multiplied. The
        # rows of (A + I) / 2 sum to one as they are.
        return (weights + _einsum("bi,bij->bj", weights, attention)) / 2, None

    weights, _ = jax.lax.scan(through_block, weights, maps, reverse=True)
    return weights.reshape(batch, *_grid(model, video))


def _pooling_attention(model, variables, video):
    """What attentive pooling takes from each token, [B, N], averaged over the heads."""
    tokens = model.apply(variables, video, method="tokens")
    _, captured = model.apply(
        variables,
        tokens,
        method="pool_tokens",
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    layers = captured["intermediates"]["pool"]

    def heads_of(x):
        head_width = model.width // model.heads
        return x.astype(jnp.float32).reshape(len(tokens), -1, model.heads, head_width)

    query = heads_of(layers["query_projection"]["__call__"][-1])
    key_value = layers["key_value"]["__call__"][-1]
    key = heads_of(jnp.split(key_value, 2, axis=-1)[0])
    logits = _einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jax.nn.softmax(logits, axis=-1)[:, :, 0].mean(axis=1)


def class_activation(
    pretrained: Pretrained, video: np.ndarray, class_index: int | Sequence[int]
) -> np.ndarray:
    """Which tokens speak for a class: gradient-weighted activation of the last ones.

    The tokens z_n are the encoder's output, as pooling gets it; the class's logit is
    taken as a function of them alone. A token's value is

        max(0, g_n . (z_n - z)),   g_n = d logit / d z_n,   z = the mean of the tokens

    which is, to first order, what the logit loses if the clip's average token takes
    the place of token n; with mean pooling and no norm after it, exactly. So the values
    show where the evidence of a clip is, not how much there is of it.

    In terms of the literature this is Grad-CAM (Selvaraju et al. 2017) with a gradient
    for each token instead of its average (HiResCAM, Draelos & Carin 2020) and with the
    average token as the origin. The origin matters for heads that normalise. Behind a
    LayerNorm, which does not see the scale of its input, plain gradient times
    activation has it built in: it sums to zero over a mean's tokens. But it vanishes in
    every single token that attentive pooling normalises first; and batch norm's means,
    when large, would make a whole map positive or empty.

    Args:
        pretrained: a classifier with its weights.
        video: [B, T, H, W, 3], uint8 (raw pixels) or floating point (normalised).
        class_index: of the class; one for all clips, or one for each.

    Returns:
        float32 [B, T', H', W'], not negative, in units of the logit.

    Raises:
        PretrainedError: if the model has no classes, or reads its first token only:
            the gradient of all others is zero. `attention_rollout` has no such limits.
        ValueError: if a class index is not 0 to num_classes - 1, there are neither one
            nor B of them, or the video's sizes or dtype do not fit.

    Example:
        >>> model = VideoClassifier(width=24, depth=2, heads=2, num_classes=3)
        >>> video = np.zeros((1, 4, 32, 48, 3), np.uint8)
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> class_activation(Pretrained(model, params), video, class_index=2).shape
        (1, 2, 2, 3)
    """
    model = pretrained.model
    source = pretrained.source or "the model"
    if isinstance(model, VideoMAE) or not model.num_classes:
        raise PretrainedError(
            f"{source} has no classes; use a fine-tuned model, or attention_rollout"
        )
    if model.pooling == "first_token":
        raise PretrainedError(
            f"{source} reads nothing but its first token, so that no other has a "
            "gradient; use attention_rollout"
        )
    classes = np.broadcast_to(class_index, len(video)).astype(np.int32)
    if not ((classes >= 0) & (classes < model.num_classes)).all():
        raise ValueError(
            f"class index {class_index}: 0 to {model.num_classes - 1} are there"
        )
    return np.asarray(_activation(model, pretrained.variables, video, classes))


@functools.partial(jax.jit, static_argnums=0)
def _activation(model, variables, video, classes):
    tokens = model.apply(variables, video, method="tokens").astype(jnp.float32)

    def sum_of_logits(tokens):
        # Clips do not meet, so the gradient of the sum is that of each one's logit.
        features = model.apply(variables, tokens, method="pool_tokens")
        logits = model.apply(variables, features, method="classify")
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    gradient = jax.grad(sum_of_logits)(tokens)
    difference = tokens - tokens.mean(axis=1, keepdims=True)
    values = jax.nn.relu(jnp.sum(gradient * difference, axis=-1))
    return values.reshape(len(video), *_grid(model, video))


def _grid(model, video) -> tuple[int, int, int]:
    return vit.token_grid(video.shape, model.patch_size, model.tubelet_size)


def overlay(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lays maps over the frames they are of, from black over red to bright yellow.

    Each clip's values are stretched from its smallest to its largest, over all frames,
    so colours compare within a clip only; they are interpolated linearly between the
    middles of the tokens, in space and time. Frames are shown in grey. Needs
    matplotlib, whose colormap "inferno" it uses.

    Args:
        frames: uint8 [B, T, H, W, 3].
        maps: float32 [B, T', H', W'], as from `attention_rollout`.

    Returns:
        uint8 [B, T, H, W, 3].

    Example:
        >>> frames = np.zeros((1, 4, 32, 48, 3), np.uint8)
        >>> overlay(frames, np.random.rand(1, 2, 2, 3)).shape
        (1, 4, 32, 48, 3)
    """
    # Here, because maps do without.
    from matplotlib import colormaps

    maps = np.asarray(maps, np.float32)
    low, high = (f(maps, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    maps = (maps - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    maps = np.asarray(jax.image.resize(maps, frames.shape[:-1], "linear"))
    colours = colormaps["inferno"](maps)[..., :3]
    grey = np.dot(frames, np.float32([0.299, 0.587, 0.114]) / 255)[..., None]
    return np.rint(255 * (0.5 * grey + 0.5 * colours)).astype(np.uint8)


def save_overlays(
    stem: str | os.PathLike,
    frames: np.ndarray,
    maps: np.ndarray,
    fps: float = 8.0,
    formats: Sequence[str] = ("gif", "png"),
) -> list[pathlib.Path]:
    """Writes clips beside their overlays: `<stem>.gif` and `<stem>.png`.

    Args:
        stem: path without an extension; its folder is there.
        frames: uint8 [B, T, H, W, 3].
        maps: float32 [B, T', H', W'].
        fps: frames per second of the animations.
        formats: some of `pictures.FORMATS`.

    Returns:
        The files, in the order of the formats.

    Example:
        >>> import tempfile
        >>> frames, maps = np.zeros((1, 4, 32, 48, 3), np.uint8), np.ones((1, 2, 2, 3))
        >>> files = save_overlays(tempfile.mkdtemp() + "/attention", frames, maps)
        >>> [file.name for file in files]
        ['attention.gif', 'attention.png']
    """
    from videomae_jax.inference import (
        visualize,  # Pillow and PyAV, which maps do without too.
    )

    return visualize.save(stem, [frames, overlay(frames, maps)], fps, formats)
