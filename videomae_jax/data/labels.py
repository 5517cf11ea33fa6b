"""The classes of a labelled data set: their number, names and frequencies."""

import ast
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from videomae_jax.errors import LineError, RecordError, nearest
from videomae_jax.video.record import SEVERAL_LABELS, LabelKind, Record

# At most nine digits: no data set has more classes, and longer numbers are not labels.
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf", re.I)
_BETWEEN = re.compile(r"[\s,;|]+")  # the numbers of a cell
_NO_COMMA = re.compile(r"""['"]\s+['"]""")
_TEMPLATE = re.compile(r"\[[A-Za-z ]+\] \w")  # "[Something] falling", a class name
# Kinds of which a video may have several labels or values.
SEVERAL = (LabelKind.MANY, LabelKind.HEADS, LabelKind.VALUES)

Labels = tuple[int | str, ...]  # numbers, or names of classes


def parse(
    texts: Sequence[str], label_kind: LabelKind
) -> tuple[Labels, tuple[float, ...]]:
    """Parses what a list gives as the labels of a video.

    Args:
        texts: the columns, as written.
        label_kind: the labels that the video must have. UNUSED labels are left out if
            they are neither a whole number nor a name.

    Returns:
        Labels as written, numbers or names; and the values of a regression.

    Raises:
        LineError: the columns do not fit `label_kind`.
    """
    texts = [part for text in texts for part in _split(text)]
    if label_kind is LabelKind.VALUES:
        return (), _parse_values(texts)
    if label_kind is LabelKind.UNUSED:
        try:
            return parse(texts, LabelKind.OPTIONAL)
        except LineError:
            return (), ()
    labels = tuple(map(_parse_label, texts))
    if len(labels) > 1 and label_kind not in SEVERAL:
        raise too_many_columns(texts)
    if not labels and label_kind is LabelKind.ONE:
        raise LineError("the label is missing: expected `path label`")
    if not labels and label_kind is LabelKind.HEADS:
        raise LineError("the labels are missing: expected `path label label`")
    return labels, ()


def _split(text: str) -> list[str]:
    """Returns the labels in a cell, which may be a list: [1, 2], ['run', 'sit'], 1 2.

    Tables have lists in the form of JSON, of Python (pandas) or of NumPy.
    """
    text = text.strip()
    if text.isalnum():
        return [text]
    inner = text
    if text[:1] == "[" and text[-1:] == "]":
        inner = text[1:-1].strip()
        # Python would join strings without a comma between them, as NumPy writes them.
        value = None if _NO_COMMA.search(text) else _literal(text)
        if isinstance(value, list) and all(
            isinstance(x, str | int | float) for x in value
        ):
            is_whole = (isinstance(x, float) and x.is_integer() for x in value)
            return [
                str(int(x) if whole else x)
                for x, whole in zip(value, is_whole, strict=True)
            ]
    parts = _BETWEEN.split(inner)
    return parts if all(map(WHOLE_NUMBER.fullmatch, parts)) else [text]


def _literal(text: str) -> object:
    for parse_literal in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return parse_literal(text)
    return None


def _parse_values(texts: Sequence[str]) -> tuple[float, ...]:
    for text in texts:
        if not DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
            raise LineError(
                f"{text[:40]!r} is not a number: expected `path value`, with as many "
                "numbers as the model is to predict (config.loss.kind=mse)"
            )
    if not texts:
        raise LineError("the value is missing: expected `path value`")
    return tuple(map(float, texts))


def _parse_label(text: str) -> int | str:
    if WHOLE_NUMBER.fullmatch(text) and int(text) >= 0:
        return int(text)
    if not text or DECIMAL.fullmatch(text):
        raise not_a_label(text)
    if text[0] == "[" and not _TEMPLATE.match(text):
        raise not_a_label(text, 'Several labels are a list: [1, 2] or ["run", "jump"]')
    return text


def not_a_label(text: str, remedy: str = "") -> LineError:
    """Returns an error about a column that is no label, and what else it may be."""
    if DECIMAL.fullmatch(text) and "." in text:
        remedy = (
            "For numbers to predict (regression), set config.loss.kind=mse, or --values"
        )
    return LineError(
        f"{text[:40]!r} is not a label: expected a whole number from 0 up, or the name "
        f"of a class, after the path.{remedy and f' {remedy}.'} If it belongs to the "
        "path, put the path in quotes"
    )


def too_many_columns(columns: Sequence[str], part: str = "") -> LineError:
    """Returns an error about columns whose meaning is not known.

    `part` is the header with which they are a part of a video.
    """
    headers = {3: "path,start,total,label or path,start_seconds,end_seconds,label"}
    part = part or headers.get(len(columns), "")
    advice = f"; if they are a part of a video, begin the list with a line {part}"
    return LineError(
        f"{1 + len(columns)} columns, expected `path label` or, for folders of images, "
        "`folder start total` or `folder total label`. Several labels: "
        f"{SEVERAL_LABELS}. If the numbers belong to the path, put it in quotes"
        f"{advice if part else ''}"
    )


