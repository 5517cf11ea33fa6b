"""A folder of features: a file for each video, and an index made of notes on them.

    FOLDER/NAME.npy         the features of a video
    FOLDER/NAME.npy.json    a note, written last: the features are complete, or why the
                            video could not be read, and the settings of the extraction
    FOLDER/index.json       settings and all videos, once each has a note
    FOLDER/bad_videos.jsonl those that could not be read

Every file appears whole or not at all. Nothing but the notes says what is done, so any
number of processes may share the work, and stop and start again, without a word between
them: whoever finds all notes there writes the index, and all would write the same.
"""

import dataclasses
import glob
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from videomae_jax.data import sources as records
from videomae_jax.errors import RecordError
from videomae_jax.inference.features import Part, Unreadable
from videomae_jax.video import open as video_open
from videomae_jax.video.record import Record, labels_to_json

# Settings that say where weights came from. What they are is a setting of its own.
_ORIGIN = ("model", "revision")


def names(ids: Sequence[str]) -> list[str]:
    """A file name, without .npy, for each video: its id, made safe and unique.

    Absolute ids lose the folders that all of them have in common. Names lose their
    extension unless that is what sets them apart from earlier ones.

    Args:
        ids: ids of records.

    Returns:
        Paths below the folder of features, "/" between their parts.

    Example:
        >>> names(["a/1.mp4", "a/2.avi", "a/1.avi", "../a/1.avi"])
        ['a/1', 'a/2', 'a/1.avi', 'a/1.avi#2']
        >>> names(["/data/val/1.mp4", "/data/test/1.mp4"])
        ['val/1', 'test/1']
    """
    folders = [os.path.dirname(id) for id in ids if os.path.isabs(id)]
    common = os.path.commonpath(folders) if folders else ""
    found = {}  # In order.
    for id in ids:
        if os.path.isabs(id):
            id = os.path.relpath(id, common)
        full = "/".join(part for part in id.split("/") if part not in ("", ".", ".."))
        stem, extension = os.path.splitext(full)
        name = stem if extension.lower() in records.EXTENSIONS else full
        if name in found:
            name = full
        count = 1
        while name in found:
            count += 1
            name = f"{full}#{count}"
        found[name] = None
    return list(found)


@dataclasses.dataclass(frozen=True)
class _Result:
    """What becomes of a video.

    Attributes:
        name: of its files, see `names`.
        record: the video.
        array: the features' file; note: the one that says that they are complete.
    """

    name: str
    record: Record
    array: pathlib.Path
    note: pathlib.Path


