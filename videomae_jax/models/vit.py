"""The vision transformer over the patches of a video, shared by all models here."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Num, Shaped

from videomae_jax.errors import ConfigError, InputError
from videomae_jax.models.array_types import (
    Array,
    ClipKeys,
    Clips,
    Grid,
    Patches,
    Tokens,
    ValidTokens,
    Video,
    VisibleIds,
)
from videomae_jax.models.layers import attention
from videomae_jax.models.layers.linear import (
    Dense,
    QueryKeyValue,
    add_bias,
    fan_in_uniform,
    gelu,
    xavier_uniform,
)
from videomae_jax.models.layers.norm import LayerNorm
from videomae_jax.models.masking import check_ids, take_tokens
from videomae_jax.models.partitioning import has_split_parameters, platform
from videomae_jax.models.positions import padded_positions, position_table

# Mean and standard deviation of ImageNet's RGB in [0, 1], which all published weights
# expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of raw pixels, whose largest values stand for 1.
RAW_DTYPES = (np.uint8, np.uint16)

# What the backward pass keeps of each block: everything, nothing, or matrix products.
REMAT_POLICIES = {
    "none": None,
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# On a TPU, up to this many blocks are written out. The iterations of a loop copy all
# that the backward pass needs into one array each, and out of it again. Not with
# remat=blocks, where that is little, nor with FSDP, where a loop gathers one block at a
# time (and libtpu 0.0.42 fails on the others).
_MOST_UNROLLED = 12


def token_grid(video_shape: Sequence[Any], patch_size: int, tubelet_size: int) -> Grid:
    """Returns the tokens of a video [..., time, height, width, channels].

    Raises:
        InputError: if the sizes of the video are not multiples of those of a patch.
    """
    frames, height, width = video_shape[-4:-1]
    if frames % tubelet_size or height % patch_size or width % patch_size:
        raise InputError(
            f"a clip of {frames} frames of {height}x{width} pixels cannot be cut into "
            f"patches: the number of frames must be a multiple of "
            f"tubelet_size={tubelet_size}, height and width of patch_size={patch_size}"
        )
    return frames // tubelet_size, height // patch_size, width // patch_size


def patchify(
    video: Video, patch_size: int, tubelet_size: int
) -> Num[Array, "batch tokens values"]:
    """Cuts a video into patches of the same dtype."""
    t, h, w = token_grid(video.shape, patch_size, tubelet_size)
    batch, channels = video.shape[0], video.shape[-1]
    x = video.reshape(
        batch, t, tubelet_size, h, patch_size, w, patch_size, channels
    ).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, t * h * w, -1)


def as_patches(video: Clips, model: Any) -> Patches:
    """Returns the patches that a model embeds; cuts a video that is not cut yet.

    Raises:
        InputError: the video does not have five axes, or not `channels` channels, or
            does not divide into patches; or patches are of another model or grid.
    """
    sizes = model.patch_size, model.tubelet_size
    if isinstance(video, Patches):
        shape, tokens = video.values.shape, np.prod(video.grid)
        values = model.tubelet_size * model.patch_size**2 * model.channels
        if shape[1:] == (tokens, values):
            return video
        raise InputError(
            f"patches have the shape {shape}; expected [batch, {tokens}, {values}]"
        )
    if len(video.shape) != 5 or video.shape[-1] != model.channels:
        raise InputError(
            f"video has the shape {tuple(video.shape)}; expected [batch, time, "
            f"height, width, {model.channels}]"
        )
    return Patches(patchify(video, *sizes), token_grid(video.shape, *sizes))


def unpatchify(
    patches: Shaped[Array, "batch tokens values"],
    grid: Grid,
    patch_size: int,
    tubelet_size: int,
) -> Shaped[Array, "batch time height width channels"]:
    """Puts the patches of a token grid back into a video: inverts `patchify`."""
    t, h, w = grid
    x = patches.reshape(
        patches.shape[0], t, h, w, tubelet_size, patch_size, patch_size, -1
    ).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(
        x.shape[0], t * tubelet_size, h * patch_size, w * patch_size, x.shape[-1]
    )


def normalize(
    x: Num[Array, "*shape"],
    dtype=jnp.float32,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Array, "*shape"]:
    """Normalizes raw pixels, or casts pixels that are already normalized.

    Args:
        x: pixels [..., channels] or patches [..., values]: uint8 or uint16, which is
            normalized, or floating point, which is taken as normalized.
        dtype: of the result.
        mean, std: of each channel, of values scaled to [0, 1].

    Raises:
        InputError: for any other dtype, such as int32, whose range is unknown.
    """
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    if x.dtype not in RAW_DTYPES:
        raise InputError(
            f"video has dtype {x.dtype}; expected uint8 for raw pixels (0-255), uint16 "
            "(0-65535), or floating point for normalized ones"
        )
    repeats = x.shape[-1] // len(mean)
    std_array = np.asarray(std, np.float32)
    scale = jnp.asarray(np.tile(1 / (np.iinfo(x.dtype).max * std_array), repeats))
    shift = jnp.asarray(np.tile(np.asarray(mean, np.float32) / std_array, repeats))
    return (x.astype(jnp.float32) * scale - shift).astype(dtype)


class Attention(nn.Module):
    """Multi-head self-attention without a bias on the keys; softmax in float32."""

    heads: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform
    implementation: str | None = None
    return_weights: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, valid: ValidTokens | None = None
    ) -> tuple[Tokens, Float32[Array, "batch tokens tokens"] | None]:
        """Attends over all tokens of each clip, or those that are valid.

        With `return_weights`, also returns the weights, averaged over the heads: entry
        [b, i, j] is the weight that token i gives to token j.
        """
        width = x.shape[-1]
        common = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        # The kernel is scaled: it is smaller than the queries.
        scale = (width // self.heads) ** -0.5
        q, k, v = QueryKeyValue(scale, name="qkv", **common)(x)
        q_bias = self.param("q_bias", nn.initializers.zeros, (width,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (width,))
        q = add_bias(q, (q_bias * scale).astype(q.dtype))
        v = add_bias(v, v_bias.astype(v.dtype))
        attention.check(self.implementation)
        # Kernels cannot be compiled for the one clip that initializes the parameters.
        implementation = "xla" if self.is_initializing() else self.implementation
        out = attention.attend(
            q, k, v, valid, heads=self.heads, implementation=implementation
        )
        out = Dense(width, name="out", **common)(out)
        if not self.return_weights:
            return out, None
        q, k = (attention.split_heads(x, self.heads) for x in (q, k))
        return out, attention.weights(q, k, valid).mean(axis=1)


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    hidden: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Applies both layers to every token."""
        width = x.shape[-1]
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        # The backward pass keeps only the input of GELU and recomputes its wide
        # intermediates. Inside a loop, XLA cannot merge the two computations anyway;
        # where blocks are written out, it may.
        gelu_and_fc2 = nn.remat(lambda fc2, x: fc2(gelu(x)), prevent_cse=False)
        x = dense(self.hidden, name="fc1")(x)
        return gelu_and_fc2(dense(width, name="fc2"), x)


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int
    mlp_ratio: float
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = xavier_uniform
    implementation: str | None = None
    attention_maps: bool = False

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        branch_scales: Float[Array, "batch 2"] | None = None,
        valid: ValidTokens | None = None,
    ) -> tuple[Tokens, Float32[Array, "batch tokens tokens"] | None]:
        """Applies attention and MLP; returns carry and output, as nn.scan requires.

        The output is the attention weights with `attention_maps`, otherwise None.
        """
        common = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        scales = 1.0, 1.0
        if branch_scales is not None:
            # Two of [batch, 1, 1].
            scales = jnp.moveaxis(branch_scales.astype(x.dtype), 1, 0)[..., None, None]
        norm = partial(LayerNorm, self.norm_epsilon, self.dtype)
        attended, weights = Attention(
            self.heads,
            implementation=self.implementation,
            return_weights=self.attention_maps,
            name="attention",
            **common,
        )(norm(name="norm1")(x), valid)
        x = x + scales[0] * attended
        hidden = int(x.shape[-1] * self.mlp_ratio)
        x = x + scales[1] * MLP(hidden, name="mlp", **common)(norm(name="norm2")(x))
        return x, weights


