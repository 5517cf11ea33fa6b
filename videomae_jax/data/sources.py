"""Loads the records of a source: a list file, a folder, a data set, the digits.

A source is one of

    data/train.txt              a list file; its format is documented in list_format.py
    /data/videos                a folder, for all videos and frame folders in and below
                                it, without labels
    tfds:/data/tfds/k400/train  a data set that `python -m videomae_jax prepare` wrote
                                (tfds:, its OUT folder, the split), or a data set of
                                decoded frames that TFDS made (video/tfds.py)
    digits:train                the embedded data set, made on first use
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

from videomae_jax.data import list_format
from videomae_jax.data.list_format import EXTENSIONS, LineError
from videomae_jax.errors import RecordError
from videomae_jax.files import absolute, is_url, open_binary
from videomae_jax.video.frame_folder import (
    DEFAULT_FRAME_NAME,
    check_frame_name,
    frame_name_advice,
    frame_number,
)
from videomae_jax.video.record import LabelKind, Record

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")

_HELP = """\
A list file has one video per line: its path and, for labelled videos, the label:
    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1
To make one without labels: find /videos -name '*.mp4' > train.txt
A folder with an image per frame is a video, too: `folder/ 0`, with the slash.
Other sources: a folder of videos (without labels), tfds:FOLDER/SPLIT (made by the
command prepare, or by TFDS), digits:train (made on first use)."""


def load(
    source: str,
    root: str = "",
    *,
    label_kind: LabelKind = LabelKind.OPTIONAL,
    frame_name: str = DEFAULT_FRAME_NAME,
) -> list[Record]:
    """Loads all records of a source in order, without checking that the videos exist.

    Args:
        source: see the module. The records of a folder are sorted by path, without
            hidden files and folders and without following links to folders.
        root: the folder that relative paths of a list file start at; by default the
            folder of the list file.
        label_kind: the labels that each video must have. UNUSED labels are left out
            if reading them would mean reading all videos, as with a data set of frames
            that TFDS made.
        frame_name: template of the image names in frame folders.

    Raises:
        RecordError: the source is missing, empty or not text, or a line cannot be
            parsed; the message names the line.
    """
    if not source:
        raise RecordError(f"no source of videos is set. {_HELP}")
    if source.startswith("digits:"):
        return _load_digits(source, label_kind)
    if source.startswith("tfds:"):
        # Imported here: these modules need packages that lists do not.
        from videomae_jax.video import shards, tfds

        folder = tfds.find(source)
        if folder is None:
            return shards.load(source, label_kind)
        return tfds.load(source, folder, label_kind)
    try:
        check_frame_name(frame_name)
    except ValueError as error:
        raise RecordError(f"config.data.frame_name or --frame-name: {error}") from None
    path = absolute(source)
    if os.path.isdir(path):
        return _load_folder(source, path, label_kind, frame_name)
    if not os.path.exists(path) and not is_url(path):
        raise RecordError(f"file or folder not found: {source!r}. {_HELP}")
    base = absolute(root) if root else os.path.dirname(path)
    return _load_list(source, _read_text(source, path), base, label_kind, frame_name)


def write_list(
    target: str | os.PathLike, rows: Iterable[tuple[str, int | None]]
) -> None:
    """Writes a list file that `load` reads back.

    Args:
        target: the list file; an existing one is replaced.
        rows: path and label, or None, of each video.

    Raises:
        LineError: a list file cannot hold a path or label; nothing is written.
    """
    lines = [
        list_format.write(path, () if label is None else (label,))
        for path, label in rows
    ]
    _write(target, lines)


def write_records(target: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes a list file that `load` reads back as these records, with absolute paths.

    If some records are parts of videos or folders, the list gets a header and the
    columns for them. To read frame folders back, give `load` the same `frame_name`.

    Raises:
        RecordError: a list file cannot hold a record, such as a video in a shard;
            nothing is written.
    """
    layout = _layout(records)
    lines = [",".join(["path", *layout])] if layout else []
    for record in records:
        if record.position is not None:
            raise RecordError(f"{record.id}: a list cannot name a video in a shard")
        start, total = record.frame_range or (0, -1)
        numbers = [start] if "start" in layout else []
        numbers += [total] if "total" in layout else []
        # Without numbers, or if it ends like a video, a folder needs its slash.
        needs_slash = not record.frame_range or list_format.is_video(record.path)
        is_folder = bool(record.frame_name) and needs_slash
        lines.append(
            list_format.write(
                record.path, record.labels, numbers=numbers, is_folder=is_folder
            )
        )
    _write(target, lines)


