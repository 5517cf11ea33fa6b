"""Files of a test: predictions, metrics, a table of the classes, the confusion."""

import csv
import importlib.util
import json
import math
import os
import pathlib
import pickle
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from videomae_jax.errors import ConfigError
from videomae_jax.evaluation import metrics, pictures
from videomae_jax.evaluation.metrics import Predictions
from videomae_jax.evaluation.regression import PredictedValues
from videomae_jax.files import PARTIAL_SUFFIX, atomic_path, atomic_write, json_line
from videomae_jax.video.record import LabelKind, labels_to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to how many classes cells hold their counts, and sides have the names of classes.
_COUNTED_CLASSES, _NAMED_CLASSES = 25, 120


def write(
    predictions: Predictions | PredictedValues,
    folder: str | os.PathLike,
    *,
    step: int,
    top_k: int = 5,
) -> None:
    """Writes a test as files to read and to plot from.

    - predictions.jsonl: a row for each readable video, in data-set order: id, label,
      label_name, top_k [[class name, probability], ...] and the probabilities of all
      classes, to 6 decimals. With several heads, each of these is an object with the
      names of the heads. Where a video may have several labels: id, labels and
      probabilities. Of a regression: id, targets and values, objects with the names of
      the values.
    - unreadable.jsonl: id, label (labels, targets) and reason of each of the others.
    - per_class.csv: for each class its name, label and readable videos, and in percent,
      empty without videos: top1, top5 (of more than 5 classes) and the class that its
      videos were most often wrongly predicted as, or average_precision. With several
      heads, the first column is the head. Not for a regression.
    - confusion.png: `plot_confusion`, of each head confusion_<head>.png; not for
      several labels or a regression.
    - metrics.json: the step of training and the metrics. It is written last: if it
      exists, the other files are complete.

    Each file is replaced atomically. The folder is created if needed.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):  # of a test that was killed
        partial.unlink(missing_ok=True)
    with atomic_write(folder / "predictions.jsonl") as file:
        file.writelines(map(json_line, _rows(predictions, top_k)))
        # Those of an earlier test must not stand beside this one's, if it is killed.
        (folder / "metrics.json").unlink(missing_ok=True)
    with atomic_write(folder / "unreadable.jsonl") as file:
        for name, (labels, reason) in predictions.unreadable.items():
            row = {"id": name, **_label_field(predictions, labels), "reason": reason}
            file.write(json_line(row))
    if isinstance(predictions, Predictions):
        _write_classes(predictions, folder)
    with atomic_write(folder / "metrics.json") as file:
        values = {"step": step} | predictions.metrics
        file.write(json.dumps(values, indent=2) + "\n")


def _label_field(
    predictions: Predictions | PredictedValues, labels: Sequence
) -> dict[str, Any]:
    """Returns the field of a row that holds the labels of a video."""
    if isinstance(predictions, PredictedValues):
        return {"targets": dict(zip(predictions.names, labels, strict=True))}
    if predictions.heads:
        heads = [name for name, _ in predictions.heads]
        return {"label": dict(zip(heads, labels, strict=True))}
    if predictions.is_multi_label:
        return {"labels": labels_to_json(tuple(labels), multi_label=True)}
    return {"label": labels_to_json(tuple(labels), multi_label=False)}


def _rows(
    predictions: Predictions | PredictedValues, top_k: int
) -> Iterator[dict[str, Any]]:
    """Yields the rows of predictions.jsonl."""
    if isinstance(predictions, PredictedValues):
        names = predictions.names
        stds = predictions.std or (1.0,) * len(names)
        for name, targets, values in zip(
            predictions.ids,
            predictions.targets.tolist(),
            predictions.values,
            strict=True,
        ):
            rounded = map(_rounded, values.tolist(), stds)
            row = {"id": name, **_label_field(predictions, targets)}
            yield row | {"values": dict(zip(names, rounded, strict=True))}
    elif predictions.heads:
        parts = predictions.by_head()
        rows_of_heads = [_rows(part, top_k) for part in parts.values()]
        for rows in zip(*rows_of_heads, strict=True):
            row = {"id": rows[0].pop("id")}
            for field in rows[0]:
                row[field] = {
                    head: row_of_head[field]
                    for head, row_of_head in zip(parts, rows, strict=True)
                }
            yield row
    else:
        yield from _class_rows(predictions, top_k)


def _rounded(value: float, std: float) -> float:
    """Returns a predicted value to as many digits as float32 can be exact.

    That is nine, or those of a millionth of the values' standard deviation.
    """
    digits = 6 - math.floor(math.log10(std))
    if value:
        digits = max(digits, 8 - math.floor(math.log10(abs(value))))
    return round(value, digits)


def _write_classes(predictions: Predictions, folder: pathlib.Path) -> None:
    """Writes per_class.csv and confusion.png."""
    with (
        atomic_path(folder / "per_class.csv") as path,
        # Class names may be names of folders, which need not be valid text.
        path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(_class_table(predictions))
    if predictions.is_multi_label:
        return
    parts = predictions.by_head() if predictions.heads else {"": predictions}
    for head, part in parts.items():
        figure = plot_confusion(metrics.confusion_matrix(part), part.class_names)
        name = f"confusion_{head}.png" if head else "confusion.png"
        pictures.save(folder / name, figure)


def _class_rows(predictions: Predictions, top_k: int) -> Iterator[dict[str, Any]]:
    names = predictions.class_names
    for name, label, values in zip(
        predictions.ids, predictions.labels, predictions.probabilities, strict=True
    ):
        rounded = [round(float(value), 6) for value in values]
        if predictions.is_multi_label:
            labels = np.flatnonzero(label).tolist()
            row = {"id": name, **_label_field(predictions, labels)}
        else:
            best = np.argsort(-values, kind="stable")[:top_k]
            row = {"id": name, "label": int(label), "label_name": names[label]}
            row["top_k"] = [[names[index], rounded[index]] for index in best]
        yield row | {"probabilities": rounded}


def _class_table(predictions: Predictions) -> Iterator[list]:
    """Yields the header and the rows of per_class.csv."""
    for head, part in predictions.by_head().items():
        header, *rows = _class_table(part)
        if head == predictions.heads[0][0]:
            yield ["head", *header]
        yield from ([head, *row] for row in rows)
    if predictions.heads:
        return
    names, labels = predictions.class_names, predictions.labels
    if predictions.is_multi_label:
        videos = labels.sum(axis=0)
        precisions = metrics.average_precisions(predictions)
        columns = {"average_precision": _percent_texts(100 * precisions)}
    else:
        videos = np.bincount(labels, minlength=len(names))
        columns = {}
        for k in (1, 5):
            hits = np.bincount(labels, metrics.is_correct(predictions, k), len(names))
            percent = 100 * hits / np.where(videos, videos, np.nan)
            if k > 1 and len(names) <= k:
                percent[:] = np.nan
            columns[f"top{k}"] = _percent_texts(percent)
        wrong = metrics.confusion_matrix(predictions)
        np.fill_diagonal(wrong, 0)
        columns["most_confused_with"] = [
            names[row.argmax()] if row.any() else "" for row in wrong
        ]
    yield ["class", "label", "videos", *columns]
    rows = zip(names, videos.tolist(), *columns.values(), strict=True)
    for label, (name, count, *values) in enumerate(rows):
        yield [name, label, count, *values]


def _percent_texts(values: np.ndarray) -> list[str]:
    """Formats percentages; NaN becomes an empty field."""
    return ["" if np.isnan(value) else f"{value:.2f}" for value in values]


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix as a heat map: dark where much of a row is.

    Up to 25 classes, cells hold the numbers of videos, except 0. Up to 120, rows and
    columns have the names of their classes, shortened if long; beyond that, some have
    their labels. Rows of classes without videos are grey. The matrix is as from
    `metrics.confusion_matrix`.
    """
    # Imported here, because training does without. No pyplot: its state is global.
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    size, totals = len(matrix), matrix.sum(axis=1)
    side = min(max(0.4 * size, 3.5), 13)  # of the cells, inches
    # However many classes there are, a cell takes 2.5 pixels or more.
    dpi = max(100, 2.5 * size / side)
    figure = Figure(figsize=(side + 3, side + 2), dpi=dpi, layout="constrained")
    axes = figure.add_subplot(
        xlabel="predicted class", ylabel="true class", facecolor="lightgrey"
    )
    shares = np.ma.masked_array(matrix / np.maximum(totals, 1)[:, None])
    shares[totals == 0] = np.ma.masked
    # The square root makes rare confusions stand out.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(
        image,
        label="share of the true class's videos",
        format=PercentFormatter(xmax=1),
        fraction=0.04,
        aspect=30,
    )
    if size <= _NAMED_CLASSES:
        font_size = min(10, 0.8 * 72 * side / size)
        names = [pictures.tick_text(name) for name in class_names]
        text = {"fontsize": font_size, "parse_math": False}
        axes.set_xticks(range(size), names, rotation=90, **text)
        axes.set_yticks(range(size), names, **text)
        edges = np.arange(size + 1) - 0.5
        axes.hlines(edges, -0.5, size - 0.5, colors="lightgrey", linewidth=0.5)
        axes.vlines(edges, -0.5, size - 0.5, colors="lightgrey", linewidth=0.5)
    if size <= _COUNTED_CLASSES:
        font_size = min(9, 42 / len(str(matrix.max())))  # long numbers must fit
        text = {"ha": "center", "va": "center", "fontsize": font_size}
        for row, column in np.argwhere(matrix):
            colour = "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, str(matrix[row, column]), color=colour, **text)
    return figure


