"""Config files: loading, overrides, renamed fields, changes since a save."""

import difflib
import json
import logging
import runpy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import flax
from absl import flags
from ml_collections import config_flags

from videomae_jax.errors import CheckpointError, CompleteRunError, ConfigError

log = logging.getLogger(__name__)

# A ml_collections.ConfigDict, see configs/common.py. Its fields have no static types.
Config: TypeAlias = Any

# Fields by their old names, which saved runs and old command lines still use.
RENAMED = {
    "max_clips_per_device": "micro_batch_per_device",
    "checkpoint.milestone_every": "checkpoint.keep_period",
    "data.frames": "data.frame_sampling",
    "picture.statistics": "picture.unpatch_stats",
}

# Fields that may differ between training and a test, with a warning.
PREPROCESSING_FIELDS = (
    "data.num_frames",
    "data.stride",
    "data.frame_sampling",
    "data.image_size",
)
# Fields of the model that a test does not depend on.
_TRAINING_ONLY = (
    "model.dtype",
    "model.remat",
    "model.attention",
    "model.drop_path",
    "model.dropout",
    "model.head_init_scale",
)

# Fields that change how a run is computed and reported, not what it computes.
_RESULT_FREE = (
    "checkpoint.",
    "data.max_bad_fraction",
    "data.memory_gb",
    "data.num_threads",
    "data.num_workers",
    "evaluation.dump",
    "evaluation.videos_per_device",
    "log_every",
    "max_nonfinite_steps",
    "mesh.",
    "micro_batch_per_device",
    "model.attention",
    "model.decoder_attention",
    "model.decoder_remat",
    "model.remat",
    "picture.",
    "profile.",
    "wandb.",
)


def load(file: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a file, with overrides applied.

    Args:
        file: `FILE`, or `FILE:debug`.
        overrides: arguments such as `--config.batch_size=512`.

    Raises:
        OSError: the file is not found.
        ConfigError: an unknown field or option, or a value of the wrong type.
    """
    path, _, option = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    try:
        config = get_config(option)
    except ValueError as error:
        raise ConfigError(f"--config={file}: {error}") from error
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=list(overrides)
        )
        unparsed = values(["", *overrides])[1:]
    except (AttributeError, KeyError, flags.Error) as error:
        raise ConfigError(unknown_field(overrides, config) or str(error)) from error
    if unparsed:
        raise ConfigError(f"unrecognized arguments: {' '.join(unparsed)}")
    return values.config


def unknown_field(arguments: Iterable[str], config: Config) -> str | None:
    """Returns a message about the first unknown --config.FIELD; None if all are known.

    Args:
        arguments: of the command line.
        config: the config without overrides.
    """
    fields = list(flatten(config.to_dict()))
    for argument in arguments:
        if not argument.startswith("--config."):
            continue
        name = argument.partition("=")[0].removeprefix("--config.")
        if name in RENAMED:
            return f"--config.{name} was renamed to --config.{RENAMED[name]}"
        if name not in fields:
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0)[0]
            return (
                f"--config.{name}: unknown field; the nearest is --config.{nearest}. "
                "configs/common.py documents every field."
            )
    return None


def check_choices(config: Config, choices: dict[str, Collection[str]]) -> None:
    """Checks fields that name one of several alternatives.

    Args:
        config: see configs/common.py.
        choices: the alternatives of each field, such as {"mask.kind": ("tube", ...)}.

    Raises:
        ConfigError: a field names none of its alternatives.
    """
    values = flatten(config.to_dict())
    for field, allowed in choices.items():
        if values[field] not in allowed:
            raise ConfigError(
                f"config.{field}={values[field]!r} must be one of: {', '.join(allowed)}"
            )


def upgrade(saved: dict) -> dict:
    """Returns a saved config with today's field names."""
    values = {RENAMED.get(name, name): value for name, value in flatten(saved).items()}
    return flax.traverse_util.unflatten_dict(values, sep=".")


def flatten(config: dict) -> dict[str, Any]:
    """Returns the values of a nested config by their names a.b.c."""
    return flax.traverse_util.flatten_dict(config, sep=".")


def check_same_model(workdir: str, saved: dict, config: Config) -> None:
    """Checks that a test uses a checkpoint's model as it was trained.

    The shapes of parameters do not show the number of heads, the position table or
    how probabilities follow from logits.

    Args:
        workdir: of the run, for the message.
        saved: the config that the checkpoint was saved with.
        config: of the test.

    Raises:
        CheckpointError: a field of the model or the loss differs.
    """
    lines = [
        f"  config.{name}={after!r}, but the checkpoint's is {before!r}"
        for name, before, after in changes(saved, config)
        if name == "loss.kind" or name.startswith("model.")
        if name not in _TRAINING_ONLY
    ]
    if lines:
        raise CheckpointError(
            f"{workdir} was trained with another model:\n"
            + "\n".join(lines)
            + "\nUse the config and the flags that it was trained with."
        )


def check_same_run(workdir: str, saved: dict, config: Config) -> None:
    """Checks that a complete run was made with this config.

    Args:
        workdir: of the run, for the message.
        saved: the config of the run.
        config: of the call that found it complete.

    Raises:
        CompleteRunError: a field that may change results differs.
    """
    differing = [
        f"config.{name}={after!r}, was {before!r}"
        for name, before, after in changes(saved, config)
        if not name.startswith(_RESULT_FREE)
    ]
    if differing:
        raise CompleteRunError(
            f"nothing was trained: the run in {workdir} is complete with other "
            f"settings ({'; '.join(differing)}); give a new --workdir, or test the run "
            "with --config.mode=eval"
        )


def check_evaluation(config: Config) -> None:
    """Checks the fields that need validations.

    Raises:
        ConfigError: a field of a run that trains does not fit the others.
    """
    if "evaluation" not in config:
        return
    evaluation = config.evaluation
    if evaluation.step not in ("last", "best"):
        raise ConfigError(
            f"config.evaluation.step={evaluation.step} must be last or best; a number "
            "needs config.mode=eval"
        )
    field = "patience" if evaluation.patience else "step"
    if evaluation.patience < 0:
        raise ConfigError(
            f"config.evaluation.patience={evaluation.patience} must be at least 0"
        )
    if not (config.data.validation and evaluation.every) and (
        evaluation.patience or evaluation.step == "best"
    ):
        raise ConfigError(
            f"config.evaluation.{field}={evaluation[field]} needs validations: set "
            "config.data.validation and config.evaluation.every"
        )
    if evaluation.step == "best" and not config.checkpoint.keep_best:
        raise ConfigError(
            "config.evaluation.step=best needs config.checkpoint.keep_best=True"
        )


def log_changes(saved: dict, config: Config, only: Collection[str] = ()) -> None:
    """Warns about fields, all or `only` some, that differ from a saved config."""
    for name, before, after in changes(saved, config):
        if not only or name in only:
            log.warning("config.%s: %r when saved, now %r", name, before, after)


def changes(saved: dict, config: Config) -> list[tuple[str, Any, Any]]:
    """Returns (name, saved value, current value) of the fields that differ.

    Fields that the saving release did not have are left out: their defaults are what it
    did.
    """
    before, after = flatten(upgrade(saved)), flatten(json.loads(config.to_json()))
    return [
        (name, before[name], after[name])
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]
