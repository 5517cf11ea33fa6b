"""The picture of what the videos of a list are like."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from videomae_jax.datasets.probe import ProbeResult
from videomae_jax.datasets.report import Checked, LabelStatistics

_BLUE, _RED = "#4c72b0", "#c44e52"


def draw(
    target: pathlib.Path,
    summary: dict[str, Any],
    videos: Sequence[Checked],
    covered: LabelStatistics | None,
) -> None:
    """Draws histograms of what the videos are like; needs matplotlib.

    Args:
        target: the picture's file.
        summary: as from `checking.summarize`.
        videos: what was found out of each.
        covered: of a labelled list, what is known of its classes.
    """
    # Here: --help does without. No pyplot: its windows and state are global.
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    readable = [v.found for v in videos if isinstance(v.found, ProbeResult)]
    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    name = os.path.basename(summary["list"].rstrip("/"))
    name = name.encode(errors="replace").decode()
    statuses = [f"{n:,} {status}" for status, n in summary["statuses"].items() if n]
    figure.suptitle(
        # A dollar sign would begin a formula.
        f"{name}: {summary['videos']:,} videos, {summary['hours']:,.2f} hours\n"
        f"{', '.join(statuses)}".replace("$", r"\$")
    )
    axes = figure.subplots(2, 3)

    def histogram(place, values: Sequence[float], title: str, mark=None) -> None:
        panel = axes[place]
        panel.set_title(title, fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylabel("videos")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        values = np.array([value for value in values if value], float)
        if not len(values):
            panel.text(0.5, 0.5, "none", ha="center", transform=panel.transAxes)
            panel.set(xticks=[], yticks=[])
            return
        low, high = values.min(), values.max()
        if mark is not None:
            low, high = min(low, mark), max(high, mark)
        # What spans decades is seen on a logarithmic axis only.
        wide = high > 20 * low
        low, high = (low / 1.2, high * 1.2) if wide else (0, high * 1.1)
        edges = (np.geomspace if wide else np.linspace)(low, high, 41)
        panel.hist(values, edges, color=_BLUE)
        panel.set_xscale("log" if wide else "linear")
        panel.xaxis.set_major_formatter("{x:,g}")
        panel.set_xlim(low, high)
        if mark is not None:
            panel.axvline(mark, color=_RED, linestyle="--", linewidth=1)

    span = summary["clip_span"]
    histogram(
        (0, 0),
        [f.num_frames for f in readable],
        f"frames (dashed: a clip, {span})",
        span,
    )
    histogram((0, 1), [found.seconds for found in readable], "seconds")
    histogram((0, 2), [min(f.width, f.height) for f in readable], "short side (pixels)")
    histogram((1, 0), [(video.size or 0) / 1e6 for video in videos], "file size (MB)")
    histogram(
        (1, 1), [found.keyframe_interval for found in readable], "frames per keyframe"
    )
    if covered:
        histogram((1, 2), list(covered.counts.values()), "videos of a class")
        axes[1, 2].set_ylabel("classes")
    else:
        histogram((1, 2), [found.fps for found in readable], "frames per second")
    figure.savefig(target)
