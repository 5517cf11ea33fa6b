"""Where videos come from: a list file, a folder, a prepared data set, the digits.

A source is one of

    data/train.txt              a list file, told below
    /data/videos                a folder, for all videos in it, without labels
    tfds:/data/tfds/k400/train  what `python -m videomae_jax prepare` has made of a
                                list: tfds:, the OUT folder it was given, the split
    digits:train                the embedded data set, made on first use

A list file is UTF-8 text with one video a line, its path and, unless the list is for
pretraining, its label (0, 1, 2, ...):

    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1

- Path and label are separated by spaces, a comma or a tab.
- A path in "..." or '...' may hold anything but a line break; the quote itself is
  written twice, as in CSV.
- Without quotes: where there is a tab, it separates. Otherwise the whole number that
  ends the line, after a space or a comma, is the label, and the path is all before it,
  so that `my video.mp4 3` is what it seems. A line with spaces or commas but no number
  at its end is one path only if it ends like a video (`my video.mp4`). Whatever else
  could be read in two ways is an error that asks for quotes.
- In a list for multi-label classification any number of labels may follow the path.
- `path 0 -1` (VideoMAE V2: a whole video) is a path without a label. V2's other
  `path start total` lines, frame folders and parts of videos, are errors.
- Blank lines do not count, nor does what follows a `#` that begins a line or comes
  after a space or a tab. The first line may be a header such as `path,label`.
- A relative path starts at the list file's folder, or at `root`. A path without an
  extension gets `.mp4`, which published Kinetics lists leave out.
- List and videos may be URLs (gs://...), for `prepare` on a cluster.
"""

import dataclasses
import os
import re
from collections.abc import Iterable

EXTENSIONS = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .wmv .flv".split())

_HOW = """\
A list file has a line for each video, its path and, for labelled videos, the label:
    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1
To make one without labels: find /videos -name '*.mp4' > train.txt
A folder of videos (without labels), tfds:FOLDER/SPLIT (made by the command prepare) or
digits:train (made on first use) do as well."""

_BLANK = " \t\r"
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
_LABEL_NAMES = "label labels class class_id label_id target".split()


class RecordError(ValueError):
    """A source of videos that cannot be read, with the line and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One video.

    Attributes:
        path: the file, absolute.
        label: its class, or None; a tuple of classes in a multi-label list.
        id: its name in messages and predictions: the path as the list wrote it, or
            relative to the source folder. Unique: repeats become `name#2`, `name#3`.
        position: which one of the videos in the file `path`, an ArrayRecord shard;
            None if the file is the video. `sources.open_video` opens either.
    """

    path: str
    label: int | tuple[int, ...] | None
    id: str
    position: int | None = None


def load(
    source: str,
    root: str = "",
    require_labels: bool = False,
    several_labels: bool = False,
) -> list[Record]:
    """Reads all records of a source; whether the videos exist is not looked at.

    Args:
        source: a list file; a folder, for all videos in and below it, sorted by path,
            without hidden files and folders and without following links to folders;
            `tfds:FOLDER/SPLIT`; or `digits:SPLIT`.
        root: the folder that relative paths of a list file start at; by default the
            list file's own.
        require_labels: whether a video without a label is an error.
        several_labels: whether a video may have several, or none: `label` is then a
            tuple.

    Returns:
        The records in the order of the list.

    Raises:
        RecordError: if the source is missing, empty, or not text, or a line cannot be
            read; the message gives the line.
    """
    if not source:
        raise RecordError(f"no videos are given. {_HOW}")
    if source.startswith("digits:"):
        return _load_digits(source, require_labels, several_labels)
    if source.startswith("tfds:"):
        # Here, for it needs packages that lists can do without.
        from videomae_jax.data import prepared

        return prepared.load(source, require_labels, several_labels)
    place = absolute(source)
    if os.path.isdir(place):
        return _load_folder(source, place, require_labels)
    if not os.path.exists(place) and not is_url(place):
        raise RecordError(f"there is no file or folder {source!r}. {_HOW}")
    base = absolute(root) if root else os.path.dirname(place)
    text = _read_text(source, place)
    return _load_list(source, text, base, require_labels, several_labels)


def is_url(path: str) -> bool:
    """Whether a path is one of a store such as gs://, and not of a file system."""
    return "://" in path


