"""Stores features in a folder: a file for each video, its metadata, and an index.

    FOLDER/NAME.npy          the features of a video
    FOLDER/NAME.npy.json     metadata, written last: shape and dtype, or why the video
                             could not be read, and the settings of the extraction
    FOLDER/index.json        settings and all videos, once each has metadata
    FOLDER/bad_videos.jsonl  the videos that could not be read

Every file is written atomically. The metadata files alone say which videos are done, so
any number of processes can share the work, stop and resume, without communication. The
process that finds the metadata complete writes the index; all would write the same.
"""

import dataclasses
import glob
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from videomae_jax import files
from videomae_jax.data import list_format
from videomae_jax.errors import RecordError
from videomae_jax.inference.features import FeatureChunk, Unreadable
from videomae_jax.video.open import file_size
from videomae_jax.video.record import Record, labels_to_json

# Settings that name the source of the weights. They may differ: "weights" is a hash.
_ORIGIN = ("model", "revision")
# Metadata that the index repeats.
_INDEXED = ("shape", "dtype", "fps", "video_frames")
# The same, where it is known: earlier versions did not write these.
_INDEXED_IF_KNOWN = ("path", "first_frame", "window_frames", "window_seconds")


def names(ids: Sequence[str]) -> list[str]:
    """Returns a file name, without .npy, for each video: its id, made safe and unique.

    The folders that all absolute ids have in common are removed, and the extension of a
    video, unless an earlier one already has that name. "/" separates folders.

    Example:
        >>> names(["a/1.mp4", "a/2.avi", "a/1.avi", "../a/1.avi"])
        ['a/1', 'a/2', 'a/1.avi', 'a/1.avi#2']
        >>> names(["/data/val/1.mp4", "/data/test/1.mp4"])
        ['val/1', 'test/1']
    """
    folders = [os.path.dirname(id) for id in ids if os.path.isabs(id)]
    common = os.path.commonpath(folders) if folders else ""
    unique: dict[str, None] = {}  # in order
    for id in ids:
        if os.path.isabs(id):
            id = os.path.relpath(id, common)
        full = "/".join(part for part in id.split("/") if part not in ("", ".", ".."))
        stem, extension = os.path.splitext(full)
        name = stem if extension.lower() in list_format.EXTENSIONS else full
        if name in unique:
            name = full
        count = 1
        while name in unique:
            count += 1
            name = f"{full}#{count}"
        unique[name] = None
    return list(unique)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A video of the folder."""

    name: str  # of its files, see `names`
    record: Record
    array: pathlib.Path
    metadata: pathlib.Path


class FeatureFolder:
    """The features of all videos of a list, extracted with the same settings."""

    def __init__(
        self,
        path: str | os.PathLike,
        videos: Sequence[Record],
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ):
        """Compares existing features with the settings.

        Args:
            path: the folder, which need not exist.
            videos: the whole list.
            settings: everything that the features depend on besides the video, as
                stored in JSON; and "model" and "revision", for information.
            overwrite: allow to replace features of other settings.

        Raises:
            RecordError: if the folder holds such features, without `overwrite`.
        """
        self.path = pathlib.Path(path).expanduser()
        self._settings = dict(settings)
        self._entries = []
        for name, record in zip(names([r.id for r in videos]), videos, strict=True):
            array = self.path / f"{name}.npy"
            metadata = self.path / f"{name}.npy.json"
            self._entries.append(_Entry(name, record, array, metadata))
        index = files.read_json(self.path / "index.json")
        if index and (reason := self._difference(index.get("settings", {}))):
            if not overwrite:
                raise _other_features(self.path, reason)
            (self.path / "index.json").unlink(missing_ok=True)
        for entry in () if overwrite else self._entries:
            metadata = files.read_json(entry.metadata)
            if metadata and "shape" in metadata:
                if reason := self._conflict(entry, metadata):
                    raise _other_features(entry.array, reason)

    def incomplete(self, first: int = 0, step: int = 1) -> list[int]:
        """Returns which videos lack features, of every step-th from the first on."""
        videos = range(first, len(self._entries), step)
        return [i for i in videos if not self._is_complete(self._entries[i])]

    def write(
        self, videos: Sequence[int], chunks: Iterable[FeatureChunk | Unreadable]
    ) -> Iterator[str | None]:
        """Writes features as an extractor yields them.

        Args:
            videos: indices of the videos given to the extractor, as from `incomplete`.
            chunks: from an `Extractor`.

        Yields:
            For each finished video, None, or the reason why it could not be read.
        """
        arrays: dict[int, _ArrayFile] = {}
        try:
            for chunk in chunks:
                if isinstance(chunk, Unreadable):
                    entry = self._entries[videos[chunk.index]]
                    if chunk.index in arrays:
                        arrays.pop(chunk.index).discard()
                    entry.array.unlink(missing_ok=True)
                    self._write_metadata(entry, {"reason": str(chunk.error)})
                    yield str(chunk.error)
                    continue
                video, values = chunk.video, chunk.values
                stop = chunk.first + len(values)
                entry = self._entries[videos[video.index]]
                if video.index not in arrays:
                    # Otherwise old metadata would describe the new features.
                    entry.metadata.unlink(missing_ok=True)
                    shape = (video.num_windows, *values.shape[1:])
                    arrays[video.index] = _ArrayFile(entry.array, shape, values.dtype)
                arrays[video.index].values[chunk.first : stop] = values
                if stop == video.num_windows:
                    array = arrays.pop(video.index)
                    array.finish()
                    metadata = {
                        "shape": list(array.values.shape),
                        "dtype": array.values.dtype.name,
                        "fps": video.fps,
                        "video_frames": video.num_frames,
                    }
                    if entry.record.is_part:
                        metadata["path"] = entry.record.path
                        metadata["first_frame"] = video.first_frame
                    metadata["window_frames"] = video.frames.tolist()
                    if video.seconds is not None:
                        metadata["window_seconds"] = video.seconds.round(6).tolist()
                    size = file_size(entry.record)
                    if size is not None:
                        metadata["bytes"] = size
                    self._write_metadata(entry, metadata)
                    yield None
        finally:
            for array in arrays.values():
                array.discard()

    def write_index(self) -> int:
        """Writes the index if every video has metadata; returns how many lack it."""
        rows, bad, missing = [], [], 0
        for entry in self._entries:
            record, metadata = entry.record, files.read_json(entry.metadata)
            if metadata is None or self._conflict(entry, metadata):
                missing += 1
            elif "reason" in metadata:
                reason = metadata["reason"]
                bad.append({"id": record.id, "path": record.path, "reason": reason})
            else:
                label = labels_to_json(record.labels, len(record.labels) > 1)
                row = {"id": record.id, "file": f"{entry.name}.npy", "label": label}
                known = [key for key in _INDEXED_IF_KNOWN if key in metadata]
                rows.append(row | {key: metadata[key] for key in (*_INDEXED, *known)})
        if missing:
            return missing
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_json_lines(self.path / "bad_videos.jsonl", bad)
        index, settings = self.path / "index.json", {"settings": self._settings}
        files.write_json(index, settings, {"videos": rows})
        return 0

    def _is_complete(self, entry: _Entry) -> bool:
        metadata = files.read_json(entry.metadata)
        if not metadata or "shape" not in metadata or self._conflict(entry, metadata):
            return False
        try:
            array = np.load(entry.array, mmap_mode="r")
        except (OSError, ValueError):  # missing, or cut off
            return False
        return (
            list(array.shape) == metadata["shape"] and array.dtype == metadata["dtype"]
        )

    def _conflict(self, entry: _Entry, metadata: Mapping[str, Any]) -> str | None:
        """Returns how existing features differ from those to extract, if they do."""
        if metadata["id"] != entry.record.id:
            return f"they are of {metadata['id']}, not of {entry.record.id}"
        # The features remain valid if the video has been removed since (size None).
        size = file_size(entry.record)
        if size is not None and size != metadata.get("bytes", size):
            return (
                f"the video had {metadata['bytes']} bytes, and {entry.record.path} has "
                f"{size}"
            )
        return self._difference(metadata["settings"])

    def _difference(self, settings: Mapping[str, Any]) -> str | None:
        """Names the first setting that differs."""
        for key, value in self._settings.items():
            if key not in _ORIGIN and settings.get(key) != value:
                return f"{key} was {settings.get(key)}, and is now {value}"
        return None

    def _write_metadata(self, entry: _Entry, metadata: Mapping[str, Any]) -> None:
        row = {"id": entry.record.id, **metadata, "settings": self._settings}
        entry.metadata.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(entry.metadata) as file:
            file.write(json.dumps(row) + "\n")


def _other_features(path: pathlib.Path, reason: str) -> RecordError:
    return RecordError(
        f"{path}: features exist already, but {reason}. Give another folder, or "
        "--overwrite to replace those that differ"
    )


class _ArrayFile:
    """A .npy file to fill chunk by chunk, since features may be larger than memory.

    Attributes:
        values: the array, mapped to a temporary file until it is finished.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Creates the temporary file, and removes those of killed processes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_partial(path)
        # Earlier versions put no dot in front.
        for partial in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            partial.unlink(missing_ok=True)
        self._path, self._partial = path, files.partial_path(path)
        with files.writing(path, self._partial):
            self.values = np.lib.format.open_memmap(
                self._partial, mode="w+", dtype=dtype, shape=shape
            )
            if hasattr(os, "posix_fallocate"):
                # On a full disk this raises OSError. Writing to mapped memory, without
                # reserved space, would kill the process.
                with open(self._partial, "r+b") as file:
                    size = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), 0, size)

    def finish(self) -> None:
        """Moves the file to its final path."""
        self.values.flush()
        self._partial.replace(self._path)

    def discard(self) -> None:
        """Removes the temporary file."""
        self._partial.unlink(missing_ok=True)
