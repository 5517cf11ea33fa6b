"""Prepared data sets: TFDS data sets of ArrayRecord shards, as `preparing` writes them.

    OUT/1.0.0/NAME-SPLIT.array_record-00003-of-00010        a shard; NAME is OUT's name
    OUT/1.0.0/NAME-SPLIT.array_record-00003-of-00010.json   a note, written after it:
                        what the shard is of, and which videos could not be read
    OUT/1.0.0/NAME-SPLIT.index.json         all videos, once each shard has its note
    OUT/1.0.0/NAME-SPLIT.bad_videos.jsonl   those that could not be read
    OUT/1.0.0/features.json, label.labels.txt, metadata.json
    OUT/1.0.0/dataset_info.json             for TFDS, last: the splits that are whole

ArrayRecord keeps a checksum of every record: changed bytes are found when they are read
(tests/cli/test_prepare.py changes some), so there are no others here.
"""

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

from videomae_jax.errors import RecordError, VideoError
from videomae_jax.files import absolute, is_url
from videomae_jax.video.decoder import Video
from videomae_jax.video.packet_index import IndexedVideo, PacketIndex
from videomae_jax.video.record import LabelKind, Record, labels_from_json

try:
    from array_record.python import array_record_module
    from etils import epath
    from tensorflow_datasets.proto import tf_example_pb2
except ImportError as error:
    raise RecordError(
        f"prepared data sets need the package {error.name}: "
        "pip install tensorflow-datasets array_record"
    ) from error

VERSION = "1.0.0"
_OPEN_SHARDS = 512  # at once, by a process; systems often allow 1,024 files


def load(source: str, label_kind: LabelKind = LabelKind.OPTIONAL) -> list[Record]:
    """Lists the videos of a prepared split, as `records.load` does; reads none of them.

    Args:
        source: `tfds:FOLDER/SPLIT`, with the folder that `prepare` was given.
        label_kind: the labels that each video must have.

    Raises:
        RecordError: if there is no such split, it is not finished, or shards are
            missing or cut off.
    """
    out, _, split = source.removeprefix("tfds:").rpartition("/")
    if not out or not split:
        raise RecordError(f"{source!r}: tfds:FOLDER/SPLIT is wanted")
    place = epath.Path(absolute(out))
    folder = place / VERSION
    index = read_json(folder / f"{place.name}-{split}.index.json")
    if index is None:
        known = [f"tfds:{out}/{name}" for name in sorted(indices(folder))]
        raise RecordError(
            f"{source}: {folder} holds no finished split {split!r}. "
            + (f"There is {', '.join(known)}. " if known else "")
            + f"`python -m videomae_jax prepare LIST {out} --split={split}` makes it, "
            "or finishes it"
        )
    found, videos = [], iter(index["videos"])
    for shard in index["shards"]:
        path = os.fspath(folder / shard["file"])
        if not is_url(path) and size(path) != shard["bytes"]:
            raise RecordError(
                f"{source}: the shard {path} is missing or has not its "
                f"{shard['bytes']} bytes: run the same `prepare` again to mend it"
            )
        for position in range(shard["videos"]):
            row = next(videos)
            labels = labels_from_json(row["label"])
            label_kind.check(labels, f"{source}: {row['id']}")
            found.append(Record(path, row["id"], labels=labels, position=position))
    return found


def open_video(record: Record) -> Video:
    """Opens the video of a record in a shard.

    Raises:
        VideoError: if it cannot be read as it was written; the message names the shard.
    """
    example = _own_example(record)
    content = example["video"].bytes_list.value[0]
    numbers = iter(example["packets"].int64_list.value)
    rows = tuple(zip(numbers, numbers, numbers, numbers, strict=True))
    if not rows:  # the file is kept as it was
        return Video(content, record.location)
    index = PacketIndex(example["header"].bytes_list.value[0], rows)
    height, width = (example[x].int64_list.value[0] for x in ("height", "width"))
    fps = example["fps"].float_list.value[0] or None
    return IndexedVideo(content, index, fps, (height, width), record.location)


def read(record: Record) -> bytes:
    """The content of the video file of a record in a shard.

    Raises:
        VideoError: as in `open_video`.
    """
    return _own_example(record)["video"].bytes_list.value[0]


def _own_example(record: Record) -> Mapping[str, Any]:
    features = read_example(record)
    try:
        id = features["id"].bytes_list.value[0].decode()
    except (IndexError, UnicodeDecodeError) as error:
        raise VideoError(
            f"{record.path}: video {record.position} ({record.id}) is not one that "
            "`prepare` has written"
        ) from error
    if id != record.id:
        raise VideoError(
            f"{record.path}: video {record.position} is {id}, not {record.id}: the "
            "shard and the index are not of one data set"
        )
    return features


def read_example(record: Record) -> Mapping[str, Any]:
    """The features of a record in a shard, `tf.train.Feature` messages by name.

    A feature that is not there looks as one without values.

    Raises:
        VideoError: if it cannot be read; the message names the shard.
    """
    try:
        data = _reader(record.path).read([record.position])[0]
        return tf_example_pb2.Example.FromString(data).features.feature
    except Exception as error:  # RuntimeError, IndexError, DecodeError...
        raise VideoError(
            f"{record.path}: video {record.position} ({record.id}) cannot be read: "
            f"{error}"
        ) from error


@functools.lru_cache(_OPEN_SHARDS)
def _reader(path: str):
    """Opens a shard once in each process; any number of threads may read."""
    # Records are far apart: reading ahead would be for nothing.
    return array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )


def indices(folder: epath.Path) -> dict[str, Any]:
    """The index of each split that is whole."""
    found = {}
    for path in folder.glob(f"{folder.parent.name}-*.index.json"):
        split = path.name.removesuffix(".index.json")
        index = read_json(path)
        if index is not None:
            found[split.removeprefix(f"{folder.parent.name}-")] = index
    return found


def size(path: str) -> int | None:
    """Bytes of a file; None if there is none."""
    try:
        return epath.Path(path).stat().length
    except OSError:
        return None


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """What a file holds; None if it is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # missing, or cut off by a power failure
        return None
