"""Lines of a list file: what they say of a video, as `records` tells it."""

import dataclasses
import os
import re
from collections.abc import Sequence

from videomae_jax.video.record import LabelKind

EXTENSIONS = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .wmv .flv".split())

BLANK = " \t\r"  # what may surround a line and its parts
_COMMENT = re.compile(r"(?:^|[ \t])#")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"|' + r"'((?:[^']|'')*)'")
_SEPARATOR = re.compile(r"[ \t]*[,\t][ \t]*| +")
_TAB = re.compile(r" *\t[ \t]*")
# Needs no quotes: nothing in it separates, quotes, comments, or is stripped when read.
_PLAIN = re.compile(r"[^\s,\"'#\ufeff]+")
# Nine digits: no data set has more classes, and longer numbers are something else.
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_VIDEO_THEN_MORE = re.compile(rf"(?:{'|'.join(map(re.escape, EXTENSIONS))})[ ,]", re.I)
_PATH_NAMES = (
    "path paths file files filename filepath file_path video video_path".split()
)
_COLUMN_NAMES = {
    "label": "label labels class class_id label_id target".split(),
    "start": "start start_idx start_index start_frame".split(),
    "total": "total total_frames num_frames frames".split(),
}
# What may follow the path, as a header tells it.
_LAYOUTS = [
    ("label",),
    ("start", "total"),
    ("total", "label"),
    ("start", "total", "label"),
]


class LineError(ValueError):
    """A line that cannot be read or written; the message says what is wanted."""


def is_video(path: str) -> bool:
    """Whether a name is one of a video file."""
    return path.lower().endswith(EXTENSIONS)


def has_extension(path: str) -> bool:
    """Whether a name has an extension; to others `.mp4` is added."""
    # Of `...mp4` Python says that it has none.
    return is_video(path) or bool(os.path.splitext(path)[1])


