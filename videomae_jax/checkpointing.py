"""Checkpoints of a run: saved in the background, restored onto any mesh.

Each one has separate items: `params` (all that fine-tuning reads), `opt_state`, where
there are such things `ema` (the averaged parameters) and `statistics` (of batch norm),
and `meta`, a JSON object.
"""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from videomae_jax.errors import CheckpointError

ITEMS = ("params", "opt_state", "ema", "statistics")


class Checkpoints:
    """The checkpoints under `<workdir>/checkpoints/<step>`."""

    def __init__(
        self,
        workdir: str,
        keep_last: int,
        keep_period: int,
        read_only: bool = False,
    ):
        """Opens the folder, making it if needed.

        Args:
            workdir: the run's folder.
            keep_last: how many of the newest checkpoints to keep.
            keep_period: keep those at multiples of this many steps for good;
                0 keeps none.
            read_only: nothing is made, saved or deleted.
        """
        keep = [checkpoint_managers.LatestN(keep_last)]
        if keep_period:
            keep.append(checkpoint_managers.EveryNSteps(keep_period))
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=not read_only,
                enable_background_delete=not read_only,
                read_only=read_only,
            ),
            item_handlers={
                **{name: ocp.StandardCheckpointHandler() for name in ITEMS},
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        What is given may change after that: the checkpoint does not.

        Args:
            step: steps done.
            items: trees of arrays, some of ITEMS by name.
            meta: a JSON object.
        """
        if self.latest_step() == step:
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        # Orbax makes JSON of it in the background, when training has gone on.
        args["meta"] = ocp.args.JsonSave(copy.deepcopy(meta))
        self._manager.save(
            step,
            args=ocp.args.Composite(**args),
            force=True,
        )

    def meta(self, step: int) -> dict:
        """The JSON object saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        """The shape of each array of an item by its path, a/b/c; empty without it."""
        saved = self._manager.item_metadata(step).get(item)
        return {} if saved is None else _shapes(saved)

    def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """Restores items into the shapes and shardings of abstract trees.

        Raises:
            CheckpointError: if an item is not there, or has other names or shapes.
        """
        for name, tree in items.items():
            self._check(step, name, tree)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in items}

    def _check(self, step: int, item: str, tree: Any) -> None:
        saved, wanted = self.shapes(step, item), _shapes(tree)
        lines = [
            f"  {name}: {saved.get(name, 'missing')} in the checkpoint, "
            f"{wanted.get(name, 'missing')} in the model"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if lines:
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} is of another model or "
                f"optimizer ({item}):\n"
                + "\n".join(lines[:8])
                + (f"\n  and {len(lines) - 8} more" if len(lines) > 8 else "")
                + "\nGive the config that made it, or another --workdir."
            )

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster is about to take any of the hosts away."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until what was being saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self._manager.close()


def restore_part(
    workdir: str, step: int, item: str, part: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Restores a part of an item's tree, given as an abstract tree with shardings."""
    # A manager of its own: one that has saved or restored whole items refuses this.
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    restore_args = ocp.checkpoint_utils.construct_restore_args(part)
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(read_only=True)
    ) as manager:
        args = ocp.args.PyTreeRestore(
            item=part, restore_args=restore_args, partial_restore=True
        )
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in leaves
    }
