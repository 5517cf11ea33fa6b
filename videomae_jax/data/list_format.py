"""The format of list files: parses and writes single lines.

A list file is UTF-8 text with one video per line: its path and, unless the list is for
pretraining, its label, which is a whole number (0, 1, 2, ...) or the name of a class:

    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1

Paths and labels:

- Path and label are separated by spaces, a comma or a tab; after the ending of a video
  also by a semicolon.
- A path in double or single quotes may contain anything but a line break; the quote
  itself is doubled, as in CSV.
- Without quotes, a tab always separates. Otherwise, the whole number at the end of the
  line, after a space or a comma, is the label, and everything before it is the path. A
  line without one is a path that ends like a video (`my video.mp4`), or one with a name
  after it: `a.mp4 run`, `a.mp4,run fast`. Any other is an error that asks for quotes.
- Names become numbers in the order of config.data.labels or of the alphabet.
- Several labels, one for each head, or values may follow the path if the task has them.
  Pretraining leaves out whatever it does not need.
- A relative path starts at the folder of the list file, or at `root`. A path without an
  extension gets `.mp4`, which published Kinetics lists leave out. It may be a URL.
- Blank lines are ignored, as are comments: after a `#` at the beginning of a line or,
  unless commas separate a header, after a space or tab.

Frame folders and parts:

- `folder/`, with the slash, is a video stored as a folder of images: all files whose
  names fit `frame_name`, numbered without gaps.
- Two numbers (VideoMAE V2) select images: `folder total label` the images 1 to `total`
  if labels are read; otherwise, `folder start total` as many from number `start` on.
- `path 0 -1` (VideoMAE V2) is a whole video without a label.
- `a.mp4 2.5 4.0 3` is the part from 2.5 to before 4 seconds, with label 3: two numbers
  before a label, at least one with a decimal point.
- The first line may be a header such as `path,label`; below its commas, they separate
  as in CSV. `path,start,total`, `path,total,label` and `path,start,total,label` fix the
  meaning of the columns, whatever the list is read for. A negative `total` then means
  all frames. With a `start`, it may also be a part of a video file, counted from 0.
- Files with other headers, and JSON, are read by tables.py.
"""

import contextlib
import csv
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence

from videomae_jax.data import labels
from videomae_jax.data.labels import DECIMAL, WHOLE_NUMBER, not_a_label
from videomae_jax.errors import LineError, RecordError
from videomae_jax.video.container import EXTENSIONS, has_extension, is_video
from videomae_jax.video.record import LABEL, PATH, RANGE, LabelKind

BLANK = " \t\r"  # what may surround a line and its columns
_COMMENT = re.compile(r"(?:^|[ \t])#")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"|' + r"'((?:[^']|'')*)'")
_SEPARATOR = re.compile(r"[ \t]*[,\t][ \t]*| +")
_PATH_AND_LABEL = re.compile(r"([^\s,;\"'#]+) ([0-9]{1,9})")
_TAB = re.compile(r"(?<! ) *\t[ \t]*")
_NUMBER_BACKWARDS = re.compile(r"([-+0-9]+)(?: +,? *|, *)")
# A path that needs no quotes, as it contains nothing that separates or is stripped.
_PLAIN = re.compile(r"[^\s,\"'#\ufeff]+")
_TIME = re.compile(rf"([0-9]{{1,9}}:){{0,2}}({DECIMAL.pattern})", re.I)
_ENDING = "|".join(map(re.escape, EXTENSIONS))
_VIDEO = re.compile(_ENDING, re.I)
_VIDEO_THEN_MORE = re.compile(rf"({_ENDING})[ ,]", re.I)
_VIDEO_SEMICOLON = re.compile(rf"(.+?(?:{_ENDING}));(.*)", re.I)
_COLUMN_NAMES = {
    "label": LABEL,
    "start": f"{RANGE['start']} {RANGE['start_frame']}".split(),
    "total": RANGE["total"].split(),
}
_LAYOUTS = ("label", "start total", "total label", "start total label")