def _layout(records: Sequence[Record]) -> tuple[str, ...]:
    """Returns the columns that a header must name; none if no record is a part."""
    # First frame of each part; None of files, whose frames are counted from 0.
    starts = {
        record.frame_range[0] if record.frame_name else None
        for record in records
        if record.frame_range
    }
    if not starts:
        return ()
    if not any(record.labels for record in records):
        return ("start", "total")
    if starts == {1}:
        return ("total", "label")
    return ("start", "total", "label")


def _write(target: str | os.PathLike, lines: Iterable[str]) -> None:
    pathlib.Path(target).write_bytes("".join(f"{line}\n" for line in lines).encode())


def _load_digits(source: str, label_kind: LabelKind) -> list[Record]:
    # Imported here: it brings in the video encoder, which lists do not need.
    from videomae_jax.data import digits

    split = source.removeprefix("digits:")
    if split not in digits.LISTS:
        known = ", ".join(f"digits:{name}" for name in digits.LISTS)
        raise RecordError(f"unknown source {source!r}: expected one of {known}")
    return load(str(digits.ensure() / f"{split}.txt"), label_kind=label_kind)


def _load_folder(
    source: str, root: str, label_kind: LabelKind, frame_name: str
) -> list[Record]:
    if label_kind is LabelKind.ONE:
        raise RecordError(f"the videos of a folder ({source}) have no labels. {_HELP}")

    def fail(error: OSError):
        raise RecordError(f"cannot list {error.filename}: {error.strerror}") from error

    records: list[Record] = []
    other_images: list[str] = []
    # By default, os.walk skips folders it may not read: videos would go missing.
    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        videos = [name for name in files if list_format.is_video(name)]
        for name in videos:
            path = os.path.join(folder, name)
            records.append(Record(path, os.path.relpath(path, root)))
        numbers = (frame_number(frame_name, name) for name in files)
        if not videos and any(number is not None for number in numbers):
            name = os.path.relpath(folder, root)
            id = os.path.basename(folder) if folder == root else name
            records.append(Record(folder, id, frame_name=frame_name))
        other_images += [name for name in files if name.lower().endswith(_IMAGES)][:3]
    if not records:
        message = f"the folder {source!r} holds no videos ({' '.join(EXTENSIONS)})"
        if other_images:
            message += f"; {frame_name_advice(frame_name, other_images)}"
        raise RecordError(message)
    counts: dict[str, int] = {}
    return [
        dataclasses.replace(record, id=_unique(record.id.replace(os.sep, "/"), counts))
        for record in sorted(records, key=lambda record: record.path)
    ]


def _read_text(source: str, path: str) -> str:
    try:
        with open_binary(path) as file:
            data = file.read(4096)  # enough to recognize a video, which may be large
            if b"\0" not in data:
                data += file.read()
    except FileNotFoundError:
        raise RecordError(f"file not found: {source!r}. {_HELP}") from None
    position = data.find(b"\0")
    if position < 0:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            position = error.start
    line = data.count(b"\n", 0, position) + 1
    raise RecordError(
        f"{source}:{line}: {source} is not a UTF-8 text file, expected a list of "
        f"videos. {_HELP}"
    )


def _load_list(
    source: str, text: str, base: str, label_kind: LabelKind, frame_name: str
) -> list[Record]:
    records: list[Record] = []
    counts: dict[str, int] = {}
    layout, is_first = None, True
    # Not splitlines(), which also breaks lines at characters that a path may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(list_format.BLANK)
        if not line or line[0] == "#":
            continue
        header = list_format.parse_header(line) if is_first else None
        is_first = False
        if header is not None:
            layout = header if "total" in header else None
            continue
        try:
            row = list_format.parse(line, layout, label_kind)
        except LineError as error:
            shown = line if len(line) <= 80 else f"{line[:60]}...{line[-17:]}"
            raise RecordError(f"{source}:{number}: {error}\n    {shown}") from None
        path = row.name if is_url(row.name) else os.path.join(base, row.name)
        if not row.is_folder and not list_format.has_extension(path):
            path += ".mp4"
        record = Record(
            path,
            _unique(row.name, counts),
            labels=row.labels,
            frame_name=frame_name if row.is_folder else "",
            frame_range=row.frame_range,
        )
        records.append(record)
    if not records:
        raise RecordError(f"the list {source!r} names no videos. {_HELP}")
    return records


def _unique(name: str, counts: dict[str, int]) -> str:
    """Returns the name, or `name#2` and so on; updates the counts of each name."""
    count = counts.get(name, 0) + 1
    unique = name
    if count > 1:
        while (unique := f"{name}#{count}") in counts:
            count += 1
        counts[unique] = 1
    counts[name] = count
    return unique
