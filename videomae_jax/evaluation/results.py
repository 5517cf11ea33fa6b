"""What an evaluation leaves behind: predictions, metrics, the confusion of classes."""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import pickle
import sys
import types
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from videomae_jax.evaluation.confusion import confusion_picture


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The class probabilities of every video of a set that could be read.

    Attributes:
        ids: a name for each readable video, all different, in data-set order.
        labels: int [n], their classes.
        probabilities: float32 [n, C].
        class_names: a name for each of the C classes.
        unreadable: label and reason for each video that could not be read, by id.

    Raises:
        ValueError: if there is no readable video, an id occurs twice, a probability is
            not finite, or sizes and labels do not agree.
    """

    ids: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: list[str]
    unreadable: dict[str, tuple[int, str]]

    def __post_init__(self):
        """Refuses what cannot be counted."""
        check(self, self.labels.shape + (len(self.class_names),))
        labels = dict(zip(self.ids, self.labels, strict=True))
        labels |= {name: label for name, (label, _) in self.unreadable.items()}
        for name, label in labels.items():
            if not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"{name} has label {label}, but labels are 0 to "
                    f"{len(self.class_names) - 1}"
                )


def check(predictions, labels_shape: tuple[int, ...]) -> None:
    """Raises ValueError for predictions, of one or several labels, that do not fit.

    Args:
        predictions: has ids, probabilities, class_names and unreadable.
        labels_shape: [n, C] if the labels are right.
    """
    ids, unreadable = predictions.ids, predictions.unreadable
    if not ids:
        message = "nothing was evaluated: "
        if unreadable:
            name, (_, reason) = next(iter(unreadable.items()))
            message += (
                f"none of {len(unreadable)} videos could be read; the first, "
                f"{name}: {reason}"
            )
        else:
            message += "there are no videos"
        raise ValueError(message)
    shape = (len(ids), len(predictions.class_names))
    if labels_shape != shape or predictions.probabilities.shape != shape:
        raise ValueError(
            f"for {shape[0]} videos and {shape[1]} classes, labels make up "
            f"{labels_shape} and probabilities {predictions.probabilities.shape}"
        )
    name, times = collections.Counter(ids).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the id {name!r} occurs {times} times; ids must differ")
    for name in ids:
        if name in unreadable:
            raise ValueError(f"{name!r} is both a readable and an unreadable video")
    finite = np.isfinite(predictions.probabilities).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(finite)} videos have probabilities that "
            f"are not finite; the first is {ids[np.argmin(finite)]}"
        )


def metrics(predictions: Predictions) -> dict[str, int | float]:
    """Accuracies in percent, and the numbers of videos that they are of.

    A video is right at k if fewer than k other classes have a probability at least as
    high as its own class: equal probabilities count against the model, so that always
    predicting the same for all classes is not a success.

    Args:
        predictions: of one set.

    Returns:
        videos: how many could be read.
        unreadable: how many could not.
        top1, top5: the share of the readable videos that is right at 1 and at 5 (at C,
            so all of them, with C < 5 classes).
        mean_class: the mean, over the classes of the readable videos, of the share of
            their videos that is right at 1 (MMAction2's mean1).
        top1_counting_unreadable_wrong, top5_counting_unreadable_wrong: as top1 and
            top5, as a share of all videos.
    """
    right = {f"top{k}": _right_at(predictions, k) for k in (1, 5)}
    readable, unreadable = len(predictions.ids), len(predictions.unreadable)
    occurs = np.bincount(predictions.labels)
    recall = np.bincount(predictions.labels, right["top1"])[occurs > 0]
    recall /= occurs[occurs > 0]
    return {
        "videos": readable,
        "unreadable": unreadable,
        **{name: _percent(hits.sum(), readable) for name, hits in right.items()},
        "mean_class": 100 * float(recall.mean()),
        **{
            f"{name}_counting_unreadable_wrong": _percent(
                hits.sum(), readable + unreadable
            )
            for name, hits in right.items()
        },
    }


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """How many videos of each class were taken for which.

    The class that a video was taken for is the most probable one; of equally probable
    ones never its own and else the first, so that the diagonal is what `metrics` calls
    right at 1.

    Args:
        predictions: of one set; unreadable videos are not counted.

    Returns:
        int64 [C, C]: rows are true classes, columns predicted ones.
    """
    videos = np.arange(len(predictions.ids))
    others = predictions.probabilities.copy()
    others[videos, predictions.labels] = -np.inf
    predicted = np.where(
        _right_at(predictions, 1), predictions.labels, others.argmax(axis=1)
    )
    size = len(predictions.class_names)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (predictions.labels, predicted), 1)
    return matrix


def write(
    predictions: Predictions, folder: str | os.PathLike, step: int, top_k: int = 5
) -> None:
    """Writes all that is known of an evaluation as files to read and to draw from.

    - predictions.jsonl: for each readable video, in data-set order, its id, label,
      label_name, top_k [[class name, probability], ...] and the probabilities of all
      classes, to 6 decimals;
    - unreadable.jsonl: id, label and reason of each of the others;
    - per_class.csv: for each class its name, label, readable videos, top1 and top5 in
      percent (empty without videos) and the class its videos were most often wrongly
      taken for;
    - confusion.png: `confusion_picture`;
    - metrics.json: the step and `metrics`; written last, so that where it is, the
      others are.

    Each file appears whole or not at all, and replaces an earlier one.

    Args:
        predictions: of one set.
        folder: where to; made if need be.
        step: steps of training of the model.
        top_k: how many of the most probable classes are named for a video.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matrix = confusion_matrix(predictions)
    with replacing(folder / "predictions.jsonl") as file:
        for row in _rows(predictions, top_k):
            file.write(json_line(row))
    with replacing(folder / "unreadable.jsonl") as file:
        for name, (label, reason) in predictions.unreadable.items():
            file.write(json_line({"id": name, "label": int(label), "reason": reason}))
    with replacing(folder / "per_class.csv") as file:
        # Folder names, which may be class names, need not be valid text.
        file.write(_per_class(predictions, matrix).encode("utf-8", "surrogateescape"))
    with replacing(folder / "confusion.png") as file:
        picture = confusion_picture(matrix, predictions.class_names)
        Image.fromarray(picture).save(file, format="PNG")
    with replacing(folder / "metrics.json") as file:
        values = {"step": step} | metrics(predictions)
        file.write(json.dumps(values, indent=2).encode() + b"\n")


def write_mmaction_dump(predictions: Predictions, path: str | os.PathLike) -> None:
    """Writes what MMAction2's `--dump` does, for its eval_metric.py to read.

    That is a pickled list with a dict for each video, in data-set order: gt_label
    (torch.LongTensor [1]), pred_score (torch.FloatTensor [C]) and pred_label
    (torch.LongTensor [1]). It has no ids, so with unreadable videos, which are left
    out, it does not fit dumps that have them. Reading it needs PyTorch; writing does
    not.

    Args:
        predictions: of one set.
        path: the file, *.pkl by custom; replaced if it is there.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = predictions.probabilities.argmax(axis=1)
    rows = [
        {
            "gt_label": _Tensor(np.array([label], "<i8")),
            "pred_score": _Tensor(scores.astype("<f4")),
            "pred_label": _Tensor(np.array([guess], "<i8")),
        }
        for label, scores, guess in zip(
            predictions.labels, predictions.probabilities, predicted, strict=True
        )
    ]
    with replacing(path) as file, _torch_stand_in():
        # Protocol 4 is the newest that Python 3.7 reads, MMAction2's oldest.
        pickle.dump(rows, file, protocol=4)


def _right_at(predictions: Predictions, k: int) -> np.ndarray:
    """Whether each video is right at k, as `metrics` defines it; bool [n]."""
    values = predictions.probabilities
    own = np.take_along_axis(values, predictions.labels[:, None], axis=1)
    others_ahead = np.sum(values >= own, axis=1) - 1
    return others_ahead < min(k, values.shape[1])


def _percent(part: int, whole: int) -> float:
    return 100 * float(part) / float(whole)


def _rows(predictions: Predictions, top_k: int) -> Iterator[dict]:
    names = predictions.class_names
    for name, label, values in zip(
        predictions.ids, predictions.labels, predictions.probabilities, strict=True
    ):
        rounded = [round(float(value), 6) for value in values]
        best = np.argsort(-values, kind="stable")[:top_k]
        yield {
            "id": name,
            "label": int(label),
            "label_name": names[label],
            "top_k": [[names[place], rounded[place]] for place in best],
            "probabilities": rounded,
        }


def _per_class(predictions: Predictions, matrix: np.ndarray) -> str:
    names = predictions.class_names
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "label", "videos", "top1", "top5", "most_confused_with"])
    right = {k: _right_at(predictions, k) for k in (1, 5)}
    for label, name in enumerate(names):
        of_class = predictions.labels == label
        videos = int(of_class.sum())
        shares = [
            f"{_percent(hits[of_class].sum(), videos):.2f}" if videos else ""
            for hits in right.values()
        ]
        wrong = matrix[label].copy()
        wrong[label] = 0
        confused_with = names[wrong.argmax()] if wrong.any() else ""
        rows.writerow([name, label, videos, *shares, confused_with])
    return text.getvalue()


def json_line(row: dict) -> bytes:
    """A line of a .jsonl file; ValueError if a number is not finite."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write that takes path's place if nothing goes wrong."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Tensor:
    """An array that is read back from a pickle as a PyTorch tensor."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __reduce__(self):
        return sys.modules["torch"].from_numpy, (_Buffer(self._array),)


class _Buffer:
    """An array [n] that any version of NumPy reads from a pickle, to write to.

    An array itself is pickled by NumPy 2 under names that NumPy before 1.26 has not.
    """

    def __init__(self, array: np.ndarray):
        self._array = array

    def __reduce__(self):
        return np.frombuffer, (bytearray(self._array), self._array.dtype.str)


@contextlib.contextmanager
def _torch_stand_in() -> Iterator[None]:
    """Lets pickle find a function `torch.from_numpy`, which it only writes by name.

    Pickle looks a function up in sys.modules before it writes the names of module and
    function. The real one, if PyTorch is there at all, is not used, as pickle may find
    a built-in function under other, private names.
    """

    def from_numpy(array):
        raise NotImplementedError("this stands for PyTorch's function of that name")

    from_numpy.__module__, from_numpy.__qualname__ = "torch", "from_numpy"
    stand_in = types.ModuleType("torch")
    stand_in.from_numpy = from_numpy
    # Not mock.patch.dict: it empties sys.modules for a moment, under other threads.
    real = sys.modules.get("torch")
    sys.modules["torch"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torch"]
        if real is not None:
            sys.modules["torch"] = real