def parse_header(line: str) -> tuple[str, ...] | None:
    """Returns the columns after the path; None if the line is not a header."""
    path, *names = re.split(r"[ \t,]+", line.lower())
    if not names:
        return () if path in PATH else None  # in quotes, it would be a path
    columns = tuple(
        next((kind for kind, known in _COLUMN_NAMES.items() if name in known), "")
        for name in (name.strip("\"'") for name in names)
    )
    is_header = path.strip("\"'") in PATH and " ".join(columns) in _LAYOUTS
    return columns if is_header else None


@dataclasses.dataclass(slots=True)
class Row:
    """The content of a line."""

    name: str  # the path, without the slash at the end of a folder
    is_folder: bool = False  # a frame folder
    frame_range: tuple[int, int] | None = None  # first and number; None for all
    time_range: tuple[float, float] | None = None  # start and end in seconds
    labels: tuple[int | str, ...] = ()  # whole numbers or class names, as written
    values: tuple[float, ...] = ()  # the targets of a regression
    value_names: tuple[str, ...] = ()  # of their columns, if these have names
    is_cut: bool = False  # columns that are neither a label nor a part were left out


@dataclasses.dataclass(slots=True)
class Entry:
    """A row of a list, not parsed yet.

    Attributes:
        place: what follows the source in messages, such as ":3" for line 3.
        text: the row as written.
        parse: returns the row; raises LineError.
    """

    place: str
    text: str
    parse: Callable[[], Row]

    def error(self, source: str, reason: str | Exception) -> RecordError:
        """Returns an error about the row, which it shows."""
        text, is_long = self.text, len(self.text) > 80
        shown = f"{text[:60]}...{text[-17:]}" if is_long else text
        return RecordError(f"{source}{self.place}: {reason}\n    {shown}")


def entries(text: str, label_kind: LabelKind) -> Iterator[Entry]:
    """Yields the lines of a list; the first may be a header that names the columns."""
    layout, is_csv, is_first = None, False, True
    # Not splitlines(), which also breaks lines at characters that a path may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(BLANK)
        if not line or line[0] == "#":
            continue
        header, is_first = parse_header(line) if is_first else None, False
        if header is not None:
            layout, is_csv = header, "," in line
            continue
        row = functools.partial(parse, line, layout, label_kind, is_csv=is_csv)
        yield Entry(f":{number}", line, row)


def parse(
    line: str,
    layout: tuple[str, ...] | None,
    label_kind: LabelKind,
    *,
    is_csv: bool = False,
) -> Row:
    """Parses a stripped line that is neither blank nor a comment.

    Args:
        line: the line.
        layout: the columns after the path, if a header names them.
        label_kind: the labels that the line must have.
        is_csv: whether the names in the header are separated by commas.

    Raises:
        LineError: the line does not fit the format or `label_kind`.
    """
    several = label_kind in labels.SEVERAL
    is_unused = label_kind is LabelKind.UNUSED
    by_comma = is_csv and layout == ("label",)
    path, columns, is_certain = _split(line, by_comma, lenient=is_unused)
    if layout and "total" in layout:
        start, total, targets = _split_columns(columns, layout, several)
        return make_row(path, targets, label_kind, start=start, total=total)
    if label_kind is LabelKind.VALUES or len(columns) < 2:
        return make_row(path, columns, label_kind)
    if columns == ["0", "-1"] and not several:
        return make_row(path, [], label_kind)
    if _are_seconds(columns, label_kind) and (several or len(columns) == 3):
        with contextlib.suppress(*[LineError] if is_unused else []):
            times = parse_times(*columns[:2])
            return make_row(path, columns[2:], label_kind, times=times)
    if several:
        return make_row(path, columns, label_kind)
    # Numbers after a video file may be labels: only a header makes them a part.
    if len(columns) > 2 or is_video(path) or not (is_certain or path.endswith("/")):
        if is_unused and is_video(path):
            return dataclasses.replace(make_row(path, [], label_kind), is_cut=True)
        is_one = label_kind is LabelKind.ONE
        fits = len(columns) == 2 and not (is_one and is_video(path))
        part = "path,total,label" if is_one else "path,start,total"
        raise labels.too_many_columns(columns, part if fits else "")
    layout = ("total", "label") if label_kind is LabelKind.ONE else ("start", "total")
    start, total, targets = _split_columns(columns, layout, False)
    return make_row(path, targets, label_kind, start=start, total=total)