def drop_path_scales(
    keys: ClipKeys, rate: float, depth: int
) -> Float[Array, "depth batch 2"]:
    """Draws the factors of the residual branches, 0 for those that are dropped.

    A branch is dropped for a whole clip, with a probability that rises linearly from 0
    in the first block to `rate`, below 1, in the last. The other branches are scaled up
    to keep the mean.

    Every clip has its own key, so that its draw does not depend on how the batch is
    split.
    """
    rates = jnp.linspace(0, rate, depth)[:, None]
    draws = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (depth, 2))
    )(keys)
    return ((draws >= rates) / (1 - rates)).swapaxes(0, 1)


def run_blocks(
    x: Tokens,
    *,
    depth: int,
    remat: str,
    unroll: int | None,
    branch_scales: Float[Array, "depth batch 2"] | None = None,
    valid: ValidTokens | None = None,
    **fields: Any,
) -> tuple[Tokens, Float32[Array, "depth batch tokens tokens"] | None]:
    """Runs the blocks as the submodule "blocks" of the calling module.

    They are one scanned block whose parameters have a leading axis [depth], so neither
    the compiled program nor the parameter names grow with the depth; unless `unroll`
    blocks are written out in an iteration.

    `remat` is a key of REMAT_POLICIES; `fields` are those of Block. With the field
    `attention_maps`, also returns the attention weights of each block.

    Raises:
        ConfigError: if the heads do not divide the width, or remat is unknown.
    """
    if x.shape[-1] % fields["heads"]:
        raise ConfigError(
            f"heads={fields['heads']} must divide the width, {x.shape[-1]}"
        )
    if remat not in REMAT_POLICIES:
        raise ConfigError(
            f"remat={remat!r} is unknown; expected one of: {', '.join(REMAT_POLICIES)}"
        )
    block = Block
    if unroll is None:
        is_loop = remat == "blocks" or has_split_parameters() or platform() != "tpu"
        unroll = 1 if is_loop or depth > _MOST_UNROLLED else depth
    if remat != "none":
        # Inside a loop, XLA cannot merge the two forward passes anyway.
        policy = REMAT_POLICIES[remat]
        block = nn.remat(Block, prevent_cse=unroll > 1, policy=policy)
    blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=depth,
        unroll=min(unroll, depth),
    )
    return blocks(name="blocks", **fields)(x, branch_scales, valid)


