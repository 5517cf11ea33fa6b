"""What a config may say, of the devices and of the run that is continued."""

import contextlib
import json
import logging
from collections.abc import Collection, Iterator
from typing import Any

import flax

from videomae_jax.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

# Fields that may differ between training and a test, with a warning; and fields of the
# model that change nothing in a test.
SEEN_BY_THE_MODEL = (
    "data.num_frames",
    "data.stride",
    "data.frame_sampling",
    "data.image_size",
)
_ONLY_IN_TRAINING = (
    "model.dtype",
    "model.remat",
    "model.attention",
    "model.drop_path",
    "model.dropout",
    "model.head_init_scale",
)


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """Makes a ValueError inside, which tells what is wrong with a field, one to show.

    Not for what computes: a ValueError there is a mistake of ours, and wants its trace.

    Raises:
        ConfigError: if there is a ValueError inside; one of those that are derived from
            it has a name and stays what it is.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ConfigError(str(error)) from error


def refuse_another_model(workdir: str, saved: dict, config) -> None:
    """Raises CheckpointError if the config would use a checkpoint in another way.

    The shapes of parameters do not show the number of heads, the position table or
    what probabilities are made of.
    """
    lines = [
        f"  config.{name} is {after!r}, the checkpoint's is {before!r}"
        for name, before, after in changes(saved, config)
        if name == "loss.kind" or name.startswith("model.")
        if name not in _ONLY_IN_TRAINING
    ]
    if lines:
        raise CheckpointError(
            f"{workdir} was trained with another model:\n"
            + "\n".join(lines)
            + "\nGive the config and the flags that it was trained with."
        )


def report_changes(saved: dict, config, only: Collection[str] = ()) -> None:
    """Warns of fields, all or `only` some, that differ from those of a saved run."""
    for name, before, after in changes(saved, config):
        if not only or name in only:
            log.warning(
                "config.%s was %r when this run was saved, and is %r now",
                name,
                before,
                after,
            )


def changes(saved: dict, config) -> list[tuple[str, Any, Any]]:
    """Name, value before and value now of the fields that differ."""
    now = json.loads(config.to_json())
    flat = [flax.traverse_util.flatten_dict(x, sep=".") for x in (saved, now)]
    return [
        (name, flat[0].get(name), flat[1].get(name))
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name) != flat[1].get(name)
    ]
