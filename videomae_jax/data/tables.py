"""Lists with named columns: CSV files with a header, JSON, and JSON lines.

`docs/data.md` has a table of the names that are known. Columns may be in any order. A
table is a list of rows, each of which becomes a `list_format.Row`.
"""

import csv
import dataclasses
import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from videomae_jax.data import labels, list_format
from videomae_jax.data.list_format import Entry, Row
from videomae_jax.errors import LineError, RecordError
from videomae_jax.video.container import is_video
from videomae_jax.video.record import LABEL, PATH, RANGE, LabelKind

log = logging.getLogger(__name__)

# Names of columns, beside those in video/record.py.
_HEADS = "verb noun verb_class noun_class".split()
_VALUE = "value values score scores rating ratings".split()
_SPLIT = "split subset partition".split()
# Never what a model is to predict, whatever their values.
_OTHER = (
    "index idx id duration length fps frame_rate width height size url md5 fold "
    "participant_id narration narration_id comment".split()
    + _SPLIT
)
_INDEX = re.compile(r"|unnamed.*")  # of pandas
_WHOLE_FLOAT = re.compile(r"\A([0-9]+)\.0\Z")  # pandas, of labels with gaps
# What a path between brackets hardly begins with.
_JSON = re.compile(r'\{\s*"|\[\s*(\{\s*)?"|\[\s*\[".*\]')
_SEPARATORS = ",\t; "

_KNOWN = (
    "Known are path; label, or a column for each head or value; start_frame with "
    "end_frame or total; start_seconds with end_seconds"
)

Cell = str | list[str]
Rows = list[tuple[str, str, dict[str, Cell]]]  # place, text and cells of each


