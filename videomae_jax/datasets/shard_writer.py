"""Writes prepared data sets: shards, their metadata, indices, and TFDS's own files.

`videomae_jax/video/shards.py` documents the files. Each is replaced atomically, and
none depends on when, in which order or by how many processes it was written. Writing a
data set may therefore be interrupted and resumed: a shard is kept if its metadata says
that it has the same list and settings.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from etils import epath
from tensorflow_datasets.core import dataset_info, example_serializer, splits

from videomae_jax import files
from videomae_jax.datasets.encode import Encoded
from videomae_jax.errors import RecordError
from videomae_jax.video import shards as shard_files
from videomae_jax.video.packets import PacketIndex
from videomae_jax.video.record import Record, labels_to_json

# One video per chunk, for random access. Videos are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Properties of a video that metadata and indices contain.
_PROPERTIES = ("num_frames", "fps", "height", "width")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to write: all that a worker needs to know, on any machine."""

    path: str
    records: tuple[Record, ...]  # unreadable ones will be left out
    # Everything else that the bytes depend on, as JSON values: "encoding" (or None),
    # "multi_label", "classes" (or None), and others.
    settings: Mapping[str, Any]

    @property
    def metadata_path(self) -> epath.Path:
        """The file that is written once the shard is complete."""
        return epath.Path(f"{self.path}.json")

    def metadata(self) -> dict[str, Any] | None:
        """Returns the content of the metadata file; None if it is missing."""
        return files.read_json(self.metadata_path)

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes the shard from others with its name."""
        rows = []
        for record in self.records:
            label = labels_to_json(record.labels, self.settings["multi_label"])
            rows.append([record.id, label])
            if record.is_images:
                rows[-1] += [record.frame_name, record.frame_range]
            elif record.is_part:
                rows[-1] += [record.frame_range, record.time_range]
            if record.values:
                rows[-1].append(record.values)
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return {"settings": dict(self.settings), "list": digest}

    def is_complete(self) -> bool:
        """Returns whether the shard exists with all of its bytes."""
        metadata = self.metadata()
        return metadata is not None and files.file_size(self.path) == metadata["bytes"]

    def conflict(self) -> str | None:
        """Returns how an existing shard with this name differs, if it does."""
        existing = self.metadata()
        if existing is None:
            return None
        for key, value in self.settings.items():
            if existing["settings"].get(key) != value:
                return f"{key} was {existing['settings'].get(key)}, and is now {value}"
        same_list = existing["list"] == self.identity()["list"]
        return None if same_list else "other videos or labels"


def write_shard(shard: Shard, videos: Iterable[Encoded | str]) -> int:
    """Writes a shard and then its metadata, each atomically.

    `videos` has, for each record in order, the video or why it is unreadable. Returns
    the number of unreadable ones.
    """
    features = _features(shard.settings)
    specs: Any = features.get_serialized_info()
    serializer = example_serializer.ExampleSerializer(specs)
    rows, bad = [], []
    shard.metadata_path.unlink(missing_ok=True)
    with (
        files.atomic_path(epath.Path(shard.path)) as temporary,
        _local_file(temporary) as path,
    ):
        with _explained_errors(path):
            writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
        try:
            for record, video in zip(shard.records, videos, strict=True):
                if isinstance(video, str):
                    bad.append({"id": record.id, "path": record.path, "reason": video})
                    continue
                properties = {name: getattr(video, name) for name in _PROPERTIES}
                label = labels_to_json(record.labels, shard.settings["multi_label"])
                values = {"values": record.values} if record.values else {}
                rows.append({"id": record.id, "label": label, **values, **properties})
                index = video.index or PacketIndex(b"", ())
                example = {
                    "id": record.id,
                    "label": -1 if label is None else label,
                    **values,
                    **properties,
                    "video": video.video,
                    "header": index.header,
                    "packets": np.array(index.packets, np.int64).reshape(-1, 4),
                    "time_base": np.array(
                        video.time_base.as_integer_ratio() if video.time_base else (),
                        np.int64,
                    ),
                }
                message = serializer.get_tf_example(features.encode_example(example))
                with _explained_errors(path):
                    # By default the order of the fields varies.
                    writer.write(message.SerializeToString(deterministic=True))
        finally:
            with _explained_errors(path):
                writer.close()
    head = {**shard.identity(), "bytes": epath.Path(shard.path).stat().length}
    files.write_json(shard.metadata_path, head, {"bad": bad, "videos": rows})
    return len(bad)


class Split:
    """The shards of a split, in order, and the files that describe all of them.

    `folder` is the versioned folder of the data set.
    """

    def __init__(
        self,
        out: str,
        split: str,
        *,
        records: Sequence[Record],
        shard_videos: int,
        settings: Mapping[str, Any],
        overwrite: bool = False,
    ):
        """Checks the existing files, and removes those in the way.

        Args:
            out: folder of the data set; its name becomes the name of the data set.
            split: such as "train".
            records: the whole list.
            shard_videos: videos per shard; the last may have fewer.
            settings: of `Shard`.
            overwrite: replace shards of other lists or settings.

        Raises:
            RecordError: such shards exist, without `overwrite`; other splits have other
                classes; or TFDS does not allow a name.
        """
        base = epath.Path(files.absolute(out))
        for name in (base.name, split):
            if not _NAME.fullmatch(name):
                raise RecordError(
                    f"{name!r} cannot be the name of a data set or split: names must "
                    "have only lowercase letters, digits and underscores, and start "
                    "with a letter"
                )
        self.folder = base / shard_files.VERSION
        self.settings = dict(settings)
        self._name, self._split = base.name, split
        self._prefix = f"{base.name}-{split}"
        self._index_path = self.folder / f"{self._prefix}.index.json"
        for other, index in shard_files.indices(self.folder).items():
            for key in ("multi_label", "classes"):
                if other != split and index["settings"][key] != settings[key]:
                    raise RecordError(
                        f"{self.folder}: the split {other!r} has other classes, or "
                        "another number of labels per video. Choose another folder"
                    )
        starts = range(0, len(records), shard_videos)
        stem = os.fspath(self.folder / f"{self._prefix}.array_record")
        self.shards = [
            Shard(
                f"{stem}-{index:05d}-of-{len(starts):05d}",
                tuple(records[start : start + shard_videos]),
                self.settings,
            )
            for index, start in enumerate(starts)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_old_files(overwrite)

    def _remove_old_files(self, overwrite: bool) -> None:
        """Removes shards in the way, and partial files of a killed process."""
        for partial in self.folder.glob(f".{self._prefix}.*{files.PARTIAL_SUFFIX}"):
            partial.unlink(missing_ok=True)
        expected = {os.path.basename(shard.path): shard for shard in self.shards}
        expected |= {shard.metadata_path.name: shard for shard in self.shards}
        obsolete = []
        for path in self.folder.glob(f"{self._prefix}.array_record-*"):
            reason = "the number of shards differs"
            if path.name in expected:
                reason = expected[path.name].conflict()
            if reason:
                obsolete.append(path)
            if reason and not overwrite:
                raise RecordError(
                    f"{path} exists, with another list or other settings ({reason}). "
                    "Choose another folder, or pass --overwrite to replace it"
                )
        if obsolete:
            self.invalidate()
        for path in obsolete:
            path.unlink(missing_ok=True)

    def invalidate(self) -> None:
        """Marks the split as incomplete, before a shard of it changes."""
        self._index_path.unlink(missing_ok=True)
        self._write_info()  # also if a process was killed between the two

    def bad_videos(self) -> list[tuple[Shard, Record, str]]:
        """Returns the unreadable videos of complete shards, with the reasons."""
        bad = []
        for shard in self.shards:
            metadata = shard.metadata()
            records = {record.id: record for record in shard.records}
            for row in metadata["bad"] if metadata else ():
                bad.append((shard, records[row["id"]], row["reason"]))
        return bad

    def write_bad_videos(self) -> epath.Path:
        """Lists the unreadable videos so far in a file; returns its path."""
        path = self.folder / f"{self._prefix}.bad_videos.jsonl"
        rows = (
            {"id": record.id, "path": record.path, "reason": reason}
            for _, record, reason in self.bad_videos()
        )
        files.write_json_lines(path, rows)
        return path

    def finish(self, provenance: Mapping[str, Any]) -> int:
        """Makes a data set of the shards, all of which must be complete.

        The index also gets the JSON values of `provenance`, which say where the data
        came from. Returns the number of videos.
        """
        rows, videos, unreadable = [], [], 0
        for shard in self.shards:
            metadata = shard.metadata()
            assert metadata is not None, f"{shard.path} is not complete"
            file, own = os.path.basename(shard.path), metadata["videos"]
            rows.append({"file": file, "bytes": metadata["bytes"], "videos": len(own)})
            videos += own
            unreadable += len(metadata["bad"])
        head = {"settings": self.settings, **provenance, "unreadable": unreadable}
        files.write_json(self._index_path, head, {"shards": rows, "videos": videos})
        self._write_info()
        return len(videos)

    def _write_info(self) -> None:
        """Writes TFDS's description of all splits that are complete."""
        while complete := shard_files.indices(self.folder):
            infos = [self._split_info(*item) for item in sorted(complete.items())]
            keys = ("settings", "list", "versions", "unreadable")
            metadata = {
                split: {key: index[key] for key in keys if key in index}
                for split, index in sorted(complete.items())
            }
            info = tfds.core.DatasetInfo(
                builder=dataset_info.DatasetIdentity(
                    name=self._name,
                    version=tfds.core.Version(shard_files.VERSION),
                    data_dir=os.fspath(self.folder),
                    module_name="",
                ),
                description="Videos prepared by `python -m videomae_jax prepare`.",
                features=_features(self.settings),
                metadata=tfds.core.MetadataDict(metadata),
            )
            info.set_file_format("array_record")
            info.set_splits(splits.SplitDict(infos))
            with tempfile.TemporaryDirectory() as temporary:
                info.write_to_directory(temporary)
                names = set(os.listdir(temporary)) - {"dataset_info.json"}
                for name in [*sorted(names), "dataset_info.json"]:
                    text = epath.Path(temporary, name).read_text()
                    with files.atomic_write(self.folder / name) as file:
                        file.write(text)
            # Another process may have finished another split in the meantime.
            if shard_files.indices(self.folder).keys() == complete.keys():
                return
        (self.folder / "dataset_info.json").unlink(missing_ok=True)

    def _split_info(self, split: str, index: Mapping[str, Any]) -> tfds.core.SplitInfo:
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["videos"] for shard in index["shards"]],
            num_bytes=sum(shard["bytes"] for shard in index["shards"]),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=self.folder,
                dataset_name=self._name,
                split=split,
                filetype_suffix="array_record",
            ),
        )


