"""Losses of a classifier, between logits [B, C] and targets [B, C]."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from videomae_jax.errors import ConfigError
from videomae_jax.models.arrays import Array


def soft_targets(
    labels: Int[Array, "batch *labels"], num_classes: int, smoothing: float
) -> Float32[Array, "batch classes"]:
    """Returns targets with label smoothing.

    Each class gets smoothing / C, and the class of each label 1 - smoothing more
    (VideoMAE, appendix: smoothing 0.1).

    Args:
        labels: int32 [B], for `cross_entropy`; or [B, K] for `binary_cross_entropy`,
            with -1 for unused entries.
        num_classes: C.
        smoothing: in [0, 1).
    """
    hot = jax.nn.one_hot(labels, num_classes)
    if labels.ndim == 2:
        hot = hot.sum(axis=1)
    return hot * (1 - smoothing) + smoothing / num_classes


def class_weights(
    counts: Int[np.ndarray, "classes"], beta: float
) -> Float32[np.ndarray, "classes"]:
    """Returns the weights of the classes for a class-balanced loss, with mean 1.

    A weight is the inverse of the effective number of samples, (1 - beta^n) / (1 -
    beta) (Cui et al. 2019, section 3). beta = 0 gives equal weights; for beta -> 1 they
    are inverse to the number of samples. Classes without samples get weight 0.

    Args:
        counts: training videos of each class.
        beta: `config.loss.class_balance`, in [0, 1).

    Raises:
        ConfigError: beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"config.loss.class_balance={beta} must be in [0, 1)")
    counts = np.asarray(counts, np.float64)
    effective = (1 - beta**counts) / (1 - beta)
    weights = np.divide(1, effective, out=np.zeros_like(counts), where=counts > 0)
    return (weights / weights[counts > 0].mean()).astype(np.float32)


def cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    weights: Float[Array, "classes"] | None = None,
) -> Float32[Array, ""]:
    """Returns the mean over clips; `weights` are those of the classes."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    if weights is not None:
        targets = targets * weights
    return -jnp.mean(jnp.sum(targets * log_probabilities, axis=-1))


def binary_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    weights: Float[Array, "classes"] | None = None,
) -> Float32[Array, ""]:
    """Returns the mean over clips and classes; `weights` are those of the classes."""
    logits = logits.astype(jnp.float32)
    losses = -(
        targets * jax.nn.log_sigmoid(logits)
        + (1 - targets) * jax.nn.log_sigmoid(-logits)
    )
    return jnp.mean(losses if weights is None else losses * weights)


# `config.loss.kind`: the loss, and the function from logits to probabilities.
KINDS = {
    "softmax": (cross_entropy, jax.nn.softmax),
    "sigmoid": (binary_cross_entropy, jax.nn.sigmoid),
}
