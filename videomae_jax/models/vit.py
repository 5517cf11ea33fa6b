"""The vision transformer over video tokens that every model here is made of.

Shapes use these letters: B batch, T frames, H rows, W columns, C channels, N tokens
of a whole clip, V visible tokens, M masked tokens, D width, P = tubelet_size *
patch_size**2 * C values of one patch.

Patches are ordered (time, row, column); the values inside a patch are ordered
(frame, row, column, channel) with the channel fastest.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.models import attention
from videomae_jax.models.partitioning import keep_clips_in_place
from videomae_jax.models.positions import position_table

# ImageNet statistics of RGB in [0, 1], as every published VideoMAE weight expects.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What the backward pass keeps of a block: everything, nothing, or the matrix products.
REMAT_POLICIES = {
    "none": None,
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Sizes of one named model (VideoMAE, appendix; V2, table 1, for giant).

    The decoder is VideoMAE's (V1): V2 pretrains large and huge with a decoder of
    width 512, 8 heads, 4 layers instead, which is reached by overriding the fields.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    patch_size: int = 16
    mlp_ratio: float = 4.0


VARIANTS = {
    "tiny": Variant(192, 12, 3, 96, 4, 3),  # not in the papers: for small budgets
    "small": Variant(384, 12, 6, 192, 4, 3),
    "base": Variant(768, 12, 12, 384, 4, 6),
    "large": Variant(1024, 24, 16, 512, 12, 8),
    "huge": Variant(1280, 32, 16, 640, 12, 8),
    "giant": Variant(1408, 40, 16, 512, 4, 8, patch_size=14, mlp_ratio=48 / 11),
}


def variant_fields(name: str) -> dict[str, int | float]:
    """Returns the fields of a named variant; raises ValueError for another name."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}")
    return dataclasses.asdict(VARIANTS[name])


def token_grid(video_shape, patch_size: int, tubelet_size: int) -> tuple[int, int, int]:
    """Tokens along time, height and width of a video of shape [..., T, H, W, C].

    Raises:
        ValueError: if the clip length is no multiple of the tubelet size or the image
            size no multiple of the patch size.
    """
    frames, height, width = video_shape[-4:-1]
    if frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"a clip of {frames} frames of {height}x{width} pixels cannot be cut into "
            f"tubelets of {tubelet_size} frames and patches of {patch_size}x"
            f"{patch_size} pixels: each size must be a multiple"
        )
    return frames // tubelet_size, height // patch_size, width // patch_size


def patchify(video: jax.Array, patch_size: int, tubelet_size: int) -> jax.Array:
    """Cuts a video [B, T, H, W, C] into patches [B, N, P], of the same dtype."""
    t, h, w = token_grid(video.shape, patch_size, tubelet_size)
    batch, channels = video.shape[0], video.shape[-1]
    x = video.reshape(
        batch, t, tubelet_size, h, patch_size, w, patch_size, channels
    ).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, t * h * w, -1)


def unpatchify(
    patches: jax.Array, grid: tuple[int, int, int], patch_size: int, tubelet_size: int
) -> jax.Array:
    """Puts patches [B, N, P] of a token grid back into a video [B, T, H, W, C]."""
    t, h, w = grid
    x = patches.reshape(
        patches.shape[0], t, h, w, tubelet_size, patch_size, patch_size, -1
    ).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(
        x.shape[0], t * tubelet_size, h * patch_size, w * patch_size, x.shape[-1]
    )


def take_tokens(x: jax.Array, ids: jax.Array) -> jax.Array:
    """Gathers tokens [B, K, ...] with ids int32 [B, K] from x [B, N, ...]."""
    # Ids are within the clip; asking for each value whether it is would take longer.
    return jnp.take_along_axis(x, ids[..., None], axis=1, mode="clip")