def _features(settings: Mapping[str, Any]) -> tfds.features.FeaturesDict:
    """Returns the features of an example.

    A video without a label has label -1, or an empty list in a multi-label data set.
    """
    classes = settings["classes"]
    label = tfds.features.ClassLabel(names=classes) if classes else np.int64
    if settings["multi_label"]:
        label = tfds.features.Sequence(label)
    any_bytes = tfds.features.Tensor(shape=(), dtype=np.str_)
    features = {
        "id": tfds.features.Text(),
        "label": label,
        "num_frames": np.int32,
        "fps": np.float32,
        "height": np.int32,
        "width": np.int32,
        "video": any_bytes,
        "header": any_bytes,
        "packets": tfds.features.Tensor(shape=(None, 4), dtype=np.int64),
        "time_base": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    }
    if settings.get("values"):
        features["values"] = tfds.features.Tensor(shape=(None,), dtype=np.float64)
    return tfds.features.FeaturesDict(features)


@contextlib.contextmanager
def _local_file(path: epath.Path) -> Iterator[str]:
    """Yields a local file to write, which is copied to `path` if that is a URL.

    ArrayRecord cannot write to an object store such as gs://.
    """
    if not files.is_url(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "shard")
        yield local
        with open(local, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 2**24)


@contextlib.contextmanager
def _explained_errors(path: str) -> Iterator[None]:
    """Re-raises the errors of ArrayRecordWriter as the OSErrors of Python's files."""
    try:
        yield
    except RuntimeError as error:
        for code in _DISK_FULL:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), path) from error
        raise OSError(f"{path} cannot be written: {error}") from error
