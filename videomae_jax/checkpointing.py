"""Checkpoints of a run: saved in the background, restored onto any mesh.

A checkpoint has separate items: `params` (all that fine-tuning reads), `opt_state`,
`ema` (averaged parameters, if the run keeps them), `batch_stats` (of batch norm, if the
model has it), and `meta`, a JSON object.
"""

import contextlib
import copy
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import checkpoint_managers

from videomae_jax.errors import CheckpointError, UserError

ITEMS = ("params", "opt_state", "ema", "batch_stats")
# Items of older checkpoints, by today's names.
_OLD_NAMES = {"batch_stats": "statistics"}


class _KeepBest:
    """A preservation policy of Orbax: keeps the step of the best validation."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        del context
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints under `<workdir>/checkpoints/<step>`.

    Attributes:
        folder: `<workdir>/checkpoints`.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep_last: int = 1,
        keep_period: int = 0,
        keep_best: bool = False,
        read_only: bool = False,
    ):
        """Opens the folder, creating it if needed.

        Args:
            workdir: the run's folder.
            keep_last: number of the newest checkpoints to keep.
            keep_period: checkpoints at multiples of this many steps are never deleted;
                0 for none.
            keep_best: also keep the checkpoint that the "best" of the newest `meta`
                names, see training/progress.py.
            read_only: create, save and delete nothing.
        """
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_period:
            policies.append(checkpoint_managers.EveryNSteps(keep_period))
        self._keep_best = _KeepBest()
        if keep_best:
            policies.append(self._keep_best)
        self.folder = _folder(workdir)
        with _only_errors():
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                enable_background_delete=not read_only,
                read_only=read_only,
            )
            arrays = (*ITEMS, *_OLD_NAMES.values())
            handlers = {name: ocp.StandardCheckpointHandler() for name in arrays}
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={**handlers, "meta": ocp.JsonCheckpointHandler()},
            )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def find_step(self, choice: int | str) -> int:
        """Returns the step of a checkpoint.

        Args:
            choice: a step, "last", or "best": the one with the best validation.

        Raises:
            CheckpointError: it is not found; the message lists those that are.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder.parent}: no complete checkpoint found")
        listed = f"{self.folder} holds {', '.join(map(str, steps))}"
        if choice == "last":
            return steps[-1]
        if choice == "best":
            best = self.meta(steps[-1]).get("best")
            if best is None:
                raise CheckpointError(
                    "step=best needs validations, and the run has none "
                    f"(config.data.validation, config.evaluation.every); {listed}"
                )
            if best["step"] not in steps:
                raise CheckpointError(
                    f"step=best is {best['step']}, which was not kept "
                    f"(config.checkpoint.keep_best); {listed}"
                )
            return best["step"]
        if not str(choice).isdecimal():
            raise CheckpointError(f"step={choice} must be last, best or a number")
        if int(choice) not in steps:
            raise CheckpointError(f"step={choice} not found: {listed}")
        return int(choice)

    def save(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        """Starts saving; returns once the arrays are copied off the devices.

        The arguments may change afterwards: the checkpoint does not.

        Args:
            step: steps done.
            items: trees of arrays, some of ITEMS by name.
            meta: a JSON object.
        """
        if self.latest_step() == step:
            return
        args: dict[str, Any] = {
            name: ocp.args.StandardSave(tree) for name, tree in items.items()
        }
        self._keep_best.step = (meta.get("best") or {}).get("step")
        # Orbax serialises it in the background, while training appends to its lists.
        args["meta"] = ocp.args.JsonSave(copy.deepcopy(meta))
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def meta(self, step: int) -> dict:
        """Returns the JSON object saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with _damage_explained(self.folder, step):
            return self._manager.restore(step, args=args)["meta"]

    def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array of an item by its path a/b/c.

        The result is empty if the checkpoint does not have the item.
        """
        with _damage_explained(self.folder, step):
            metadata = self._manager.item_metadata(step)
        saved = metadata.get(_name_on_disk(self.folder, step, item))
        return {} if saved is None else _shapes(saved)

    def evaluated_item(self, step: int) -> str:
        """Returns the item of the parameters to evaluate: the average, if saved."""
        return "ema" if self.shapes(step, "ema") else "params"

    def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """Restores items into the shapes and shardings of abstract trees.

        Raises:
            CheckpointError: an item is missing, or has other names or shapes.
        """
        for name, tree in items.items():
            self._check(step, name, tree)
        on_disk = {name: _name_on_disk(self.folder, step, name) for name in items}
        args = {
            on_disk[name]: ocp.args.StandardRestore(tree)
            for name, tree in items.items()
        }
        with _damage_explained(self.folder, step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[on_disk[name]] for name in items}

    def _check(self, step: int, item: str, tree: Any) -> None:
        saved, expected = self.shapes(step, item), _shapes(tree)
        lines = [
            f"  {name}: {saved.get(name, 'missing')} in the checkpoint, "
            f"{expected.get(name, 'missing')} in the model"
            for name in sorted(saved.keys() | expected.keys())
            if saved.get(name) != expected.get(name)
        ]
        if lines:
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} is of another model or "
                f"optimizer ({item}):\n"
                + "\n".join(lines[:8])
                + (f"\n  and {len(lines) - 8} more" if len(lines) > 8 else "")
                + "\nUse the config that it was saved with, or another --workdir."
            )

    def reached_preemption(self, step: int) -> bool:
        """Returns whether the cluster is about to take any of the hosts away."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        self._manager.close()


def restore_part(
    workdir: str, step: int, item: str, part: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Restores a part of an item's tree, given as an abstract tree with shardings."""
    # A manager of its own: one that has saved or restored whole items refuses this.
    folder = _folder(workdir)
    item = _name_on_disk(folder, step, item)
    args = ocp.args.PyTreeRestore(
        item=part,
        restore_args=ocp.checkpoint_utils.construct_restore_args(part),
        partial_restore=True,
    )
    with (
        _damage_explained(folder, step),
        _only_errors(),
        ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(read_only=True)
        ) as manager,
    ):
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Silences Orbax, which warns of each folder that is opened only for reading."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _folder(workdir: str) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _name_on_disk(folder: pathlib.Path, step: int, item: str) -> str:
    old = _OLD_NAMES.get(item)
    return old if old and (folder / str(step) / old).exists() else item


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
        for path, x in leaves
    }


