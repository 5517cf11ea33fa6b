"""Prepared data sets: TFDS data sets of ArrayRecord shards, written by `prepare`.

    OUT/1.0.0/NAME-SPLIT.array_record-00003-of-00010        a shard; NAME is OUT's name
    OUT/1.0.0/NAME-SPLIT.array_record-00003-of-00010.json   its metadata, written after
                        it: its list and settings, and which videos were unreadable
    OUT/1.0.0/NAME-SPLIT.index.json         all videos, once every shard has metadata
    OUT/1.0.0/NAME-SPLIT.bad_videos.jsonl   the unreadable videos
    OUT/1.0.0/features.json, label.labels.txt, metadata.json
    OUT/1.0.0/dataset_info.json             for TFDS, last: the splits that are complete

ArrayRecord keeps a checksum of every record, so changed bytes are noticed when they are
read (tests/cli/test_prepare_damage.py) and need no other checksums here.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from etils import epath

from videomae_jax.errors import RecordError, VideoError
from videomae_jax.files import absolute, file_size, is_url, read_json
from videomae_jax.video.decoder import IndexedVideo, Video
from videomae_jax.video.packets import PacketIndex
from videomae_jax.video.record import LabelKind, Record, labels_from_json

VERSION = "1.0.0"
_OPEN_SHARDS = 512  # per process; systems often allow 1,024 open files


def load(
    source: str,
    label_kind: LabelKind = LabelKind.OPTIONAL,
    label_columns: Sequence[str] = (),
) -> list[Record]:
    """Lists the videos of a prepared split without reading any of them.

    Args:
        source: `tfds:FOLDER/SPLIT`, with the folder that `prepare` was given.
        label_kind: the labels that each video must have.
        label_columns: for LabelKind.HEADS, which of the data set's heads, in order, by
            default all; for VALUES, which of its values, if it has them.

    Raises:
        RecordError: the split is unknown or incomplete, or shards are missing or cut
            off.
    """
    packages()
    out, split = parse(source)
    base = epath.Path(absolute(out))
    folder = base / VERSION
    index = read_json(folder / f"{base.name}-{split}.index.json")
    if index is None:
        known = [f"tfds:{out}/{name}" for name in sorted(indices(folder))]
        raise RecordError(
            f"{source}: {folder} holds no complete split {split!r}"
            + (f", only {', '.join(known)}" if known else "")
            + f". To make or complete it: `python -m videomae_jax prepare LIST {out} "
            f"--split={split}`"
        )
    _check_kind(source, index["settings"], label_kind)
    columns, places = _columns(source, index["settings"], label_kind, label_columns)
    records, videos = [], iter(index["videos"])
    for shard in index["shards"]:
        path = os.fspath(folder / shard["file"])
        if not is_url(path) and file_size(path) != shard["bytes"]:
            raise RecordError(
                f"{source}: the shard {path} is missing, or its size is not "
                f"{shard['bytes']} bytes. Run the same `prepare` again to repair it"
            )
        for position in range(shard["videos"]):
            row = next(videos)
            labels = labels_from_json(row["label"])
            values = tuple(row.get("values", ()))
            label_kind.check(labels, f"{source}: {row['id']}")
            is_regression = label_kind is LabelKind.VALUES
            if places and is_regression:
                values = tuple(values[place] for place in places)
            elif places:
                labels = tuple(labels[place] for place in places)
            record = Record(
                path,
                row["id"],
                labels=labels,
                values=values,
                value_names=columns if is_regression else (),
                position=position,
            )
            records.append(record)
    return records


def _check_kind(
    source: str, settings: Mapping[str, Any], label_kind: LabelKind
) -> None:
    """Checks that a data set has the kind of labels that a task needs."""
    heads = settings.get("heads")
    if label_kind is LabelKind.VALUES and not settings.get("values"):
        raise RecordError(
            f"{source} has no numbers to predict (config.loss.kind=mse): run `prepare` "
            "with --values"
        )
    if label_kind is LabelKind.HEADS and not heads:
        raise RecordError(
            f"{source} has no label for each head (config.data.heads): run `prepare` "
            "with --heads"
        )
    if label_kind in (LabelKind.ONE, LabelKind.MANY) and heads:
        raise RecordError(
            f"{source} has a label for each of several heads: set "
            f"config.data.heads={heads}"
        )


def _columns(
    source: str,
    settings: Mapping[str, Any],
    label_kind: LabelKind,
    label_columns: Sequence[str],
) -> tuple[tuple[str, ...], list[int]]:
    """Returns the names of the heads or values to take, and their places if known."""
    known: list[str] = []
    if label_kind is LabelKind.HEADS:
        known = [name.strip() for name in settings["heads"].split(",")]
        absent = [name for name in label_columns if name not in known]
        if absent:
            raise RecordError(
                f"{source} has labels for the heads {', '.join(known)}, not for "
                f"{', '.join(absent)}: correct config.data.heads"
            )
    elif label_kind is LabelKind.VALUES and isinstance(settings["values"], list):
        known = settings["values"]
        absent = [name for name in label_columns if name not in known]
        # Without any, the names are none of columns.
        if absent and len(absent) < len(label_columns):
            raise RecordError(
                f"{source} has the values {', '.join(known)}, not {', '.join(absent)}: "
                "make it of a list with the columns of the training"
            )
    is_known = label_columns and set(label_columns) <= set(known)
    columns = tuple(label_columns if is_known else known)
    return columns, [known.index(name) for name in columns]


def parse(source: str) -> tuple[str, str]:
    """Returns FOLDER and SPLIT of a source."""
    out, _, split = source.removeprefix("tfds:").rpartition("/")
    if not out or not split:
        raise RecordError(f"{source!r}: expected tfds:FOLDER/SPLIT")
    return out, split


def open_stored(record: Record) -> Video:
    """Opens the video of a record in a shard."""
    example = _read_prepared(record)
    content = example["video"].bytes_list.value[0]
    numbers = iter(example["packets"].int64_list.value)
    rows = tuple(zip(numbers, numbers, numbers, numbers, strict=True))
    if not rows:  # the original file was kept
        return Video(content, record.location)
    height, width = (example[x].int64_list.value[0] for x in ("height", "width"))
    # Absent in data sets of earlier versions, whose times are only an order.
    time_base = example["time_base"].int64_list.value
    return IndexedVideo(
        content,
        PacketIndex(example["header"].bytes_list.value[0], rows),
        fps=example["fps"].float_list.value[0] or None,
        size=(height, width),
        name=record.location,
        time_base=Fraction(*time_base) if time_base else None,
    )


def read_content(record: Record) -> bytes:
    """Returns the content of the video file of a record in a shard."""
    return _read_prepared(record)["video"].bytes_list.value[0]


def _read_prepared(record: Record) -> Mapping[str, Any]:
    """Returns the features of an example after checking that its id is the record's."""
    features = read_example(record)
    try:
        id = features["id"].bytes_list.value[0].decode()
    except (IndexError, UnicodeDecodeError) as error:
        raise VideoError(
            f"{record.path}: video {record.position} ({record.id}) was not written by "
            "`prepare`"
        ) from error
    if id != record.id:
        raise VideoError(
            f"{record.path}: video {record.position} is {id}, not {record.id}: the "
            "shard and the index belong to different data sets"
        )
    return features


