"""Checkpoints of a run: saved in the background, restored onto any mesh.

Each one has separate items: `params` (all that fine-tuning reads), `opt_state`, and
`meta`, a JSON object.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model it is to be restored into."""


class Checkpoints:
    """The checkpoints under `<workdir>/checkpoints/<step>`."""

    def __init__(self, workdir: str, keep_last: int, milestone_every: int):
        """Opens the folder, making it if needed.

        Args:
            workdir: the run's folder.
            keep_last: how many of the newest checkpoints to keep.
            milestone_every: keep those at multiples of this many steps for good;
                0 keeps none.
        """
        keep = [checkpoint_managers.LatestN(keep_last)]
        if milestone_every:
            keep.append(checkpoint_managers.EveryNSteps(milestone_every))
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                enable_background_delete=True,
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "opt_state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, meta: dict) -> None:
        """Starts saving; returns once the arrays are copied off the devices."""
        if self.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def meta(self, step: int) -> dict:
        """The JSON object saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """Restores into the shapes and shardings of two abstract trees.

        Raises:
            CheckpointError: if the parameters have other names or shapes.
        """
        self._check(step, params)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                opt_state=ocp.args.StandardRestore(opt_state),
            ),
        )
        return restored["params"], restored["opt_state"]

    def _check(self, step: int, params: Any) -> None:
        saved = _shapes(self._manager.item_metadata(step)["params"])
        wanted = _shapes(params)
        lines = [
            f"  {name}: {saved.get(name, 'missing')} in the checkpoint, "
            f"{wanted.get(name, 'missing')} in the model"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if lines:
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} is of another model:\n"
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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in leaves
    }
