"""VideoMAE: encodes the visible tokens, predicts the pixels of masked ones."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Num

from videomae_jax.errors import InputError
from videomae_jax.models import vit
from videomae_jax.models.array_types import (
    Array,
    Clips,
    DecodedIds,
    MaskedIds,
    Patches,
    Tokens,
    VisibleIds,
)
from videomae_jax.models.layers.linear import Dense, fan_in_uniform, xavier_uniform
from videomae_jax.models.layers.norm import LayerNorm
from videomae_jax.models.masking import check_ids, take_tokens
from videomae_jax.models.positions import sincos_positions
from videomae_jax.models.variants import variant_fields

# From here on, an array whose last axis is the channels is not much wider in memory.
_MANY_CHANNELS = 16


class Decoder(nn.Module):
    """Predicts the pixels of masked patches from the visible tokens."""

    width: int
    depth: int
    heads: int
    patch_values: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int | None = None
    attention: str | None = None
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Tokens, num_decoded: int
    ) -> Float32[Array, "batch decoded values"]:
        """Decodes tokens, of which the last `num_decoded` are to be predicted."""
        x, _ = vit.run_blocks(
            x,
            depth=self.depth,
            remat=self.remat,
            unroll=self.unroll,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            implementation=self.attention,
        )
        norm = LayerNorm(self.head_norm_epsilon, self.dtype, name="norm")
        x = norm(x[:, -num_decoded:])
        return Dense(
            self.patch_values,
            kernel_init=xavier_uniform,
            dtype=self.dtype,
            name="head",
        )(x).astype(jnp.float32)


def _mask_token_init(key, shape, dtype=jnp.float32):
    # Standard deviation 0.02, truncated at one standard deviation (official code).
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)


class VideoMAE(nn.Module):
    """Video masked autoencoder (VideoMAE, section 3).

    Accepts any number of frames that is a multiple of the tubelet size, and any height
    and width that are multiples of the patch size. `VideoMAE.from_variant("base")` has
    the published sizes.

    Attributes:
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        patch_size, tubelet_size: side of a patch in pixels, and its frames.
        mlp_ratio: hidden width of the MLPs over their outer width; the hidden width is
            rounded down.
        dtype: computation dtype; parameters and prediction are float32.
        remat: what the backward pass recomputes: "none", "dots" (all but the matrix
            products), or "blocks" (everything; least memory).
        decoder_remat, decoder_mlp_ratio: of the decoder; None as the encoder.
        unroll: blocks that an iteration of the loop over them computes. More take
            longer to compile, and need not copy what the backward pass keeps. None is
            one, or on a TPU all of at most 12, unless remat="blocks" or FSDP.
        attention, decoder_attention: a key of attention.IMPLEMENTATIONS; None is
            automatic.
        norm_epsilon: of all LayerNorms but the last. Weights of other libraries come
            with other values.
        head_norm_epsilon: of the last LayerNorm, before the decoder's head.
        channels: of the videos, 3 for RGB.
        pixel_mean, pixel_std: mean and standard deviation of each channel that
            normalize raw pixels, of values scaled to [0, 1].
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    remat: str = "none"
    decoder_remat: str | None = None
    unroll: int | None = None
    attention: str | None = None
    decoder_attention: str | None = None
    decoder_mlp_ratio: float | None = None
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6
    channels: int = 3
    pixel_mean: tuple[float, ...] = vit.IMAGENET_MEAN
    pixel_std: tuple[float, ...] = vit.IMAGENET_STD

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "VideoMAE":
        """Returns a model of a named size.

        Args:
            name: tiny, small, base, large, huge or giant.
            **overrides: any field, such as `dtype="bfloat16"` or, for V2's large and
                huge, `decoder_width=512, decoder_depth=4, decoder_heads=8`.
        """
        return cls(**(variant_fields(name) | overrides))

    def setup(self):
        """Creates the submodules; their names are those of the parameters."""
        self.encoder = vit.Encoder.of(self)
        self.encoder_to_decoder = Dense(
            self.decoder_width,
            use_bias=False,
            kernel_init=fan_in_uniform,
            dtype=self.dtype,
        )
        token_shape = (self.decoder_width,)
        self.mask_token = self.param("mask_token", _mask_token_init, token_shape)
        self.decoder = Decoder(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_heads,
            self.channels * self.tubelet_size * self.patch_size**2,
            self.decoder_mlp_ratio or self.mlp_ratio,
            self.dtype,
            self.decoder_remat or self.remat,
            self.unroll,
            self.decoder_attention,
            self.norm_epsilon,
            self.head_norm_epsilon,
        )

    def encode(self, video: Clips, visible: VisibleIds | None = None) -> Tokens:
        """Returns the encoded tokens of the visible patches, for None of all."""
        return self.encoder(video, visible)

    def attention_maps(
        self, video: Clips, visible: VisibleIds | None = None
    ) -> Float32[Array, "depth batch visible visible"]:
        """Returns the encoder's attention weights, see VideoClassifier's."""
        return self.encoder(video, visible, attention_maps=True)

    def __call__(
        self,
        video: Clips,
        visible: VisibleIds,
        masked: MaskedIds,
        *,
        decoded: DecodedIds | None = None,
    ) -> Float32[Array, "batch decoded values"]:
        """Predicts the targets of the decoded patches, in the order of `decoded`.

        Args:
            video: uint8 or uint16 (raw pixels) or floating point (normalized); a video
                or its patches.
            visible: ascending token ids, int32.
            masked: ascending token ids, int32: all those that are not visible.
            decoded: ascending token ids, int32; None for `masked`. The decoder gets a
                mask token for each, also for one that is visible (dual masking,
                VideoMAE V2, section 3.2).

        Raises:
            InputError: if the shapes do not fit the model or each other, or the visible
                and masked tokens are not all tokens.
        """
        patches = vit.as_patches(video, self)
        tokens = self.encode(patches, visible)
        check_ids("masked", masked, patches.values.shape[0])
        num_tokens = math.prod(patches.grid)
        if visible.shape[1] + masked.shape[1] != num_tokens:
            raise InputError(
                f"{visible.shape[1]} visible and {masked.shape[1]} masked tokens must "
                f"add up to the {num_tokens} tokens of the grid {patches.grid}"
            )
        if decoded is None:
            decoded = masked
        check_ids("decoded", decoded, patches.values.shape[0])
        x = self.encoder_to_decoder(tokens)
        table = sincos_positions(num_tokens, self.decoder_width)
        positions = jnp.asarray(table).astype(x.dtype)
        mask_tokens = self.mask_token.astype(x.dtype) + positions[decoded]
        # Visible tokens first: attention does not depend on the order, and the decoded
        # ones are then one slice.
        x = jnp.concatenate([x + positions[visible], mask_tokens], axis=1)
        return self.decoder(x, decoded.shape[1])