def check_channels(model: Any, section: str = "") -> None:
    """Checks that a model has a mean and a deviation for each channel.

    Raises:
        ConfigError: it does not; the message names the field, after its section.
    """
    for name in ("pixel_mean", "pixel_std"):
        values = getattr(model, name)
        if len(values) != model.channels:
            raise ConfigError(
                f"{section}{name}={tuple(values)} must have a number for each of "
                f"{section}channels={model.channels}, of values scaled to [0, 1]"
            )


class Encoder(nn.Module):
    """Embeds the patches, runs the blocks and the final LayerNorm.

    Attributes are as in VideoMAE and VideoClassifier. With `final_norm=False` the final
    LayerNorm is left out: a classifier that averages the tokens has one after the
    average instead (official code). `kernel_init` is for the blocks.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int | None = None
    attention: str | None = None
    final_norm: bool = True
    drop_path: float = 0.0
    position_size: tuple[int, int] | None = None
    kernel_init: nn.initializers.Initializer = xavier_uniform
    norm_epsilon: float = 1e-6
    channels: int = 3
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of(cls, model: Any, **fields: Any) -> "Encoder":
        """Returns the encoder of a model: fields of the same name have its values."""
        shared = {field.name for field in dataclasses.fields(cls)} & vars(model).keys()
        values = {name: getattr(model, name) for name in shared - {"parent", "name"}}
        return cls(**(values | fields))

    @nn.compact
    def __call__(
        self,
        video: Clips,
        visible: VisibleIds | None = None,
        *,
        sizes: Int[Array, "batch 2"] | None = None,
        keys: ClipKeys | None = None,
        attention_maps: bool = False,
    ) -> Float[Array, "*shape"]:
        """Encodes a video.

        Args:
            video: raw or normalized pixels or patches, as in VideoMAE.
            visible: ids of the tokens to embed; None embeds all.
            sizes: rows and columns of tokens of each clip, at least 1; the others are
                padding and change nothing. Needs position_size, and all tokens.
            keys: a random key of each clip for drop-path; None drops nothing.
            attention_maps: return the attention weights instead of the tokens: float32
                [depth, batch, visible, visible], averaged over the heads.

        Raises:
            InputError: see `as_patches`; or `visible` is of another batch.
        """
        check_channels(self)
        video = as_patches(video, self)
        patches = video.values
        trained_grid = valid = None
        if self.position_size:
            trained = (self.tubelet_size, *self.position_size, self.channels)
            trained_grid = token_grid(trained, self.patch_size, self.tubelet_size)[1:]
        if sizes is None:
            table = position_table(video.grid, self.width, trained_grid)
        else:
            table, valid = padded_positions(video.grid, self.width, trained_grid, sizes)
        positions = jnp.asarray(table).astype(self.dtype)
        if visible is not None:
            check_ids("visible", visible, patches.shape[0])
            # Before the embedding, so that masked patches cost nothing.
            patches = take_tokens(patches, visible)
            positions = positions[visible]
        bound = 1 / np.sqrt(patches.shape[-1])  # of the bias, as of the kernel
        x = Dense(
            self.width,
            kernel_init=fan_in_uniform,
            bias_init=partial(jax.random.uniform, minval=-bound, maxval=bound),
            dtype=self.dtype,
            name="embedding",
        )(normalize(patches, self.dtype, self.pixel_mean, self.pixel_std))
        branch_scales = None
        if keys is not None and self.drop_path:
            branch_scales = drop_path_scales(keys, self.drop_path, self.depth)
        x, weights = run_blocks(
            x + positions,
            depth=self.depth,
            remat=self.remat,
            unroll=self.unroll,
            branch_scales=branch_scales,
            valid=valid,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            implementation=self.attention,
            attention_maps=attention_maps,
        )
        if weights is not None:
            return weights
        if not self.final_norm:
            return x
        return LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
