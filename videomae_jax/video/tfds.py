"""Data sets of decoded frames that TFDS has made, such as ucf101.

    FOLDER/2.0.0/dataset_info.json, features.json
    FOLDER/2.0.0/ucf101-train.array_record-00000-of-00032

An example holds the frames of a video separately, as PNG or JPEG, in a feature `Video`
(or `Sequence` of `Image`) of any name. Examples are read whole, without TensorFlow, but
only the requested frames are decoded. The data set must be stored as array_record: the
default of TFDS, tfrecord, has no random access.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from videomae_jax.errors import RecordError, VideoError
from videomae_jax.files import absolute, is_url, read_json
from videomae_jax.processes import available_resources
from videomae_jax.video import shards
from videomae_jax.video.images import ImageVideo
from videomae_jax.video.record import LabelKind, Record

_INFO = "dataset_info.json"
_FORMAT = "array_record"


def find(source: str) -> epath.Path | None:
    """Finds the folder of the version that `tfds:FOLDER/SPLIT` names.

    FOLDER is that folder, which holds dataset_info.json, or a folder above it that
    holds no other version.

    Returns:
        None if it is missing, or was written by `prepare`.
    """
    out, split = shards.parse(source)
    base = epath.Path(absolute(out))
    for pattern in (_INFO, f"*/{_INFO}", f"*/*/{_INFO}"):
        folders = sorted(
            os.fspath(path.parent)
            for path in base.glob(pattern)
            if not any(path.parent.glob("*.index.json"))  # written by `prepare`
        )
        if len(folders) > 1:
            raise RecordError(
                f"{source}: FOLDER holds several data sets. Give one of "
                + ", ".join(f"tfds:{name}/{split}" for name in folders)
            )
        if folders:
            return epath.Path(folders[0])
    return None


def load(
    source: str, folder: epath.Path, label_kind: LabelKind = LabelKind.OPTIONAL
) -> list[Record]:
    """Lists the videos of a split without decoding any of them.

    Labels are inside the examples: unless they are unused, the whole split is read
    once per process, by as many threads as there are cores (0.1 to 0.2 GB a second
    each). Unused labels are left out.

    Args:
        source, label_kind: as in `shards.load`.
        folder: the folder of a version, which `find` returns.

    Raises:
        RecordError: the split is unknown, the data set is not stored as array_record or
            does not have exactly one feature of frames, or shards are missing.
    """
    shards.packages()
    if label_kind in (LabelKind.HEADS, LabelKind.VALUES):
        raise RecordError(
            f"{source}: a data set of frames has one class per video, neither one for "
            "each of config.data.heads nor the numbers of config.loss.kind=mse"
        )
    info = read_json(folder / _INFO) or {}
    features = read_json(folder / "features.json") or {}
    features = features.get("featuresDict", {}).get("features", {})
    formats = (info.get("fileFormat"), *info.get("alternativeFileFormats", ()))
    if _FORMAT not in formats:
        name = "/".join(filter(None, (info.get("name"), info.get("configName"))))
        raise RecordError(
            f"{source}: {folder} is stored as {formats[0]}, which has no random "
            f"access. Build it again with file_format={_FORMAT}: "
            f"`tfds build {name} --file_format={_FORMAT} --data_dir=ANOTHER_FOLDER`"
        )
    find_feature = functools.partial(_only_feature, f"{source}: {folder}", features)
    frames = find_feature("Video", _holds_frames)
    records = [
        # Ids as TFDS gives them (tfds_id).
        Record(path, f"{os.path.basename(path)}__{i}", position=i, feature=frames)
        for path, count in _shards(source, folder, info)
        for i in range(count)
    ]
    if label_kind is LabelKind.UNUSED:
        return records
    label = find_feature(
        "ClassLabel",
        lambda feature: "classLabel" in feature,
        required=label_kind is LabelKind.ONE,
    )
    return _read_labels(source, records, label, label_kind) if label else records


def _holds_frames(feature: Mapping[str, Any]) -> bool:
    elements = feature.get("sequence", {}).get("feature", {})
    return "video" in feature or "image" in elements


def _only_feature(
    folder: str,
    features: Mapping[str, Mapping],
    kind: str,
    is_of_kind: Callable[[Mapping], bool],
    required: bool = True,
) -> str:
    """Returns the name of the only feature of a kind; empty if there is none."""
    names = [name for name, feature in features.items() if is_of_kind(feature)]
    if len(names) > 1:
        raise RecordError(
            f"{folder}: expected one feature of kind {kind}, found {', '.join(names)}"
        )
    if required and not names:
        raise RecordError(
            f"{folder} has no feature of kind {kind}, only {', '.join(features)}"
        )
    return names[0] if names else ""


def _shards(
    source: str, folder: epath.Path, info: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Returns the path and the number of examples of each shard."""
    # Imported here, since processes that only read videos do without it.
    import tensorflow_datasets as tfds

    out, split = shards.parse(source)
    splits = {entry["name"]: entry for entry in info.get("splits", ())}
    if split not in splits:
        known = ", ".join(f"tfds:{out}/{name}" for name in splits)
        raise RecordError(f"{source}: {folder} has no split {split!r}, only {known}")
    lengths = [int(length) for length in splits[split].get("shardLengths", ())]
    template = tfds.core.ShardedFileTemplate(
        template=splits[split].get("filepathTemplate"),
        data_dir=folder,
        dataset_name=info["name"],
        split=split,
        filetype_suffix=_FORMAT,
    )
    paths = [os.fspath(path) for path in template.sharded_filepaths(len(lengths))]
    for path in paths:
        if not is_url(path) and not os.path.exists(path):
            raise RecordError(f"{source}: the shard {path} is missing")
    if not sum(lengths):
        raise RecordError(f"{source}: the split {split!r} is empty")
    return list(zip(paths, lengths, strict=True))


def _read_labels(
    source: str, records: Sequence[Record], feature: str, label_kind: LabelKind
) -> list[Record]:
    """Returns the records with the labels that their examples hold."""
    read = functools.partial(_labels_of, feature=feature)
    num_threads = available_resources().cores
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        try:
            labels = list(pool.map(read, records))
        except VideoError as error:
            raise RecordError(f"{source}: {error}") from error
    labelled = []
    for record, own in zip(records, labels, strict=True):
        label_kind.check(own, f"{source}: {record.id}")
        labelled.append(dataclasses.replace(record, labels=own))
    return labelled


@functools.lru_cache(None)
def _labels_of(record: Record, feature: str) -> tuple[int, ...]:
    """Reads labels; cached, since validation and test often share a split."""
    values = shards.read_example(record)[feature].int64_list.value
    return tuple(values[:1]) if values and values[0] >= 0 else ()


class ExampleFrames(ImageVideo):
    """The frames of an example, whose encoded images are held while it is open."""

    def __init__(self, record: Record):
        """Reads the example, which must hold frames."""
        # A lazy sequence: each image is copied only when it is accessed.
        self._images = shards.read_example(record)[record.feature].bytes_list.value
        self.name, self.num_frames = record.location, len(self._images)
        if not self._images:
            raise self.error(f"holds no frames in its feature {record.feature!r}")

    def close(self) -> None:
        """Releases the images."""
        super().close()
        self._images = []

    def content(self, index: int) -> bytes:
        """Returns the encoded image of a frame."""
        return self._images[index]

    def size(self, index: int) -> int:
        """Returns the size of the encoded image of a frame in bytes."""
        return len(self._images[index])

    def image_name(self, index: int) -> str:
        """Returns the frame's number, counted from 0."""
        return f"frame {index}"
