"""Softmax attention over the tokens of a clip, with an implementation per platform.

All implementations take query, key and value [batch, tokens, width], the heads side by
side and the query scaled, and differ in speed and memory only. None keeps the [batch,
heads, tokens, tokens] weights for the backward pass: they would be the largest array of
a step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from videomae_jax.errors import ConfigError
from videomae_jax.models.array_types import Array, Tokens, ValidTokens
from videomae_jax.models.partitioning import divides, on_each_device, platform

# The lanes of a TPU's vector unit.
_LANES = 128
# Up to this many tokens, all keys of a head are one block of splash, which needs the
# least compiled memory.
_LARGEST_BLOCK = 2048
# Below this many tokens the weights are small, and plain products are as fast.
_FEW_TOKENS = 512
# Queries per chunk of "by_head": 1,568 at once take 6 to 12 % longer than two to four
# chunks, on a CPU.
_CHUNK = 1024
# Kernels that are written for one platform.
_ONLY_FOR = {"cudnn": "gpu", "fused": "tpu", "splash": "tpu"}

Heads = Float[Array, "batch heads tokens head_dim"]


def attend(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    valid: ValidTokens | None = None,
    *,
    heads: int,
    implementation: str | None,
) -> Tokens:
    """Computes dot-product attention, given a scaled query.

    The softmax is in float32. The automatic implementation, None, is on a TPU "fused",
    or "splash" where its keys do not fit; on a CPU "by_head" for many tokens; otherwise
    "xla", which is also used on several devices without a mesh (`jax.set_mesh`).

    Only `valid` tokens are attended to; None is all. A batch where some are not takes
    a slower way, clip by clip.
    """
    implementation = implementation or _automatic(query, heads)
    check(implementation)
    if not divides(query.shape[0]):
        # Fewer clips than devices, as in a visualization: each device computes all.
        implementation = "xla"
    attend_to_all = functools.partial(IMPLEMENTATIONS[implementation], heads=heads)
    if valid is None:
        return attend_to_all(query, key, value)
    return jax.lax.cond(
        valid.all(),
        lambda *arrays: attend_to_all(*arrays[:3]),
        functools.partial(_attend_to_valid, heads=heads),
        *(query, key, value, valid),
    )


def _attend_to_valid(query, key, value, valid, heads):
    """Computes plain products clip by clip: all weights of a batch can be gigabytes."""

    def one_clip(rows):
        query, key, value, valid = (x[None] for x in rows)
        return _xla(query, key, value, heads, valid)[0]

    def local(*arrays):
        return jax.lax.map(one_clip, arrays)

    return on_each_device(local, query, key, value, valid)


def _automatic(query: Tokens, heads: int) -> str:
    _, tokens, width = query.shape
    device = platform()
    if device == "tpu":
        # Imported here because the import takes a second.
        from videomae_jax.models.layers.fused_attention import fits

        itemsize = query.dtype.itemsize
        return "fused" if fits(tokens, width, heads, itemsize) else "splash"
    return "by_head" if device == "cpu" and tokens >= _FEW_TOKENS else "xla"


def split_heads(x: Tokens, heads: int) -> Heads:
    """Returns x with an axis for the heads, before the tokens."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _merge_heads(x: Heads) -> Tokens:
    batch, _, tokens, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, tokens, -1)


def check(
    implementation: str | None, device: str | None = None, *, name: str = "attention"
) -> None:
    """Checks that an implementation exists, and runs on a kind of device.

    Args:
        implementation: a key of IMPLEMENTATIONS, or None for automatic.
        device: "cpu", "gpu" or "tpu"; None for any.
        name: of the field that holds the implementation, for the ConfigError.
    """
    known = [x for x in IMPLEMENTATIONS if device in (None, _ONLY_FOR.get(x, device))]
    if implementation is None or implementation in known:
        return
    reason = "is unknown"
    if device and implementation in _ONLY_FOR:
        required = _ONLY_FOR[implementation].upper()
        reason = f"needs a {required}, but the devices are {device.upper()}s"
    raise ConfigError(
        f"{name}={implementation!r} {reason}. Use {', '.join(known)}, or None for "
        "automatic."
    )


