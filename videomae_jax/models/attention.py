"""Softmax attention over the tokens of a clip, in the forms that devices want.

All take query, key and value [B, H, N, K] (H heads of width K, the query not scaled
yet) and give [B, H, N, K]; they differ in speed and in memory. "xla" alone keeps the
[B, H, N, N] weights for the backward pass, which is the largest thing of a step with
1,568 tokens; the others compute them again, piece by piece.
"""

import functools

import jax
import jax.numpy as jnp

from videomae_jax.models.partitioning import divides, on_each_device, platform

# Tokens of a splash block are a multiple of this: lanes of a TPU's vector unit.
_LANES = 128
# Up to here all keys are one block, which measured smallest in compiled memory.
_LARGEST_BLOCK = 2048
# Below so many tokens the weights are small, and plain products are as fast.
_FEW_TOKENS = 512
# The most queries whose weights "by_head" has at the same time: 1,568 take 6 to 12 %
# longer at once than in two or four parts, on a CPU.
_QUERIES = 1024
_FOR_MANY_TOKENS = {"cpu": "by_head", "tpu": "splash"}
# Kernels, which are written for a platform.
_ONLY_FOR = {"cudnn": "gpu", "splash": "tpu"}


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str | None
) -> jax.Array:
    """Scaled dot-product attention, [B, H, N, K], with the softmax in float32.

    Args:
        query, key, value: [B, H, N, K].
        implementation: a key of IMPLEMENTATIONS, or None: for many tokens "by_head" on
            a CPU and "splash" on a TPU, otherwise "xla", and where there are several
            devices and no mesh in use (`jax.set_mesh`). Forward-mode derivatives
            (`jax.jvp`) want "xla".

    Raises:
        ValueError: for another implementation.
    """
    if implementation is None:
        many = query.shape[2] >= _FEW_TOKENS
        implementation = _FOR_MANY_TOKENS.get(platform(), "xla") if many else "xla"
    check(implementation)
    if not divides(len(query)):
        # A few clips to look at, on more devices: each computes all of them.
        implementation = "xla"
    query = query * query.shape[-1] ** -0.5
    return IMPLEMENTATIONS[implementation](query, key, value)


def check(
    implementation: str | None, device: str | None = None, name: str = "attention"
) -> None:
    """Makes sure that there is such an implementation.

    Args:
        implementation: a key of IMPLEMENTATIONS, or None.
        device: "cpu", "gpu" or "tpu", on which it has to run; None for any.
        name: what the implementation is called where it was given.

    Raises:
        ValueError: if there is none, or not for this device; the message lists them.
    """
    there = [x for x in IMPLEMENTATIONS if device in (None, _ONLY_FOR.get(x, device))]
    if implementation is None or implementation in there:
        return
    kind = _ONLY_FOR.get(implementation)
    why = f", which is for a {kind.upper()}, not for a {device.upper()}" if kind else ""
    raise ValueError(
        f"{name} is {implementation!r}{why}; one of: {', '.join(there)}, or None, "
        "which chooses"
    )


def weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """What each token gives to all others, float32 [B, H, N, N], of a scaled query."""
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    return jax.nn.softmax(logits, axis=-1)


def _xla(query, key, value):
    """Two batched matrix products."""
    given = weights(query, key).astype(value.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", given, value)


def _cudnn(query, key, value):
    """cuDNN's fused kernel, on a GPU, in bfloat16 or float16."""
    # It wants [B, N, H, K], and nothing is left to scale.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        query, key, value, scale=1.0, implementation="cudnn"
    )
    return out.swapaxes(1, 2)


def _by_head(query, key, value):
    """One head of one clip after the other: its weights stay in a CPU's cache."""

    def local(query, key, value):
        rows = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
        out = jax.lax.map(lambda row: _one_head(*row), tuple(rows))
        return out.reshape(query.shape)

    return on_each_device(local, query, key, value)


@jax.custom_vjp
def _one_head(query, key, value):
    return _one_head_forward(query, key, value)[0]


def _one_head_forward(query, key, value):
    outs, log_totals = [], []
    for part in _in_parts(query):
        logits = _dot(part, key.T)
        largest = logits.max(axis=-1, keepdims=True)
        given = jnp.exp(logits - largest)
        total = given.sum(axis=-1, keepdims=True)
        outs.append(_dot(given.astype(value.dtype), value) / total)
        log_totals.append(largest + jnp.log(total))
    out = jnp.concatenate(outs).astype(value.dtype)
    return out, (query, key, value, out, jnp.concatenate(log_totals))


def _one_head_backward(kept, out_gradient):
    query, key, value, out, log_total = kept
    query_gradients, key_gradient, value_gradient = [], 0, 0
    for part, part_out, part_total, gradient in zip(
        *map(_in_parts, (query, out, log_total, out_gradient)), strict=True
    ):
        # Keys down, queries across: so only the last product has a large array turned.
        given = jnp.exp(_dot(key, part.T) - part_total.T)
        value_gradient += _dot(given.astype(gradient.dtype), gradient)
        # What softmax takes off the logits of each query, from the output.
        common = gradient.astype(jnp.float32) * part_out.astype(jnp.float32)
        of_logits = given * (_dot(value, gradient.T) - common.sum(axis=-1))
        of_logits = of_logits.astype(query.dtype)
        key_gradient += _dot(of_logits, part)
        query_gradients.append(_dot(key.T, of_logits).T)
    return (
        jnp.concatenate(query_gradients).astype(query.dtype),
        key_gradient.astype(key.dtype),
        value_gradient.astype(value.dtype),
    )


def _in_parts(x):
    """Cut along the queries, for fewer weights at a time."""
    return jnp.array_split(x, -(-len(x) // _QUERIES))


_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

_one_head.defvjp(_one_head_forward, _one_head_backward)


def _splash(query, key, value, interpret: bool = False):
    """JAX's TPU kernel, tokens filled up to whole blocks that nobody attends to."""
    # Here, for it takes a second to import, and few need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, heads, tokens, _ = query.shape
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
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # Tokens attend to those of their own segment.
    segment = (jnp.arange(padded) >= tokens).astype(jnp.int32)
    segments = splash.SegmentIds(segment, segment)

    def local(query, key, value):
        fill = ((0, 0), (0, 0), (0, padded - tokens), (0, 0))
        filled = (jnp.pad(x, fill) for x in (query, key, value))
        out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(*filled)
        return out[:, :, :tokens]

    return on_each_device(local, query, key, value)


IMPLEMENTATIONS = {
    "xla": _xla,
    "by_head": _by_head,
    "cudnn": _cudnn,
    "splash": _splash,
}
