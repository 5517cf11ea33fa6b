"""Checkpoints of a run: saved in the background, restored onto any mesh.

A checkpoint has separate items: `params` (all that fine-tuning reads), `opt_state`,
`ema` (averaged parameters, if the run keeps them), `batch_stats` (of batch norm, if the
model has it), and `meta`, a JSON object.
"""

import contextlib
import copy
import functools
import itertools
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from videomae_jax import checkpoint_files
from videomae_jax.checkpoint_files import damage_explained, find_damage
from videomae_jax.config import Config
from videomae_jax.distributed import hosts
from videomae_jax.distributed.save_errors import SaveErrors
from videomae_jax.errors import CheckpointError, shape_differences
from videomae_jax.files import read_json, writing

log = logging.getLogger(__name__)

ITEMS = ("params", "opt_state", "ema", "batch_stats")
# Items of older checkpoints, by today's names.
_OLD_NAMES = {"batch_stats": "statistics"}
# Paths of parameters that are no part of the model: the layer from a student's features
# to those of its teacher (training/tasks/distill.py).
TRAINING_ONLY = "projection/"


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
        digests: bool = True,
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
            digests: save digests of all files, and compare them when arrays are read.
            read_only: create, save and delete nothing.
        """
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_period:
            policies.append(checkpoint_managers.EveryNSteps(keep_period))
        self._keep_best = _KeepBest()
        if keep_best:
            policies.append(self._keep_best)
        self.folder = _folder(workdir)
        self._digests = digests
        self._empty = _empty_steps(self.folder, remove=not read_only)
        self._errors = SaveErrors()
        with _silenced(), writing(self.folder):
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                enable_background_delete=not read_only,
                read_only=read_only,
            )
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers=checkpoint_files.handlers(
                    (*ITEMS, *_OLD_NAMES.values()), digests=digests
                ),
            )
        if not read_only:
            # Orbax's thread would end at the first error, and delete nothing more.
            deleter = self._manager._checkpoint_deleter._standard_deleter  # pyright: ignore
            deleter.delete = functools.partial(self._delete, deleter.delete)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order.

        A damaged one is among them, an empty folder is not.
        """
        return sorted(set(self._manager.all_steps()) - self._empty)

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

        Raises:
            OutputError: the files cannot be written, perhaps those of the save before.
        """
        if self.latest_step() == step:
            return
        self.wait()
        args: dict[str, Any] = {
            name: ocp.args.StandardSave(tree) for name, tree in items.items()
        }
        self._keep_best.step = (meta.get("best") or {}).get("step")
        # Orbax serialises it in the background, while training appends to its lists.
        args["meta"] = ocp.args.JsonSave(copy.deepcopy(meta))
        with writing(self.folder), self._errors.of_save():
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def _delete(self, delete: Callable[[int], None], step: int) -> None:
        """Deletes a checkpoint; warns if files stay, such as those that NFS keeps."""
        try:
            delete(step)
        except OSError as error:
            log.warning(
                "%s cannot be deleted (%s): delete it yourself",
                self.folder / str(step),
                (error.strerror or str(error)).lower(),
            )

    def meta(self, step: int) -> dict:
        """Returns the JSON object saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with damage_explained(self.folder, step):
            return self._manager.restore(step, args=args)["meta"]

    def shapes(self, step: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Returns the shapes of the arrays of a checkpoint, by item and path a/b/c."""
        with damage_explained(self.folder, step):
            return self._saved_shapes(step)

    def _saved_shapes(self, step: int) -> dict[str, dict[str, tuple[int, ...]]]:
        metadata = self._manager.item_metadata(step)
        on_disk = {name: _name_on_disk(self.folder, step, name) for name in ITEMS}
        return {
            name: _shapes(metadata[on_disk[name]])
            for name in ITEMS
            if metadata.get(on_disk[name]) is not None
        }

    def evaluated_item(self, step: int) -> str:
        """Returns the item of the parameters to evaluate: the average, if saved."""
        return "ema" if (self.folder / str(step) / "ema").is_dir() else "params"

    def restore(self, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
        """Restores items into the shapes and shardings of abstract trees.

        Raises:
            CheckpointError: an item is missing, or has other names or shapes.
        """
        on_disk = {name: _name_on_disk(self.folder, step, name) for name in items}
        args = {
            on_disk[name]: ocp.args.StandardRestore(tree)
            for name, tree in items.items()
        }
        with damage_explained(self.folder, step) as compare:
            saved = self._saved_shapes(step)
            for name, tree in items.items():
                self._check(step, name, saved.get(name, {}), _shapes(tree))
            if self._digests:
                compare(on_disk.values())
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[on_disk[name]] for name in items}

    def _check(
        self,
        step: int,
        item: str,
        saved: Mapping[str, Any],
        expected: Mapping[str, Any],
    ) -> None:
        """Raises CheckpointError if the shapes of an item are not the expected ones."""
        name = f"the checkpoint {self.folder / str(step)}"
        remedy = "Use the config that it was saved with, or another --workdir."
        if expected and not saved:
            raise CheckpointError(
                f"{name} has no item {item}, which the config asks for. {remedy}"
            )
        if differences := shape_differences(saved, expected):
            raise CheckpointError(
                f"{name} is of another model or optimizer ({item}):\n{differences}\n"
                f"{remedy}"
            )

    def reached_preemption(self, step: int) -> bool:
        """Returns whether the cluster is about to take any of the hosts away."""
        return self._manager.reached_preemption(step)

    def check(self) -> None:
        """Raises OutputError if the last save has failed; does not wait for it."""
        if self._errors.first is not None:
            with writing(self.folder):
                raise self._errors.first

    def wait(self) -> None:
        """Waits until the last save is on disk; raises OutputError if it has failed."""
        # Orbax would wait for all its threads, although one has failed.
        self.check()
        while self._manager.is_saving_in_progress():
            time.sleep(0.01)
            self.check()
        with writing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the threads.

        Raises:
            OutputError: a save has failed. Its threads may wait for each other.
        """
        self.wait()
        self._manager.close()
        self._errors.close()


def go_back(workdir: pathlib.Path, config: Config) -> None:
    """Sets newer checkpoints aside, so that a run resumes from a step.

    They are moved to `<workdir>/set_aside`, with the results of the test. Those that
    the run saved since it went back stay, unless the newest is damaged: a job that is
    restarted with the same flags goes back once. With any other setting it goes back
    again.

    Every process of the run must call it.

    Args:
        workdir: the run's folder.
        config: names the step, `config.checkpoint.step`.

    Raises:
        CheckpointError: the checkpoint is not found.
        OutputError: a folder cannot be moved.
    """
    if jax.process_index() == 0:
        folder, step = _folder(workdir), config.checkpoint.step
        steps = sorted(int(x.name) for x in folder.glob("*") if x.name.isdecimal())
        newer = [x for x in steps if x > step]
        own = json.loads(config.to_json())
        kept = [x for x in newer if _saved_config(folder / str(x)) == own]
        while kept and find_damage(folder / str(kept[-1]), read=None):
            kept.pop()
        if step not in steps and not kept:
            raise CheckpointError(
                f"config.checkpoint.step={step} not found: {folder} holds "
                f"{', '.join(map(str, steps)) or 'no checkpoints'}"
            )
        if kept:
            log.warning(
                "config.checkpoint.step=%d: the run went back before; it resumes from "
                "step %d, saved since with the same config",
                step,
                kept[-1],
            )
        moved = [folder / str(x) for x in newer if x not in kept]
        if moved and (folder.parent / "test").exists():
            moved.append(folder.parent / "test")  # would pass for that of the new run
        for path in moved:
            target = _set_aside(path, folder.parent / "set_aside")
            log.warning("config.checkpoint.step=%d: moved %s to %s", step, path, target)
    hosts.gather(None)  # a barrier: the other processes see what is left


def _saved_config(checkpoint: pathlib.Path) -> Any:
    meta = read_json(checkpoint / "meta" / "metadata")
    return meta.get("config") if isinstance(meta, dict) else None


def _set_aside(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Moves a file or folder into a folder, under a new name; returns the name."""
    target = folder / path.name
    for count in itertools.count(2):
        if not target.exists():
            break
        target = folder / f"{path.name}.{count}"
    with writing(target):
        folder.mkdir(exist_ok=True)
        path.rename(target)
    return target


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
        # Of another run: each host may have a copy.
        damage_explained(folder, step, is_shared=False) as compare,
        _silenced(),
        ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(read_only=True)
        ) as manager,
    ):
        compare([item])
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silences Orbax, which warns of each folder that is opened only for reading.

    It also logs what is damaged in its own words. Errors are raised nevertheless.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
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


def _empty_steps(folder: pathlib.Path, *, remove: bool) -> set[int]:
    """Returns the steps whose folders are empty, which Orbax takes for checkpoints.

    Args:
        folder: of the checkpoints.
        remove: remove these folders instead: Orbax would not save such a step.
    """
    steps = set()
    for path in folder.glob("*"):
        if path.name.isdecimal() and path.is_dir() and not any(path.iterdir()):
            if remove:
                log.warning("removed %s: an empty folder is not a checkpoint", path)
                with contextlib.suppress(OSError):  # another process may be faster
                    path.rmdir()
            else:
                steps.add(int(path.name))
    return steps
