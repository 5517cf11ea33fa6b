"""Config files: loading, overrides, renamed fields, changes since a save."""

import ast
import json
import logging
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from absl import flags
from ml_collections import ConfigDict, config_flags

from videomae_jax import ranges
from videomae_jax.errors import (
    CheckpointError,
    CompleteRunError,
    ConfigError,
    nearest,
)

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

# What releases did that did not have a field yet: a run that they saved is compared by
# these values. They stay, whatever the default of the field becomes.
_BEFORE_THE_FIELD = {
    "checkpoint.digests": False,
    "checkpoint.keep_best": False,
    "checkpoint.step": None,
    "data.frame_name": "img_{:05}.jpg",
    "data.heads": "",
    "data.memory_gb": None,
    "data.value_range": None,
    "evaluation.patience": 0,
    "evaluation.step": "last",
    "loss.kind": "softmax",
    "mask.decoder_kind": "",
    "mask.decoder_ratio": 0.5,
    "mesh.gradient_dtype": None,
    "mesh.shard_optimizer": None,
    "model.attention": None,
    "model.channels": None,
    "model.decoder_attention": None,
    "model.decoder_mlp_ratio": None,
    "model.decoder_remat": None,
    "model.head_norm_epsilon": None,
    "model.norm_epsilon": None,
    "model.pixel_mean": None,
    "model.pixel_std": None,
    "model.unroll": None,
    "wandb.project": "",
}

# Fields that name files, whose defaults may not exist.
_FILES = (
    *("data.train", "data.validation", "data.test", "data.labels", "init.source"),
    *("teacher.source", "teacher.labels"),
)

# Fields that may differ between training and a test, with a warning.
PREPROCESSING_FIELDS = (
    "data.num_frames",
    "data.stride",
    "data.frame_sampling",
    "data.image_size",
    "data.value_range",
)
# Fields of the model that a test does not depend on.
_TRAINING_ONLY = (
    "model.dtype",
    "model.remat",
    "model.unroll",
    "model.attention",
    "model.drop_path",
    "model.dropout",
    "model.head_init_scale",
)

# Fields that change how a run is computed and reported, not what it computes.
_NO_EFFECT_ON_RESULTS = (
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
    "model.unroll",
    "picture.",
    "profile.",
    "teacher.variant",
    "wandb.",
)


class _Literals(flags.ArgumentParser):
    """Parses fields of several types, such as data.train: a literal, otherwise text.

    That of config_flags makes switches of these fields, so that `--config.data.train X`
    would set True and leave X over.
    """

    def parse(self, argument: Any) -> Any:
        """Returns the value; defaults, which are parsed too, stay as they are."""
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


config_flags.register_flag_parser_for_type(object, _Literals())


