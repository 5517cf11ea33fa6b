"""Writes prepared data sets: shards, notes, indices, and what TFDS wants to know.

The files are those of `prepared`. Every one appears whole or not at all, and none
depends on when, in which order or by how many processes it was made. So making a data
set may stop anywhere and go on later: what is there is kept, if its note says that it
is of the same list and settings.
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
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from videomae_jax.datasets.encode import Encoded
from videomae_jax.errors import RecordError
from videomae_jax.files import absolute, is_url
from videomae_jax.video import shards as prepared
from videomae_jax.video.packet_index import PacketIndex
from videomae_jax.video.record import Record, labels_to_json

# One video is one chunk, for random access. Compressing them again would gain nothing.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# What notes and indices tell of a video.
_FACTS = ("num_frames", "fps", "height", "width")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What writing fails with when there is no more room.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to be written: all that a worker needs to know, wherever it runs.

    Attributes:
        path: the file.
        records: its videos, of which unreadable ones will be left out.
        settings: what the bytes depend on besides, as JSON holds it: "encoding" (or
            None), "multi_label", "classes" (or None) and whatever else.
    """

    path: str
    records: tuple[Record, ...]
    settings: Mapping[str, Any]

    @property
    def note(self) -> epath.Path:
        """The file that tells of the shard that it is complete."""
        return epath.Path(f"{self.path}.json")

    @property
    def contents(self) -> dict[str, Any]:
        """What tells the shard from others of its name."""
        multi_label = self.settings["multi_label"]
        rows = json.dumps([_row(record, multi_label) for record in self.records])
        digest = hashlib.sha256(rows.encode()).hexdigest()
        return {"settings": dict(self.settings), "list": digest}


def _row(record: Record, multi_label: bool) -> list:
    """What a record asks for."""
    row = [record.id, labels_to_json(record.labels, multi_label)]
    if record.is_images:
        row += [record.frame_name, record.frame_range]
    return row


def write_shard(shard: Shard, videos: Iterable[Encoded | str]) -> int:
    """Writes a shard and then its note, whole or not at all.

    Args:
        shard: which one.
        videos: for each of its records in order, the video or why there is none.

    Returns:
        How many there are none of.

    Raises:
        OSError: if it cannot be written, as when there is no more room.
    """
    features = _features(shard.settings)
    serializer = tfds.core.example_serializer.ExampleSerializer(
        features.get_serialized_info()
    )
    rows, bad = [], []
    shard.note.unlink(missing_ok=True)
    with _appearing(epath.Path(shard.path)) as temporary, _local(temporary) as path:
        with _explaining(path):
            writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
        try:
            for record, video in zip(shard.records, videos, strict=True):
                if isinstance(video, str):
                    row = {"id": record.id, "path": record.path, "reason": video}
                    bad.append(row)
                    continue
                facts = {name: getattr(video, name) for name in _FACTS}
                label = labels_to_json(record.labels, shard.settings["multi_label"])
                rows.append({"id": record.id, "label": label, **facts})
                index = video.index or PacketIndex(b"", ())
                example = {
                    "id": record.id,
                    "label": -1 if label is None else label,
                    **facts,
                    "video": video.video,
                    "header": index.header,
                    "packets": np.array(index.packets, np.int64).reshape(-1, 4),
                }
                message = serializer.get_tf_example(features.encode_example(example))
                with _explaining(path):
                    # A plain serialisation orders its fields by chance.
                    writer.write(message.SerializeToString(deterministic=True))
        finally:
            with _explaining(path):
                writer.close()
    note = {**shard.contents, "bytes": epath.Path(shard.path).stat().length}
    _write(shard.note, _lines(note, {"bad": bad, "videos": rows}))
    return len(bad)