def pixel_targets(
    video: Clips,
    ids: DecodedIds,
    *,
    patch_size: int,
    tubelet_size: int,
    normalize: bool = True,
    mean: Sequence[float] = vit.IMAGENET_MEAN,
    std: Sequence[float] = vit.IMAGENET_STD,
) -> Float32[Array, "batch decoded values"]:
    """Returns the targets of the decoder: the pixels of the patches to predict.

    Args:
        video: uint8 or uint16 (raw pixels) or floating point (normalized); a video or
            its patches.
        ids: of the tokens, int32.
        patch_size: side of a patch in pixels.
        tubelet_size: frames of a patch.
        normalize: normalize each channel of each patch by its own mean and standard
            deviation (VideoMAE, section 4); otherwise the targets are in [0, 1].
        mean, std: of each channel, that a floating point video was normalized with.
    """
    patches = (
        video.values
        if isinstance(video, Patches)
        else vit.patchify(video, patch_size, tubelet_size)
    )
    pixels = take_tokens(patches, ids)
    channels, most = pixels.shape[-1] // (tubelet_size * patch_size**2), 1.0
    if patches.dtype in vit.RAW_DTYPES:
        most = float(np.iinfo(patches.dtype).max)
    else:
        stats = np.array([std, mean], np.float32)
        scale, shift = np.tile(stats, pixels.shape[-1] // channels)
        pixels = pixels.astype(jnp.float32) * scale + shift
    if not normalize:
        return pixels.astype(jnp.float32) / most
    patch_mean, patch_std = _channel_stats(pixels, channels)
    patch_mean = _to_values(patch_mean, pixels.shape[-1])
    inverse = _to_values(1 / (patch_std + 1e-6 * most), pixels.shape[-1])
    return (pixels.astype(jnp.float32) - patch_mean) * inverse


def patch_stats(
    pixels: Num[Array, "*patches values"], channels: int = 3
) -> tuple[Float32[Array, "*patches values"], Float32[Array, "*patches values"]]:
    """Returns mean and standard deviation of each patch and channel, for each value.

    The variance divides by n - 1. Callers add 1e-6 to the standard deviation, not to
    the variance (official code; image MAE differs in both).
    """
    mean, std = _channel_stats(pixels, channels)
    return _to_values(mean, pixels.shape[-1]), _to_values(std, pixels.shape[-1])


def _channel_stats(
    pixels: Num[Array, "*patches values"], channels: int
) -> tuple[Float32[Array, "*patches channels"], Float32[Array, "*patches channels"]]:
    """Returns mean and standard deviation of each patch and channel."""
    count = pixels.shape[-1] // channels
    # Sums over every third value as matrix products: an array with a last axis of 3
    # takes 128 / 3 times its size on a TPU, and a CPU cannot vectorize over it.
    channel = np.tile(np.eye(channels, dtype=np.float32), (count, 1))
    if pixels.dtype == np.uint8 and count <= 512:
        # Whole numbers, exact at the default precision of each platform, which is that
        # of bfloat16 on a TPU: up to 128, and squares up to 2^14 at three times that.
        pixels = pixels.astype(jnp.float32) - 128
        total = jnp.dot(pixels, channel)
        squares = jnp.dot(jnp.square(pixels), channel, precision=jax.lax.Precision.HIGH)
        # n times the sum of squared deviations is below 2^32. Each term may be above
        # it, but wraps around, so that the difference is right.
        whole = total.astype(jnp.int32).astype(jnp.uint32)
        deviations = count * squares.astype(jnp.uint32) - whole * whole
        variance = deviations.astype(jnp.float32) / (count * (count - 1))
        return total / count + 128, jnp.sqrt(variance)
    pixels = pixels.astype(jnp.float32)
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    mean = dot(pixels, channel) / count
    # Corrects the rounding error, which would dominate in a patch of one color.
    mean += dot(pixels - _to_values(mean, pixels.shape[-1]), channel) / count
    deviations = dot(jnp.square(pixels - _to_values(mean, pixels.shape[-1])), channel)
    return mean, jnp.sqrt(deviations / (count - 1))


def _to_values(
    x: Float32[Array, "*patches channels"], values: int
) -> Float32[Array, "*patches values"]:
    """Repeats what belongs to a channel for each value of a patch."""
    channels = x.shape[-1]
    if channels > _MANY_CHANNELS:
        return jnp.tile(x, values // channels)
    channel = np.arange(values) % channels
    out = x[..., :1]
    # No array with a last axis of 3, and no product, whose result would be stored.
    for i in range(1, channels):
        out = jnp.where(channel == i, x[..., i : i + 1], out)
    return jnp.broadcast_to(out, (*x.shape[:-1], values))


def token_errors(
    prediction: Float[Array, "batch decoded values"],
    target: Float[Array, "batch decoded values"],
) -> Float[Array, "batch decoded"]:
    """Returns the mean squared error of each token, over its values."""
    return jnp.mean(jnp.square(prediction - target), axis=-1)


def reconstruction_loss(
    prediction: Float[Array, "batch decoded values"],
    target: Float[Array, "batch decoded values"],
    weight: Float[Array, "batch decoded"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean squared error over clips, decoded tokens and values.

    Args:
        prediction, target: of the decoded tokens.
        weight: of each token in the mean, such as `masking.loss_weight`; None: equal.
    """
    return jnp.average(token_errors(prediction, target), weights=weight)