def normalize(
    x: jax.Array,
    dtype=jnp.float32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> jax.Array:
    """Makes pixels [..., 3] or patches [..., P] ready for the model.

    uint8 is taken as raw RGB and normalised with mean and standard deviation of RGB in
    [0, 1]; floating point is taken as already normalised and only cast.

    Raises:
        ValueError: for any other dtype, such as int32, whose range is unknown.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    if x.dtype != jnp.uint8:
        raise ValueError(
            f"video has dtype {x.dtype}: pass uint8 for raw pixels (0-255), or "
            "floating point for already normalised ones"
        )
    repeats = x.shape[-1] // 3
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    scale = jnp.asarray(np.tile(1 / (255 * std), repeats))
    shift = jnp.asarray(np.tile(mean / std, repeats))
    return (x.astype(jnp.float32) * scale - shift).astype(dtype)


def _uniform_bias(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the reference leaves this layer so."""

    def init(key, shape, dtype=jnp.float32):
        bound = 1 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# U(+-1/sqrt(fan_in)), the reference's framework default, which its initialiser does
# not reach in the patch embedding and in the projection to the decoder.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = nn.initializers.xavier_uniform()


class Dense(nn.Dense):
    """A linear layer over the last axis, computed as one matrix product.

    XLA's CPU backend copies the cotangent of a product with several batch axes
    before it makes the kernel's gradient, at several times the cost of the product.
    """

    def __call__(self, x):
        """Applies the layer to every token."""
        x = keep_clips_in_place(x)
        out = super().__call__(x.reshape(-1, x.shape[-1]))
        return keep_clips_in_place(out.reshape(*x.shape[:-1], self.features))


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] -> [B, N, D], no bias on the keys.

    Query, key and value come from one matrix [D, 3 D]; the softmax is in float32.
    """

    heads: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform
    implementation: str | None = None
    return_weights: bool = False

    @nn.compact
    def __call__(self, x):
        """Attends over all tokens of each clip.

        Returns:
            [B, N, D], and with `return_weights` the float32 weights [B, N, N] that each
            token (second axis) gives to all, averaged over the heads, else None.
        """
        batch, tokens, width = x.shape
        # One matrix, and one initialiser over it, as in the reference.
        qkv = Dense(
            3 * width,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="qkv",
        )(x)
        q_bias = self.param("q_bias", nn.initializers.zeros, (width,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (width,))
        bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
        qkv = qkv + bias.astype(qkv.dtype)

        def split_heads(x):
            # [B, heads, N, head width] keeps both products plain batched matmuls.
            return x.reshape(batch, tokens, self.heads, -1).swapaxes(1, 2)

        q, k, v = map(split_heads, jnp.split(qkv, 3, axis=-1))
        attention.check(self.implementation)
        # Kernels cannot be compiled for the one clip that initialises.
        how = "xla" if self.is_initializing() else self.implementation
        out = attention.attend(q, k, v, how)
        out = out.transpose(0, 2, 1, 3).reshape(batch, tokens, width)
        out = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name="out")(
            out
        )
        if not self.return_weights:
            return out, None
        return out, attention.weights(q * q.shape[-1] ** -0.5, k).mean(axis=1)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU in float32, by erf as the reference: erfc would be slower."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.sqrt(0.5)))).astype(x.dtype)


class MLP(nn.Module):
    """Two layers with an exact (erf) GELU between them, [B, N, D] -> [B, N, D]."""

    hidden: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform

    @nn.compact
    def __call__(self, x):
        """Applies the two layers to every token."""
        width = x.shape[-1]
        dense = functools.partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        # For the backward pass x alone is kept here, not the wide arrays that GELU
        # makes of it. Inside a scan nothing can merge the two computations.
        gelu_and_fc2 = nn.remat(lambda fc2, x: fc2(gelu(x)), prevent_cse=False)
        x = dense(self.hidden, name="fc1")(x)
        return gelu_and_fc2(dense(width, name="fc2"), x)


# Flax keeps the statistics in float32 whatever the computation dtype.
layer_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class Block(nn.Module):
    """A pre-norm transformer block, [B, N, D] -> [B, N, D]."""

    heads: int
    mlp_ratio: float
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform
    implementation: str | None = None
    attention_maps: bool = False

    @nn.compact
    def __call__(self, x, branch_scales=None):
        """Returns x after attention and MLP, and the attention weights or None.

        That is the form that nn.scan wants.

        Args:
            x: [B, N, D].
            branch_scales: what drop-path multiplies the two residual branches of each
                clip with, [B, 2]; None leaves them as they are.
        """
        common = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        scales = 1.0, 1.0
        if branch_scales is not None:
            # [B, 1, 1] each.
            scales = jnp.moveaxis(branch_scales.astype(x.dtype), 1, 0)[..., None, None]
        norm = functools.partial(layer_norm, self.norm_epsilon, dtype=self.dtype)
        attention = Attention(
            self.heads,
            implementation=self.implementation,
            return_weights=self.attention_maps,
            name="attention",
            **common,
        )
        attended, weights = attention(norm(name="norm1")(x))
        x = x + scales[0] * attended
        hidden = int(x.shape[-1] * self.mlp_ratio)
        x = x + scales[1] * MLP(hidden, name="mlp", **common)(norm(name="norm2")(x))
        return x, weights


def drop_path_scales(keys: jax.Array, rate: float, depth: int) -> jax.Array:
    """Draws which residual branches are dropped, float32 [depth, B, 2].

    A branch is dropped for a whole clip, with a probability that rises linearly from 0
    in the first block to `rate` in the last; the others are scaled up accordingly.

    Args:
        keys: a random key for each clip, [B]; so a clip's draw does not depend on how
            the batch is cut up.
        rate: probability in the last block, below 1.
        depth: number of blocks.
    """
    rates = jnp.linspace(0, rate, depth)[:, None]
    draws = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (depth, 2))
    )(keys)
    return ((draws >= rates) / (1 - rates)).swapaxes(0, 1)


def run_blocks(
    x: jax.Array,
    depth: int,
    remat: str,
    branch_scales: jax.Array | None = None,
    **fields,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs `depth` blocks over x [B, N, D], as the submodule "blocks" of the caller.

    They are one scanned block whose parameters have a leading axis [depth], so that
    neither the compiled program nor the parameter names grow with the depth.

    Args:
        x: [B, N, D].
        depth: how many.
        remat: a key of REMAT_POLICIES.
        branch_scales: see `drop_path_scales`; None drops nothing.
        **fields: of Block.

    Returns:
        [B, N, D], and with the field `attention_maps` the float32 attention weights of
        each block, [depth, B, N, N], else None.

    Raises:
        ValueError: if the width is no multiple of the heads, or remat is unknown.
    """
    if x.shape[-1] % fields["heads"]:
        raise ValueError(
            f"width {x.shape[-1]} is no multiple of the {fields['heads']} heads"
        )
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat is {remat!r}; one of: {', '.join(REMAT_POLICIES)}")
    block = Block
    if remat != "none":
        # Inside a scan nothing else can merge the two forward passes.
        block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[remat])
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=depth,
    )
    return blocks(name="blocks", **fields)(x, branch_scales)