def make_row(
    path: str,
    targets: Sequence[str],
    label_kind: LabelKind,
    *,
    start: int | None = None,
    total: int | None = None,
    times: tuple[float, float] | None = None,
) -> Row:
    """Returns the row of columns whose meaning is known.

    Args:
        path: as written, with the slash of a folder.
        targets: what the task is to predict, as written.
        label_kind: the labels that the row must have.
        start: the first frame of a part of a video; by default the first image.
        total: the number of frames; None for all.
        times: start and end of a part of a video, in seconds.

    Raises:
        LineError: the columns do not fit each other or `label_kind`.
    """
    name = path.rstrip("/")
    if not name:
        raise LineError(
            "the path is empty or `/`; a line names one video file or folder of images"
        )
    is_folder = path != name
    frames = None
    if total is not None:
        is_folder = is_folder or not is_video(path)
        if start is None and not is_folder:
            raise LineError(
                "a part of a video file needs a start: begin the list with the header "
                "path,start,total,label, or leave the column out"
            )
        frames = (1 if start is None else start, total)
    if times and is_folder:
        raise LineError(
            "images have no times: select them by start_frame,end_frame in the header"
        )
    if any(map(is_video, targets)):
        raise not_a_label(next(filter(is_video, targets)))
    classes, values = labels.parse(targets, label_kind)
    return Row(name, is_folder, frames, times, classes, values)


def parse_times(start: str, end: str) -> tuple[float, float]:
    """Parses two times, in seconds or as hours:minutes:seconds.

    Without a start, the part begins with the video; without an end, it ends with it.

    Raises:
        LineError: they are not such times, or the first is not below the second.
    """
    times = []
    for text in (start or "0", end or "inf"):
        if not _TIME.fullmatch(text):
            raise LineError(
                f"{text[:40]!r} is not a time: expected seconds, such as 2.5, or "
                "hours:minutes:seconds"
            )
        *larger, seconds = text.split(":")
        minutes = functools.reduce(lambda total, x: 60 * total + int(x), larger, 0)
        times.append(60 * minutes + float(seconds))
    if not 0 <= times[0] < times[1] or end and math.isinf(times[1]):
        raise LineError(
            f"the part from {start} to {end} seconds is empty: the start must be from "
            "0 up and below the end. If the numbers are values to predict "
            "(config.loss.kind=mse), begin the list with a line path,value"
        )
    return times[0], times[1]


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


def _split(line: str, is_csv: bool, *, lenient: bool) -> tuple[str, list[str], bool]:
    """Returns path, columns, and whether the line can be split in only one way.

    Below a header `path,label` (`is_csv`), a comma separates wherever the label is not
    a number. If `lenient`, columns that cannot be split are left out.
    """
    if common := _PATH_AND_LABEL.fullmatch(line):  # most lines: for speed
        return common[1], [common[2]], True
    if line[0] in "\"'":
        return *_split_quoted(line, is_csv), True
    if "#" in line and not is_csv:
        line = _without_comment(line)
    if "\t" in line:
        path, *columns = _TAB.split(line)
        return path, columns, True
    last = line.rpartition(",")[2] if is_csv and "," in line else ""
    if last and not WHOLE_NUMBER.fullmatch(last.strip()) and not _VIDEO.search(last):
        path, *columns = split_cells(line, ",")
        return path, columns, True
    path, columns = _split_numbers(line)
    more = ";" in line and _VIDEO_SEMICOLON.fullmatch(line)
    if more and not columns and not is_video(line):
        return more[1], [column.strip() for column in more[2].split(";")], True
    if " " not in path and "," not in path:
        return path, columns, True
    if more := _VIDEO_THEN_MORE.search(path):
        path, rest = line[: more.end(1)], line[more.end(1) :]
        # What follows may also be a part of a path with several endings.
        ignored = [LineError] if lenient and not _VIDEO.search(rest) else []
        columns = []
        with contextlib.suppress(*ignored):
            columns = _split_names(rest)
        return path, columns, False
    if not columns and not is_video(path) and not path.endswith("/"):
        raise not_a_label(re.split("[ ,]", path)[-1])
    return path, columns, False


def _without_comment(text: str) -> str:
    """Cuts off what follows a # after a blank, unless it is between double quotes."""
    begin = quotes = 0
    for match in _COMMENT.finditer(text):
        quotes += text.count('"', begin, match.start())
        begin = match.start()
        if quotes % 2 == 0:
            return text[:begin].rstrip(BLANK)
    return text


