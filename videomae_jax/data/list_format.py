"""The format of list files: parses and writes single lines.

A list file is UTF-8 text with one video per line: its path and, unless the list is for
pretraining, its label (0, 1, 2, ...):

    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1

Paths and labels:

- Path and label are separated by spaces, a comma or a tab.
- A path in double or single quotes may contain anything but a line break; the quote
  itself is doubled, as in CSV.
- Without quotes, a tab always separates. Otherwise, the whole number at the end of the
  line, after a space or a comma, is the label, and everything before it is the path:
  `my video.mp4 3` means what it seems to. A line with spaces or commas but without a
  number at its end is a path only if it ends like a video (`my video.mp4`). Any other
  ambiguous line is an error that asks for quotes.
- In a multi-label list, any number of labels may follow the path.
- A relative path starts at the folder of the list file, or at `root`. A path without an
  extension gets `.mp4`, which published Kinetics lists leave out.
- List and videos may be URLs (gs://...), for `prepare` on a cluster.
- Blank lines are ignored, as is everything after a `#` at the beginning of a line or
  after a space or tab.

Frame folders and parts of videos:

- `folder/`, with the slash, is a frame folder: a video stored as a folder of images.
  Its frames are all files whose names fit `frame_name`, numbered without gaps.
- Two numbers (VideoMAE V2) select images. In a list that is read for its labels,
  `folder total label` selects the images 1 to `total`; otherwise, `folder start total`
  selects `total` images from number `start` on.
- `path 0 -1` (VideoMAE V2) is a whole video without a label.
- The first line may be a header such as `path,label`. A header with `total`, which is
  one of `path,start,total`, `path,total,label` and `path,start,total,label`, fixes the
  meaning of the columns, whatever the list is read for. A negative `total` then means a
  whole video file, or all images of `folder/`. With a `start`, a line may also select a
  part of a video file: `total` frames from frame `start` on, counted from 0.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind

EXTENSIONS = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .wmv .flv".split())

BLANK = " \t\r"  # what may surround a line and its columns
_COMMENT = re.compile(r"(?:^|[ \t])#")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"|' + r"'((?:[^']|'')*)'")
_SEPARATOR = re.compile(r"[ \t]*[,\t][ \t]*| +")
_TAB = re.compile(r" *\t[ \t]*")
# A path that needs no quotes: no character separates, quotes or comments, and none is
# stripped when the line is parsed.
_PLAIN = re.compile(r"[^\s,\"'#\ufeff]+")
# At most nine digits: no data set has more classes, and longer numbers are not labels.
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
# The columns after the path that a header may name.
_LAYOUTS = [
    ("label",),
    ("start", "total"),
    ("total", "label"),
    ("start", "total", "label"),
]


class LineError(RecordError):
    """A line that cannot be parsed or written; the message says what is expected."""


def is_video(path: str) -> bool:
    """Returns whether a path ends like a video file."""
    return path.lower().endswith(EXTENSIONS)


def has_extension(path: str) -> bool:
    """Returns whether a path has an extension; the others get `.mp4`."""
    # Python finds no extension in `...mp4`.
    return is_video(path) or bool(os.path.splitext(path)[1])


def parse_header(line: str) -> tuple[str, ...] | None:
    """Returns the columns after the path; None if the line is not a header."""
    path, *names = re.split(r"[ \t,]+", line.lower())
    if not names:
        return () if path in _PATH_NAMES else None  # in quotes, it would be a path
    columns = tuple(
        next((kind for kind, known in _COLUMN_NAMES.items() if name in known), "")
        for name in (name.strip("\"'") for name in names)
    )
    is_header = path.strip("\"'") in _PATH_NAMES and columns in _LAYOUTS
    return columns if is_header else None


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The content of a line."""

    name: str  # the path, without the slash at the end of a folder
    is_folder: bool  # a frame folder
    frame_range: tuple[int, int] | None  # first and number of frames; None for all
    labels: tuple[int, ...]  # increasing