class FeatureFolder:
    """Features of the videos of a list, all made with the same settings."""

    def __init__(
        self,
        path: str | os.PathLike,
        videos: Sequence[Record],
        settings: Mapping[str, Any],
        overwrite: bool = False,
    ):
        """Looks at what is there.

        Args:
            path: the folder, which need not exist.
            videos: the whole list.
            settings: all that features depend on besides the video, as JSON holds it;
                and "model" and "revision", which are told, but may differ.
            overwrite: features made with other settings are to be replaced.

        Raises:
            RecordError: if there are such features, without `overwrite`.
        """
        self.path = pathlib.Path(path).expanduser()
        self._settings = dict(settings)
        self._results = [
            _Result(
                name,
                record,
                self.path / f"{name}.npy",
                self.path / f"{name}.npy.json",
            )
            for name, record in zip(names([r.id for r in videos]), videos, strict=True)
        ]
        index = _read_json(self.path / "index.json")
        if index and (reason := self._difference(index.get("settings", {}))):
            if not overwrite:
                raise _other_features(self.path, reason)
            (self.path / "index.json").unlink(missing_ok=True)
        for result in () if overwrite else self._results:
            note = _read_json(result.note)
            if note and "shape" in note and (reason := self._conflict(result, note)):
                raise _other_features(result.array, reason)

    def incomplete(self, first: int = 0, step: int = 1) -> list[int]:
        """Videos whose features are not there, of every step-th from the first on."""
        return [
            i
            for i in range(first, len(self._results), step)
            if not self._is_complete(self._results[i])
        ]

    def write(
        self, videos: Sequence[int], parts: Iterable[Part | Unreadable]
    ) -> Iterator[str | None]:
        """Writes features as they come.

        Args:
            videos: those extracted, as `incomplete` tells them.
            parts: what an `Extractor` makes of them.

        Yields:
            For each video that is done, None, or why it could not be read.
        """
        files: dict[int, _ArrayFile] = {}
        try:
            for part in parts:
                if isinstance(part, Unreadable):
                    result = self._results[videos[part.index]]
                    if part.index in files:
                        files.pop(part.index).discard()
                    result.array.unlink(missing_ok=True)
                    self._write_note(result, {"reason": str(part.error)})
                    yield str(part.error)
                    continue
                index = part.video.index
                result = self._results[videos[index]]
                if index not in files:
                    shape = (part.video.num_windows, *part.values.shape[1:])
                    # Older features must not seem to be these.
                    result.note.unlink(missing_ok=True)
                    files[index] = _ArrayFile(result.array, shape, part.values.dtype)
                files[index].append(part.values)
                if part.first + len(part.values) == part.video.num_windows:
                    file = files.pop(index)
                    file.finish()
                    facts = {
                        "shape": list(file.shape),
                        "dtype": part.values.dtype.name,
                        "fps": part.video.fps,
                        "video_frames": part.video.num_frames,
                    }
                    size = video_open.file_size(result.record)
                    if size is not None:
                        facts["bytes"] = size
                    self._write_note(result, facts)
                    yield None
        finally:
            for file in files.values():
                file.discard()

    def write_index(self) -> int:
        """Writes the index if every video has a note; returns how many have none."""
        rows, bad, left = [], [], 0
        for result in self._results:
            note = _read_json(result.note)
            record = result.record
            if note is None or self._conflict(result, note):
                left += 1
            elif "reason" in note:
                row = {"id": record.id, "path": record.path, "reason": note["reason"]}
                bad.append(json.dumps(row) + "\n")
            else:
                facts = ("shape", "dtype", "fps", "video_frames")
                row = {"id": record.id, "file": f"{result.name}.npy"}
                several = len(record.labels) > 1
                row |= {"label": labels_to_json(record.labels, several)}
                row |= {key: note[key] for key in facts}
                rows.append(json.dumps(row))
        if left:
            return left
        if bad:
            _replace(self.path / "bad_videos.jsonl", "".join(bad))
        else:
            (self.path / "bad_videos.jsonl").unlink(missing_ok=True)
        # A video a line, for grep.
        settings, videos = json.dumps(self._settings), ",\n".join(rows)
        text = f'{{"settings": {settings},\n"videos": [\n{videos}\n]}}\n'
        _replace(self.path / "index.json", text)
        return 0

    def _is_complete(self, result: _Result) -> bool:
        note = _read_json(result.note)
        if note is None or "shape" not in note or self._conflict(result, note):
            return False
        try:
            array = np.load(result.array, mmap_mode="r")
        except (OSError, ValueError):  # missing, or cut off
            return False
        return list(array.shape) == note["shape"] and array.dtype == note["dtype"]

    def _conflict(self, result: _Result, note: Mapping[str, Any]) -> str | None:
        """How what a note is about differs from what is wanted, if it does."""
        if note["id"] != result.record.id:
            return f"they are of {note['id']}, not of {result.record.id}"
        if "bytes" in note:
            size = video_open.file_size(result.record)
            # A video that is gone since then may be missed, not told apart.
            if size not in (None, note["bytes"]):
                was = f"the video had {note['bytes']} bytes"
                return f"{was}, and {result.record.path} has {size}"
        return self._difference(note["settings"])

    def _difference(self, settings: Mapping[str, Any]) -> str | None:
        """Names the first setting that differs."""
        for key, value in self._settings.items():
            if key not in _ORIGIN and settings.get(key) != value:
                return f"{key} was {settings.get(key)}, and is now {value}"
        return None

    def _write_note(self, result: _Result, facts: Mapping[str, Any]) -> None:
        note = {"id": result.record.id, **facts, "settings": self._settings}
        _replace(result.note, json.dumps(note) + "\n")


def _other_features(path: pathlib.Path, reason: str) -> RecordError:
    return RecordError(
        f"{path}: features are there already, but {reason}; give another folder, or "
        "--overwrite to replace what differs"
    )


class _ArrayFile:
    """A .npy file written part by part: features may be larger than memory."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        """Begins the file, under another name until it is finished."""
        self.shape, self._path = shape, path
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a process that was killed has left.
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            left.unlink(missing_ok=True)
        self._temporary = _temporary(path)
        self._file = open(self._temporary, "wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Writes rows."""
        self._file.write(np.ascontiguousarray(values).data)

    def finish(self) -> None:
        """Puts the file in its place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # missing, or cut off by a power failure
        return None


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.write_text(text)
    os.replace(temporary, path)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    # Never one that another process has: two may have been started by mistake.
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
