"""VideoClassifier: the encoder over all tokens, pooling, and a linear head."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from videomae_jax.models import vit

POOLINGS = ("mean", "first_token", "attentive")
HEAD_NORMS = ("layer", "batch", "none")

_truncated_normal = nn.initializers.truncated_normal(0.02)


def _head_init(scale: float):
    def init(key, shape, dtype=jnp.float32):
        return scale * _truncated_normal(key, shape, dtype)

    return init


class AttentivePooling(nn.Module):
    """One cross-attention block from a learned query to all tokens, to [B, D].

    The probe of V-JEPA: the query attends to the normalised tokens, then passes an MLP.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens):
        """Pools tokens [B, N, D]."""
        batch, num_tokens, width = tokens.shape

        def dense(features, name):
            return vit.Dense(
                features, kernel_init=_truncated_normal, dtype=self.dtype, name=name
            )

        def split_heads(x):
            return x.reshape(batch, -1, self.heads, width // self.heads)

        norm = functools.partial(vit.layer_norm, 1e-6, dtype=self.dtype)
        tokens = norm(name="norm1")(tokens)
        query = self.param("query", _truncated_normal, (width,))
        x = jnp.broadcast_to(query.astype(tokens.dtype), (batch, 1, width))
        key, value = jnp.split(dense(2 * width, "key_value")(tokens), 2, axis=-1)
        attended = jax.nn.dot_product_attention(
            split_heads(dense(width, "query_projection")(x)),
            split_heads(key),
            split_heads(value),
        )
        x = x + dense(width, "out")(attended.reshape(batch, 1, width))
        mlp = vit.MLP(
            int(width * self.mlp_ratio), self.dtype, _truncated_normal, name="mlp"
        )
        x = x + mlp(norm(name="norm2")(x))
        return x[:, 0].astype(jnp.float32)


class VideoClassifier(nn.Module):
    """Video classifier on a VideoMAE encoder (VideoMAE, section 4; official code).

    Clip length and image size are taken from the video: any multiple of the tubelet
    and the patch size. `VideoClassifier.from_variant("base", num_classes=400)` gives
    the published sizes.

    Attributes:
        width, depth, heads: of the encoder.
        num_classes: length of the logits; 0 for an encoder without a head, whose output
            are the features.
        patch_size: pixels on a side of a patch; tubelet_size: frames of a patch.
        mlp_ratio: hidden over outer width of the MLPs.
        pooling: "mean" of all tokens; "first_token", after the encoder's own final
            LayerNorm, as most fine-tunes made with Hugging Face's library have it; or
            "attentive", one cross-attention block.
        head_norm: what normalises pooled features: "layer", a LayerNorm ("first_token"
            has none); "batch", a BatchNorm without scale and bias, which MAE puts
            before a linear probe, with statistics in the collection "batch_stats"; or
            "none".
        position_size: (height, width) in pixels of the pretraining images, whose
            position table is interpolated to other image sizes; None for the plain
            1-D table, with which official V1 checkpoints were made.
        drop_path: probability of dropping a residual branch of the last block, rising
            linearly from 0 in the first.
        dropout: of the normalised features.
        head_init_scale: scales the head's initial weights, truncated normal of 0.02.
        dtype: computation dtype; parameters are float32, and so are features and
            logits.
        remat: what the backward pass may keep of each block, as in VideoMAE.
        attention: how the encoder computes it, as in VideoMAE.
        final_norm: whether the encoder's own final LayerNorm is there too, as it is
            after pretraining; "first_token" always has it.
        norm_epsilon: of the encoder's LayerNorms; head_norm_epsilon: of the one after
            pooling. Weights of other libraries come with other values.
        pixel_mean, pixel_std: of RGB in [0, 1], what raw pixels are normalised with.
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
    attention: str | None = None
    final_norm: bool = False
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = vit.IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = vit.IMAGENET_STD

    @classmethod
    def from_variant(cls, name: str, num_classes: int, **overrides):
        """A published size: tiny, small, base, large, huge or giant.

        Args:
            name: the variant.
            num_classes: length of the logits.
            **overrides: any field, such as `pooling="first_token"`.

        Raises:
            ValueError: for an unknown variant.
        """
        fields = {
            field: value
            for field, value in vit.variant_fields(name).items()
            if not field.startswith("decoder_")
        }
        return cls(num_classes=num_classes, **(fields | overrides))

    def setup(self):
        """Names the parts; the names are those of the parameters."""
        if self.pooling not in POOLINGS or self.head_norm not in HEAD_NORMS:
            raise ValueError(
                f"pooling is {self.pooling!r} and head_norm {self.head_norm!r}: one of "
                f"{', '.join(POOLINGS)} and one of {', '.join(HEAD_NORMS)} are wanted"
            )
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
            final_norm=self.final_norm or self.pooling == "first_token",
            drop_path=self.drop_path,
            position_size=self.position_size,
            kernel_init=_truncated_normal,
            norm_epsilon=self.norm_epsilon,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )
        if self.pooling == "attentive":
            self.pool = AttentivePooling(self.heads, self.mlp_ratio, self.dtype)
        if self.head_norm == "batch":
            self.norm = nn.BatchNorm(
                momentum=0.9,
                epsilon=1e-6,
                use_bias=False,
                use_scale=False,
                # Means of pooled tokens can be far larger than their spread.
                use_fast_variance=False,
            )
        elif self.head_norm == "layer" and self.pooling != "first_token":
            self.norm = vit.layer_norm(self.head_norm_epsilon)
        if self.num_classes:
            self.head = nn.Dense(
                self.num_classes, kernel_init=_head_init(self.head_init_scale)
            )

    def tokens(self, video: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of a video [B, T, H, W, 3], before pooling."""
        return self.encoder(video)

    def attention_maps(self, video: jax.Array) -> jax.Array:
        """Attention weights, float32 [depth, B, N, N], averaged over the heads.

        Entry [l, b, i, j] is what token i takes from token j in block l.
        """
        return self.encoder(video, attention_maps=True)

    def pool_tokens(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Pools and normalises tokens [B, N, D] to features, float32 [B, D].

        With `train`, batch norm uses and updates with the statistics of the batch.
        """
        if self.pooling == "mean":
            # In float32: a sum over 1,568 tokens is too much for bfloat16.
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

    def features(self, video: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Pooled and normalised features, float32 [B, D]; see `__call__`."""
        return self.pool_tokens(self.encoder(video, keys=keys), train=keys is not None)

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits, float32 [B, num_classes], of features [B, D]."""
        return self.head(features) if self.num_classes else features

    def __call__(self, video: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Classifies clips.

        Args:
            video: [B, T, H, W, 3], uint8 (raw pixels) or floating point (normalised).
            keys: for training, a random key for each clip, [B], of drop-path and
                dropout: so what is dropped of a clip does not depend on how the batch
                is spread over devices. Without keys nothing is dropped, and "batch"
                normalises with the running statistics.

        Returns:
            Logits, float32 [B, num_classes]; features [B, D] where that is 0.

        Raises:
            ValueError: if the video's sizes do not divide into patches, or its dtype is
                neither uint8 nor floating point.
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
