"""Classifies sliding windows of a long video: which action happens when."""

import dataclasses
import itertools
import os
import textwrap
from typing import Any

import numpy as np

from videomae_jax.data import augmentation
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.files import writing
from videomae_jax.inference import inputs, predict
from videomae_jax.inference.windows import read_windows
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.video.open import Source, video_name


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video in which one class is the most probable."""

    start: float  # seconds
    end: float
    label: str
    probability: float  # the mean over the windows of the segment


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Class probabilities of the windows of a video.

    Attributes:
        times: float64 [W, 2], start and end of each window in seconds, increasing.
        probabilities: float32 [W, C].
        labels: C names.
        cuts: float64 [W - 1], where one window's part of the video ends and the next
            one's begins, in seconds; by default half-way between their centres.
    """

    times: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]
    cuts: np.ndarray | None = None

    @property
    def edges(self) -> np.ndarray:
        """Returns the times that separate windows, in seconds, float64 [W + 1]."""
        cuts = _between_centers(self.times) if self.cuts is None else self.cuts
        return np.concatenate([self.times[:1, 0], cuts, self.times[-1:, 1]])

    def segments(self) -> list[Segment]:
        """Joins neighbouring windows of the same most probable class, without gaps.

        Example:
            >>> times = np.array([[0, 2], [1, 3], [2, 4]], float)
            >>> probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [0, 1]], np.float32)
            >>> timeline = Timeline(times, probabilities, ("run", "jump"))
            >>> for x in timeline.segments():
            ...     print(x.start, x.end, x.label, x.probability)
            0.0 2.5 run 0.625
            2.5 4.0 jump 1.0
        """
        edges = self.edges.tolist()
        return [
            Segment(
                edges[first],
                edges[stop],
                self.labels[best],
                float(self.probabilities[first:stop, best].mean()),
            )
            for first, stop, best in self.runs()
        ]

    def runs(self) -> list[tuple[int, int, int]]:
        """Returns (first window, stop, most probable class) of each segment."""
        best = self.probabilities.argmax(axis=1).tolist()
        cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
        return [(first, stop, best[first]) for first, stop in itertools.pairwise(cuts)]


def timeline(
    pretrained: Pretrained,
    video: Source,
    *,
    hop: float = 1.0,
    window: float | None = None,
) -> Any:
    """Classifies windows that slide over a video of any length.

    A window is a central crop of as many frames as the model takes. They are a stride
    apart, counted from the first frame of the video. The last frame of a video shorter
    than a window is repeated. Every frame is decoded about once however much the
    windows overlap. Memory does not grow with the length of the video, apart from the
    compressed file.

    Args:
        pretrained, video: as in `predict`.
        hop: seconds from the start of one window to that of the next, on average:
            windows start at whole strides. The last one ends with the video.
        window: seconds that a window spans; by default num_frames * stride frames of
            the video, as in training. Set it for a model that was trained on frames of
            whole videos (frame_sampling="uniform"), to about the length of those.

    Returns:
        Timeline: one window or more. Times are those of the frames themselves, also if
        the frame rate varies; second 0 is the first frame. Of several heads, a dict of
        such, by the head's name.

    Raises:
        PretrainedError: if the model is not a classifier, but, for example, predicts
            values.
        VideoError: if the video cannot be read, or has no frame rate.
        ValueError: if hop or window is not above 0.

    Example, with `pretrained` as in `predict`:
        >>> timeline(pretrained, "a.mp4", hop=0.5).segments()  # doctest: +SKIP
        [Segment(start=0.0, end=2.5, label='left', probability=0.6), ...]
    """
    predict.classifier(pretrained)  # before anything is read
    if pretrained.problem.is_regression:
        raise PretrainedError(
            f"{pretrained.source or 'the model'} predicts values, but a timeline needs "
            "classes. For values over time, call predict for parts of the video"
        )
    if not hop > 0 or not (window is None or window > 0):
        raise ValueError(f"hop={hop}, window={window}: both must be above 0 seconds")
    preprocessing = pretrained.preprocessing
    num_frames, stride = preprocessing.num_frames, preprocessing.stride
    size = preprocessing.image_size
    with inputs.open_for(pretrained, video) as opened:
        fps, frame_times = opened.fps, opened.frame_times
        if not fps or frame_times is None:
            raise VideoError(
                f"{video_name(video)}: frame rate unknown, so windows of seconds "
                "cannot be placed"
            )
        if window is None:
            frames = np.arange(0, opened.num_frames, stride, dtype=np.int64)
            seconds = frame_times[frames]
        else:
            stride = max(round(window * fps / num_frames), 1)
            step = stride / fps
            # As many as begin before the last frame does, or with it.
            seconds = step * np.arange(int(frame_times[-2] / step + 1e-9) + 1)
            frames = _nearest(seconds, frame_times[:-1])
        positions = _window_positions(seconds, num_frames, hop)
        indices = frames[positions]
        windows = read_windows(
            opened,
            indices,
            size=size,
            crop=lambda frames: augmentation.spatial_crops(
                frames, size, 1, preprocessing.framing
            )[0],
        )
        probabilities = predict.classify(pretrained, windows)
    # A window lasts until the frame that would be its next.
    bounds = positions[:, 0, None] + [0, num_frames]
    bounds = np.minimum(bounds, len(frames))
    times = np.append(seconds, frame_times[-1])[bounds]
    cuts = None
    if window is None:
        # Windows of a number of frames change class half-way in frames, not in time.
        numbers = np.append(frames, len(frame_times) - 1)[bounds]
        cuts = np.interp(
            _between_centers(numbers), np.arange(len(frame_times)), frame_times
        )
    split, names = pretrained.problem.split, predict.labels(pretrained)
    names, parts = split(names), split(probabilities)
    timelines = {
        head: Timeline(times, parts[head], names[head], cuts) for head in parts
    }
    return timelines if pretrained.problem.heads else timelines[""]


