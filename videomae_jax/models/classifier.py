"""VideoClassifier: the encoder over all tokens, pooling and a linear head."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from videomae_jax.errors import ConfigError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Array, ClipKeys, Clips, Tokens
from videomae_jax.models.layers.linear import Dense, scaled, truncated_normal
from videomae_jax.models.layers.norm import LayerNorm
from videomae_jax.models.partitioning import manual_axes
from videomae_jax.models.variants import encoder_fields

POOLINGS = ("mean", "first_token", "attentive")
HEAD_NORMS = ("layer", "batch", "none")


class AttentivePooling(nn.Module):
    """Pools tokens with one cross-attention block and a learned query, as V-JEPA.

    The query attends to the normalized tokens; an MLP follows.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float32[Array, "batch dim"]:
        """Pools the tokens of each clip."""
        batch, num_tokens, width = tokens.shape

        def split_heads(x):
            return x.reshape(batch, -1, self.heads, width // self.heads)

        dense = functools.partial(Dense, kernel_init=truncated_normal, dtype=self.dtype)
        norm = functools.partial(LayerNorm, 1e-6, self.dtype)
        tokens = norm(name="norm1")(tokens)
        query = self.param("query", truncated_normal, (width,))
        x = jnp.broadcast_to(query.astype(tokens.dtype), (batch, 1, width))
        key, value = jnp.split(dense(2 * width, name="key_value")(tokens), 2, axis=-1)
        attended = jax.nn.dot_product_attention(
            split_heads(dense(width, name="query_projection")(x)),
            split_heads(key),
            split_heads(value),
        )
        x = x + dense(width, name="out")(attended.reshape(batch, 1, width))
        mlp = vit.MLP(
            int(width * self.mlp_ratio), self.dtype, truncated_normal, name="mlp"
        )
        x = x + mlp(norm(name="norm2")(x))
        return x[:, 0].astype(jnp.float32)


class VideoClassifier(nn.Module):
    """Video classifier on a VideoMAE encoder (VideoMAE, section 4; official code).

    Accepts any number of frames that is a multiple of the tubelet size, and any height
    and width that are multiples of the patch size.
    `VideoClassifier.from_variant("base", num_classes=400)` has the published sizes.

    Attributes:
        width, depth, heads, patch_size, tubelet_size, mlp_ratio, remat, unroll,
            attention, channels, pixel_mean, pixel_std: as in VideoMAE.
        num_classes: length of the logits; 0 for an encoder without a head, which
            returns the features.
        pooling: "mean" of all tokens; "first_token", after the encoder's final
            LayerNorm, as in most models fine-tuned with Hugging Face's library; or
            "attentive", one cross-attention block.
        head_norm: normalizes the pooled features: "layer", a LayerNorm ("first_token"
            has none); "batch", a BatchNorm without scale and bias, with running
            statistics in the collection "batch_stats", as MAE's linear probe; or
            "none".
        position_size: (height, width) in pixels of the pretraining images, whose
            position table is interpolated to other image sizes; None for the plain
            1-D table, as in official V1 checkpoints.
        drop_path: probability of dropping a residual branch of the last block; it rises
            linearly from 0 in the first block.
        dropout: of the normalized features.
        head_init_scale: factor of the head's initial weights, which are a truncated
            normal of standard deviation 0.02.
        dtype: computation dtype; parameters, features and logits are float32.
        final_norm: apply the encoder's final LayerNorm too, as in pretraining;
            "first_token" always has it.
        norm_epsilon: of the encoder's LayerNorms. Weights of other libraries come with
            other values.
        head_norm_epsilon: of the LayerNorm after pooling.
    """

    width: int
    depth: int
    heads: int
    num_classes: int
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0
    pooling: str = "mean"
    head_norm: str = "layer"
    position_size: tuple[int, int] | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    head_init_scale: float = 0.001
    dtype: str = "float32"
    remat: str = "none"
    unroll: int | None = None
    attention: str | None = None
    final_norm: bool = False
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6
    channels: int = 3
    pixel_mean: tuple[float, ...] = vit.IMAGENET_MEAN
    pixel_std: tuple[float, ...] = vit.IMAGENET_STD

    @classmethod
    def from_variant(
        cls, name: str, num_classes: int, **overrides: Any
    ) -> "VideoClassifier":
        """Returns a model of a named size.

        Args:
            name: tiny, small, base, large, huge or giant.
            num_classes: length of the logits.
            **overrides: any field, such as `pooling="first_token"`.
        """
        return cls(num_classes=num_classes, **(encoder_fields(name) | overrides))

    def setup(self):
        """Creates the submodules; their names are those of the parameters."""
        for name, known in (("pooling", POOLINGS), ("head_norm", HEAD_NORMS)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(
                    f"{name}={value!r} is unknown; expected one of: {', '.join(known)}"
                )
        self.encoder = vit.Encoder.of(
            self,
            final_norm=self.final_norm or self.pooling == "first_token",
            kernel_init=truncated_normal,
        )
        if self.pooling == "attentive":
            self.pool = AttentivePooling(self.heads, self.mlp_ratio, self.dtype)
        if self.head_norm == "batch":
            axes: Any = manual_axes() or None
            self.norm: Any = nn.BatchNorm(
                momentum=0.9,
                epsilon=1e-6,
                use_bias=False,
                use_scale=False,
                # The mean of pooled tokens can be far larger than their deviation.
                use_fast_variance=False,
                axis_name=axes,
            )
        elif self.head_norm == "layer" and self.pooling != "first_token":
            self.norm = LayerNorm(self.head_norm_epsilon)

        if self.num_classes:
            head_init = scaled(truncated_normal, self.head_init_scale)
            self.head = nn.Dense(self.num_classes, kernel_init=head_init)

    def tokens(self, video: Clips) -> Tokens:
        """Returns the tokens of the encoder, before pooling."""
        return self.encoder(video)

    def attention_maps(
        self, video: Clips
    ) -> Float32[Array, "depth batch tokens tokens"]:
        """Returns the attention weights, averaged over the heads.

        Entry [l, b, i, j] is the weight that token i gives to token j in block l.
        """
        return self.encoder(video, attention_maps=True)

    def pool_tokens(
        self, tokens: Tokens, train: bool = False
    ) -> Float32[Array, "batch dim"]:
        """Pools and normalizes tokens to features.

        With `train`, batch norm uses the statistics of the batch and updates its own.
        """
        if self.pooling == "mean":
            # In float32: bfloat16 is too coarse for a sum over 1,568 tokens.
            x = tokens.mean(axis=1, dtype=jnp.float32)
        elif self.pooling == "first_token":
            x = tokens[:, 0].astype(jnp.float32)
        else:
            x = self.pool(tokens)
        if self.head_norm == "batch":
            return self.norm(x, use_running_average=not train)
        if self.pooling == "first_token" or self.head_norm == "none":
            return x
        return self.norm(x)

    def features(
        self, video: Clips, keys: ClipKeys | None = None
    ) -> Float32[Array, "batch dim"]:
        """Returns the pooled and normalized features; see `__call__`."""
        return self.pool_tokens(self.encoder(video, keys=keys), train=keys is not None)

    def classify(
        self, features: Float[Array, "batch dim"]
    ) -> Float32[Array, "batch classes"]:
        """Returns the logits of features."""
        return self.head(features) if self.num_classes else features

    def __call__(
        self, video: Clips, keys: ClipKeys | None = None
    ) -> Float32[Array, "batch classes"]:
        """Classifies clips.

        Args:
            video: uint8 or uint16 (raw pixels) or floating point (normalized); a video
                or its patches.
            keys: in training, a random key of each clip for drop-path and dropout, so
                that a clip's draws do not depend on how the batch is spread over
                devices. Without keys nothing is dropped, and head_norm="batch"
                normalizes with the running statistics.

        Returns:
            The logits; the features [batch, dim] where num_classes is 0.
        """
        x = self.features(video, keys)
        if keys is not None and self.dropout:
            kept = jax.vmap(
                lambda key: jax.random.bernoulli(
                    jax.random.fold_in(key, 1), 1 - self.dropout, x.shape[1:]
                )
            )(keys)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        return self.classify(x)