def absolute(path: str) -> str:
    """The path from the root on, with ~ replaced; a URL is left as it is."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def write_list(target: str | os.PathLike, rows: Iterable[tuple[str, int | None]]):
    """Writes a list file that `load` reads back as it was.

    Args:
        target: the list file; one that exists is replaced.
        rows: path and label, or None, of each video.

    Raises:
        RecordError: if a list file cannot hold a path or label; nothing is written.
    """
    lines = [f"{_line(path, label)}\n".encode() for path, label in rows]
    with open(target, "wb") as file:
        file.writelines(lines)


def _line(path: str, label: int | None) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{path!r} is not UTF-8: rename the file or folder") from None
    if "\n" in path or "\0" in path:
        raise RecordError(f"{path!r} holds a line break or a NUL: rename it")
    if not os.path.splitext(path)[1]:
        raise RecordError(f"{path!r} has no extension, and would be read with .mp4")
    if not _PLAIN.fullmatch(path):
        path = '"' + path.replace('"', '""') + '"'
    if label is None:
        return path
    if not 0 <= label < 10**9:
        raise RecordError(f"{path}: label {label} is not a whole number from 0 up")
    return f"{path} {label}"


def _load_digits(source: str, *labels: bool) -> list[Record]:
    # Here, because it brings in the video encoder, which lists can do without.
    from videomae_jax.data import digits

    split = source.removeprefix("digits:")
    if split not in digits.LISTS:
        known = ", ".join(f"digits:{name}" for name in digits.LISTS)
        raise RecordError(f"there is no {source!r}: choose one of {known}")
    return load(str(digits.ensure() / f"{split}.txt"), "", *labels)


def _load_folder(source: str, place: str, require_labels: bool) -> list[Record]:
    if require_labels:
        raise RecordError(f"the videos of a folder ({source}) have no labels. {_HOW}")

    def fail(error: OSError):
        raise RecordError(f"cannot list {error.filename}: {error.strerror}") from error

    names = []
    # By default os.walk passes over folders it may not read: videos would go missing.
    for folder, folders, files in os.walk(place, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                names.append(os.path.relpath(os.path.join(folder, name), place))
    if not names:
        raise RecordError(
            f"the folder {source!r} holds no videos ({' '.join(EXTENSIONS)})"
        )
    names.sort()
    return [
        Record(os.path.join(place, name), None, name.replace(os.sep, "/"))
        for name in names
    ]


def _read_text(source: str, place: str) -> str:
    advice = f"is not a UTF-8 text file; a list of videos is wanted here. {_HOW}"
    try:
        with _open(place) as file:
            data = file.read(4096)  # enough to tell a video, which may be very large
            if b"\0" not in data:
                data += file.read()
    except FileNotFoundError:
        raise RecordError(f"there is no file {source!r}. {_HOW}") from None
    try:
        error_at = data.index(b"\0") if b"\0" in data else None
        if error_at is None:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        error_at = error.start
    line = data.count(b"\n", 0, error_at) + 1
    raise RecordError(f"{source}:{line}: {source} {advice}")


def _open(place: str):
    if not is_url(place):
        return open(place, "rb")
    from etils import epath

    return epath.Path(place).open("rb")


def _load_list(
    source: str, text: str, base: str, require_labels: bool, several_labels: bool
) -> list[Record]:
    records = []
    times = {}
    first = True
    # Not splitlines(), which also breaks at characters that a path may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(_BLANK)
        if not line or line[0] == "#":
            continue
        header, first = first and _is_header(line), False
        if header:
            continue
        try:
            name, label = _parse(line, several_labels)
            if label is None and require_labels:
                raise RecordError("the label is missing: `path label` is wanted")
        except RecordError as error:
            shown = line if len(line) <= 80 else f"{line[:60]}...{line[-17:]}"
            raise RecordError(f"{source}:{number}: {error}\n    {shown}") from None
        path = name if is_url(name) else os.path.join(base, name)
        if not os.path.splitext(path)[1]:
            path += ".mp4"
        records.append(Record(path, label, _unique(name, times)))
    if not records:
        raise RecordError(f"the list {source!r} names no videos. {_HOW}")
    return records


def _is_header(line: str) -> bool:
    names = re.split(r"[ \t,]+", line.lower())
    if len(names) == 1:
        return names[0] in _PATH_NAMES  # in quotes it would be a path
    path, label = (name.strip("\"'") for name in names[:2])
    return len(names) == 2 and path in _PATH_NAMES and label in _LABEL_NAMES


def _parse(line: str, several: bool) -> tuple[str, int | tuple[int, ...] | None]:
    """Splits a stripped line that is neither blank nor a comment."""
    if line[0] in "\"'":
        path, columns = _split_quoted(line)
    else:
        if "#" in line:
            line = _COMMENT.split(line, maxsplit=1)[0].rstrip(_BLANK)
        if "\t" in line:
            path, *columns = _TAB.split(line)
        else:
            path, columns = _split_numbers(line)
            if " " in path or "," in path:
                _check_unquoted(path, columns)
    if not path or path.endswith("/"):
        raise RecordError("the path is empty or a folder; a line names one video file")
    if several:
        return path, tuple(sorted({_label(column) for column in columns}))
    if not columns or columns == ["0", "-1"]:
        return path, None
    if len(columns) > 1:
        raise RecordError(
            f"{1 + len(columns)} columns, but `path label` is wanted. Of VideoMAE V2's "
            "`path start total` lines only `path 0 -1`, a whole video, can be read, "
            "not frame folders or parts of videos. If they are several labels, set "
            "config.loss.kind=sigmoid; if they belong to the path, put it in quotes"
        )
    return path, _label(columns[0])


def _label(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) < 0:
        raise _wrong_label(text)
    return int(text)


def _split_quoted(line: str) -> tuple[str, list[str]]:
    quote = line[0]
    match = _QUOTED.match(line)
    if not match:
        raise RecordError(
            f"the path begins with {quote} and has no closing {quote}: if the quote "
            "belongs to the path, put the path in quotes of the other kind"
        )
    path = line[1 : match.end() - 1].replace(quote * 2, quote)
    rest = line[match.end() :]
    if rest and rest[0] not in " \t,":
        raise RecordError(
            f"a space, comma or tab is wanted after the closing {quote}; a {quote} "
            "inside the path is written twice"
        )
    rest = _COMMENT.split(rest, maxsplit=1)[0].rstrip(_BLANK)
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
    if not columns and not path.lower().endswith(EXTENSIONS):
        raise _wrong_label(re.split("[ ,]", path)[-1])


def _wrong_label(text: str) -> RecordError:
    return RecordError(
        f"{text[:40]!r} is not a label: a whole number from 0 up is wanted after the "
        "path. If it belongs to the path, put the path in quotes"
    )


def _unique(name: str, times: dict[str, int]) -> str:
    """Returns the name, or `name#2` and so on; `times` counts what was given out."""
    count = times.get(name, 0) + 1
    unique = name
    if count > 1:
        while (unique := f"{name}#{count}") in times:
            count += 1
        times[unique] = 1
    times[name] = count
    return unique