def read_example(record: Record) -> Mapping[str, Any]:
    """Returns the features of a record in a shard: `tf.train.Feature` by name.

    A missing feature looks like one without values.
    """
    _, tf_example_pb2 = packages()
    try:
        data = _open_shard(record.path).read([record.position])[0]
        return tf_example_pb2.Example.FromString(data).features.feature
    except Exception as error:  # RuntimeError, IndexError, DecodeError...
        raise VideoError(
            f"{record.path}: video {record.position} ({record.id}) cannot be read: "
            f"{error}"
        ) from error


@functools.lru_cache(_OPEN_SHARDS)
def _open_shard(path: str):
    """Opens a shard, once per process; any number of threads may read it."""
    array_record_module, _ = packages()
    # Records are read at random: reading ahead would be wasted.
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )


@functools.cache
def packages() -> tuple[Any, Any]:
    """Returns array_record_module and tf_example_pb2, which only this source needs."""
    try:
        # Compiled, without type stubs.
        from array_record.python import (
            array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorflow_datasets.proto import tf_example_pb2
    except ImportError as error:
        raise RecordError(
            f"tfds: data sets need the package {error.name}: "
            "pip install tensorflow-datasets array_record"
        ) from error
    return array_record_module, tf_example_pb2


def indices(folder: epath.Path) -> dict[str, Any]:
    """Returns the index of each split that is complete, by the split's name."""
    prefix, suffix = f"{folder.parent.name}-", ".index.json"
    complete = {}
    for path in folder.glob(f"{prefix}*{suffix}"):
        index = read_json(path)
        if index is not None:
            complete[path.name.removeprefix(prefix).removesuffix(suffix)] = index
    return complete
