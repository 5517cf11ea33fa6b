"""Metrics of detections as a table, as JSON and as a picture."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from videomae_jax.evaluation.detection import ClassMetrics, DetectionMetrics
from videomae_jax.evaluation.pictures import tick_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND = 12  # classes


def as_json(metrics: DetectionMetrics) -> dict[str, Any]:
    """Returns the metrics as JSON values, in [0, 1]; null where there are none."""
    return {
        "mAP": metrics.mean_ap,
        "tie_range": list(metrics.tie_range),
        "per_class": {x: y.average_precision for x, y in metrics.classes.items()},
        "by_size": {x: dataclasses.asdict(y) for x, y in metrics.sizes.items()},
        "counts": {
            "key_frames": metrics.key_frames,
            "ground_truth": metrics.ground_truth,
            "detections": metrics.detections,
            "left_out": metrics.left_out,
        },
    }


def as_table(metrics: DetectionMetrics, names: Mapping[int, str]) -> list[str]:
    """Returns lines: a header and a row for each class, then for each size of boxes.

    Args:
        metrics: the metrics.
        names: of the classes, by id.
    """
    ids = list(metrics.classes)
    shown = [tick_text(names.get(label, "")) for label in ids]
    width = max(map(len, ["class", *shown]))
    lines = [
        f"{'id':>5}  {'class':{width}}  {'AP':>6}  {'boxes':>7}  {'detections':>10}"
    ]
    for label, name in zip(ids, shown, strict=True):
        x = metrics.classes[label]
        lines.append(
            f"{label:>5}  {name:{width}}  {_percent(x.average_precision):>6}  "
            f"{x.ground_truth:>7}  {x.detections:>10}"
        )
    for name, size in metrics.sizes.items():
        if not size.ground_truth:
            continue
        lines.append(
            f"{name} boxes (area up to {size.largest_area:.3g}): mAP "
            f"{_percent(size.mean_ap)}, {100 * size.recall:.2f} % of "
            f"{size.ground_truth} found"
        )
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def plot(metrics: DetectionMetrics, names: Mapping[int, str]) -> "Figure":
    """Draws the AP of each class, precision over recall, and the metrics by size.

    Arguments are those of `as_table`. Needs matplotlib.
    """
    # Imported here: evaluation does without. No pyplot: its state is global.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawn = {
        label: x
        for label, x in metrics.classes.items()
        if x.average_precision is not None
    }
    ranked = sorted(drawn, key=lambda label: drawn[label].average_precision or 0)
    colours = dict(
        zip(ranked, colormaps["viridis"](np.linspace(0, 0.9, len(ranked))), strict=True)
    )
    shown = {x: tick_text(names.get(x, "")) or str(x) for x in ranked}
    height = min(max(0.18 * len(ranked), 4.5), 20)
    figure = Figure(figsize=(15, height), dpi=100, layout="constrained")
    figure.suptitle(f"mAP {100 * metrics.mean_ap:.2f} % of {len(ranked)} classes")
    bars, curves, sizes = figure.subplots(1, 3, width_ratios=(1.2, 1.5, 0.8))

    values = [100 * (drawn[x].average_precision or 0) for x in ranked]
    bars.barh(range(len(ranked)), values, color=[colours[x] for x in ranked])
    text = {"fontsize": min(10, 55 * height / len(ranked)), "parse_math": False}
    bars.set_yticks(range(len(ranked)), list(shown.values()), **text)
    bars.set(xlabel="average precision (%)", xlim=(0, 100), ylim=(-1, len(ranked)))

    for label in reversed(ranked):
        recall, precision = _curve(drawn[label])
        curves.step(
            recall, precision, where="pre", color=colours[label], label=shown[label]
        )
    curves.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal"
    )
    if len(ranked) <= _LEGEND:
        legend = curves.legend(fontsize="small")
        for entry in legend.get_texts():
            entry.set_parse_math(False)

    at = np.arange(len(metrics.sizes))
    rows = {
        "mAP": [100 * (x.mean_ap or 0) for x in metrics.sizes.values()],
        "found at any score": [100 * x.recall for x in metrics.sizes.values()],
    }
    for offset, (name, row) in zip((-0.2, 0.2), rows.items(), strict=True):
        sizes.bar(at + offset, row, width=0.4, label=name)
    ticks = [f"{n}\n({x.ground_truth})" for n, x in metrics.sizes.items()]
    sizes.set_xticks(at, ticks)
    sizes.set(xlabel="size of the true boxes (number)", ylabel="%", ylim=(0, 100))
    sizes.legend(fontsize="small")
    for axes in (bars, curves, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(one: ClassMetrics) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision of steps whose area is the average precision."""
    recall = np.arange(len(one.precision) + 1) / one.ground_truth
    return np.append(recall, recall[-1]), np.concatenate(
        [one.precision[:1] if len(one.precision) else [0], one.precision, [0]]
    )