class Encoder(nn.Module):
    """Embeds the wanted patches, runs the blocks and the final LayerNorm.

    Attributes:
        width, depth, heads, patch_size, tubelet_size, mlp_ratio, dtype, remat,
            attention: as in VideoMAE.
        final_norm: whether the last LayerNorm is there; a classifier that averages
            the tokens has its own after the average instead (official code).
        drop_path: probability of dropping a residual branch of the last block.
        position_size: (height, width) in pixels of the images that the position table
            was trained with, see `position_table`; None for the plain table.
        kernel_init: of the linear layers in the blocks.
        norm_epsilon, pixel_mean, pixel_std: as in VideoMAE.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    remat: str = "none"
    attention: str | None = None
    final_norm: bool = True
    drop_path: float = 0.0
    position_size: tuple[int, int] | None = None
    kernel_init: nn.initializers.Initializer = xavier_uniform
    norm_epsilon: float = 1e-6
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    @nn.compact
    def __call__(self, video, visible=None, keys=None, attention_maps=False):
        """Encodes a video.

        Args:
            video: uint8 or floating point [B, T, H, W, C].
            visible: int32 [B, V], the tokens to embed; all N tokens when None.
            keys: a random key for each clip, [B], for drop-path; None drops nothing.
            attention_maps: return the attention weights instead of the tokens.

        Returns:
            Tokens [B, V, D] (or [B, N, D]) after the final LayerNorm, if there is one;
            or attention weights, float32 [depth, B, V, V], averaged over the heads.
        """
        patches = patchify(video, self.patch_size, self.tubelet_size)
        grid = token_grid(video.shape, self.patch_size, self.tubelet_size)
        trained_grid = None
        if self.position_size:
            trained_shape = (self.tubelet_size, *self.position_size, 3)
            trained_grid = token_grid(
                trained_shape, self.patch_size, self.tubelet_size
            )[1:]
        positions = jnp.asarray(position_table(grid, self.width, trained_grid))
        positions = positions.astype(self.dtype)
        if visible is not None:
            # Before the embedding: the masked 90 % are never touched again.
            patches = take_tokens(patches, visible)
            positions = positions[visible]
        x = Dense(
            self.width,
            kernel_init=fan_in_uniform,
            bias_init=_uniform_bias(patches.shape[-1]),
            dtype=self.dtype,
            name="embedding",
        )(normalize(patches, self.dtype, self.pixel_mean, self.pixel_std))
        branch_scales = None
        if keys is not None and self.drop_path:
            branch_scales = drop_path_scales(keys, self.drop_path, self.depth)
        x, weights = run_blocks(
            x + positions,
            self.depth,
            self.remat,
            branch_scales,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            implementation=self.attention,
            attention_maps=attention_maps,
        )
        if attention_maps:
            return weights
        if not self.final_norm:
            return x
        return layer_norm(self.norm_epsilon, dtype=self.dtype, name="norm")(x)