class Split:
    """The shards of a split, and what becomes of them.

    Attributes:
        shards: all of them, in order.
        settings: of each.
    """

    def __init__(
        self,
        out: str,
        split: str,
        found: Sequence[Record],
        shard_videos: int,
        settings: Mapping[str, Any],
        overwrite: bool = False,
    ):
        """Looks at what is there.

        Args:
            out: the data set's folder; its name becomes the data set's.
            split: such as "train".
            found: the whole list.
            shard_videos: videos of each shard; the last may have fewer.
            settings: see `Shard`.
            overwrite: shards of other lists or settings are to be replaced.

        Raises:
            RecordError: if there are such shards, without `overwrite`; if other splits
                have other classes; if a name is none that TFDS takes.
        """
        place = epath.Path(absolute(out))
        for name in (place.name, split):
            if not _NAME.fullmatch(name):
                raise RecordError(
                    f"{name!r} cannot be the name of a data set or split: small "
                    "letters, digits and underscores are wanted, a letter first"
                )
        self.folder, self.name, self.split = place / prepared.VERSION, place.name, split
        self._index = self.folder / f"{self.name}-{split}.index.json"
        self.settings = dict(settings)
        for other, index in prepared.indices(self.folder).items():
            for key in ("multi_label", "classes"):
                if other != split and index["settings"][key] != settings[key]:
                    raise RecordError(
                        f"{self.folder}: the split {other!r} has other classes, or "
                        "another number of labels for a video; give another folder"
                    )
        count = -(-len(found) // shard_videos)
        self.shards = [
            Shard(
                os.fspath(self.folder / f"{self._file(i)}-of-{count:05d}"),
                tuple(found[i * shard_videos : (i + 1) * shard_videos]),
                self.settings,
            )
            for i in range(count)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_others(overwrite)

    def _file(self, index: int) -> str:
        return f"{self.name}-{self.split}.array_record-{index:05d}"

    def _remove_others(self, overwrite: bool) -> None:
        """Removes what is in the way, and what a process that was killed has left."""
        for left in self.folder.glob(f".{self.name}-{self.split}.*.part"):
            left.unlink(missing_ok=True)
        expected = {os.path.basename(shard.path): shard for shard in self.shards}
        expected |= {shard.note.name: shard for shard in self.shards}
        others = []
        for path in self.folder.glob(f"{self.name}-{self.split}.array_record-*"):
            reason = "the number of shards differs"
            if path.name in expected:
                reason = _conflict(expected[path.name])
            if reason and not overwrite:
                raise RecordError(
                    f"{path} is there already, and of another list or other settings "
                    f"({reason}); give another folder, or --overwrite to replace it"
                )
            if reason:
                others.append(path)
        if others:
            self.withdraw()
        for path in others:
            path.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Lets the split no longer seem to be whole."""
        self._index.unlink(missing_ok=True)
        self._write_info()  # also if a process was killed between the two

    def bad(self) -> list[tuple[Shard, Record, str]]:
        """Videos that could not be read, with the reasons, in complete shards."""
        found = []
        for shard in self.shards:
            note = prepared.read_json(shard.note)
            records = {record.id: record for record in shard.records}
            for row in note["bad"] if note else ():
                found.append((shard, records[row["id"]], row["reason"]))
        return found

    def write_bad_videos(self) -> epath.Path:
        """Tells in a file which videos could not be read so far."""
        path = self.folder / f"{self.name}-{self.split}.bad_videos.jsonl"
        lines = [
            json.dumps({"id": record.id, "path": record.path, "reason": reason}) + "\n"
            for _, record, reason in self.bad()
        ]
        if lines:
            _write(path, "".join(lines))
        else:
            path.unlink(missing_ok=True)
        return path

    def finish(self, provenance: Mapping[str, Any]) -> int:
        """Makes a data set of the shards, all of which have to be there.

        Args:
            provenance: more to be told of where the data came from.

        Returns:
            The number of videos.
        """
        notes = [prepared.read_json(shard.note) for shard in self.shards]
        videos = [row for note in notes for row in note["videos"]]
        bad = sum(len(note["bad"]) for note in notes)
        shards = [
            {
                "file": os.path.basename(shard.path),
                "bytes": note["bytes"],
                "videos": len(note["videos"]),
            }
            for shard, note in zip(self.shards, notes, strict=True)
        ]
        head = {"settings": self.settings, **provenance, "unreadable": bad}
        _write(self._index, _lines(head, {"shards": shards, "videos": videos}))
        self._write_info()
        return len(videos)

    def _write_info(self) -> None:
        """Tells TFDS of all splits that are whole."""
        while whole := prepared.indices(self.folder):
            infos = [self._split_info(*item) for item in sorted(whole.items())]
            told = ("settings", "list", "versions", "unreadable")
            metadata = {
                split: {key: index[key] for key in told if key in index}
                for split, index in sorted(whole.items())
            }
            info = tfds.core.DatasetInfo(
                builder=tfds.core.dataset_info.DatasetIdentity(
                    name=self.name,
                    version=tfds.core.Version(prepared.VERSION),
                    data_dir=os.fspath(self.folder),
                    module_name="",
                ),
                description="Videos prepared by `python -m videomae_jax prepare`.",
                features=_features(self.settings),
                metadata=tfds.core.MetadataDict(metadata),
            )
            info.set_file_format("array_record")
            info.set_splits(tfds.core.splits.SplitDict(infos))
            with tempfile.TemporaryDirectory() as temporary:
                info.write_to_directory(temporary)
                names = set(os.listdir(temporary)) - {"dataset_info.json"}
                for name in [*sorted(names), "dataset_info.json"]:
                    text = epath.Path(temporary, name).read_text()
                    _write(self.folder / name, text)
            # Another process may have finished another split meanwhile.
            if prepared.indices(self.folder).keys() == whole.keys():
                return
        (self.folder / "dataset_info.json").unlink(missing_ok=True)

    def _split_info(self, split: str, index: Mapping[str, Any]):
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.folder,
            dataset_name=self.name,
            split=split,
            filetype_suffix="array_record",
        )
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["videos"] for shard in index["shards"]],
            num_bytes=sum(shard["bytes"] for shard in index["shards"]),
            filename_template=template,
        )


def _features(settings: Mapping[str, Any]) -> tfds.features.FeaturesDict:
    """What an example is; label -1, or an empty list, where a video has none."""
    classes = settings["classes"]
    label = tfds.features.ClassLabel(names=classes) if classes else np.int64
    if settings["multi_label"]:
        label = tfds.features.Sequence(label)
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "label": label,
            "num_frames": np.int32,
            "fps": np.float32,
            "height": np.int32,
            "width": np.int32,
            # Strings hold any bytes.
            "video": tfds.features.Tensor(shape=(), dtype=np.str_),
            "header": tfds.features.Tensor(shape=(), dtype=np.str_),
            "packets": tfds.features.Tensor(shape=(None, 4), dtype=np.int64),
        }
    )


def _conflict(shard: Shard) -> str | None:
    """How the shard that is there differs from the one wanted, if it does."""
    note = prepared.read_json(shard.note)
    if note is None:
        return None
    for key, value in shard.settings.items():
        if note["settings"].get(key) != value:
            return f"{key} was {note['settings'].get(key)}, and is now {value}"
    return None if note["list"] == shard.contents["list"] else "other videos or labels"


def is_complete(shard: Shard) -> bool:
    """Whether a shard is there, and whole."""
    note = prepared.read_json(shard.note)
    return note is not None and prepared.size(shard.path) == note["bytes"]


def _lines(head: Mapping[str, Any], lists: Mapping[str, Sequence]) -> str:
    """An object as JSON, its lists with an element a line, for grep."""
    parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, rows in lists.items():
        text = ",\n".join(json.dumps(row) for row in rows)
        parts.append(f'"{key}": [\n{text}\n]')
    return "{" + ",\n".join(parts) + "}\n"


def _write(path: epath.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with _appearing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def _appearing(path: epath.Path) -> Iterator[epath.Path]:
    """Gives another name to write to, which becomes the file's if all goes well."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        if not is_url(os.fspath(temporary)):
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[str]:
    """Gives a file to write to: ArrayRecord cannot write to a store such as gs://."""
    if not is_url(os.fspath(path)):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "shard")
        yield local
        with open(local, "rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 2**24)


@contextlib.contextmanager
def _explaining(path: str) -> Iterator[None]:
    """Makes of the writer's errors those that Python's own files would raise."""
    try:
        yield
    except RuntimeError as error:
        for code in _NO_ROOM:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), path) from error
        raise OSError(f"{path} cannot be written: {error}") from error
