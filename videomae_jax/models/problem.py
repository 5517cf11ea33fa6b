"""The problem that a classifier solves: what its logits mean."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax.errors import ConfigError
from videomae_jax.models.array_types import Array

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def class_key(name: str) -> str:
    """Returns what is equal for two ways to write the name of a class."""
    return " ".join(name.replace("_", " ").split()).casefold()


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tells how to read the logits of a classifier.

    Attributes:
        type: Hugging Face's `problem_type`: "single_label_classification", one class
            per video, whose probabilities are the softmax of the logits;
            "multi_label_classification", independent classes, the sigmoid; or
            "regression", where the logits are the predicted values.
        heads: name and number of classes of each head, such as (("verb", 97),
            ("noun", 300)), if a video has one class of each. Their logits follow each
            other, each with a softmax of its own. Empty for one head.

    Raises:
        ConfigError: the type is unknown, heads are not of single labels, or their names
            are not distinct words.
    """

    type: str = SINGLE_LABEL
    heads: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        """Checks the fields."""
        if self.type not in TYPES:
            raise ConfigError(
                f"problem type={self.type!r} must be one of: {', '.join(TYPES)}"
            )
        names = [name for name, _ in self.heads]
        if not names:
            return
        if self.type != SINGLE_LABEL:
            raise ConfigError(f"heads={names} need type={SINGLE_LABEL!r}")
        # Metrics and files are named after them; "all" is what they predict together.
        is_word = [re.fullmatch(r"[\w-]+", name) and name != "all" for name in names]
        if not all(is_word) or len(set(names)) < len(names) or len(names) < 2:
            raise ConfigError(
                f"heads={','.join(names)} must be two or more distinct words of "
                "letters, digits, _ and -, and not `all`"
            )

    @property
    def is_regression(self) -> bool:
        """True if the logits are values, not classes."""
        return self.type == REGRESSION

    def outputs(self, logits: Array) -> jax.Array:
        """Returns probabilities of the classes, or the values; float32 [..., C]."""
        if self.type == REGRESSION:
            return jnp.asarray(logits, jnp.float32)
        if self.type == MULTI_LABEL:
            return jax.nn.sigmoid(logits)
        parts = [jax.nn.softmax(part) for part in self.split(logits).values()]
        return jnp.concatenate(parts, axis=-1) if self.heads else parts[0]

    def split(self, values: Any) -> dict[str, Any]:
        """Returns the part of each head along the last axis, by the head's name.

        Without heads, all is one part with the name "". Takes arrays and sequences.

        Example:
            >>> Problem(heads=(("verb", 2), ("noun", 1))).split(["cut", "mix", "egg"])
            {'verb': ['cut', 'mix'], 'noun': ['egg']}
        """
        if not self.heads:
            return {"": values}
        parts, start = {}, 0
        for name, size in self.heads:
            span = slice(start, start + size)
            is_sequence = isinstance(values, (list, tuple, range))
            parts[name] = values[span] if is_sequence else values[..., span]
            start += size
        return parts

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object that `from_json` reads."""
        return {"type": self.type, "heads": dict(self.heads)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Problem":
        """Returns the problem that `to_json` wrote."""
        return cls(saved["type"], tuple(saved["heads"].items()))