def split_cells(line: str, separator: str) -> list[str]:
    """Splits a line of a CSV file; raises LineError if its quotes are not closed."""
    try:
        reader = csv.reader(
            [line], delimiter=separator, skipinitialspace=True, strict=True
        )
        return [cell.strip() for cell in next(reader)] or [""]
    except csv.Error as error:
        raise LineError(f"not valid CSV: {error}") from None


def _split_names(rest: str) -> list[str]:
    """Splits what follows a path, from its separator on, where not all are numbers."""
    text = rest.strip(BLANK)
    if text[:1] == ",":
        columns = split_cells(text[1:], ",")
    elif "\t" in rest:
        columns = [column.strip(" \"'") for column in _TAB.split(text)]
    elif quoted := _QUOTED.fullmatch(text):
        columns = [(quoted[1] or quoted[2] or "").replace(text[0] * 2, text[0])]
    else:
        columns = _SEPARATOR.split(text)
        for column in columns[:-1]:
            if not DECIMAL.fullmatch(column):
                raise not_a_label(
                    column, "A class name with spaces needs quotes or a comma before it"
                )
    if not all(columns):
        raise not_a_label("")
    return columns


def _split_columns(
    columns: Sequence[str], layout: tuple[str, ...], several: bool
) -> tuple[int | None, int | None, Sequence[str]]:
    """Returns start and total, both None for a whole video, and the label columns."""
    expected = f"`path {' '.join(layout)}`"
    count = len(layout) - ("label" in layout)
    most = len(columns) if several else len(layout)
    if not count <= len(columns) <= most:
        raise LineError(
            f"{1 + len(columns)} columns, expected {expected}; a path that ends with "
            "numbers needs quotes"
        )
    for text in columns[:count]:
        if not WHOLE_NUMBER.fullmatch(text):
            raise LineError(f"{text[:40]!r} is not a whole number: expected {expected}")
    total, start = int(columns[count - 1]), int(columns[0]) if count > 1 else None
    if total < 0 and not start:
        return None, None, columns[count:]
    if total <= 0 or start is not None and start < 0:
        raise LineError(
            f"expected {expected}, with a start from 0 and a total from 1 up, or "
            "`path 0 -1` for a whole video"
        )
    return start, total, columns[count:]


def _are_seconds(columns: Sequence[str], label_kind: LabelKind) -> bool:
    """Returns whether columns begin with two times, at least one with a fraction."""
    times, more = columns[:2], columns[2:]
    if not more or not all(map(DECIMAL.fullmatch, times)):
        return False
    # Where labels are unused, a number that is none makes all three values.
    is_value = DECIMAL.fullmatch(more[0]) and not more[0].isdecimal()
    is_label = label_kind is not LabelKind.UNUSED or not is_value
    return is_label and any("." in text for text in times)


def _split_quoted(line: str, is_csv: bool) -> tuple[str, list[str]]:
    quote = line[0]
    match = _QUOTED.match(line)
    if not match:
        raise LineError(
            f"the path begins with {quote} but has no closing {quote}: if the quote "
            "belongs to the path, put the path in quotes of the other kind"
        )
    path = line[1 : match.end() - 1].replace(quote * 2, quote)
    rest = line[match.end() :]
    if rest[:1] == ";":
        return path, split_cells(rest[1:], ";")
    if rest and rest[0] not in " \t,":
        raise LineError(
            f"expected a space, comma or tab after the closing {quote}; double a "
            f"{quote} inside the path"
        )
    rest = rest.rstrip(BLANK) if is_csv else _without_comment(rest)
    columns = _SEPARATOR.split(rest)[1:]
    if all(map(DECIMAL.fullmatch, columns)):
        return path, columns
    return path, _split_names(rest)


def _split_numbers(line: str) -> tuple[str, list[str]]:
    """Takes whole numbers off the end, each with the separator before it."""
    columns, end, backwards = [], 0, line[::-1]
    while True:
        match = _NUMBER_BACKWARDS.match(backwards, end)
        if not match or not WHOLE_NUMBER.fullmatch(match[1][::-1]):
            return line[: len(line) - end], columns[::-1]
        columns.append(match[1][::-1])
        end = match.end()
