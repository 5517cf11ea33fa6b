"""Tar shards as WebDataset writes them: videos and their labels in tar archives.

    train-000000.tar:  000001.mp4  000001.cls  000002.mp4  000002.cls ...

A member that ends like a video is one. Its label is in the member of the same name that
ends in `.cls` (a number or a class name), `.json` (a field `label`, or another name of
it) or `.txt`. The headers of a tar are read once, to list its members; a video is then
read from its place in the tar, so access is random, and nothing is unpacked.
"""

import dataclasses
import glob
import itertools
import json
import os
import re
import tarfile
from typing import IO

from videomae_jax.errors import RecordError, VideoError
from videomae_jax.files import absolute, is_url, open_binary
from videomae_jax.video.container import FILMS, is_video
from videomae_jax.video.record import LABEL, Record

PREFIX = "wds:"
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_LABELS = (".cls", ".json", ".txt")
_LABEL_FIELDS = (*LABEL, "cls")
_LONGEST_LABEL = 2**20  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A video in a tar: its name and place, and its labels as written."""

    tar: str
    name: str
    offset: int
    size: int
    labels: tuple[str, ...] = ()

    @property
    def record(self) -> Record:
        """The video, without labels."""
        return Record(self.tar, self.name, byte_range=(self.offset, self.size))


def find(source: str) -> list[str] | None:
    """Returns the paths of the tars that a source names; None if it names none.

    Args:
        source: a .tar file, a pattern such as `train-*.tar` or
            `train-{000000..000012}.tar`, any of these after `wds:`, or a folder of
            .tar files, after `wds:` if it holds videos or folders too.

    Raises:
        RecordError: the source names tars, but none exists.
    """
    text = source.removeprefix(PREFIX)
    folder = absolute(text)
    if os.path.isdir(folder) and (text != source or _is_all_tars(folder)):
        patterns = [f"{glob.escape(folder)}/*.tar"]
    elif text.endswith(".tar") and not os.path.isdir(folder) or text != source:
        patterns = _expand(text)
    else:
        return None
    paths = []
    for pattern in map(absolute, patterns):
        has_magic = glob.has_magic(pattern) and not is_url(pattern)
        found = sorted(glob.glob(pattern)) if has_magic else [pattern]
        missing = [x for x in found if not is_url(x) and not os.path.isfile(x)]
        if missing or not found:
            raise RecordError(f"{source}: tar not found: {(missing or [pattern])[0]}")
        paths += found
    return paths


def _is_all_tars(folder: str) -> bool:
    """Returns whether a folder has tars, and neither videos nor folders."""
    with os.scandir(folder) as entries:
        names = [x for x in entries if not x.name.startswith(".")]
        others = (x.is_dir() or is_video(x.name) for x in names)
        return any(x.name.endswith(".tar") for x in names) and not any(others)


def _expand(pattern: str) -> list[str]:
    """Expands {000..012} and {a,b}, as a shell does."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    if numbers := _NUMBERS.fullmatch(match[1]):
        first, last = numbers.groups()
        parts = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    tails = _expand(after)
    return [f"{before}{part}{tail}" for part in parts for tail in tails]


def members(path: str, *, with_labels: bool = True) -> list[Member]:
    """Lists the videos of a tar.

    Args:
        path: the tar, or its URL in a store that can be read from any position.
        with_labels: whether to read the labels.

    Raises:
        RecordError: the tar cannot be read, or is compressed, damaged or cut off.
    """
    if path.startswith(("http://", "https://")):
        raise RecordError(
            f"{path}: a web server gives a tar only from its beginning: download it"
        )
    videos: list[tarfile.TarInfo] = []
    labels: dict[str, tuple[str, ...]] = {}
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                stem, extension = os.path.splitext(info.name)
                if not info.isreg() or os.path.basename(info.name).startswith("."):
                    continue
                if extension.lower() in FILMS:
                    videos.append(info)
                elif with_labels and extension.lower() in _LABELS:
                    content = tar.extractfile(info)
                    if content and info.size <= _LONGEST_LABEL:
                        labels[info.name] = _parse(extension, content.read())
            _check_end(path, file, tar.offset)
            end = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise RecordError(f"{path}: file not found") from None
    except tarfile.TarError as error:
        raise RecordError(
            f"{path}: not a tar archive, or one that is compressed or cut off "
            f"({error}). Compressed archives have no random access: unpack them"
        ) from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    for info in videos:
        if info.offset_data + info.size > end:
            raise RecordError(f"{path}: cut off: {info.name} is not complete")
    return [
        Member(path, x.name, x.offset_data, x.size, _labels_of(x.name, labels))
        for x in videos
    ]


def _check_end(path: str, file: IO[bytes], offset: int) -> None:
    """Checks that the headers of a tar end with zeros, as `tarfile` does not."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise RecordError(f"{path}: cut off after {offset} bytes: copy it again")
    if any(block):
        raise RecordError(
            f"{path}: damaged: no header of a member at byte {offset}: copy it again"
        )
    while block := file.read(2**20):
        if block.count(0) < len(block):
            raise RecordError(
                f"{path}: more follows after the end of the archive, at byte {offset}. "
                "Give tars that were joined with `cat` as files of their own"
            )


def _labels_of(video: str, labels: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    folder, name = os.path.split(video)
    # WebDataset's key ends at the first dot, as in 000001.front.mp4 and 000001.cls.
    stems = os.path.splitext(name)[0], name.partition(".")[0]
    for stem, extension in itertools.product(stems, _LABELS):
        if found := labels.get(os.path.join(folder, stem) + extension):
            return found
    return ()


def _parse(extension: str, content: bytes) -> tuple[str, ...]:
    """Returns the labels that a member holds, as text."""
    text = content.decode("utf-8", "replace").strip()
    if extension.lower() != ".json":
        return (text,) if text and "\n" not in text else ()
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    if isinstance(value, dict):
        value = next((value[x] for x in _LABEL_FIELDS if x in value), None)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(str(x).strip() for x in values)


def read_content(record: Record) -> bytes:
    """Returns the content of the video of a record in a tar.

    Raises:
        VideoError: the tar cannot be read, or is shorter than it was.
    """
    offset, size = record.byte_range or (0, 0)
    try:
        with open_binary(record.path) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        reason = error.strerror or error
        raise VideoError(f"{record.location}: cannot be read: {reason}") from error
    if len(content) < size:
        raise VideoError(f"{record.location}: the tar is shorter than it was")
    return content