def read(
    source: str, text: str, label_kind: LabelKind, label_columns: Sequence[str] = ()
) -> Iterator[Entry] | None:
    """Reads a table; returns None if the text is none, but a list of plain lines.

    Args:
        source: name of the list in messages.
        text: its content.
        label_kind: the labels that each row must have.
        label_columns: names of the columns with a label for each head, or with values,
            if the table has them; by default all that may be labels or values.

    Raises:
        RecordError: the text is not valid JSON or CSV, or its columns are not known.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    number, first = next(
        ((n, x) for n, x in enumerate(lines, 1) if x.strip() and x[0] != "#"), (0, "")
    )
    if _JSON.match("\n".join(lines[number - 1 :]).lstrip()):
        try:
            rows, place = _json_rows(source, text, first), ""
        except RecursionError:
            raise RecordError(f"{source}: its JSON is nested too deeply") from None
    elif separator := _separator(first):
        rows, place = _csv_rows(source, lines, number, separator), f":{number}"
    else:
        return None
    columns = list(dict.fromkeys(name for _, _, cells in rows for name in cells))
    table = _Table(source + place, columns, rows)
    targets = table.targets(label_kind, label_columns)
    table.check(targets, rows)
    return _entries(table, rows, targets, label_kind)


def _entries(table: "_Table", rows: Rows, targets: Sequence[str], kind: LabelKind):
    rows.reverse()
    while rows:  # each is freed after it is parsed
        place, text, cells = rows.pop()
        yield Entry(place, text, functools.partial(table.parse, cells, targets, kind))


class _Table:
    """The columns of a table, by what they mean."""

    def __init__(self, place: str, columns: Sequence[str], rows: Rows):
        self._place, self._columns = place, columns
        self._by_name = {_normal(name): name for name in reversed(columns)}
        self._path = self._best(PATH) or ""
        if not self._path:
            raise RecordError(
                f"{place}: none of the columns {_listed(columns)} is a path. {_KNOWN}"
            )
        self._range = {
            kind: column
            for kind, names in RANGE.items()
            if (column := self._best(names.split())) is not None
        }
        self._find_units(rows)

    def _best(self, names: Sequence[str]) -> str | None:
        return next((self._by_name[x] for x in names if x in self._by_name), None)

    def _find_units(self, rows: Rows) -> None:
        """Decides whether `start` and `end` are frames or seconds."""
        plain = [x for x in ("start", "end") if x in self._range]
        has_start = {"start", "start_frame"} & self._range.keys()
        is_known = {"end", "end_frame"} & self._range.keys() or (
            "start_frame" not in self._range and "end_seconds" in self._range
        )
        # Then it is only metadata. Without a start, it selects images of `folder/`.
        folders = (str(row.get(self._path, "")).endswith("/") for _, _, row in rows)
        if is_known or not has_start and not any(folders):
            self._range.pop("total", None)
        units = {name.partition("_")[2] for name in self._range} - {""}
        if plain and "total" not in self._range:
            names = [self._range[x] for x in plain]
            cells = [str(row.get(x, "")) for _, _, row in rows for x in names]
            if not units and any(set(cell) & set(".:") for cell in cells):
                units = {"seconds"}
            if len(units) != 1:
                raise RecordError(
                    f"{self._place}: are {_listed(names)} "
                    "frames or seconds? Name the columns start_frame,end_frame or "
                    "start_seconds,end_seconds; the end is the first frame, or the "
                    "time, that is left out"
                )
            for name in plain:
                self._range[f"{name}_{next(iter(units))}"] = self._range.pop(name)
        elif "start" in self._range:
            self._range["start_frame"] = self._range.pop("start")
        for start, *ends in (
            ("start_frame", "end_frame", "total"),
            ("start_seconds", "end_seconds"),
        ):
            if start in self._range and not any(x in self._range for x in ends):
                raise RecordError(
                    f"{self._place}: {self._range[start]} needs a column "
                    f"{' or '.join(ends)}. {_KNOWN}"
                )

    def targets(self, label_kind: LabelKind, label_columns: Sequence[str]) -> list[str]:
        """Returns the columns that the model is to predict."""
        named = [self._by_name.get(_normal(name), "") for name in label_columns]
        if named and all(named):
            return named
        # Without any, names of values are no names of columns.
        if named and (label_kind is LabelKind.HEADS or any(named)):
            heads = label_kind is LabelKind.HEADS
            field = "config.data.heads=" if heads else "the values to predict are "
            raise RecordError(
                f"{self._place}: {field}{','.join(label_columns)}, but the columns are "
                f"{_listed(self._columns)}: rename or add columns, as in the training"
            )
        one = self._best(LABEL)
        heads, values = (
            [x for x in self._columns if _normal(x) in names]
            for names in (_HEADS, _VALUE)
        )
        if label_kind is LabelKind.VALUES:
            return values or ([one] if one is not None else self._unknown())
        if label_kind is LabelKind.HEADS:
            return heads or self._unknown() or ([one] if one is not None else [])
        if one is not None:
            return [one]
        unknown = heads or values or self._unknown()
        is_many = label_kind is LabelKind.MANY
        if label_kind is LabelKind.ONE or is_many and unknown:
            names, heads = _listed(unknown), ",".join(unknown)
            advice = f"If {names} are numbers to predict (regression), set "
            advice += "config.loss.kind=mse"
            if len(unknown) > 1:
                advice += f"; if classes, a head for each, config.data.heads={heads}"
            raise RecordError(
                f"{self._place}: none of the columns {_listed(self._columns)} is the "
                f"label. Name it label. {advice + '. ' if unknown else ''}{_KNOWN}"
            )
        return []

    def _unknown(self) -> list[str]:
        """Returns the columns that may hold anything."""
        used = {self._path, *self._range.values()}
        known = {*PATH, *LABEL, *_OTHER}
        return [
            name
            for name in self._columns
            if name not in used
            and _normal(name) not in known
            and not _INDEX.fullmatch(_normal(name))
        ]

    def check(self, targets: Sequence[str], rows: Rows) -> None:
        """Refuses lists of several splits, and logs the columns that are ignored."""
        split = self._best(_SPLIT)
        found = {str(row.get(split, "")) for _, _, row in rows} if split else set()
        if len(found) > 1:
            raise RecordError(
                f"{self._place}: the column {split} names several splits: "
                f"{_listed(sorted(found))}. Make a list of each, so that no video is "
                "both trained on and tested"
            )
        used = {self._path, *self._range.values(), *targets}
        ignored = [x for x in self._columns if x not in used]
        if any(not _INDEX.fullmatch(_normal(name)) for name in ignored):
            names = [x for x in self._columns if x in used]
            shown = ",".join(names), ",".join(ignored)
            log.warning("%s: columns=%.200s ignored=%.200s", self._place, *shown)
        has_seconds = {"start_seconds", "end_seconds"} & self._range.keys()
        if has_seconds and len(self._range) > 2:
            log.warning("%s: seconds are used where frames are given too", self._place)

    def parse(
        self, cells: Mapping[str, Cell], targets: Sequence[str], label_kind: LabelKind
    ) -> Row:
        """Returns the row of the cells; raises LineError."""
        path, start, total, times = _one(cells, self._path), None, None, None
        if self._range:
            get = {kind: _one(cells, column) for kind, column in self._range.items()}
            is_folder = path.endswith("/")
            if not is_folder and not any("start" in kind for kind in get):
                get.pop("total", None)
            ends = get.get("start_seconds", ""), get.get("end_seconds", "")
            frames = (x for kind, x in get.items() if "seconds" not in kind)
            # Where a row has both, seconds do not depend on the frame rate.
            if any(ends) and not (is_folder and any(frames)):
                times = list_format.parse_times(*ends)
            else:
                start, total = _frames(get)
        texts = []
        for name in targets:
            cell = cells.get(name, "")
            if isinstance(cell, str):
                several = label_kind is LabelKind.MANY and cell[:1] != "["
                cell = re.split(r"(?<!\s)\s*[,;|]\s*", cell) if several else [cell]
            texts += [text for text in cell if text or label_kind is LabelKind.HEADS]
        if label_kind is not LabelKind.VALUES:
            texts = [_WHOLE_FLOAT.sub(r"\1", text) for text in texts]
        row = list_format.make_row(
            path, texts, label_kind, start=start, total=total, times=times
        )
        # A cell of JSON may hold several.
        if len(row.values) == len(targets):
            row = dataclasses.replace(row, value_names=tuple(targets))
        return row


def _frames(get: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Returns the first frame and the number of frames; None if all are meant."""
    numbers = {}
    for kind in ("start_frame", "end_frame", "total"):
        text = _WHOLE_FLOAT.sub(r"\1", get.get(kind, ""))
        if text and not labels.WHOLE_NUMBER.fullmatch(text):
            raise LineError(f"{text[:40]!r} is not a frame: expected a whole number")
        numbers[kind] = int(text) if text else None
    start, end, total = numbers.values()
    if end is None and (total is None or total < 0 and not start):
        return None, None
    if end is not None:
        start = start or 0
        total = end - start
    if start is not None and start < 0 or not total or total < 0:
        raise LineError(
            "the part is empty: start must be from 0 up, and the end, which is the "
            "first frame that is left out, above it"
        )
    return start, total


