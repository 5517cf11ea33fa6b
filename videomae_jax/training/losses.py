"""Losses of a classifier: targets [B, C] against logits [B, C]."""

import jax
import jax.numpy as jnp
import numpy as np


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Targets of int32 labels [B], float32 [B, C], that sum to one.

    Each class gets smoothing / C, and the label's class 1 - smoothing more (VideoMAE,
    appendix: smoothing 0.1). Of labels [B, K], where -1 is none, each label's class
    gets so much: these are targets for `binary_cross_entropy`.
    """
    hot = jax.nn.one_hot(labels, num_classes)
    if labels.ndim == 2:
        hot = hot.sum(axis=1)
    return hot * (1 - smoothing) + smoothing / num_classes


def class_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Weights of the classes for a class-balanced loss, float32 [C], of mean 1.

    The inverse of the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et
    al. 2019, section 3). beta = 0 weighs all classes alike, beta -> 1 by the inverse of
    their size. Classes without samples get no weight.

    Args:
        counts: int [C], training videos of each class.
        beta: at least 0 and below 1.

    Raises:
        ValueError: for another beta.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"config.loss.class_balance is {beta}: 0 <= it < 1 is wanted")
    counts = np.asarray(counts, np.float64)
    effective = (1 - beta**counts) / (1 - beta)
    weights = np.divide(1, effective, out=np.zeros_like(counts), where=counts > 0)
    return (weights / weights[counts > 0].mean()).astype(np.float32)


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy over clips, a float32 scalar; `weights` [C] of the classes."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    if weights is not None:
        targets = targets * weights
    return -jnp.mean(jnp.sum(targets * log_probabilities, axis=-1))


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Mean over clips and classes of each class's own yes-or-no loss, a scalar."""
    logits = logits.astype(jnp.float32)
    losses = -(
        targets * jax.nn.log_sigmoid(logits)
        + (1 - targets) * jax.nn.log_sigmoid(-logits)
    )
    return jnp.mean(losses if weights is None else losses * weights)


# The loss of a kind, and what makes probabilities of its logits.
KINDS = {
    "softmax": (cross_entropy, jax.nn.softmax),
    "sigmoid": (binary_cross_entropy, jax.nn.sigmoid),
}
