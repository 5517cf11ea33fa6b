"""Losses of a classifier, between logits [B, C] and targets [B, C]."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from videomae_jax.config import Config, smoothing
from videomae_jax.data import labels
from videomae_jax.errors import CheckpointError, ConfigError, RecordError
from videomae_jax.models.array_types import Array
from videomae_jax.models.problem import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Problem,
)
from videomae_jax.training import mixture
from videomae_jax.video.record import LabelKind, Record


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


def mean_squared_error(
    values: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float32[Array, ""]:
    """Returns the mean over clips and values."""
    return jnp.mean(jnp.square(values.astype(jnp.float32) - targets))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of target that a classifier is trained on.

    Attributes:
        problem_type: what the logits mean; see `Problem`.
        label_kind: what the list has for each video.
        loss: of logits, targets and, for classes, their weights.
    """

    problem_type: str
    label_kind: LabelKind
    loss: Callable[..., Array]


# By `config.loss.kind`. With config.data.heads, softmax has LabelKind.HEADS.
KINDS = {
    "softmax": Kind(SINGLE_LABEL, LabelKind.ONE, cross_entropy),
    "sigmoid": Kind(MULTI_LABEL, LabelKind.MANY, binary_cross_entropy),
    "mse": Kind(REGRESSION, LabelKind.VALUES, mean_squared_error),
}


def label_kind(config: Config) -> LabelKind:
    """Returns what the lists of a run have for each video."""
    if config.data.heads:
        return LabelKind.HEADS
    return KINDS[config.loss.kind].label_kind