def _csv_rows(source: str, lines: Sequence[str], header: int, separator: str) -> Rows:
    reader = csv.reader(
        (_csv_line(line, separator) for line in lines[header - 1 :]),
        delimiter=separator,
        skipinitialspace=True,
        strict=True,
    )
    rows: Rows = []
    columns: list[str] = []
    try:
        for cells in reader:
            number = header - 1 + reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = cells
                known: set[str] = set()
                if repeated := [x for x in columns if x in known or known.add(x)]:
                    raise RecordError(
                        f"{source}:{number}: the header names {_listed(repeated)} twice"
                    )
                continue
            if len(cells) != len(columns):
                raise RecordError(
                    f"{source}:{number}: {len(cells)} columns, but the header names "
                    f"{len(columns)}: {_listed(columns)}. A cell that contains the "
                    f"separator {separator!r} needs double quotes"
                )
            own: dict[str, Cell] = dict(zip(columns, cells, strict=True))
            rows.append((f":{number}", lines[number - 1].strip(), own))
    except csv.Error as error:
        number = header - 1 + reader.line_num
        raise RecordError(f"{source}:{number}: not valid CSV: {error}") from None
    return rows


def _csv_line(line: str, separator: str) -> str:
    # Tabs at the ends separate empty cells.
    line = line.strip() if separator == " " else line
    return "\n" if line[:1] == "#" else f"{line}\n"