def load(file: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a file, with overrides applied.

    Args:
        file: `FILE`, or `FILE:debug`.
        overrides: arguments such as `--config.batch_size=512`.

    Raises:
        ConfigError: the file is not found or fails, a field or option is unknown, or a
            value has the wrong type or is out of range.
    """
    path, colon, option = file.partition(":")
    if not os.path.isfile(path):
        raise ConfigError(_not_found(path))
    config = _call_file(file, path, [option] if colon else [])
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=list(overrides)
        )
        unparsed = values(["", *overrides])[1:]
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(unknown_field(overrides, config) or reason) from error
    if unparsed:
        raise ConfigError(f"unrecognized arguments: {' '.join(unparsed)}")
    check_ranges(values.config)
    return values.config


def _call_file(file: str, path: str, options: Sequence[str]) -> Config:
    """Returns the config that the `get_config` of a file returns."""
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise ConfigError(f"--config={file}: must define get_config()")
        config = get_config(*options)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_describe(error, file, path)) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={file}: get_config() must return a ConfigDict")
    return config


def _describe(error: Exception, file: str, path: str) -> str:
    """Returns what is wrong with a config file, and in which line."""
    text = " ".join(str(error).split())
    # An unknown field of a ConfigDict: all values that it has would follow.
    text = re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", text)
    reason = f"{type(error).__name__}: {text}"
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"--config={path}:{error.lineno}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    if isinstance(error, ValueError) and frames[-1].filename != path:
        return f"--config={file}: {error}"  # of configs/common.py: it says all
    return f"--config={path}:{lines[-1]}: {reason}" if lines else f"{file}: {reason}"


def _not_found(path: str) -> str:
    """Returns the message about a config file that does not exist."""
    ours = pathlib.Path("configs").rglob("*.py")
    # Of recipes of one name, the last counts: that of the same folder, or of configs.
    files = sorted(ours, key=lambda x: len(x.parts), reverse=True)
    files += pathlib.Path(path).parent.glob("*.py")
    recipes = {x.stem: str(x) for x in files if "get_config" in x.read_text()}
    what = "must be a file" if os.path.isdir(path) else "file not found"
    hint = nearest(pathlib.Path(path).stem, recipes, shown=recipes.__getitem__)
    return f"--config={path}: {what}{hint}"


def name_defaults(message: str, config: Config, file: str) -> str:
    """Says which file names in an error message are defaults, not the user's choice.

    Args:
        message: of the error.
        config: of the run.
        file: the recipe, as for `load`.
    """
    ours, defaults = flatten(config.to_dict()), flatten(load(file).to_dict())
    fields = [
        f"config.{field}"
        for field in _FILES
        if ours.get(field) and ours[field] == defaults[field]
        if any(name in message for name in _file_names(ours[field]))
    ]
    if not fields:
        return message
    return (
        f"{message}\n  This is the default of {' and '.join(fields)} of {file}, which "
        f"--{fields[0]}=... replaces."
    )


def _file_names(value: Any) -> list[str]:
    """Returns the files that a field names: one, or the lists of data.train."""
    several = value if isinstance(value, tuple | list) else [value]
    return [str(x.get("list") if isinstance(x, Mapping) else x) for x in several]


def unknown_field(arguments: Iterable[str], config: Config) -> str | None:
    """Returns a message about the first --config.FIELD that is no field; else None.

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
        members = [x for x in fields if x.startswith(f"{name}.")]
        if members:
            return f"--config.{name} must be one of its fields: {', '.join(members)}"
        if name not in fields:
            hint = nearest(name, fields, cutoff=0, shown="--config.{}".format)
            return (
                f"--config.{name}: unknown field{hint}. configs/common.py documents "
                "every field."
            )
    return None


def check_ranges(config: Config) -> None:
    """Checks the fields that are numbers; those that are None are left out.

    Raises:
        ConfigError: a number is out of its range.
    """
    ranges.check(flatten(config.to_dict()), "config.")


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
                f"config.{field}={values[field]!r} must be one of: "
                + ", ".join(name or "'' (none)" for name in allowed)
            )


def upgrade(saved: dict) -> dict:
    """Returns a saved config with today's field names."""
    values = {RENAMED.get(name, name): value for name, value in flatten(saved).items()}
    nested = {}
    for name, value in values.items():
        *groups, field = name.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[field] = value
    return nested


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a nested config by their names a.b.c."""
    # Not Flax's: errors of the command line should not wait for JAX to be imported.
    values = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            inner = flatten(value)
            values |= {f"{name}.{field}": inner[field] for field in inner}
        else:
            values[name] = value
    return values


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
        if not name.startswith(_NO_EFFECT_ON_RESULTS)
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


def smoothing(kind: str, given: float | None) -> float:
    """Returns the label smoothing of a run with this `config.loss.kind`.

    None is 0.1 for classes (VideoMAE, appendix), and 0 for values, which have none.
    """
    if given is not None:
        return given
    return 0.0 if kind == "mse" else 0.1


def changes(saved: dict, config: Config) -> list[tuple[str, Any, Any]]:
    """Returns (name, saved value, current value) of the fields that differ.

    Fields that the saving release did not have count as what it did without them.
    """
    before = _BEFORE_THE_FIELD | flatten(upgrade(saved))
    after = flatten(json.loads(config.to_json()))
    for values in (before, after):  # earlier releases saved the number
        if "loss.smoothing" in values:
            values["loss.smoothing"] = smoothing(
                values["loss.kind"], values["loss.smoothing"]
            )
    return [
        (name, before[name], after[name])
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]
