"""What numbers may be: one table for configs, and for the sizes in checkpoints.

A checkpoint of any layout states sizes by other names, and is not trusted: a value may
be of any type. The upper limits are far above every published model and video, and low
enough that nothing of that size is allocated by mistake.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from videomae_jax.errors import ConfigError

_MAX_SIDE = 10_000  # pixels of an image; 8K has 7680
# Of float32, which has infinity and zero beyond them.
_LARGEST, _LEAST = 3.4e38, 1.2e-38


def _number(x: Any) -> bool:
    # A bool is an int, and means nothing here.
    is_number = isinstance(x, numbers.Real) and type(x) is not bool
    return is_number and abs(x) <= _LARGEST  # pyright: ignore


def _positive(x: Any) -> bool:
    return _number(x) and x >= _LEAST


def _each(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns the rule of one number, or several, as of the channels of a video."""
    return lambda x: all(map(is_valid, x if isinstance(x, tuple | list) else (x,)))


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    def is_valid(x: Any) -> bool:
        return _number(x) and isinstance(x, numbers.Integral) and low <= int(x) <= high

    return is_valid


def _is_interval(x: Any) -> bool:
    is_pair = isinstance(x, tuple | list) and len(x) == 2 and all(map(_number, x))
    return is_pair and x[0] < x[1]


def is_size(x: Any) -> bool:
    """Returns whether this is a number of pixels, or height and width."""
    sides = x if isinstance(x, tuple | list) else (x, x)
    return len(sides) == 2 and all(map(_whole(1, _MAX_SIDE), sides))


# How each rule is called.
SIZE = f"a whole number of pixels up to {_MAX_SIDE}, or (height, width)"

# What numbers may be, and the fields that it is said of, by their names in a config.
# Not in a config: model.num_classes, model.roi_bins and model.roi_stride; target_mean
# and target_std, of a regression; and weight, of one of several training lists.
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 0",
        lambda x: _number(x) and x >= 0,
        "steps max_nonfinite_steps data.num_workers optimizer.min_lr "
        "optimizer.warmup_epochs optimizer.weight_decay optimizer.clip_norm "
        "profile.first checkpoint.keep_period picture.every evaluation.every "
        "evaluation.patience mix.mixup mix.cutmix model.head_init_scale "
        "distill.feature_weight",
    ),
    (
        "at least 1",
        lambda x: _number(x) and x >= 1,
        "batch_size micro_batch_per_device log_every "
        "data.num_samples data.num_threads data.num_classes mesh.fsdp profile.steps "
        "checkpoint.every checkpoint.keep_last picture.clips evaluation.segments "
        "evaluation.crops evaluation.videos_per_device",
    ),
    (
        "a whole number from 1 to 100000",
        _whole(1, 100_000),
        "model.width model.heads model.decoder_width model.decoder_heads "
        "model.channels data.num_frames data.stride",
    ),
    (
        "a whole number from 1 to 1000",
        _whole(1, 1000),
        "model.depth model.decoder_depth model.patch_size model.tubelet_size "
        "model.unroll model.roi_bins model.roi_stride",
    ),
    ("a whole number from 0 to 10000000", _whole(0, 10**7), "model.num_classes"),
    (SIZE, is_size, "data.image_size"),
    (
        "above 0",
        _positive,
        "epochs weight data.memory_gb optimizer.base_lr optimizer.eps "
        "distill.temperature",
    ),
    (
        "above 0 and at most 1000",
        lambda x: _number(x) and 0 < x <= 1000,
        "model.mlp_ratio model.decoder_mlp_ratio",
    ),
    (
        "in [0, 1]",
        lambda x: _number(x) and 0 <= x <= 1,
        "data.flip data.erase data.max_bad_fraction mix.probability "
        "mix.switch_probability distill.label_share",
    ),
    (
        "in [0, 1)",
        lambda x: _number(x) and 0 <= x < 1,
        "optimizer.b1 optimizer.b2 ema.decay model.drop_path model.dropout "
        "loss.smoothing loss.class_balance",
    ),
    (
        "above 0 and below 1",
        lambda x: _number(x) and 0 < x < 1,
        "mask.ratio mask.decoder_ratio model.norm_epsilon model.head_norm_epsilon",
    ),
    (
        "above 0 and at most 1",
        lambda x: _number(x) and 0 < x <= 1,
        "optimizer.layer_decay",
    ),
    ("finite numbers", _each(_number), "model.pixel_mean target_mean"),
    ("finite numbers above 0", _each(_positive), "model.pixel_std target_std"),
    ("two finite numbers, the lower one first", _is_interval, "data.value_range"),
)

# What must divide what.
_DIVISORS = (
    ("model.heads", "model.width"),
    ("model.decoder_heads", "model.decoder_width"),
)


def check(values: Mapping[str, Any], section: str = "") -> None:
    """Checks values by the names of their fields; those that are None are left out.

    Args:
        values: may have fields that no rule is for.
        section: what precedes the names in messages. "config.": all names are whole;
            otherwise, they are the last parts, as a checkpoint has other sections.

    Raises:
        ConfigError: a value does not keep its rule; the message names both.
    """

    def shown(field: str) -> str:
        name = field if section == "config." else field.rpartition(".")[2]
        return f"{section}{name}={values[field]!r}"

    for rule, is_valid, fields in RANGES:
        for field in fields.split():
            if values.get(field) is not None and not is_valid(values[field]):
                raise ConfigError(f"{shown(field)} must be {rule}")
    for divisor, field in _DIVISORS:
        size, count = values.get(field), values.get(divisor)
        if size and count and size % count:
            raise ConfigError(f"{shown(divisor)} must divide {shown(field)}")