@contextlib.contextmanager
def _damage_explained(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Reads of a damaged checkpoint fail with one line that says what to do.

    Raises:
        CheckpointError: files of the checkpoint are missing, cut off or not readable.
    """
    _refuse_damage(folder, step, find_damage(folder / str(step)))
    report, damage = sys.unraisablehook, None
    sys.unraisablehook = lambda unraisable: _report_others(report, unraisable)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax raises all kinds, the bare Exception among them
        if _is_of_reading(error):
            damage = find_damage(folder / str(step), read_arrays=True)
        if damage is None:
            raise
        _refuse_damage(folder, step, damage)
    finally:
        if damage is None:  # otherwise, tracebacks may come for a while
            sys.unraisablehook = report


def _is_of_reading(error: Exception) -> bool:
    """Returns whether files may be the cause: of others, no array need be read."""
    return isinstance(error, OSError) or "tensorstore" in str(error).lower()


def _report_others(report: Callable[[Any], Any], unraisable: Any) -> None:
    """Drops the tracebacks of reads that Orbax abandons after another one failed."""
    code = getattr(unraisable.object, "cr_code", None)
    is_read = code is not None and "orbax" in code.co_filename
    if not is_read and str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


def _refuse_damage(folder: pathlib.Path, step: int, damage: str | None) -> None:
    if damage is None:
        return
    others = (int(x.name) for x in folder.iterdir() if x.name.isdecimal())
    whole = next(
        (
            other
            for other in sorted(others, reverse=True)
            if other != step
            if find_damage(folder / str(other), read_arrays=True) is None
        ),
        None,
    )
    remedy = "no other checkpoint is whole: restore these files, or train again"
    if whole is not None:
        remedy = (
            f"{whole} is whole: read it with --step={whole} (--config.evaluation.step="
            f"{whole} in a test), or delete {folder / str(step)} to resume from it"
        )
    raise CheckpointError(f"checkpoint {step} cannot be read ({damage}); {remedy}")


def find_damage(checkpoint: pathlib.Path, *, read_arrays: bool = False) -> str | None:
    """Returns the first file of a checkpoint that cannot be read, and why.

    Args:
        checkpoint: the folder of a step.
        read_arrays: read all arrays, too, instead of only their tables.

    Returns:
        A file or array relative to the folder, and the reason; None for a whole one.
    """
    try:
        file = checkpoint / "_CHECKPOINT_METADATA"
        # Names all items: one that was deleted with its folder would not be missed.
        items = json.loads(file.read_text())["item_handlers"]
        for item in items:
            file = checkpoint / item / "metadata"
            if item == "meta":
                json.loads(file.read_text())
                continue
            file = checkpoint / item / "_METADATA"
            json.loads(file.read_text())
            file = checkpoint / item / "manifest.ocdbt"
            file.stat()
            # No URL, in which a "#", "%" or "?" of the path would mean something.
            base = {"driver": "file", "path": f"{checkpoint / item}/"}
            store = {"driver": "ocdbt", "base": base}
            tables = tensorstore.KvStore.open(store).result().list().result()
            for table in sorted(tables) if read_arrays else ():
                if not table.endswith(b"/.zarray"):
                    continue
                name = table.decode().removesuffix("/.zarray")
                file = checkpoint / item / name
                spec = {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}}
                tensorstore.open(spec).result().read().result()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file.relative_to(checkpoint)}: {_reason(error)}"
    return None


def _reason(error: Exception) -> str:
    """Returns the reason of an error of reading, without paths."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, json.JSONDecodeError):
        return "empty" if not error.doc else f"cut off or no JSON, {error}"
    # TensorStore's messages go from the outermost to the innermost reason.
    return str(error).partition(" [source locations")[0].rpartition(": ")[2]
