"""Reads the lists of config.data.train: one, or several that are trained on as one.

    "data/k400/train.txt"                                         one, see data.sources
    ("data/k400/train.txt", {"list": "frames.txt", "stride": 2})  several

A list is its name or a dict with keys of `_KEYS`, all of which but "list" may be left
out. The name is also that of its count in the metrics.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from videomae_jax import ranges
from videomae_jax.config import Config
from videomae_jax.data import sources
from videomae_jax.data.bad_videos import check_paths
from videomae_jax.data.pipeline import VideoList, epoch_draws
from videomae_jax.errors import ConfigError, RecordError, nearest
from videomae_jax.video.record import LabelKind, Record

# Of a list among several. The last three are as in config.data, which they replace.
_KEYS = ("list", "weight", "stride", "root", "frame_name")


def load(
    data: Config,
    *,
    label_kind: LabelKind = LabelKind.UNUSED,
    class_names: Sequence | None = None,
    label_columns: Sequence[str] = (),
) -> list[VideoList]:
    """Loads the training videos of a config; no two of them have the same id.

    Args:
        data: `config.data`.
        label_kind, class_names, label_columns: see `sources.load`.

    Raises:
        ConfigError: config.data.train is malformed.
        RecordError: a list is missing or malformed, none of its videos is found, or the
            labels of two lists need not mean the same.
    """
    entries = _entries(data)
    has_columns = bool(label_columns)
    lists, counts = [], {}
    for entry in entries:
        videos = load_list(
            entry["list"],
            {key: entry.get(key, data[key]) for key in ("root", "frame_name")},
            label_kind=label_kind,
            class_names=class_names,
            label_columns=label_columns,
        )
        if len(entries) > 1:
            _check_names(videos, entry["list"], class_names)
            # Columns of values have one order in all lists: that of the first.
            label_columns = label_columns or videos[0].value_names
            ids = [sources.unique(video.id, counts) for video in videos]
            videos = [
                video if video.id == id else dataclasses.replace(video, id=id)
                for video, id in zip(videos, ids, strict=True)
            ]
        options = {key: entry.get(key) for key in ("stride", "weight")}
        lists.append(VideoList(videos, name=entry["list"], **options))
    if not has_columns:
        _check_columns(lists)
    for own, draws in zip(lists, epoch_draws(lists), strict=True):
        if not draws:
            raise ConfigError(
                f"config.data.train: weight={own.weight} of {own.name!r} must be larger"
                f": none of its {len(own.records)} videos would be drawn in an epoch"
            )
    return lists


def load_list(source: str, data: Mapping[str, Any], **options: Any) -> list[Record]:
    """Loads the videos of one list, by a config's root and frame_name.

    Args:
        source: see `sources.load`.
        data: `config.data`.
        **options: see `sources.load`.

    Raises:
        RecordError: the list is missing or malformed, or none of its videos is found.
    """
    root, frame_name = data["root"], data["frame_name"]
    options = {"label_kind": LabelKind.UNUSED} | options
    videos = sources.load(source, root, frame_name=frame_name, **options)
    check_paths(videos, source, root)
    return videos


def names(data: Config) -> str:
    """Returns the lists of config.data.train for messages.

    Raises:
        ConfigError: it is malformed.
    """
    return ", ".join(entry["list"] for entry in _entries(data))


def _entries(data: Config) -> list[dict[str, Any]]:
    """Returns the lists as dicts with keys of _KEYS.

    Raises:
        ConfigError: see `load`.
    """
    train = data.train
    # Text that begins as several lists do and is not a file: brackets or quotes of the
    # command line are missing.
    is_text = isinstance(train, str)
    if is_text and (not train.startswith(("[", "(", "{")) or os.path.exists(train)):
        return [{"list": train}]
    if not isinstance(train, list | tuple) or not train:
        raise ConfigError(
            f"config.data.train={train!r} must be a list of videos, or several: "
            '("a.txt", {"list": "b.txt", "stride": 2})'
        )
    entries = [{"list": own} if isinstance(own, str) else own for own in train]
    for entry in entries:
        _check(entry)
    paths = [entry["list"] for entry in entries]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ConfigError(
            f"config.data.train names {twice.pop()!r} twice: a list must be given "
            "once. A larger weight draws its videos more often"
        )
    without = [x["list"] for x in entries if x.get("weight") is None]
    if 0 < len(without) < len(entries):
        raise ConfigError(
            f"config.data.train: {without[0]!r} has no weight, but others have: give "
            "each list a weight, or none"
        )
    return entries


def _check(entry: Any) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("list"), str):
        raise ConfigError(
            f"config.data.train: {entry!r} must be a list of videos, or the same with "
            'its fields, {"list": "b.txt", "stride": 2}'
        )
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(
                f"config.data.train: {entry['list']!r} has an unknown field {key!r}"
                f"{nearest(str(key), _KEYS)}. Fields are {', '.join(_KEYS)}"
            )
    prefix = f"config.data.train: {entry['list']!r}: "
    for key in ("root", "frame_name"):
        if not isinstance(entry.get(key, ""), str):
            raise ConfigError(f"{prefix}{key}={entry[key]!r} must be a text")
    numbers = {"data.stride": entry.get("stride"), "weight": entry.get("weight")}
    ranges.check(numbers, prefix)


def _check_names(
    records: Sequence[Record], source: str, class_names: Sequence | None
) -> None:
    """Raises RecordError if the labels of a list among several are its own names."""
    if class_names is None and any(record.label_names for record in records):
        raise RecordError(
            f"{source} names its classes, whose numbers may be others in other lists: "
            "set config.data.labels to a file with the names of all classes"
        )


def _check_columns(lists: Sequence[VideoList]) -> None:
    """Raises RecordError if some lists name their columns of values, but not all."""
    firsts = {own.name: own.records[0] for own in lists}
    named = [name for name, video in firsts.items() if video.value_names]
    for name, video in firsts.items():
        if named and not video.value_names and len(video.values) > 1:
            raise RecordError(
                f"{name} must name its columns of values, as {named[0]} does: their "
                "order may differ. Give it a header, or set config.data.labels to a "
                "file with the names in its order"
            )
