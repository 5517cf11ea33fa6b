"""The classes of a labelled data set: their number, names and frequencies."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record


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
        label_file: see `read`. Without it, the folders of the videos give the names if
            each class has its own folder; otherwise, each label is its own name.
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


def counts(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Returns the number of videos of each class, int64 [num_classes]."""
    labels = [label for record in records for label in record.labels]
    return np.bincount(labels, minlength=num_classes)


def to_array(records: Sequence[Record], label_kind: LabelKind) -> np.ndarray | None:
    """Returns the labels in the form that batches hold.

    Returns:
        int32 [records] for LabelKind.ONE; int32 [records, K] for MANY, where K is the
        most labels of a record, padded with -1; otherwise, None.
    """
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