@dataclasses.dataclass(frozen=True)
class Objective:
    """Connects logits with labels: what is minimized, and what is predicted.

    Several heads have a cross-entropy each, of which the loss is the mean. Values of a
    regression are standardized: the model learns (value - mean) / std, with mean and
    deviation of the training videos, so that learning rates do not depend on units.
    That is done on the host, in float64: float32 does not tell dates and times apart.

    Attributes:
        problem: what the logits mean.
        names: of the classes or values, by logit.
        kind: of the targets.
        smoothing: label smoothing, see `soft_targets`.
        weights: float32 [C], of the classes; None for equal ones.
        mean, std: of each value of a regression, over the training videos.
        is_of_columns: whether the names of the values are of the list's columns.
    """

    problem: Problem
    names: tuple[str, ...]
    kind: Kind
    smoothing: float = 0.0
    weights: np.ndarray | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    is_of_columns: bool = False

    @property
    def example_label(self) -> np.ndarray:
        """The label of a clip in a batch: zeros of the right shape and dtype."""
        if self.problem.is_regression:
            return np.zeros(len(self.names), np.float32)
        if self.problem.heads:
            return np.zeros(len(self.problem.heads), np.int32)
        return np.zeros(1 if self.problem.type == MULTI_LABEL else (), np.int32)

    def standardize(self, array: np.ndarray) -> np.ndarray:
        """Returns the labels of batches; the array is as from `labels.to_array`.

        Values of a regression become standardized ones, float32.
        """
        if not self.problem.is_regression:
            return array
        return ((array - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def resumed(self, workdir: str, saved: Mapping[str, Any]) -> "Objective":
        """Returns the objective of a checkpoint, from its `meta`.

        It has the same classes or values, and exactly the checkpoint's units: those of
        the list may differ in the last digits, if it was sorted otherwise.

        Raises:
            CheckpointError: classes, heads or units differ, because the training list
                or the class names do; the message names the work directory.
        """
        for name, value in self.meta.items():
            if name in ("target_mean", "target_std"):
                margin = 1e-6 * np.array(self.std)
                same = np.allclose(saved[name], value, rtol=1e-12, atol=margin)
            else:
                same = saved.get(name, value) == value
            if not same:
                before, after = (f"{str(x)[:200]}" for x in (saved[name], value))
                raise CheckpointError(
                    f"{workdir}: {name} is {before} in the checkpoint, but {after} by "
                    "config.data. Resume with the training list and labels that the "
                    "run began with, or give a new --workdir"
                )
        if not self.problem.is_regression:
            return self
        mean, std = tuple(saved["target_mean"]), tuple(saved["target_std"])
        return dataclasses.replace(self, mean=mean, std=std)

    def targets(self, label: Array) -> Float32[Array, "batch classes"]:
        """Returns the targets of labels, which are as from `standardize`."""
        if self.problem.is_regression:
            return jnp.asarray(label)
        if not self.problem.heads:
            return soft_targets(label, len(self.names), self.smoothing)
        parts = [
            soft_targets(label[:, head], size, self.smoothing)
            for head, (_, size) in enumerate(self.problem.heads)
        ]
        return jnp.concatenate(parts, axis=-1)

    def loss(
        self,
        logits: Float[Array, "batch classes"],
        targets: Float[Array, "batch classes"],
    ) -> Float32[Array, ""]:
        """Returns the mean loss over the clips."""
        if self.problem.is_regression:
            return self.kind.loss(logits, targets)
        split = self.problem.split
        weights = {} if self.weights is None else split(self.weights)
        parts = split(targets)
        losses = [
            self.kind.loss(x, parts[head], weights.get(head))
            for head, x in split(logits).items()
        ]
        return sum(losses[1:], start=losses[0]) / len(losses)

    def check(self, records: Sequence[Record], source: str) -> None:
        """Raises RecordError unless the labels of held-out videos fit the training's.

        The message names the source and the first other video.
        """
        if self.problem.is_regression:
            labels.check_values(records, source, len(self.names))
            columns = records[0].value_names if records else ()
            lower = [[x.lower() for x in names] for names in (columns, self.names)]
            if self.is_of_columns and columns and lower[0] != lower[1]:
                raise RecordError(
                    f"{source}: the values of the training are {', '.join(self.names)},"
                    f" but the columns are {', '.join(columns)}: name them the same, "
                    "or name the values by config.data.labels, for their order"
                )
        elif not self.problem.heads:
            labels.check(records, source, len(self.names))
        else:
            labels.check_heads(records, source, len(self.problem.heads))
            for head, (_, size) in enumerate(self.problem.heads):
                labels.check(labels.of_head(records, head), source, size)

    @property
    def class_names(self) -> Sequence:
        """The names as `sources.load` takes them: of all classes, or of each head."""
        if self.problem.heads:
            return list(self.problem.split(self.names).values())
        return self.names

    @property
    def label_columns(self) -> Sequence[str]:
        """The columns with the labels of heads or the values, if a list names them."""
        heads = [name for name, _ in self.problem.heads]
        return self.names if self.problem.is_regression else heads

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps, a JSON object; `saved_objective` reads it."""
        meta = {"class_names": list(self.names), "problem": self.problem.to_json()}
        if self.problem.is_regression:
            meta |= {"target_mean": list(self.mean), "target_std": list(self.std)}
        return meta


def make_objective(config: Config, records: Sequence[Record]) -> Objective:
    """Returns the objective of a run by its config and training videos.

    Raises:
        ConfigError: fields of the config do not fit each other.
        RecordError: the videos, config.data.labels and num_classes do not agree.
    """
    data, kind = config.data, KINDS[config.loss.kind]
    heads, source = head_labels(config), mixture.names(data)
    if kind.problem_type == REGRESSION:
        names = labels.value_names(records, source, data.labels, data.num_classes)
        values = np.array([record.values for record in records], np.float64)
        std = values.std(axis=0)
        return Objective(
            Problem(REGRESSION),
            tuple(names),
            kind,
            mean=tuple(values.mean(axis=0).tolist()),
            # A value that is the same for all videos is only shifted.
            std=tuple(np.where(std > 0, std, 1.0).tolist()),
            is_of_columns=not data.labels and bool(records[0].value_names),
        )
    names, weights, sizes = [], [], []
    if data.heads:
        labels.check_heads(records, source, len(heads))
    for head, file in enumerate(heads.values()):
        videos = labels.of_head(records, head) if len(heads) > 1 else records
        classes = labels.class_names(videos, source, file, data.num_classes)
        names += classes
        sizes.append(len(classes))
        if config.loss.class_balance:
            counts = labels.counts(videos, len(classes))
            weights.append(class_weights(counts, config.loss.class_balance))
    several = zip(heads, sizes, strict=True) if len(heads) > 1 else ()
    return Objective(
        Problem(kind.problem_type, tuple(several)),
        tuple(names),
        kind,
        smoothing(config.loss.kind, config.loss.smoothing),
        np.concatenate(weights) if weights else None,
    )


def saved_objective(config: Config, meta: Mapping[str, Any]) -> Objective:
    """Returns the objective of a trained classifier, to test it.

    Args:
        config: of the test.
        meta: `Objective.meta` of the training; of earlier releases, only class_names.

    Raises:
        ConfigError: the heads of the config are not those of the training.
    """
    kind = KINDS[config.loss.kind]
    problem = Problem(kind.problem_type)
    if "problem" in meta:
        problem = Problem.from_json(meta["problem"])
    trained = ",".join(name for name, _ in problem.heads)
    if trained != ",".join(name for name in head_labels(config) if name):
        raise ConfigError(
            f"config.data.heads={config.data.heads!r} must be {trained!r}, as in the "
            "training"
        )
    return Objective(
        problem,
        tuple(meta["class_names"]),
        kind,
        mean=tuple(meta.get("target_mean", ())),
        std=tuple(meta.get("target_std", ())),
        # Otherwise, they are of config.data.labels, or "value", "value 0" ...
        is_of_columns=not config.data.labels
        and not all(re.fullmatch("value( [0-9]+)?", x) for x in meta["class_names"]),
    )


def head_names(config: Config) -> list[str]:
    """Returns the names in config.data.heads."""
    heads = config.data.heads
    return [name.strip() for name in heads.split(",")] if heads else []


def label_columns(config: Config) -> Sequence[str]:
    """Returns `Objective.label_columns` as far as the config names them."""
    if config.loss.kind == "mse" and config.data.labels:
        return labels.read(config.data.labels)
    return head_names(config)


def read_class_names(config: Config) -> Sequence | None:
    """Returns the names in config.data.labels as `sources.load` takes them, or None.

    Raises:
        ConfigError: fields of the config do not fit each other.
        RecordError: a file is missing or malformed.
    """
    files = head_labels(config).values()
    if config.loss.kind == "mse" or not config.data.labels:
        return None
    names = [labels.read(file) for file in files]
    return names if config.data.heads else names[0]


def head_labels(config: Config) -> dict[str, str]:
    """Returns the file of class names of each head, "" for none, by the head's name.

    Without config.data.heads, there is one head with the name "".

    Raises:
        ConfigError: fields of the config do not fit each other.
    """
    data, loss = config.data, config.loss
    if loss.kind == "mse":
        for field in ("smoothing", "class_balance"):
            if loss[field]:
                raise ConfigError(
                    f"config.loss.{field}={loss[field]} must be 0 with "
                    "config.loss.kind=mse, which has values instead of classes"
                )
        if config.init.head:
            raise ConfigError(
                "config.init.head=True is not supported with config.loss.kind=mse: a "
                "head predicts values in the units of its own training list. Leave it "
                "False; all else is loaded nevertheless"
            )
    if not data.heads:
        return {"": data.labels}
    if loss.kind != "softmax":
        raise ConfigError(
            f"config.data.heads={data.heads} needs config.loss.kind=softmax, one class "
            f"per head, got {loss.kind}"
        )
    if data.num_classes is not None:
        raise ConfigError(
            f"config.data.num_classes={data.num_classes} must be unset with "
            "config.data.heads: name the classes of each head in config.data.labels"
        )
    names = head_names(config)
    Problem(heads=tuple((name, 1) for name in names))  # checks the names
    files = [file.strip() for file in data.labels.split(",")] if data.labels else []
    if files and len(files) != len(names):
        raise ConfigError(
            f"config.data.labels={data.labels} must name a file for each of "
            f"config.data.heads={data.heads}, separated by commas, or be empty"
        )
    return dict(zip(names, files or [""] * len(names), strict=True))
