"""Weights to start from, before they are read; a head takes its classes by name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videomae_jax.errors import CheckpointError
from videomae_jax.interop.edit_head import find_classes
from videomae_jax.models.build import Model


@dataclasses.dataclass(frozen=True)
class SourceWeights:
    """Weights that have not been read yet.

    Attributes:
        name: for messages.
        model: the module.
        position_size: (height, width) of the images that its position table is for.
        shapes: of its parameters, by path.
        restore: reads parameters, given as abstract arrays with shardings by path.
        incomplete: the steps done, if they are not all of the source's run.
        labels: names of its classes; empty if it has none, or several heads.
    """

    name: str
    model: Model
    position_size: tuple[int, int]
    shapes: Mapping[str, tuple[int, ...]]
    restore: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]
    incomplete: str = ""
    labels: Sequence[str] = ()

    def with_classes(
        self, classes: Sequence[str], params: Mapping[str, jax.Array]
    ) -> tuple["SourceWeights", str]:
        """Returns weights with other classes, and a line about what became of them.

        Classes of one name keep their part of the head, others get that of `params`.
        If one side has no names, nothing changes.

        Args:
            classes: their names.
            params: initial parameters by path, with a head of these classes.

        Raises:
            CheckpointError: both sides have names, of which none is the same.
        """
        head = {x: params[x] for x in params if x.startswith("head/")}
        if not head.keys() <= self.shapes.keys() or not (
            _are_names(classes) and _are_names(self.labels)
        ):
            return self, "classes: in the order of the source, not by name"
        columns = find_classes(classes, self.labels)
        if (columns < 0).all():
            raise CheckpointError(
                f"config.init.head=True: none of the classes, such as {classes[0]!r}, "
                f"is one of {self.name}, such as {self.labels[0]!r}. Name them alike "
                "(config.data.labels), or set config.init.head=False"
            )
        shapes = {x: (*self.shapes[x][:-1], len(classes)) for x in head}

        def restore(abstract):
            theirs = {x: _replicated(abstract[x], self.shapes[x]) for x in head}
            loaded = dict(self.restore({**abstract, **theirs}))
            return loaded | {x: _take(head[x], loaded[x], columns) for x in head}

        changed = {"shapes": {**self.shapes, **shapes}, "restore": restore}
        new = [name for name, x in zip(classes, columns, strict=True) if x < 0]
        line = (
            f"classes: {len(classes) - len(new)} of {len(classes)} by name, from "
            f"{len(self.labels)} in the source"
        )
        if new:
            line += f"; newly initialised: {', '.join(new)}"
        return dataclasses.replace(self, **changed), line


def _are_names(classes: Sequence[str]) -> bool:
    """Returns False for no classes, and for those that are only numbered."""
    return list(classes) != [str(i) for i in range(len(classes))]


def _replicated(
    ours: jax.ShapeDtypeStruct, shape: tuple[int, ...]
) -> jax.ShapeDtypeStruct:
    """Returns an abstract array for all devices: it need not be divisible like ours."""
    sharding = ours.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, ours.dtype, sharding=sharding)


def _take(ours: jax.Array, theirs: jax.Array, columns: np.ndarray) -> jax.Array:
    def take(ours, theirs):
        return jnp.where(columns < 0, ours, theirs[..., columns])

    return jax.jit(take, out_shardings=ours.sharding)(ours, theirs)
