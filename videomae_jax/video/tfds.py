"""Data sets of decoded frames that TFDS has made, such as ucf101.

    FOLDER/2.0.0/dataset_info.json, features.json
    FOLDER/2.0.0/ucf101-train.array_record-00000-of-00032

Their examples hold the frames of a video one by one, as PNG or JPEG, in a feature
`Video` (or `Sequence` of `Image`), whatever its name. They are read without TensorFlow,
and only the frames that are wanted are decoded; but an example is read whole. Only sets
stored as array_record can be read at random: the default of TFDS, tfrecord, cannot.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from videomae_jax.data import resources
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.files import absolute, is_url
from videomae_jax.video import shards
from videomae_jax.video.images import ImageVideo
from videomae_jax.video.record import LabelKind, Record

_INFO = "dataset_info.json"
_FORMAT = "array_record"


def find(source: str) -> epath.Path | None:
    """The folder of a TFDS data set that `tfds:FOLDER/SPLIT` means.

    FOLDER is the folder of a version, which holds dataset_info.json, or one above it
    with no other version in it.

    Returns:
        The folder of the version; None if there is none, or `prepare` has made it.

    Raises:
        RecordError: if there are several versions.
    """
    out = source.removeprefix("tfds:").rpartition("/")[0]
    place = epath.Path(absolute(out))
    for pattern in (_INFO, f"*/{_INFO}", f"*/*/{_INFO}"):
        folders = sorted(
            os.fspath(path.parent)
            for path in place.glob(pattern)
            if not any(path.parent.glob("*.index.json"))  # which `prepare` writes
        )
        if len(folders) > 1:
            raise RecordError(
                f"{source}: there are several data sets; give one of "
                + ", ".join(f"tfds:{name}/{_split(source)}" for name in folders)
            )
        if folders:
            return epath.Path(folders[0])
    return None


def load(source: str, label_kind: LabelKind = LabelKind.OPTIONAL) -> list[Record]:
    """Lists the videos of a split, as `records.load` does; decodes none of them.

    Labels are inside the examples: unless they are unused, the whole split is read
    once per process, by as many threads as there are cores (0.1 to 0.2 GB a second
    each). Unused labels are left out.

    Args:
        source: `tfds:FOLDER/SPLIT`, of which `find` finds a folder.
        label_kind: the labels that each video must have.

    Raises:
        RecordError: if there is no such split, the data set is not stored as
            array_record, has not one feature of frames, or shards are missing.
    """
    folder, split = find(source), _split(source)
    info = shards.read_json(folder / _INFO) or {}
    features = shards.read_json(folder / "features.json") or {}
    features = features.get("featuresDict", {}).get("features", {})
    name = info.get("name", "")
    formats = (info.get("fileFormat"), *info.get("alternativeFileFormats", ()))
    if _FORMAT not in formats:
        whole = "/".join(filter(None, (name, info.get("configName"))))
        raise RecordError(
            f"{source}: {folder} is stored as {formats[0]}, which cannot be read at "
            f"random. Make it again with file_format={_FORMAT}: "
            f"`tfds build {whole} --file_format={_FORMAT} --data_dir=ANOTHER_FOLDER`"
        )
    frames = _only(source, features, _is_frames, "Video")
    if frames is None:
        raise RecordError(
            f"{source}: {folder} has no feature of kind Video, only "
            + ", ".join(features)
        )
    found = []
    for path, count in _shards(source, folder, split, info):
        base = os.path.basename(path)
        found += [  # Ids as TFDS gives them (tfds_id).
            Record(path, f"{base}__{i}", position=i, feature=frames)
            for i in range(count)
        ]
    if label_kind is LabelKind.UNUSED:
        return found
    label = _only(source, features, lambda kind: "classLabel" in kind, "ClassLabel")
    if label is None and label_kind is LabelKind.ONE:
        raise RecordError(f"{source}: {folder} has no feature of kind ClassLabel")
    return _labelled(source, found, label, label_kind)


def _split(source: str) -> str:
    return source.rpartition("/")[2]


def _is_frames(kind: Mapping[str, Any]) -> bool:
    return "video" in kind or "image" in kind.get("sequence", {}).get("feature", {})


def _only(
    source: str,
    features: Mapping[str, Mapping],
    is_wanted: Callable[[Mapping], bool],
    kind: str,
) -> str | None:
    """The name of the only feature of a kind; None if there is none."""
    names = [name for name, feature in features.items() if is_wanted(feature)]
    if len(names) > 1:
        raise RecordError(
            f"{source}: one feature of kind {kind} is wanted, but there are "
            f"{', '.join(names)}"
        )
    return names[0] if names else None


def _shards(
    source: str, folder: epath.Path, split: str, info: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """File and number of examples of each shard."""
    import tensorflow_datasets as tfds  # here, for the processes that read do without

    splits = {entry["name"]: entry for entry in info.get("splits", ())}
    if split not in splits:
        out = source.removeprefix("tfds:").rpartition("/")[0]
        known = ", ".join(f"tfds:{out}/{name}" for name in splits)
        raise RecordError(
            f"{source}: {folder} has no split {split!r}; there is {known}"
        )
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


def _labelled(
    source: str,
    found: Sequence[Record],
    feature: str | None,
    label_kind: LabelKind,
) -> list[Record]:
    """The records with the labels that their examples hold."""
    labels: list[tuple[int, ...]] = [()] * len(found)
    if feature is not None:
        with concurrent.futures.ThreadPoolExecutor(resources.measure().cores) as pool:
            read = functools.partial(_labels, feature=feature)
            try:
                labels = list(pool.map(read, found))
            except VideoError as error:
                raise RecordError(f"{source}: {error}") from error
    labelled = []
    for record, own in zip(found, labels, strict=True):
        label_kind.check(own, f"{source}: {record.id}")
        labelled.append(dataclasses.replace(record, labels=own))
    return labelled


@functools.lru_cache(None)
def _labels(record: Record, feature: str) -> tuple[int, ...]:
    """Reads labels; cached, since validation and test often share a split."""
    values = shards.read_example(record)[feature].int64_list.value
    return tuple(values[:1]) if values and values[0] >= 0 else ()


class ExampleFrames(ImageVideo):
    """The frames of an example: its encoded images are held while it is open."""

    def __init__(self, record: Record):
        """Reads the example.

        Raises:
            VideoError: if it cannot be read, or holds no frames.
        """
        # Not a list of them: each is copied only when it is asked for.
        self._images = shards.read_example(record)[record.feature].bytes_list.value
        super().__init__(record.location, len(self._images))
        if not self._images:
            raise self.error(f"holds no frames in its feature {record.feature!r}")

    def close(self) -> None:
        """Releases the images; may be called more than once."""
        super().close()
        self._images = []

    def content(self, index: int) -> bytes:
        """The encoded image of a frame."""
        return self._images[index]

    def size(self, index: int) -> int:
        """Bytes of the encoded image of a frame."""
        return len(self._images[index])

    def image_name(self, index: int) -> str:
        """A frame's number, from 0."""
        return f"frame {index}"