def weights(
    query: Heads, key: Heads, valid: ValidTokens | None = None
) -> Float32[Array, "batch heads tokens tokens"]:
    """Returns what each token (third axis) gives to all, for a scaled query.

    Tokens that are not `valid` get 0; at least one must be.
    """
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    if valid is not None:
        logits = jnp.where(valid[:, None, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def _xla(query, key, value, heads, valid=None):
    """Computes two batched matrix products."""

    def attend(query, key, value):
        probabilities = weights(query, key, valid).astype(value.dtype)
        return jnp.einsum("bhqk,bhkd->bhqd", probabilities, value)

    inputs = (split_heads(x, heads) for x in (query, key, value))
    return _merge_heads(jax.checkpoint(attend)(*inputs))


def _cudnn(query, key, value, heads):
    """Calls cuDNN's fused kernel: on a GPU, in bfloat16 or float16."""

    def local(query, key, value):
        batch, tokens, width = query.shape
        inputs = (x.reshape(batch, tokens, heads, -1) for x in (query, key, value))
        # The query is scaled already.
        out = jax.nn.dot_product_attention(*inputs, scale=1.0, implementation="cudnn")
        return out.reshape(batch, tokens, width)

    return on_each_device(local, query, key, value)


def _by_head(query, key, value, heads):
    """Loops over heads and clips, so that the weights of one stay in a CPU's cache."""

    def local(query, key, value):
        inputs = [split_heads(x, heads) for x in (query, key, value)]
        rows = (x.reshape(-1, *x.shape[2:]) for x in inputs)
        out = jax.lax.map(lambda row: _one_head(*row), tuple(rows))
        return _merge_heads(out.reshape(inputs[0].shape))

    return on_each_device(local, query, key, value)


@jax.custom_vjp
def _one_head(query, key, value):
    return _one_head_forward(query, key, value)[0]


def _one_head_forward(query, key, value):
    outs, log_totals = [], []
    for chunk in _chunks(query):
        logits = _dot(chunk, key.T)
        largest = logits.max(axis=-1, keepdims=True)
        unnormalized = jnp.exp(logits - largest)
        total = unnormalized.sum(axis=-1, keepdims=True)
        outs.append(_dot(unnormalized.astype(value.dtype), value) / total)
        log_totals.append(largest + jnp.log(total))
    out = jnp.concatenate(outs).astype(value.dtype)
    return out, (query, key, value, out, jnp.concatenate(log_totals))


def _one_head_backward(residuals, out_gradient):
    query, key, value, out, log_total = residuals
    query_gradients, key_gradient, value_gradient = [], 0, 0
    for chunk, chunk_out, chunk_total, gradient in zip(
        *map(_chunks, (query, out, log_total, out_gradient)), strict=True
    ):
        # Keys down, queries across: only the last product transposes a large array.
        probabilities = jnp.exp(_dot(key, chunk.T) - chunk_total.T)
        value_gradient += _dot(probabilities.astype(gradient.dtype), gradient)
        # The softmax subtracts this from the gradient of each query's logits.
        common = gradient.astype(jnp.float32) * chunk_out.astype(jnp.float32)
        logits_gradient = probabilities * (
            _dot(value, gradient.T) - common.sum(axis=-1)
        )
        logits_gradient = logits_gradient.astype(query.dtype)
        key_gradient += _dot(logits_gradient, chunk)
        query_gradients.append(_dot(key.T, logits_gradient).T)
    return (
        jnp.concatenate(query_gradients).astype(query.dtype),
        jnp.asarray(key_gradient).astype(key.dtype),
        jnp.asarray(value_gradient).astype(value.dtype),
    )


def _chunks(x):
    """Splits the queries, so that fewer weights are in memory at a time."""
    return jnp.array_split(x, -(-len(x) // _CHUNK))


_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

_one_head.defvjp(_one_head_forward, _one_head_backward)


def _fused(query, key, value, heads, interpret: bool = False):
    """Calls a TPU kernel that reads the heads where the products left them."""
    # Imported here because the import takes a second.
    from videomae_jax.models.layers.fused_attention import fused_attention

    def local(query, key, value):
        return fused_attention(query, key, value, heads, interpret)

    return on_each_device(local, query, key, value)


def _splash(query, key, value, heads, interpret: bool = False):
    """Calls JAX's TPU kernel, with tokens padded to whole blocks."""
    # Imported here because the import takes a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens = query.shape[1]
    padded = -(-tokens // _LANES) * _LANES
    block = padded if padded <= _LARGEST_BLOCK else _LANES
    blocks = splash.BlockSizes(
        block_q=_LANES,
        block_kv=block,
        block_kv_compute=_LANES,
        block_q_dkv=_LANES,
        block_kv_dkv=block,
        block_kv_dkv_compute=_LANES,
        block_q_dq=_LANES,
        block_kv_dq=block,
    )
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * heads)

    def local(query, key, value):
        kernel: Any = splash.make_splash_mha(
            mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # Tokens attend within their own segment only: padding is a segment of its own.
        segment = (jnp.arange(padded) >= tokens).astype(jnp.int32)
        segments = splash.SegmentIds(segment, segment)
        padding = ((0, 0), (0, 0), (0, padded - tokens), (0, 0))
        inputs = (jnp.pad(split_heads(x, heads), padding) for x in (query, key, value))
        out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(*inputs)
        return _merge_heads(out[:, :, :tokens])

    return on_each_device(local, query, key, value)


IMPLEMENTATIONS = {
    "xla": _xla,
    "by_head": _by_head,
    "cudnn": _cudnn,
    "fused": _fused,
    "splash": _splash,
}
