"""VideoMAE: encode the visible tokens, decode the masked ones, compare with pixels."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.models import vit
from videomae_jax.models.positions import sincos_positions


class Decoder(nn.Module):
    """Predicts the pixels of the masked patches from the visible tokens."""

    width: int
    depth: int
    heads: int
    patch_values: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    remat: str = "none"
    attention: str | None = None
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x, num_masked: int):
        """Decodes [B, V + M, Dd], visible tokens first, to float32 [B, M, P]."""
        x, _ = vit.run_blocks(
            x,
            self.depth,
            self.remat,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            implementation=self.attention,
        )
        norm = vit.layer_norm(self.head_norm_epsilon, dtype=self.dtype, name="norm")
        x = norm(x[:, -num_masked:])
        return vit.Dense(
            self.patch_values,
            kernel_init=vit.xavier_uniform,
            dtype=self.dtype,
            name="head",
        )(x).astype(jnp.float32)


def _mask_token_init(key, shape, dtype=jnp.float32):
    # Standard deviation 0.02 cut off at one standard deviation (official code).
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)


class VideoMAE(nn.Module):
    """Video masked autoencoder (VideoMAE, section 3).

    Clip length and image size are taken from the video: any multiple of the tubelet
    and the patch size. `VideoMAE.from_variant("base")` gives the published sizes.

    Attributes:
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        patch_size: pixels on a side of a patch; tubelet_size: frames of a patch.
        mlp_ratio: hidden over outer width of the MLPs of both towers, rounded down.
        dtype: computation dtype; parameters are float32 and so is the prediction.
        remat: what the backward pass may keep of each block, "none" (of the
            recomputation: it keeps all), "dots" or "blocks" (least memory);
            decoder_remat: of the decoder, where it is not the encoder's.
        attention, decoder_attention: how each tower computes it, a key of
            attention.IMPLEMENTATIONS; None chooses.
        decoder_mlp_ratio: of the decoder, where it is not the encoder's.
        norm_epsilon: of all LayerNorms but the one before the decoder's head, which
            has head_norm_epsilon: weights of other libraries come with other values.
        pixel_mean, pixel_std: of RGB in [0, 1], what raw pixels are normalised with.
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
    attention: str | None = None
    decoder_attention: str | None = None
    decoder_mlp_ratio: float | None = None
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = vit.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = vit.IMAGENET_STD

    @classmethod
    def from_variant(cls, name: str, **overrides) -> "VideoMAE":
        """A published size: tiny, small, base, large, huge or giant.

        Args:
            name: the variant.
            **overrides: any field, such as `dtype="bfloat16"` or, for V2's large and
                huge, `decoder_width=512, decoder_depth=4, decoder_heads=8`.

        Raises:
            ValueError: for an unknown variant.
        """
        return cls(**(vit.variant_fields(name) | overrides))

    def setup(self):
        """Names the parts; the names are those of the parameters."""
        self.encoder = vit.Encoder(
            self.width,
            self.depth,
            self.heads,
            self.patch_size,
            self.tubelet_size,
            self.mlp_ratio,
            self.dtype,
            self.remat,
            self.attention,
            norm_epsilon=self.norm_epsilon,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )
        self.encoder_to_decoder = vit.Dense(
            self.decoder_width,
            use_bias=False,
            kernel_init=vit.fan_in_uniform,
            dtype=self.dtype,
        )
        self.mask_token = self.param(
            "mask_token", _mask_token_init, (self.decoder_width,)
        )
        self.decoder = Decoder(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_heads,
            3 * self.tubelet_size * self.patch_size**2,
            self.decoder_mlp_ratio or self.mlp_ratio,
            self.dtype,
            self.decoder_remat or self.remat,
            self.decoder_attention,
            self.norm_epsilon,
            self.head_norm_epsilon,
        )

    def encode(self, video: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """Tokens [B, V, D] of the visible patches, or [B, N, D] of all when None."""
        return self.encoder(video, visible)

    def attention_maps(
        self, video: jax.Array, visible: jax.Array | None = None
    ) -> jax.Array:
        """Attention weights of the encoder, float32 [depth, B, V, V] (V = N for None).

        Entry [l, b, i, j] is what token i takes from token j, averaged over the heads.
        """
        return self.encoder(video, visible, attention_maps=True)

    def __call__(
        self, video: jax.Array, visible: jax.Array, masked: jax.Array
    ) -> jax.Array:
        """Predicts the masked patches.

        Args:
            video: [B, T, H, W, 3], uint8 (raw pixels) or floating point (normalised).
            visible: int32 [B, V], ascending token ids.
            masked: int32 [B, M], ascending token ids; V + M = N.

        Returns:
            float32 [B, M, P]: the predicted targets of the masked patches, in the
            order of `masked`; values in (frame, row, column, channel) order.

        Raises:
            ValueError: if the video's sizes do not divide into patches, its dtype is
                neither uint8 nor floating point, or V + M is not N.
        """
        grid = vit.token_grid(video.shape, self.patch_size, self.tubelet_size)
        num_tokens = grid[0] * grid[1] * grid[2]
        if visible.shape[1] + masked.shape[1] != num_tokens:
            raise ValueError(
                f"{visible.shape[1]} visible and {masked.shape[1]} masked tokens do "
                f"not make up the {num_tokens} tokens of a {grid} grid"
            )
        x = self.encoder_to_decoder(self.encode(video, visible))
        positions = jnp.asarray(
            sincos_positions(num_tokens, self.decoder_width)
        ).astype(x.dtype)
        mask_tokens = self.mask_token.astype(x.dtype) + positions[masked]
        # Visible first, never put back in order: attention does not mind, and the
        # masked ones are then one slice.
        x = jnp.concatenate([x + positions[visible], mask_tokens], axis=1)
        return self.decoder(x, masked.shape[1])


def pixel_targets(
    video: jax.Array,
    masked: jax.Array,
    patch_size: int,
    tubelet_size: int,
    normalize: bool = True,
) -> jax.Array:
    """What the decoder has to predict for the masked patches.

    Args:
        video: [B, T, H, W, 3], uint8 (raw) or floating point (ImageNet-normalised).
        masked: int32 [B, M] token ids.
        patch_size: pixels on a side of a patch.
        tubelet_size: frames of a patch.
        normalize: normalise each channel of each patch by its own mean and standard
            deviation (VideoMAE, section 4); otherwise pixels in [0, 1].

    Returns:
        float32 [B, M, P] in (frame, row, column, channel) order.
    """
    pixels = vit.take_tokens(vit.patchify(video, patch_size, tubelet_size), masked)
    if video.dtype == jnp.uint8:
        pixels = pixels.astype(jnp.float32) / 255
    else:
        repeats = pixels.shape[-1] // 3
        std = np.tile(np.float32(vit.IMAGENET_STD), repeats)
        mean = np.tile(np.float32(vit.IMAGENET_MEAN), repeats)
        pixels = pixels.astype(jnp.float32) * std + mean
    if normalize:
        mean, std = patch_statistics(pixels)
        pixels = (pixels - mean) / (std + 1e-6)
    return pixels


def patch_statistics(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each channel of patches, float32 [..., P].

    Both are given for each value, so [..., P] too. The variance divides by n - 1; the
    reference adds its 1e-6 to the standard deviation, not to the variance (official
    code; image MAE differs in both).
    """
    count = pixels.shape[-1] // 3
    # Sums over every third value, as products: an array with a last axis of 3 takes a
    # TPU 128 / 3 times its size, and a CPU cannot vectorise over it.
    channel = np.tile(np.eye(3, dtype=np.float32), (count, 1))
    dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    mean = dot(dot(pixels, channel) / count, channel.T)
    # What rounding left: of a patch of one colour it would be all there is.
    mean += dot(dot(pixels - mean, channel) / count, channel.T)
    variance = dot(jnp.square(pixels - mean), channel) / (count - 1)
    return mean, dot(jnp.sqrt(variance), channel.T)


def reconstruction_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error over clips, masked tokens and values: a float32 scalar."""
    return jnp.mean(jnp.square(prediction - target))