def parse(line: str, layout: tuple[str, ...] | None, label_kind: LabelKind) -> Row:
    """Parses a stripped line that is neither blank nor a comment.

    Args:
        line: the line.
        layout: the columns after the path, if a header names them.
        label_kind: the labels that the line must have.

    Raises:
        LineError: the line does not fit the format or `label_kind`.
    """
    many = label_kind is LabelKind.MANY
    path, columns, is_certain = _split(line)
    name = path.rstrip("/")
    if not name:
        raise LineError(
            "the path is empty or `/`; a line names one video file or folder of images"
        )
    is_folder = path != name
    if layout:
        start, total, labels = _split_columns(columns, layout, many)
    elif many or len(columns) < 2 or columns == ["0", "-1"]:
        start = total = None
        labels = [] if columns == ["0", "-1"] and not many else columns
    else:
        # Numbers after a video file may be labels: only a header makes them a part.
        if len(columns) > 2 or is_video(path) or not (is_certain or is_folder):
            raise LineError(
                f"{1 + len(columns)} columns, expected `path label` or, for folders of "
                "images, `folder start total` or `folder total label`. If the numbers "
                "are several labels, set config.loss.kind=sigmoid; if they belong to "
                "the path, put it in quotes; if they are a part of a video file, begin "
                "the list with a line path,start,total"
            )
        is_labelled = label_kind is LabelKind.ONE
        layout = ("total", "label") if is_labelled else ("start", "total")
        start, total, labels = _split_columns(columns, layout, many)
    frame_range = None
    if total is not None:
        is_folder = is_folder or not is_video(path)
        if start is None and not is_folder:
            raise LineError(
                "a part of a video file needs a start: begin the list with the header "
                "path,start,total,label"
            )
        frame_range = (1 if start is None else start, total)
    labels = tuple(sorted(set(map(_parse_label, labels))))
    if label_kind is LabelKind.ONE and not labels:
        raise LineError("the label is missing: expected `path label`")
    return Row(name, is_folder, frame_range, labels)


def write(
    path: str,
    labels: Sequence[int],
    *,
    numbers: Sequence[int] = (),
    is_folder: bool = False,
) -> str:
    """Returns the line that `parse` reads back.

    Args:
        path: path of a file or folder.
        labels: any number of labels.
        numbers: the columns between path and labels.
        is_folder: whether the line needs a slash to be a frame folder.

    Raises:
        LineError: no line can hold the path or a label.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise LineError(f"{path!r} is not UTF-8: rename the file or folder") from None
    if "\n" in path or "\0" in path:
        raise LineError(f"{path!r} contains a line break or a NUL: rename it")
    if not (has_extension(path) or is_folder or numbers):
        raise LineError(f"{path!r} has no extension, and would be read with .mp4")
    path += "/" if is_folder else ""
    if not _PLAIN.fullmatch(path):
        path = '"' + path.replace('"', '""') + '"'
    for label in labels:
        if not 0 <= label < 10**9:
            raise LineError(f"{path}: label {label} must be a whole number from 0 up")
    return " ".join([path, *map(str, [*numbers, *labels])])


def _split(line: str) -> tuple[str, list[str], bool]:
    """Returns path, columns, and whether the line can be split in only one way."""
    if line[0] in "\"'":
        return *_split_quoted(line), True
    if "#" in line:
        line = _COMMENT.split(line, maxsplit=1)[0].rstrip(BLANK)
    if "\t" in line:
        path, *columns = _TAB.split(line)
        return path, columns, True
    path, columns = _split_numbers(line)
    if " " not in path and "," not in path:
        return path, columns, True
    if more := _VIDEO_THEN_MORE.search(path):
        raise _not_a_label(path[more.end() :].strip(" ,"))
    if not columns and not is_video(path) and not path.endswith("/"):
        raise _not_a_label(re.split("[ ,]", path)[-1])
    return path, columns, False


def _split_columns(
    columns: Sequence[str], layout: tuple[str, ...], many: bool
) -> tuple[int | None, int | None, Sequence[str]]:
    """Returns start and total, both None for a whole video, and the label columns."""
    expected = f"`path {' '.join(layout)}`"
    count = len(layout) - ("label" in layout)
    most = len(columns) if many else len(layout)
    if not count <= len(columns) <= most:
        raise LineError(
            f"{1 + len(columns)} columns, expected {expected}; a path that ends with "
            "numbers needs quotes"
        )
    for text in columns[:count]:
        if not _NUMBER.fullmatch(text):
            raise LineError(f"{text[:40]!r} is not a whole number: expected {expected}")
    *starts, total = map(int, columns[:count])
    start = starts[0] if starts else None
    if total < 0 and not start:
        return None, None, columns[count:]
    if total <= 0 or start is not None and start < 0:
        raise LineError(
            f"expected {expected}, with a start from 0 and a total from 1 up, or "
            "`path 0 -1` for a whole video"
        )
    return start, total, columns[count:]


def _parse_label(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 0:
        raise _not_a_label(text)
    return int(text)


def _split_quoted(line: str) -> tuple[str, list[str]]:
    quote = line[0]
    match = _QUOTED.match(line)
    if not match:
        raise LineError(
            f"the path begins with {quote} but has no closing {quote}: if the quote "
            "belongs to the path, put the path in quotes of the other kind"
        )
    path = line[1 : match.end() - 1].replace(quote * 2, quote)
    rest = line[match.end() :]
    if rest and rest[0] not in " \t,":
        raise LineError(
            f"expected a space, comma or tab after the closing {quote}; double a "
            f"{quote} inside the path"
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


def _not_a_label(text: str) -> LineError:
    return LineError(
        f"{text[:40]!r} is not a label: expected a whole number from 0 up after the "
        "path. If it belongs to the path, put the path in quotes"
    )
