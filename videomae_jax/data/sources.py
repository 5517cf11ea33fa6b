"""Loads the records of a source: a list file, a folder, a data set, the digits.

A source is one of

    data/train.txt              a list file; its format is documented in list_format.py
    /data/videos                all videos and frame folders in and below, unlabelled
    data/train-{000..127}.tar   WebDataset's tar shards (video/tar_shards.py)
    tfds:/data/tfds/k400/train  a data set of the command `prepare` (its OUT folder and
                                the split), or of decoded frames of TFDS (video/tfds.py)
    digits:train                the embedded data set, made on first use
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from videomae_jax.data import labels, list_format, tables
from videomae_jax.errors import LineError, RecordError
from videomae_jax.files import absolute, is_url, open_binary, writing
from videomae_jax.video import tar_shards
from videomae_jax.video.container import EXTENSIONS, FILMS, has_extension, is_video
from videomae_jax.video.frame_folder import (
    DEFAULT_FRAME_NAME,
    check_frame_name,
    frame_name_advice,
    frame_number,
    is_image,
)
from videomae_jax.video.record import LabelKind, Record

log = logging.getLogger(__name__)

_HELP = """\
A list file has one video per line: its path and, for labelled videos, the label:
    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1
To make one without labels: find /videos -name '*.mp4' > train.txt
A folder with an image per frame is a video, too: `folder/ 0`, with the slash.
Other sources: a folder of videos (without labels), tar shards (train-*.tar),
tfds:FOLDER/SPLIT (made by `prepare`, or by TFDS), digits:train (made on first use)."""

# Formats that are no list, by endings of the name and first bytes, and what to do.
_UNPACK = (
    "unpack it, or write each of its videos to a file or a folder of images. Then give "
    "their folder, or a list; `python -m videomae_jax prepare` packs them again"
)
_TO_CSV = "write it as CSV, with columns path and label (pandas: DataFrame.to_csv)"
_ONE_VIDEO = "give its folder, or a list that names it"
_FORMATS = (
    ("a video", EXTENSIONS, (), _ONE_VIDEO),
    ("an array, which is one video", (".npy", ".npz"), (b"\x93NUMPY",), _ONE_VIDEO),
    ("a Parquet table", (".parquet",), (b"PAR1",), _TO_CSV),
    ("an Arrow table", (".arrow", ".feather"), (b"ARROW1",), _TO_CSV),
    ("a spreadsheet", (".xlsx", ".xls", ".ods"), (), _TO_CSV),
    ("HDF5", (".h5", ".hdf5"), (b"\x89HDF\r\n",), _UNPACK),
    ("an LMDB data base", (".mdb", ".lmdb"), (), _UNPACK),
    ("a pickle", (".pkl", ".pickle"), (b"\x80\x03", b"\x80\x04", b"\x80\x05"), _UNPACK),
    ("TFRecord", (".tfrecord", ".tfrecords"), (), _UNPACK),
    (
        "an archive",
        (".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst"),
        (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b", b"BZh", b"\xfd7zXZ"),
        _UNPACK,
    ),
)

# Unlike `video_id`, what annotations do not have.
_PATH_COLUMN = re.compile(
    r'(?im)(^|[,;\t{])\s*"?((video|clip)_?)?(path|file(_?(path|name))?)"?\s*([,;\t:]|$)'
)

# Annotations of known data sets: how they begin, and their `lists` command or advice.
_ANNOTATIONS = (
    ("Kinetics", r".*\byoutube_id\b.*\btime_start\b", "kinetics400"),
    ("Something-Something V2", r'\s*\[\s*\{[^}]*"(template|placeholders)"', "ssv2"),
    ("Something-Something V2", r'\s*\{\s*"[^"]*something[^"]*"\s*:', "ssv2"),
    ("ActivityNet", r'\s*\{(?s:.)*"(database|taxonomy)"\s*:', "activitynet"),
    (
        "EPIC-KITCHENS",
        r".*\bparticipant_id\b.*\bnarration",
        "list path,start_timestamp,stop_timestamp,verb,noun with data.heads=verb,noun",
    ),
    ("Charades", "id,subj", "list path,label as in a,c092,c147 with loss.kind=sigmoid"),
    ("Diving48", r'\s*\[\s*\{[^}]*"vid_name"', "diving48"),
    ("UCF101", r"ApplyEyeMakeup/v_\w+_g[0-9]+_c[0-9]+\.avi( 1)?\s*(\n|$)", "ucf101"),
    ("HMDB51", r".+_test_split[123]\.txt$", "hmdb51"),  # the name of the file
    (
        "AVA",
        r"[\w-]{11},[0-9]{4}(\.[0-9]+)?,([01]?\.[0-9]+,){4}",
        "they mark persons in frames (detection), which is not supported",
    ),
    (
        "Jester or Something-Something V1",
        r"[0-9]+;[A-Z]",
        "begin the file with a line path;label, write 34870/ for the folder of images "
        "34870, and set config.data.frame_name={:05}.jpg",
    ),
)


def load(
    source: str,
    root: str = "",
    *,
    label_kind: LabelKind = LabelKind.OPTIONAL,
    frame_name: str = DEFAULT_FRAME_NAME,
    class_names: Sequence | None = None,
    label_columns: Sequence[str] = (),
) -> list[Record]:
    """Loads all records of a source in order, without checking that the videos exist.

    Args:
        source: see the module. The records of a folder are sorted by path, without
            hidden files and folders and without following links to folders.
        root: the folder that relative paths of a list file start at; by default the
            folder of the list file.
        label_kind: the labels that each video must have. UNUSED labels are left out
            if reading them would mean reading all videos, as with a data set of frames
            that TFDS made, or if they are names.
        frame_name: template of the image names in frame folders.
        class_names: the names of all classes, by label, for lists that give names; for
            LabelKind.HEADS, a sequence of them for each head. By default the names that
            occur in the source, sorted.
        label_columns: of a list with a header, see tables.read.

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
            return shards.load(source, label_kind, label_columns)
        return tfds.load(source, folder, label_kind)
    try:
        check_frame_name(frame_name)
    except ValueError as error:
        raise RecordError(f"config.data.frame_name or --frame-name: {error}") from None
    if tars := tar_shards.find(source):
        return _load_tars(source, tars, label_kind, class_names)
    path = absolute(source)
    if os.path.isdir(path):
        return _load_folder(source, path, label_kind, frame_name)
    if not os.path.exists(path) and not is_url(path):
        raise RecordError(f"file or folder not found: {source!r}. {_HELP}")
    base = absolute(root) if root else os.path.dirname(path)
    text = _read_text(source, path)
    _refuse_annotations(source, text, label_kind)

    def read() -> Iterator[list_format.Entry]:
        table = tables.read(source, text, label_kind, label_columns)
        return table or list_format.entries(text, label_kind)

    return _load_list(source, read, base, label_kind, frame_name, class_names)


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
    columns for them. If some have times, values or names of classes, the list is JSON
    lines, which hold any text. To read frame folders back, give `load` the same
    `frame_name`.

    Raises:
        RecordError: a list file cannot hold a record, such as a video in a shard;
            nothing is written.
    """
    if stored := next((record for record in records if record.is_stored), None):
        raise RecordError(f"{stored.id}: a list cannot name a video in a shard")
    if any(x.time_range or x.values or x.label_names for x in records):
        return _write(target, map(_json_line, records))
    layout = _layout(records)
    lines = [",".join(["path", *layout])] if layout else []
    for record in records:
        start, total = record.frame_range or (0, -1)
        numbers = [start] if "start" in layout else []
        numbers += [total] if "total" in layout else []
        # Without numbers, or if it ends like a video, a folder needs its slash.
        needs_slash = not record.frame_range or is_video(record.path)
        options = {"is_folder": bool(record.frame_name) and needs_slash}
        line = list_format.write(record.path, record.labels, numbers=numbers, **options)
        lines.append(line)
    _write(target, lines)


def _json_line(record: Record) -> str:
    """Returns a line that `tables` reads back."""
    is_folder = bool(record.frame_name)
    list_format.write(record.path, record.labels, is_folder=is_folder)  # checks both
    row: dict[str, Any] = {"path": record.path + "/" * is_folder}
    if record.frame_range:
        start, total = record.frame_range
        row |= {"start_frame": start, "end_frame": start + total}
    if record.time_range:
        start, end = record.time_range
        row |= {"start_seconds": start, "end_seconds": end if end < math.inf else None}
    if record.value_names:
        row |= zip(record.value_names, record.values, strict=True)
    elif record.values:
        row["value"] = record.values
    else:
        row["label"] = record.label_names or record.labels
    return json.dumps(row, ensure_ascii=False)


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
    return ("total", "label") if starts == {1} else ("start", "total", "label")


def _write(target: str | os.PathLike, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    with writing(target):
        pathlib.Path(target).write_bytes(text.encode())


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
        raise RecordError(
            f"{source}: the videos of a folder have no labels. If its folders are the "
            "classes, make lists: python -m videomae_jax lists folder "
            f"--videos={source} --out=data/custom"
        )

    def fail(error: OSError):
        raise RecordError(f"cannot list {error.filename}: {error.strerror}") from error

    records, other_images = [], []
    # By default, os.walk skips folders it may not read: videos would go missing.
    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        videos = [name for name in files if is_video(name)]
        paths = [os.path.join(folder, name) for name in videos]
        records += [Record(path, os.path.relpath(path, root)) for path in paths]
        numbers = (frame_number(frame_name, name) for name in files)
        if not videos and any(number is not None for number in numbers):
            name = os.path.relpath(folder, root)
            id = os.path.basename(folder) if folder == root else name
            records.append(Record(folder, id, frame_name=frame_name))
        other_images += [name for name in files if is_image(name)][:3]
    if not records:
        message = f"the folder {source!r} holds no videos ({' '.join(EXTENSIONS)})"
        for name in filter(_other_format, os.listdir(root)[:9]):
            message += f"; {name} is {_other_format(name)}"
        if other_images:
            message += f"; {frame_name_advice(frame_name, other_images)}"
        raise RecordError(message)
    counts: dict[str, int] = {}
    return [
        dataclasses.replace(record, id=unique(record.id.replace(os.sep, "/"), counts))
        for record in sorted(records, key=lambda record: record.path)
    ]


def _read_text(source: str, path: str) -> str:
    if found := _other_format(path):
        raise RecordError(f"{source} is not a list of videos, but {found}")
    try:
        with open_binary(path) as file:
            data = file.read(4096)  # enough to recognize a video, which may be large
            if found := _other_format("", data):
                raise RecordError(f"{source} is not a list of videos, but {found}")
            data += b"" if b"\0" in data else file.read()
    except FileNotFoundError:
        raise RecordError(f"file not found: {source!r}. {_HELP}") from None
    except OSError as error:
        reason = error.strerror or error
        raise RecordError(f"{source}: cannot be read: {reason}") from error
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


def _other_format(name: str, data: bytes = b"") -> str:
    """Returns the format of a file that is no list, and what to do; "" if unknown."""
    for format_name, endings, magic, remedy in _FORMATS:
        if name.lower().endswith(endings) or data.startswith(magic):
            return f"{format_name}: {remedy}"
    return ""


def _refuse_annotations(source: str, text: str, label_kind: LabelKind) -> None:
    """Names the data set if a list is what its publisher distributes."""
    is_free = label_kind in (LabelKind.UNUSED, LabelKind.OPTIONAL)
    head = text[:2000]  # some patterns take the square of the length
    first = re.match(r"\s*[\[{][^}]*|[^\n]*", head)
    if first and _PATH_COLUMN.search(first[0]):
        return  # somebody has added the paths
    for name, pattern, remedy in _ANNOTATIONS:
        if remedy in ("ucf101", "hmdb51") and is_free:
            continue  # they are lists, but their numbers are not labels from 0 up
        if re.match(pattern, head) or re.match(pattern, source):
            if " " not in remedy:
                remedy = f"`python -m videomae_jax lists {remedy}` makes lists of them"
            raise RecordError(f"{source}: annotations of {name}: {remedy}")


def _load_list(
    source: str,
    read: Callable[[], Iterator[list_format.Entry]],
    base: str,
    label_kind: LabelKind,
    frame_name: str,
    class_names: Sequence | None,
) -> list[Record]:
    rows = []
    for entry in read():
        try:
            rows.append(entry.parse())
        except LineError as error:
            raise entry.error(source, error) from None
    if not rows:
        raise RecordError(f"the list {source!r} names no videos. {_HELP}")
    if is_cut := any(row.is_cut for row in rows):
        advice = "begin the list with a line such as path,start_seconds,end_seconds"
        log.warning("%s: columns ignored; if they are parts, %s", source, advice)
    numbers = labels.resolve(
        [row.labels for row in rows],
        label_kind,
        class_names=class_names,
        # Read again: entries are not kept, to save memory.
        error=lambda index, reason: list(read())[index].error(source, reason),
    )
    records, counts = [], {}
    for row, (own, names) in zip(rows, numbers, strict=True):
        path = row.name if is_url(row.name) else os.path.join(base, row.name)
        if not row.is_folder and not has_extension(path):
            path += ".mp4"
        record = Record(
            path,
            unique(row.name, counts),
            labels=own,
            label_names=names,
            values=row.values,
            value_names=row.value_names,
            frame_name=frame_name if row.is_folder else "",
            frame_range=row.frame_range,
            # If some lines have other numbers, these are not times either.
            time_range=None if is_cut else row.time_range,
        )
        records.append(record)
    return records


def _load_tars(
    source: str,
    tars: Sequence[str],
    label_kind: LabelKind,
    class_names: Sequence | None,
) -> list[Record]:
    records, found, counts = [], [], {}
    for tar in tars:
        is_used = label_kind is not LabelKind.UNUSED
        for member in tar_shards.members(tar, with_labels=is_used):
            try:
                classes, values = labels.parse(member.labels, label_kind)
            except LineError as error:
                raise RecordError(f"{tar}: {member.name}: {error}") from None
            name = unique(member.name, counts)
            records.append(dataclasses.replace(member.record, id=name, values=values))
            found.append(classes)
    if not records:
        raise RecordError(f"{source}: the tar holds no videos ({' '.join(FILMS)})")
    numbers = labels.resolve(
        found,
        label_kind,
        class_names=class_names,
        error=lambda i, reason: RecordError(f"{records[i].location}: {reason}"),
    )
    return [
        dataclasses.replace(record, labels=own, label_names=names)
        for record, (own, names) in zip(records, numbers, strict=True)
    ]


def unique(name: str, counts: dict[str, int]) -> str:
    """Returns the name, or `name#2` and so on; updates the counts of each name."""
    if name not in counts:
        counts[name] = 1
        return name
    count = counts[name] + 1
    while (unique := f"{name}#{count}") in counts:
        count += 1
    counts[name], counts[unique] = count, 1
    return unique