def resolve(
    found: Sequence[Labels],
    label_kind: LabelKind,
    *,
    class_names: Sequence | None = None,
    error: Callable[[int, str], RecordError],
) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Returns the labels of all videos of a source as numbers, and their names.

    Args:
        found: the labels of each, as written. Names of UNUSED labels are left out.
        label_kind: what the labels mean; those of HEADS have names for each head.
        class_names: the names of all classes in order; for HEADS, those of each head.
            By default the names that occur, sorted.
        error: makes an error about a video, by its index.

    Raises:
        RecordError: a name is none of the classes, or both names and numbers occur.
    """
    heads = label_kind is LabelKind.HEADS
    if label_kind is LabelKind.UNUSED:
        found = [() if _has_names(own) else own for own in found]
    if class_names is None:
        class_names = ()
    elif not heads:
        class_names = [class_names]
    numbers: list[dict[str, int]] = []  # of each head, or of all labels
    for head in range(max(map(len, found), default=0) if heads else 1):
        column = [own[head : head + 1] if heads else own for own in found]
        names = {x for own in column for x in own if isinstance(x, str)}
        if names:
            _check_mixture(column, error)
        known = class_names[head] if head < len(class_names) else sorted(names)
        numbers.append({name: number for number, name in enumerate(known)})
    resolved = []
    for index, own in enumerate(found):
        if len(own) < 2 and not _has_names(own):
            resolved.append((own, ()))
            continue
        try:
            pairs = [
                (_number(label, numbers[head if heads else 0]), label)
                for head, label in enumerate(own)
            ]
        except LineError as reason:
            raise error(index, str(reason)) from None
        if not heads and len(pairs) > 1:
            pairs = sorted(set(pairs))
        names = tuple(str(name) for _, name in pairs) if _has_names(own) else ()
        resolved.append((tuple(number for number, _ in pairs), names))
    return resolved


def _has_names(own: Labels) -> bool:
    return any(isinstance(label, str) for label in own)


def _check_mixture(
    column: Sequence[Labels], error: Callable[[int, str], RecordError]
) -> None:
    """Raises if numbers and names occur, at the first label that differs."""
    first: int | str | None = None
    for index, own in enumerate(column):
        for label in own:
            first = label if first is None else first
            if isinstance(label, str) and isinstance(first, int):
                raise error(index, str(not_a_label(label)))
            if isinstance(label, int) and isinstance(first, str):
                raise error(
                    index,
                    f"the label {label} is a number, but earlier ones, such as "
                    f"{first!r}, are names of classes: use one of the two",
                )


def _number(label: int | str, numbers: Mapping[str, int]) -> int:
    if isinstance(label, int):
        return label
    if label in numbers:
        return numbers[label]
    hint = nearest(label, numbers, shown=repr)
    raise LineError(
        f"{label[:40]!r} is none of the {len(numbers)} classes{hint}: correct it, "
        "or add it to the names in config.data.labels or --labels. Without these, the "
        "training list names the classes"
    )


def class_names(
    records: Sequence[Record],
    source: str,
    label_file: str = "",
    num_classes: int | None = None,
) -> list[str]:
    """Returns the name of each class, by label.

    Args:
        records: the training videos, with labels.
        source: the source of the videos, for messages.
        label_file: see `read`. Without it, the names are those that the source gives,
            or the folders of the videos if each class has its own folder; otherwise,
            each label is its own name.
        num_classes: the number of classes; by default, the number of lines of the label
            file or, without it, the highest label plus one.

    Raises:
        RecordError: label file, `num_classes` and labels do not agree.
    """
    if label_file:
        names = read(label_file)
        if num_classes not in (None, len(names)):
            raise RecordError(
                f"config.data.num_classes={num_classes}, but {label_file} names "
                f"{len(names)} classes: unset config.data.num_classes, or correct it"
            )
    else:
        if num_classes is None:
            num_classes = 1 + max(max(x.labels, default=0) for x in records)
        given = {
            label: name
            for record in records
            for label, name in zip(record.labels, record.label_names, strict=False)
        }
        names = [given.get(label, str(label)) for label in range(num_classes)]
        if not given:
            names = _folder_names(records, num_classes)
    check(records, source, len(names))
    return names


def check(records: Sequence[Record], source: str, num_classes: int) -> None:
    """Raises RecordError unless all labels are classes; names the first other video."""
    for record in records:
        highest = max(record.labels, default=0)
        if highest >= num_classes:
            raise RecordError(
                f"{source}: {record.id} has label {highest}, but with {num_classes} "
                f"classes labels must be 0 to {num_classes - 1}. Correct the list "
                "(labels start at 0), or set config.data.num_classes or "
                "config.data.labels"
            )


def of_head(records: Sequence[Record], head: int) -> list[Record]:
    """Returns records of LabelKind.HEADS with the class of one head only."""
    return [
        dataclasses.replace(
            record,
            labels=record.labels[head : head + 1],
            label_names=record.label_names[head : head + 1],
        )
        for record in records
    ]


def check_heads(records: Sequence[Record], source: str, num_heads: int) -> None:
    """Raises RecordError unless all videos have a class for each head."""
    for record in records:
        if len(record.labels) != num_heads:
            raise RecordError(
                f"{source}: {record.id} has {len(record.labels)} labels, but "
                f"config.data.heads names {num_heads} heads, with a label column each"
            )


def value_names(
    records: Sequence[Record],
    source: str,
    label_file: str = "",
    num_values: int | None = None,
) -> list[str]:
    """Returns the name of each value of LabelKind.VALUES.

    Args:
        records: the training videos, with values.
        source: the source of the videos, for messages.
        label_file: see `read`. Without it, the names are those of the list's columns,
            or "value", or "value 0", "value 1".
        num_values: their number, if it is set: config.data.num_classes.

    Raises:
        RecordError: label file, `num_values` and videos do not agree.
    """
    count = len(records[0].values)
    check_values(records, source, count)
    if num_values not in (None, count):
        raise RecordError(
            f"config.data.num_classes={num_values}, but the videos of {source} have "
            f"{count} values each: unset config.data.num_classes, or correct it"
        )
    if not label_file and records[0].value_names:
        return list(records[0].value_names)
    if not label_file:
        return ["value"] if count == 1 else [f"value {i}" for i in range(count)]
    names = read(label_file)
    if len(names) != count:
        raise RecordError(
            f"{label_file} names {len(names)} values, but the videos of {source} have "
            f"{count} each: correct config.data.labels, or leave it empty"
        )
    return names


def check_values(records: Sequence[Record], source: str, num_values: int) -> None:
    """Raises RecordError unless all videos have this number of finite values."""
    for record in records:
        if len(record.values) != num_values:
            raise RecordError(
                f"{source}: {record.id} has {len(record.values)} values, expected "
                f"{num_values} columns of numbers after the path, as for other videos"
            )
        if not all(map(math.isfinite, record.values)):
            raise RecordError(
                f"{source}: {record.id} has the values {record.values}, but they must "
                "be finite: remove the video, or correct the list"
            )


def counts(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Returns the number of videos of each class, int64 [num_classes]."""
    labels = [label for record in records for label in record.labels]
    return np.bincount(labels, minlength=num_classes)