def _separator(line: str) -> str | None:
    """Returns what separates the names of a header; None if the line is no header."""
    if list_format.parse_header(line) is not None:
        return None  # its lines may be separated in any way
    for separator in _SEPARATORS:
        try:
            cells = list_format.split_cells(_csv_line(line, separator), separator)
        except LineError:
            continue
        names = [_normal(cell) for cell in cells]
        if len(names) < 2 or any(labels.DECIMAL.fullmatch(x) for x in names):
            continue
        if any(map(is_video, cells)):
            continue
        known = sum(name in _ALL_NAMES for name in names)
        # Of words between spaces, a path may consist.
        has_path = any(name in PATH for name in names) and separator in ",\t"
        if known == len(names) or separator != " " and (known > 1 or has_path):
            return separator
    return None


def _json_rows(source: str, text: str, first: str) -> Rows:
    """Returns the rows of JSON lines, or of one JSON value."""
    try:
        line = json.loads(first)
    except ValueError:
        line = None
    is_alone = text.strip() == first.strip()
    if isinstance(line, dict) and (
        not is_alone or any(_normal(x) in PATH for x in line)
    ):
        items = []
        for number, row in enumerate(text.split("\n"), 1):
            if row.strip():
                items.append((f":{number}", row.strip(), _loads(row, source, number)))
    else:
        content = _loads(text, source)
        items = [
            (f": item {number}", json.dumps(item), item)
            for number, item in enumerate(_json_items(source, content), 1)
        ]
    rows = []
    for place, shown, item in items:
        if not isinstance(item, dict):
            raise RecordError(f"{source}{place}: expected an object with a path")
        cells = ((key, _cell(value)) for key, value in item.items())
        rows.append((place, shown, {key: x for key, x in cells if x is not None}))
    return rows


def _json_items(source: str, content: Any) -> Iterator[Any]:
    """Yields the objects of a JSON value: of a list, or of an object by path."""
    if isinstance(content, dict):
        lists = [x for x in content.values() if isinstance(x, list) and x]
        tables = [x for x in lists if isinstance(x[0], dict)]
        if len(tables) == 1:
            content = tables[0]
    if isinstance(content, dict):
        for key, value in content.items():
            parts = value if isinstance(value, list) else []
            if any(
                isinstance(x, dict) or not _is_path(key) and _is_path(x) for x in parts
            ):
                raise RecordError(
                    f"{source}: {key!r} holds a list of videos, expected an object of "
                    'each path, {"a.mp4": 3} or {"a.mp4": {"label": 3}}, or a list of '
                    'objects, [{"path": "a.mp4", "label": 3}]. Several splits or '
                    "classes need a file each, or a label of each video"
                )
            if not isinstance(value, dict):
                yield {"path": key, "label": value}
            elif not _is_path(key) and any(
                # A name is that of the class, unless it looks like a video.
                _normal(x) in PATH and (_normal(x) != "name" or _is_path(y))
                for x, y in value.items()
            ):
                yield value
            else:
                yield {**value, "path": key}
        return
    for item in content:
        if isinstance(item, str):
            yield {"path": item}
        elif isinstance(item, list) and item:
            yield {"path": item[0], "label": item[1:]}
        else:
            yield item


def _is_path(text: Any) -> bool:
    return isinstance(text, str) and ("/" in text or is_video(text))


def _loads(text: str, source: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        line = first_line + getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", error)
        raise RecordError(f"{source}:{line}: not valid JSON: {reason}") from None


def _cell(value: Any) -> Cell | None:
    """Returns a value of JSON as text, or a list of texts; None if it is nested."""
    if isinstance(value, list):
        texts = [text for text in map(_cell, value) if isinstance(text, str)]
        return texts if len(texts) == len(value) else None
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return None if isinstance(value, dict) else text


def _one(cells: Mapping[str, Cell], column: str) -> str:
    cell = cells.get(column, "")
    if isinstance(cell, list):
        raise LineError(f"{column} is a list, expected one value")
    return cell


def _normal(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip().lower())


def _listed(names) -> str:
    return ", ".join(name or "''" for name in names)


_PARTS = " ".join(RANGE.values()).split()
_ALL_NAMES = {*PATH, *LABEL, *_HEADS, *_VALUE, *_OTHER, *_PARTS}