def plot_timeline(
    path: str | os.PathLike, timeline: Timeline, *, top_k: int = 5
) -> None:
    """Draws the probabilities of the top_k classes over time.

    These are the classes with the highest peaks. A band below shows the most probable
    class, in grey where it is not among them. The extension of the path decides the
    format of the file, such as .png. Needs matplotlib.

    Raises:
        ValueError: if top_k is below 1, or matplotlib does not know the extension.
    """
    # Imported here, because predictions do without. No pyplot: its state is global.
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    peaks = timeline.probabilities.max(axis=0)
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    classes = np.argsort(-peaks, kind="stable")[:top_k].tolist()
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    colours = {c: palette(i % palette.N) for i, c in enumerate(classes)}
    edges = timeline.edges

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    axes, band = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [14, 1], "hspace": 0.02}
    )
    # Lines run through the centres of the windows, and level from the first and last
    # centre to the ends, so that a single window is a line too.
    times = [edges[0], *timeline.times.mean(axis=1), edges[-1]]
    for c in classes:
        values = np.pad(timeline.probabilities[:, c], 1, mode="edge")
        label = _legend_text(timeline.labels[c])
        axes.plot(times, values, color=colours[c], label=label)
    axes.set_ylim(0, max(1.05 * peaks.max(), 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylabel("probability")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")

    runs = timeline.runs()
    band.broken_barh(
        [(edges[first], edges[stop] - edges[first]) for first, stop, _ in runs],
        (0, 1),
        facecolors=[colours.get(best, "lightgrey") for *_, best in runs],
    )
    band.set_ylim(0, 1)
    band.set_yticks([0.5], ["most probable"], fontsize="small")
    band.tick_params("y", length=0)
    band.spines[:].set_visible(False)
    _label_times(band, edges[0], edges[-1])
    with writing(path):
        figure.savefig(path)


def format_time(seconds: float, decimals: int = 0) -> str:
    """Returns a time as minutes and seconds, with hours if it has any.

    Example:
        >>> format_time(59.97, decimals=1), format_time(3605)
        ('1:00.0', '1:00:05')
    """
    seconds = round(seconds, decimals)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    rest = f"{seconds:0{3 + decimals if decimals else 2}.{decimals}f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def _label_times(axes, start: float, end: float) -> None:
    axes.set_xlim(start, end)
    axes.set_xlabel("time (s)" if end < 60 else "time (min:s)")
    if end < 60:
        return
    steps = (10, 15, 30, 60, 120, 300, 600, 900, 1800)
    step = next((step for step in steps if end - start <= 12 * step), 3600)
    ticks = np.arange(np.ceil(start / step), end / step + 1e-9) * step
    axes.set_xticks(ticks, [format_time(tick) for tick in ticks])


def _legend_text(label: str) -> str:
    """Returns a label wrapped to the width of the legend, without markup."""
    # A dollar sign would start a formula, and a leading underscore hide the label.
    text = "\n".join(textwrap.wrap(label, 30, max_lines=3, placeholder=" ..."))
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _window_positions(times: np.ndarray, num_frames: int, hop: float) -> np.ndarray:
    """Returns the windows that cover a list of frames, int64 [W, num_frames].

    As in `sampling.dense_test_indices`, windows are cut out of the list of every
    stride-th frame, and its last frame is repeated if there are too few. Windows
    therefore share frames, and one that starts where a test clip does equals it.

    Args:
        times: of the frames in the list, in seconds, increasing.
        hop: seconds between windows, which start at each frame if that is more.

    Returns:
        For each frame of a window, its position in the list.
    """
    spare = max(len(times) - num_frames, 0)
    possible = times[: spare + 1]
    hop = max(hop, np.diff(possible).min(initial=np.inf))
    seconds = np.arange(0, possible[-1], hop)
    starts = np.unique(np.append(_nearest(seconds, possible), spare))
    return np.minimum(starts[:, None] + np.arange(num_frames), len(times) - 1)


def _nearest(seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the index of the time nearest to each of some seconds, int64."""
    indices = np.interp(seconds, times, np.arange(len(times)))
    # First, 7.499999999 becomes 7.5, which is rounded as exact numbers are.
    return indices.round(9).round().astype(np.int64)


def _between_centers(bounds: np.ndarray) -> np.ndarray:
    """Returns the middle between the centres of neighbours, [W, 2] -> [W - 1]."""
    centers = bounds.mean(axis=1)
    return (centers[1:] + centers[:-1]) / 2