def check_dump(path: str, label_kind: LabelKind) -> None:
    """Checks that `write_mmaction_dump` will work: now, not after hours of testing.

    The path is config.evaluation.dump: empty for none.

    Raises:
        ConfigError: if videos have anything but one label, or PyTorch is not installed.
    """
    if not path:
        return
    if label_kind is not LabelKind.ONE:
        means = {
            LabelKind.MANY: "config.loss.kind=sigmoid means several",
            LabelKind.HEADS: "config.data.heads means several",
            LabelKind.VALUES: "config.loss.kind=mse means values",
        }
        raise ConfigError(
            f"config.evaluation.dump={path!r} needs one label a video, but "
            f"{means[label_kind]}. Leave it empty"
        )
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"config.evaluation.dump={path!r} needs PyTorch, which is not installed: "
            "pip install torch"
        )


def write_mmaction_dump(predictions: Predictions, path: str | os.PathLike) -> None:
    """Writes predictions as MMAction2's `--dump` does, for its eval_metric.py to read.

    The file is a pickled list with a dict for each video, in data-set order: gt_label
    (torch.LongTensor [1]), pred_score (torch.FloatTensor [C]) and pred_label
    (torch.LongTensor [1]). It holds no ids, and unreadable videos are left out: with
    any of them, it does not fit dumps of the whole set. Needs PyTorch, and predictions
    of one label a video. An existing file is replaced.
    """
    import torch

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = predictions.probabilities.argmax(axis=1)
    rows = [
        {
            "gt_label": torch.tensor([int(label)]),
            "pred_score": torch.tensor(scores),
            "pred_label": torch.tensor([int(guess)]),
        }
        for label, scores, guess in zip(
            predictions.labels, predictions.probabilities, predicted, strict=True
        )
    ]
    with atomic_write(path, "wb") as file:
        # Protocol 4 is the newest that Python 3.7 reads, the oldest for MMAction2.
        pickle.dump(rows, file, protocol=4)
