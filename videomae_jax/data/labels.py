"""The classes of a labelled data set: how many, and what they are called."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from videomae_jax.data import digits
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record


def class_names(
    records: Sequence[Record],
    source: str,
    label_file: str = "",
    num_classes: int | None = None,
) -> list[str]:
    """The name of each class, by label.

    Args:
        records: the training videos, with labels.
        source: where they come from, for messages.
        label_file: text file with a class name a line, that of label 0 first, or
            digits:labels. Without it, the videos' folders give the names if each class
            has one of its own; otherwise labels are their own names.
        num_classes: how many classes there are; by default as many as the label file
            has lines or, without it, as the highest label asks for.

    Raises:
        RecordError: if file, number and labels do not agree.
    """
    if label_file:
        names = read(label_file)
        if num_classes not in (None, len(names)):
            raise RecordError(
                f"config.data.num_classes is {num_classes}, but {label_file} names "
                f"{len(names)} classes: leave config.data.num_classes out, or mend it"
            )
    else:
        highest = max(max(record.labels, default=0) for record in records)
        num_classes = highest + 1 if num_classes is None else num_classes
        names = _folder_names(records, num_classes)
    check(records, source, len(names))
    return names


def check(records: Sequence[Record], source: str, num_classes: int) -> None:
    """Looks for labels that are no class.

    Raises:
        RecordError: naming the first video of such a label.
    """
    for record in records:
        highest = max(record.labels, default=0)
        if highest >= num_classes:
            raise RecordError(
                f"{source}: {record.id} has label {highest}, but with "
                f"{num_classes} classes labels are 0 to {num_classes - 1}. Mend the "
                "list (labels start at 0), or set config.data.num_classes or "
                "config.data.labels"
            )


def counts(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Videos of each class, int64 [num_classes]."""
    found = [label for record in records for label in record.labels]
    return np.bincount(found, minlength=num_classes)


def to_array(records: Sequence[Record], label_kind: LabelKind) -> np.ndarray | None:
    """Returns the labels of records, in the form that batches hold.

    Returns:
        int32 [records] for LabelKind.ONE; [records, K] for MANY, where K is the most
        labels of a record and -1 fills the rows; otherwise None.
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
    """Which labels each record has, bool [records, num_classes]."""
    hot = np.zeros((len(records), num_classes), bool)
    for row, record in zip(hot, records, strict=True):
        row[list(record.labels)] = True
    return hot


def read(label_file: str) -> list[str]:
    """Reads class names, one a line, that of label 0 first, or digits:labels.

    Raises:
        RecordError: if there is no such file, or a name is empty or occurs twice.
    """
    if label_file == "digits:labels":
        return list(digits.DIRECTIONS)
    path = pathlib.Path(label_file).expanduser()
    if not path.is_file():
        raise RecordError(
            f"config.data.labels or --labels: there is no file {label_file!r}; a "
            "text file with a class name a line is wanted, that of label 0 first"
        )
    names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names) or len(set(names)) < len(names):
        raise RecordError(
            f"{label_file}: class names must not be empty or occur twice; there are "
            f"{len(names)} lines, {len(set(names))} of them different"
        )
    return names


def _folder_names(records: Sequence[Record], num_classes: int) -> list[str]:
    folders: dict[int, set[str]] = {}
    for record in records:
        folder = os.path.basename(os.path.dirname(record.path))
        for label in record.labels:
            folders.setdefault(label, set()).add(folder)
    names = [str(label) for label in range(num_classes)]
    if all(len(found) == 1 for found in folders.values()):
        by_label = {label: next(iter(found)) for label, found in folders.items()}
        if len(set(by_label.values())) == len(by_label) > 1:
            for label in by_label.keys() & set(range(num_classes)):
                names[label] = by_label[label]
    return names
