"""Attributes predictions to tokens: attention rollout, class activation, overlays.

Maps are float32 [B, T', H', W'], a value for each token of a clip: T' tubelets of H'
rows and W' columns of patches. Clips are [B, T, H, W, C] as the model takes them:
uint8 (raw pixels) or floating point (normalized). From anything else that names a video
(see `inference.inputs`) the clip in its middle is taken, as `predict.center_clip` cuts
it, and its map has no axis B.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import InputError, PretrainedError, nearest
from videomae_jax.inference import checks
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier

# By default, TPUs and GPUs round the factors of these products to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, precision="highest")


def attention_rollout(pretrained: Pretrained, video: Any) -> np.ndarray:
    """Computes how much of each token attention carries into the output of a model.

    Abnar & Zuidema 2020 ("Quantifying Attention Flow in Transformers"): each block
    takes half of a token from the token itself, over the residual connection, and half
    from all tokens by the attention weights, averaged over the heads. The matrices
    (A + I) / 2 of the blocks are multiplied. The rows of the product are averaged as
    the output pools its tokens: all equally for mean pooling and for a VideoMAE, which
    sees the whole clip here; only the first token; or by the attention of the pooling.

    Rollout ignores the MLPs and the sign of what attention carries. It shows where
    information may come from, for no class in particular.

    Args:
        pretrained: a model of either kind with its weights.
        video: clips [B, T, H, W, C], or one or several videos; see the module.

    Returns:
        float32 [B, T', H', W'], or [T', H', W'] for one video; not negative. The values
        of a clip sum to 1.

    Raises:
        InputError: if shape, dtype or range of the clips do not fit the model.
        VideoError: if a video cannot be read.

    Example:
        >>> model = VideoClassifier(width=24, depth=2, heads=2, num_classes=3)
        >>> video = np.zeros((1, 4, 32, 48, 3), np.uint8)
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> attention_rollout(Pretrained(model, params), video).shape
        (1, 2, 2, 3)
    """
    checks.check_model(pretrained)
    clips, single = _clips(pretrained, video)
    maps = np.asarray(_rollout(pretrained.model, pretrained.variables, clips))
    return maps[0] if single else maps


def _clips(pretrained: Pretrained, video: Any) -> tuple[np.ndarray | jax.Array, bool]:
    """Returns clips [B, T, H, W, C], and whether they are the clip of one video."""
    if getattr(video, "ndim", 0) == 5:
        return checks.checked_clips(pretrained, video), False
    # Imported here, because maps of clips do without PyAV, OpenCV and Pillow.
    from videomae_jax.inference import predict

    clips = predict.center_clip(pretrained, video)
    single = not isinstance(clips, list)
    return np.stack([clips] if single else clips), single


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
        # Starting at the output, a vector passes each block instead of a matrix. The
        # rows of (A + I) / 2 sum to one without normalization.
        return (weights + _einsum("bi,bij->bj", weights, attention)) / 2, None

    weights, _ = jax.lax.scan(through_block, weights, maps, reverse=True)
    return _on_grid(weights, model, video)


def _pooling_attention(model, variables, video):
    """Returns the weights of attentive pooling, [B, N], averaged over the heads."""
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
    pretrained: Pretrained,
    video: Any,
    *,
    class_index: int | str | Sequence[int | str],
) -> np.ndarray:
    """Computes which tokens are evidence for a class, by gradient times activation.

    The tokens z_n are the output of the encoder, before pooling. The logit of the class
    is a function of them. The value of a token is

        max(0, g_n . (z_n - z)),   g_n = d logit / d z_n,   z = the mean of the tokens

    To first order, this is what the logit loses if the average token of the clip
    replaces token n; exactly so with mean pooling and no norm after it. The values
    therefore show where the evidence of a clip is, not how much of it exists.

    This is Grad-CAM (Selvaraju et al. 2017) with a gradient for each token instead of
    the average gradient (HiResCAM, Draelos & Carin 2020), and with the average token as
    the origin. The origin matters for heads that normalise: plain gradient times
    activation vanishes in each token where attentive pooling normalises tokens first,
    and large means of a batch norm would make a whole map positive or empty.

    Args:
        pretrained: a classifier with its weights.
        video: as in `attention_rollout`.
        class_index: the class, by number or name, one for all clips or one for each.
            The numbers of several heads follow each other. Of a regression, the value
            whose rise is explained.

    Returns:
        float32 [B, T', H', W'], or [T', H', W'] for one video; not negative, in units
        of the logit.

    Raises:
        PretrainedError: if the model has no classes, or pools its first token only, so
            that the gradient of all others is zero. `attention_rollout` works for both.
        InputError: if shape, dtype or range of the clips do not fit the model, or a
            class is none of its classes.
        VideoError: if a video cannot be read.
        ValueError: if the number of classes is neither 1 nor B.
    """
    checks.check_model(pretrained)
    model = pretrained.model
    source = pretrained.source or "the model"
    if not isinstance(model, VideoClassifier) or not model.num_classes:
        raise PretrainedError(
            f"{source} has no classes: use a fine-tuned model, or attention_rollout"
        )
    if model.pooling == "first_token":
        raise PretrainedError(
            f"{source} pools only its first token, so all others have no gradient: use "
            "attention_rollout"
        )
    clips, single = _clips(pretrained, video)
    given: Any = [class_index] if np.ndim(class_index) == 0 else class_index
    names = pretrained.labels or ()
    numbers = [_number(one, model.num_classes, names) for one in given]
    classes = np.broadcast_to(numbers, len(clips)).astype(np.int32)
    maps = np.asarray(_activation(model, pretrained.variables, clips, classes))
    return maps[0] if single else maps


def _number(class_index: int | str, count: int, names: Sequence[str]) -> int:
    """Returns the number of a class; raises InputError if it is none of `count`."""
    hint = ""
    if isinstance(class_index, str):
        if names.count(class_index) == 1:
            return names.index(class_index)
        hint = nearest(class_index, names)
    elif class_index in range(count):
        return int(class_index)
    raise InputError(
        f"class_index={class_index!r} must be in 0 to {count - 1}, or the name of one "
        f"of the classes{hint}"
    )


@functools.partial(jax.jit, static_argnums=0)
def _activation(model, variables, video, classes):
    tokens = model.apply(variables, video, method="tokens").astype(jnp.float32)

    def sum_of_logits(tokens):
        # Clips are independent: the gradient of the sum is that of each logit.
        features = model.apply(variables, tokens, method="pool_tokens")
        logits = model.apply(variables, features, method="classify")
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    gradient = jax.grad(sum_of_logits)(tokens)
    difference = tokens - tokens.mean(axis=1, keepdims=True)
    values = jax.nn.relu(jnp.sum(gradient * difference, axis=-1))
    return _on_grid(values, model, video)


def _on_grid(values, model, video):
    """Returns the values [B, N] of all tokens as maps [B, T', H', W']."""
    grid = vit.token_grid(video.shape, model.patch_size, model.tubelet_size)
    return values.reshape(len(values), *grid)


def overlay(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Blends maps with the frames they belong to, in colours from black to yellow.

    The values of each clip are scaled to 0 ... 1 over all its frames, so colours
    compare within a clip only. They are interpolated linearly between the centres of
    the tokens, in space and time. Frames become grey. Needs matplotlib, for its
    colormap "inferno". Takes frames of raw pixels [B, T, H, W, C], and returns uint8
    [B, T, H, W, 3].
    """
    # Imported here, because maps do without.
    from matplotlib import colormaps

    from videomae_jax.inference import visualize

    frames = visualize.displayed(frames)
    maps = np.asarray(maps, np.float32)
    low, high = (f(maps, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    maps = (maps - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    maps = np.asarray(jax.image.resize(maps, frames.shape[:-1], "linear"))
    colours = colormaps["inferno"](maps)[..., :3]
    grey = np.dot(frames, np.array([0.299, 0.587, 0.114], np.float32) / 255)[..., None]
    return np.rint(255 * (0.5 * grey + 0.5 * colours)).astype(np.uint8)


def save_overlays(
    stem: str | os.PathLike,
    frames: np.ndarray,
    maps: np.ndarray,
    *,
    label: str = "",
    fps: float = 8.0,
    formats: Sequence[str] = ("gif", "png"),
) -> list[pathlib.Path]:
    """Writes clips beside their overlays, as `<stem>.gif` and `<stem>.png`.

    Takes the arrays of `overlay`, a label for the overlays, and the other arguments of
    `visualize.save`, and returns the files in the order of the formats.
    """
    # Imported here, because maps do without Pillow.
    from videomae_jax.inference import visualize

    rows = [frames, overlay(frames, maps)]
    labels = ("original", label) if label else ()
    return visualize.save(stem, rows, labels=labels, fps=fps, formats=formats)