def header(line: str) -> tuple[str, ...] | None:
    """The names of the columns after the path; None for a line that is no header."""
    names = re.split(r"[ \t,]+", line.lower())
    if len(names) == 1:
        return () if names[0] in _PATH_NAMES else None  # in quotes it would be a path
    path, *rest = (name.strip("\"'") for name in names)
    meant = tuple(
        next((kind for kind, known in _COLUMN_NAMES.items() if name in known), "")
        for name in rest
    )
    return meant if path in _PATH_NAMES and meant in _LAYOUTS else None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a line says; of a folder, the name is without the slash at its end."""

    name: str
    is_folder: bool
    frame_range: tuple[int, int] | None
    labels: tuple[int, ...]


def parse(line: str, layout: tuple[str, ...] | None, label_kind: LabelKind) -> Row:
    """Reads a stripped line that is neither blank nor a comment.

    Args:
        line: the line.
        layout: the columns after the path, if a header tells them.
        label_kind: the labels that the line must have.
    """
    several = label_kind is LabelKind.MANY
    if line[0] in "\"'":
        path, columns = _split_quoted(line)
        certain = True
    else:
        if "#" in line:
            line = _COMMENT.split(line, maxsplit=1)[0].rstrip(BLANK)
        certain = "\t" in line
        if certain:
            path, *columns = _TAB.split(line)
        else:
            path, columns = _split_numbers(line)
            certain = " " not in path and "," not in path
            if not certain:
                _check_unquoted(path, columns)
    name = path.rstrip("/")
    if not name:
        raise LineError(
            "the path is empty or `/`; a line names one video file, or a folder of "
            "images"
        )
    is_folder = path != name
    if layout:
        start, total, labels = _read_columns(columns, layout, several)
    elif several or len(columns) < 2 or columns == ["0", "-1"]:
        start = total = None
        labels = [] if columns == ["0", "-1"] and not several else columns
    else:
        # Of a video file the numbers may be labels: only a header makes them a part.
        if len(columns) > 2 or is_video(path) or not (certain or is_folder):
            raise _too_many(columns)
        labelled = label_kind is LabelKind.ONE
        layout = ("total", "label") if labelled else ("start", "total")
        start, total, labels = _read_columns(columns, layout, several)
    frame_range = None
    if total is not None:
        is_folder = is_folder or not is_video(path)
        if start is None and not is_folder:
            raise LineError(
                "a part of a video file needs to begin somewhere: give the list the "
                "header path,start,total,label"
            )
        frame_range = (1 if start is None else start, total)
    labels = tuple(sorted(set(map(_label, labels))))
    if label_kind is LabelKind.ONE and not labels:
        raise LineError("the label is missing: `path label` is wanted")
    return Row(name, is_folder, frame_range, labels)


def _read_columns(
    columns: Sequence[str], layout: tuple[str, ...], several: bool
) -> tuple[int | None, int | None, Sequence[str]]:
    """Start and total, None if all is meant, and what is left for labels."""
    count = len(layout) - ("label" in layout)
    most = len(layout) if not several else len(columns)
    if not count <= len(columns) <= most:
        raise LineError(
            f"{1 + len(columns)} columns, but `path {' '.join(layout)}` is wanted; "
            "numbers that belong to the path need quotes around it"
        )
    for text in columns[:count]:
        if not _NUMBER.fullmatch(text):
            raise LineError(
                f"{text[:40]!r} is not a whole number: `path {' '.join(layout)}` is "
                "wanted"
            )
    *start, total = map(int, columns[:count])
    start = start[0] if start else None
    if total < 0 and not start:
        return None, None, columns[count:]
    if total <= 0 or start is not None and start < 0:
        raise LineError(
            f"`path {' '.join(layout)}` is wanted, with a start from 0 and a total "
            "from 1 up, or `path 0 -1` for a whole video"
        )
    return start, total, columns[count:]


def _too_many(columns: Sequence[str]) -> LineError:
    return LineError(
        f"{1 + len(columns)} columns, but `path label` is wanted, or, for folders of "
        "images, `folder start total` or `folder total label`. If the numbers are "
        "several labels, set config.loss.kind=sigmoid; if they belong to the path, put "
        "it in quotes; if they are a part of a video file, begin the list with a line "
        "path,start,total"
    )


def _label(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 0:
        raise _wrong_label(text)
    return int(text)


def _split_quoted(line: str) -> tuple[str, list[str]]:
    quote = line[0]
    match = _QUOTED.match(line)
    if not match:
        raise LineError(
            f"the path begins with {quote} and has no closing {quote}: if the quote "
            "belongs to the path, put the path in quotes of the other kind"
        )
    path = line[1 : match.end() - 1].replace(quote * 2, quote)
    rest = line[match.end() :]
    if rest and rest[0] not in " \t,":
        raise LineError(
            f"a space, comma or tab is wanted after the closing {quote}; a {quote} "
            "inside the path is written twice"
        )
    rest = _COMMENT.split(rest, maxsplit=1)[0].rstrip(BLANK)
    return path, _SEPARATOR.split(rest)[1:]


def _split_numbers(line: str) -> tuple[str, list[str]]:
    """Takes whole numbers off the end, each with the separator before it."""
    path, columns = line, []
    while True:
        rest = path.rstrip("+-0123456789")
        number = path[len(rest) :]
        if rest[-1:] not in (" ", ",") or not _NUMBER.fullmatch(number):
            return path, columns
        columns.insert(0, number)
        path = rest.rstrip(" ").removesuffix(",").rstrip(" ")


def _check_unquoted(path: str, columns: list[str]) -> None:
    more = _VIDEO_THEN_MORE.search(path)
    if more:
        raise _wrong_label(path[more.end() :].strip(" ,"))
    if not columns and not is_video(path) and not path.endswith("/"):
        raise _wrong_label(re.split("[ ,]", path)[-1])


def _wrong_label(text: str) -> LineError:
    return LineError(
        f"{text[:40]!r} is not a label: a whole number from 0 up is wanted after the "
        "path. If it belongs to the path, put the path in quotes"
    )


def write(
    path: str,
    labels: Sequence[int],
    numbers: Sequence[int] = (),
    is_folder: bool = False,
) -> str:
    """A line that `parse` reads back.

    Args:
        path: of a file or folder.
        labels: any number of them.
        numbers: what the columns between path and labels hold.
        is_folder: whether the line has to say by a slash that this is a frame folder.

    Raises:
        LineError: if a line cannot hold this.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise LineError(f"{path!r} is not UTF-8: rename the file or folder") from None
    if "\n" in path or "\0" in path:
        raise LineError(f"{path!r} holds a line break or a NUL: rename it")
    if not (has_extension(path) or is_folder or numbers):
        raise LineError(f"{path!r} has no extension, and would be read with .mp4")
    path += "/" if is_folder else ""
    if not _PLAIN.fullmatch(path):
        path = '"' + path.replace('"', '""') + '"'
    for label in labels:
        if not 0 <= label < 10**9:
            raise LineError(f"{path}: label {label} is not a whole number from 0 up")
    return " ".join([path, *map(str, [*numbers, *labels])])
