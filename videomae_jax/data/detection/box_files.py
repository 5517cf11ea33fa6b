"""Boxes with classes at key frames, and the files that AVA keeps them in.

A csv file has a row for each class of each box, and no header:

    video,timestamp,x1,y1,x2,y2,class,person    ground truth; the person may be absent
    video,timestamp,x1,y1,x2,y2,class,score     detections
    video,timestamp                             a key frame without persons, or, in a
                                                file of its own, an excluded one

The timestamp is the second of the key frame in the movie: 0902, 902 and 902.0 are the
same. AVA's boxes are fractions of the frame. A byte-order mark, Windows line breaks,
quotes, blank lines, tabs or semicolons in place of commas, and a header are read, too.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from videomae_jax.errors import LineError, RecordError
from videomae_jax.files import atomic_write, open_binary

# The video and the second of a key frame.
KeyFrame = tuple[str, float]

_COLUMNS = ("video", "timestamp", "x1", "y1", "x2", "y2", "class", "score")
_CHUNK = 1000  # rows that are converted at once; more are slower to collect
_MAX_CLASS = 10**9
# "item { name: ... id: 1 }", or "label { name: ... label_id: 1 label_type: ... }".
_ITEM = re.compile(r"\b(?:item|label)\s*\{([^{}]*)\}")
_NAME = re.compile(r"""\bname:\s*(["'])(.*?)\1""")
_ID = re.compile(r"\b(?:label_)?id:\s*(\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of ground truth or of detections, one row per box and class.

    Attributes:
        frames: distinct key frames, also those without rows.
        frame: int [n], the key frame of each row, as an index into `frames`.
        boxes: float64 [n, 4], x1, y1, x2, y2: fractions of the frame, or pixels.
        classes: int [n], ids of classes.
        scores: float64 [n]; 1 in ground truth.
        source: the name of the file, for messages.
        lines: int [n], the line of each row in it; empty without a file.
        unscored: lines of detections without a score; these have the score 1.

    Raises:
        ValueError: shapes do not agree, a number is not finite, or a key frame occurs
            twice.
    """

    frames: Sequence[KeyFrame]
    frame: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    source: str = ""
    lines: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    unscored: Sequence[int] = ()

    def __post_init__(self):
        """Checks the arrays."""
        n = len(self.frame)
        shapes = (self.boxes.shape, self.classes.shape, self.scores.shape)
        if shapes != ((n, 4), (n,), (n,)):
            raise ValueError(f"{n} rows do not fit arrays of the shapes {shapes}")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("boxes and scores must be finite")
        if len(set(self.frames)) < len(self.frames):
            raise ValueError("key frames must be distinct")

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.frame)

    def select(self, rows: np.ndarray) -> "Boxes":
        """Returns some of the rows, by a mask bool [n] or indices int [m]."""
        return dataclasses.replace(
            self,
            frame=self.frame[rows],
            boxes=self.boxes[rows],
            classes=self.classes[rows],
            scores=self.scores[rows],
            lines=self.lines[rows] if len(self.lines) else self.lines,
        )

    def sorted(self) -> "Boxes":
        """Returns the rows in an order that depends on nothing but their content.

        Rows that several hosts have gathered are in no order that another run repeats,
        and evaluators rank equal scores by the order of rows.
        """
        by_name = sorted(range(len(self.frames)), key=self.frames.__getitem__)
        rank = np.empty(len(by_name), int)
        rank[by_name] = np.arange(len(by_name))
        keys = (self.scores, *self.boxes.T, self.classes, rank[self.frame])
        return self.select(np.lexsort(keys))

    def place(self, row: int) -> str:
        """Returns the file and line of a row, for messages."""
        return f"{self.source}:{self.lines[row]}" if len(self.lines) else self.source


def read_ground_truth(path: str) -> Boxes:
    """Reads annotated boxes; see the top of this file.

    Raises:
        RecordError: a row is not valid, or its box is inverted; names the line.
        FileNotFoundError: the file does not exist.
    """
    boxes = _read(path, has_scores=False)
    inverted = np.flatnonzero((boxes.boxes[:, :2] > boxes.boxes[:, 2:]).any(axis=1))
    if len(inverted):
        x1, y1, x2, y2 = boxes.boxes[inverted[0]]
        raise RecordError(
            f"{boxes.place(inverted[0])}: inverted box: x1={x1:g} y1={y1:g} x2={x2:g} "
            f"y2={y2:g}, expected x1 <= x2 and y1 <= y2, also in {len(inverted) - 1} "
            "other rows. If the numbers are x, y, width, height, add the first two to "
            "the others"
        )
    return boxes


def read_detections(path: str) -> Boxes:
    """Reads detected boxes; see the top of this file. A missing score counts as 1.

    Raises:
        RecordError: a row is not valid, or a number not finite; names the line.
        FileNotFoundError: the file does not exist.
    """
    return _read(path, has_scores=True)


def read_key_frames(path: str) -> set[KeyFrame]:
    """Reads key frames, `video,timestamp`, such as those excluded from evaluation.

    Raises:
        RecordError: a row is not valid; names the line.
        FileNotFoundError: the file does not exist.
    """
    frames = set()
    for line, row in _rows(path, (2,)):
        try:
            frames.add(_key_frame(*row))
        except ValueError:
            raise _error(path, [(line, row)]) from None
    return frames


def read_label_map(path: str) -> dict[int, str]:
    """Reads a label map in the text format of protocol buffers (.pbtxt).

    Returns:
        The name of each class, by its id, in the order of the ids.

    Raises:
        RecordError: the file has no classes, or an id is missing or occurs twice.
        FileNotFoundError: the file does not exist.
    """
    names: dict[int, str] = {}
    with _open(path) as file:
        text = file.read()
    for item in _ITEM.findall(text):
        name, number = _NAME.search(item), _ID.search(item)
        shown = " ".join(item.split())[:60]
        if not number or not name:
            raise RecordError(
                f"{path}: {shown!r} has no name or no id: expected "
                'item { name: "run" id: 1 }'
            )
        if int(number[1]) in names:
            raise RecordError(f"{path}: the id of {shown!r} occurs twice")
        names[int(number[1])] = name[2]
    if not names:
        raise RecordError(
            f'{path}: not a label map: expected item {{ name: "run" id: 1 }} for each '
            "class, as in AVA's .pbtxt files"
        )
    return dict(sorted(names.items()))


def write_boxes(path: str, boxes: Boxes, *, scores: bool) -> None:
    """Writes ground truth (3 decimals) or, with scores, detections (5 decimals).

    The numbers of decimals are those of AVA's files and of VideoMAE's results.
    """
    digits = 5 if scores else 3
    frames = [f"{video},{_timestamp(time)}" for video, time in boxes.frames]
    with atomic_write(pathlib.Path(path)) as file:
        for frame, box, label, score in zip(
            boxes.frame, boxes.boxes.tolist(), boxes.classes, boxes.scores, strict=True
        ):
            numbers = ",".join(f"{x:.{digits}f}" for x in box)
            end = f",{score:.{digits}f}" if scores else ""
            file.write(f"{frames[frame]},{numbers},{label}{end}\n")


def write_key_frames(path: str, frames: Iterable[KeyFrame]) -> None:
    """Writes key frames, such as those excluded from evaluation."""
    with atomic_write(pathlib.Path(path)) as file:
        for video, time in sorted(frames):
            file.write(f"{video},{_timestamp(time)}\n")


def write_label_map(path: str, names: Mapping[int, str]) -> None:
    """Writes a label map that AVA's evaluators read, too."""
    with atomic_write(pathlib.Path(path)) as file:
        for number, name in names.items():
            file.write(f'item {{\n  name: "{name}"\n  id: {number}\n}}\n')


def _timestamp(time: float) -> str:
    return f"{int(time):04d}" if time == int(time) else f"{time:.6f}"


@contextlib.contextmanager
def _open(path: str) -> Iterator[io.TextIOWrapper]:
    with open_binary(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError as error:
            raise RecordError(f"{path}: not UTF-8 text: {error.reason}") from None


class _FrameNumbers(dict):
    """Numbers key frames in the order in which they appear, by their two columns."""

    def __init__(self):
        super().__init__()
        self.frames: dict[KeyFrame, int] = {}

    def __missing__(self, columns: tuple[str, str]) -> int:
        # "0902" and "902" are the same key frame.
        number = self.frames.setdefault(_key_frame(*columns), len(self.frames))
        self[columns] = number
        return number


def _read(path: str, *, has_scores: bool) -> Boxes:
    """Reads a csv file of boxes."""
    numbers = _FrameNumbers()
    # Of chunks of rows: key frames, lines, and the numbers after the timestamp.
    frames, lines, columns = [], [], []
    unscored = []
    rows = _rows(path, (7, 8) if has_scores else (2, 7, 8))
    while chunk := list(itertools.islice(rows, _CHUNK)):
        full = [(line, row) for line, row in chunk if len(row) > 2]
        scored = [row[7] if has_scores and len(row) > 7 else "1" for _, row in full]
        if has_scores:
            unscored += [line for line, row in full if len(row) == 7]
        try:
            for _, row in chunk:  # also those without a box
                numbers[row[0], row[1]]
            own = [numbers[row[0], row[1]] for _, row in full]
            texts = [*zip(*(row[2:7] for _, row in full), strict=True), scored]
            values = np.array([[*map(float, column)] for column in texts])
        except ValueError:
            raise _error(path, chunk, has_scores) from None
        if not full:
            continue
        labels = values[4]
        is_class = (labels == np.rint(labels)) & (labels >= 0) & (labels < _MAX_CLASS)
        if not (np.isfinite(values).all() and is_class.all()):
            raise _error(path, chunk, has_scores)
        frames.append(np.array(own, np.int32))
        lines.append(np.array([line for line, _ in full], np.int32))
        columns.append(values)
    values = np.concatenate([np.zeros((6, 0)), *columns], axis=1)
    return Boxes(
        frames=list(numbers.frames),
        frame=np.concatenate([np.zeros(0, np.int32), *frames]),
        boxes=np.ascontiguousarray(values[:4].T),
        classes=values[4].astype(np.int32),
        scores=values[5],
        source=path,
        lines=np.concatenate([np.zeros(0, np.int32), *lines]),
        unscored=unscored,
    )


def _rows(path: str, widths: Collection[int]) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a csv file that are neither blank nor a header, with lines.

    Raises:
        RecordError: a row has another number of columns than one of `widths`.
    """
    with _open(path) as file:
        first = next(file, "")
        counts = {separator: first.count(separator) for separator in ",\t;"}
        reader = csv.reader(
            itertools.chain([first], file),
            delimiter=max(counts, key=counts.__getitem__),
            skipinitialspace=True,
        )
        is_first = True
        try:
            for row in reader:
                if not row or row == [""]:
                    continue
                if is_first and _is_header(row):
                    row = []
                elif len(row) not in widths:
                    names = f"`{','.join(_COLUMNS[: max(widths)])}`"
                    raise RecordError(
                        f"{path}:{reader.line_num}: {len(row)} columns, expected "
                        f"{' or '.join(map(str, widths))}: {names}, separated by commas"
                    )
                is_first = False
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise RecordError(f"{path}:{reader.line_num}: {error}") from None


def _is_header(row: Sequence[str]) -> bool:
    """Returns whether all columns of a row are names, but for that of the video."""
    return len(row) > 1 and not any(map(_is_number, row[1:7]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _key_frame(video: str, timestamp: str) -> KeyFrame:
    """Returns a key frame from its columns; raises ValueError if they are not valid.

    AVA's evaluator tells six decimals of the timestamp apart.
    """
    video, time = video.strip(), round(float(timestamp), 6)
    if not video or not math.isfinite(time):
        raise ValueError
    return video, time


def _error(
    path: str, rows: Iterable[tuple[int, list[str]]], has_scores: bool = False
) -> RecordError:
    """Returns the error of the first row that is not valid."""
    for line, row in rows:
        try:
            _check(row if has_scores else row[:7])
        except LineError as error:
            return RecordError(f"{path}:{line}: {error}")
    raise AssertionError("all rows are valid")


def _check(row: Sequence[str]) -> None:
    """Raises LineError for the first column that is not valid."""
    if not row[0].strip():
        raise LineError("the name of the video is empty")
    for name, text in zip(_COLUMNS[1:], row[1:], strict=False):
        text = text.strip()[:40]
        if not text:
            raise LineError(f"{name} is missing: the column is empty")
        if not _is_number(text):
            remedy = {
                "timestamp": "expected seconds, such as 0902",
                "class": "expected the id of a class of the label map, not its name",
            }
            raise LineError(
                f"{name}={text!r} must be a number; "
                f"{remedy.get(name, 'expected ' + ','.join(_COLUMNS))}"
            )
        value = float(text)
        if not math.isfinite(value):
            raise LineError(f"{name}={text} must be finite")
        if name == "class" and not (value.is_integer() and 0 <= value < _MAX_CLASS):
            raise LineError(
                f"class={text} must be a whole number from 0 up; expected "
                f"{','.join(_COLUMNS)}: are class and score exchanged?"
            )