def to_array(records: Sequence[Record], label_kind: LabelKind) -> np.ndarray | None:
    """Returns the labels in the form that batches hold.

    Returns:
        int32 [records] for LabelKind.ONE; int32 [records, K] for MANY, where K is the
        most labels of a record, padded with -1; int32 [records, heads] for HEADS;
        float64 [records, values] for VALUES; otherwise, None.
    """
    if label_kind is LabelKind.HEADS:
        return np.array([record.labels for record in records], np.int32)
    if label_kind is LabelKind.VALUES:
        return np.array([record.values for record in records], np.float64)
    if label_kind is LabelKind.ONE:
        return np.array([record.labels[0] for record in records], np.int32)
    if label_kind is not LabelKind.MANY:
        return None
    most = max(len(record.labels) for record in records)
    array = np.full((len(records), most), -1, np.int32)
    for row, record in zip(array, records, strict=True):
        row[: len(record.labels)] = record.labels
    return array


def multi_hot(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Returns which labels each record has, bool [records, num_classes]."""
    hot = np.zeros((len(records), num_classes), bool)
    for row, record in zip(hot, records, strict=True):
        row[list(record.labels)] = True
    return hot


def read(label_file: str) -> list[str]:
    """Returns class names: one per line of a text file, or those of digits:labels.

    Raises:
        RecordError: the file is missing, or a name is empty or occurs twice.
    """
    if label_file == "digits:labels":
        # Imported here: it brings in fonts and an encoder, which workers do not need.
        from videomae_jax.data import digits

        return list(digits.DIRECTIONS)
    path = pathlib.Path(label_file).expanduser()
    if not path.is_file():
        raise RecordError(
            f"config.data.labels or --labels: file not found: {label_file!r}; expected "
            "a text file with one class name per line, beginning with label 0"
        )
    names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names) or len(set(names)) < len(names):
        raise RecordError(
            f"{label_file}: class names must not be empty or occur twice, got "
            f"{len(names)} lines, {len(set(names))} of them distinct"
        )
    return names


def _folder_names(records: Sequence[Record], num_classes: int) -> list[str]:
    pairs = {
        (label, os.path.basename(os.path.dirname(record.path)))
        for record in records
        for label in record.labels
    }
    names = dict(pairs)
    # Otherwise, a class has several folders, or a folder several classes.
    if not len(pairs) == len(names) == len(set(names.values())) > 1:
        names = {}
    return [names.get(label, str(label)) for label in range(num_classes)]
