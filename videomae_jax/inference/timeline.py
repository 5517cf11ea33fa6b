"""What happens when in a long video: a classifier's window slides over it."""

import dataclasses
import itertools
import os
import textwrap

import numpy as np

from videomae_jax.data import augmentation
from videomae_jax.errors import VideoError
from videomae_jax.inference import predict
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.video import open as video_open
from videomae_jax.video.open import Source
from videomae_jax.video.windows import read_windows


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a video over which one class is the likeliest.

    Attributes:
        start, end: seconds.
        label: of the class.
        probability: of the class, the mean over the stretch's windows.
    """

    start: float
    end: float
    label: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Class probabilities of the windows of a video.

    Attributes:
        times: float64 [W, 2], start and end of each window in seconds, increasing.
        probabilities: float32 [W, C].
        labels: C names.
    """

    times: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]

    @property
    def edges(self) -> np.ndarray:
        """Where what a window says ends and the next one's begins: float64 [W + 1].

        Seconds; half-way between the middles of two windows, which may overlap.
        """
        middles = self.times.mean(axis=1)
        between = (middles[1:] + middles[:-1]) / 2
        return np.concatenate([self.times[:1, 0], between, self.times[-1:, 1]])

    def segments(self) -> list[Segment]:
        """Joins neighbouring windows of the same likeliest class.

        Returns:
            In order of time, without gaps; at least one.

        Example:
            >>> times = np.array([[0, 2], [1, 3], [2, 4]], float)
            >>> probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [0, 1]], np.float32)
            >>> found = Timeline(times, probabilities, ("run", "jump"))
            >>> for part in found.segments():
            ...     print(part.start, part.end, part.label, part.probability)
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
            for first, stop, best in self._stretches()
        ]

    def _stretches(self) -> list[tuple[int, int, int]]:
        """(first, stop, class) of neighbouring windows of the same likeliest class."""
        best = self.probabilities.argmax(axis=1)
        cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
        return [
            (first, stop, int(best[first])) for first, stop in itertools.pairwise(cuts)
        ]


def timeline(
    pretrained: Pretrained,
    video: Source,
    hop: float = 1.0,
    window: float | None = None,
) -> Timeline:
    """Classifies windows that slide over a video of any length.

    Windows are clips of the model's length, central crops; the frames are a stride
    apart, counted from the first frame of the video. Every frame is decoded about once
    however much the windows overlap, and memory does not grow with the video beyond its
    compressed file. Of a video shorter than a window, the last frame is repeated.

    Args:
        pretrained: a classifier with its weights.
        video: path of a video file, its content, or a record of a list.
        hop: seconds from the start of one window to that of the next, on average:
            windows start at whole strides. The last ends with the video.
        window: seconds that a window spans; by default num_frames * stride frames of
            the video, as the model was trained. Give it for a model that was trained on
            frames of whole videos (the rule "uniform"): about the length of those.

    Returns:
        One window or more. Seconds are frame numbers over the average frame rate.

    Raises:
        PretrainedError: if the model is no classifier.
        VideoError: if the video cannot be read, or does not tell its frame rate.
        ValueError: if hop or window are not above 0.

    Example:
        >>> import jax, tempfile
        >>> from videomae_jax import VideoClassifier
        >>> from videomae_jax.data import digits
        >>> from videomae_jax.interop.pretrained import Preprocessing, Pretrained
        >>> folder = digits.make(tempfile.mkdtemp() + "/digits", {"test": 1})
        >>> model = VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
        >>> clip = jax.numpy.zeros((1, 4, 32, 32, 3), "uint8")
        >>> params = model.init(jax.random.key(0), clip)["params"]
        >>> feeding = Preprocessing(num_frames=4, stride=1, image_size=32)
        >>> pretrained = Pretrained(model, params, ("left", "right", "up"), feeding)
        >>> found = timeline(pretrained, folder / "test/00000.mp4", hop=0.5)
        >>> found.times.shape[0] == len(found.probabilities)
        True
        >>> len(found.segments()) <= len(found.times)
        True
    """
    predict.classifier(pretrained)  # before anything is read
    if not hop > 0 or not (window is None or window > 0):
        raise ValueError(
            f"hop and window are seconds above 0, not hop={hop}, window={window}"
        )
    feeding = pretrained.preprocessing
    with video_open.open_video(video) as opened:
        fps = opened.fps
        if not fps:
            name = video_open.name(video)
            raise VideoError(f"{name}: does not tell its frame rate: there is no time")
        stride = feeding.stride
        if window is not None:
            stride = max(round(window * fps / feeding.num_frames), 1)
        indices = _window_indices(
            opened.num_frames, feeding.num_frames, stride, hop * fps
        )
        size = feeding.image_size
        windows = read_windows(
            opened,
            indices,
            size,
            lambda frames: augmentation.spatial_crops(frames, size, 1)[0],
        )
        probabilities = predict.classify(pretrained, windows)
        starts = indices[:, 0]
        ends = np.minimum(starts + feeding.num_frames * stride, opened.num_frames)
    times = np.stack([starts, ends], axis=1) / fps
    return Timeline(times, probabilities, predict.labels(pretrained))


def plot_timeline(path: str | os.PathLike, timeline: Timeline, top_k: int = 5) -> None:
    """Draws the probabilities of the top_k classes over time.

    The classes are those of the highest peaks. A band below shows the likeliest class,
    grey where it is none of them. Needs matplotlib.

    Args:
        path: the picture's file; its extension decides the format, such as .png.
        timeline: the windows of a video.
        top_k: classes to draw; all, if there are fewer.

    Raises:
        ValueError: if top_k is below 1, or for an extension that matplotlib does not
            know.

    Example:
        >>> import pathlib, tempfile
        >>> times = np.array([[0, 2], [1, 3], [2, 4]], float)
        >>> probabilities = np.array([[0.5, 0.5], [0.7, 0.3], [0, 1]], np.float32)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "timeline.png")
        >>> plot_timeline(path, Timeline(times, probabilities, ("run", "jump")))
        >>> path.read_bytes()[1:4]
        b'PNG'
    """
    # Here, because predictions do without. No pyplot: its windows and state are global.
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    peaks = timeline.probabilities.max(axis=0)
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: at least 1 class is wanted")
    classes = np.argsort(-peaks, kind="stable")[:top_k].tolist()
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    colours = {c: palette[i % len(palette)] for i, c in enumerate(classes)}
    edges = timeline.edges

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    axes, band = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [14, 1], "hspace": 0.02}
    )
    # Lines through the windows' middles, level to the ends: one window is a line too.
    times = [edges[0], *timeline.times.mean(axis=1), edges[-1]]
    for c in classes:
        values = np.pad(timeline.probabilities[:, c], 1, mode="edge")
        axes.plot(
            times, values, color=colours[c], label=_legend_text(timeline.labels[c])
        )
    axes.set_ylim(0, max(1.05 * peaks.max(), 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylabel("probability")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")

    stretches = timeline._stretches()
    band.broken_barh(
        [(edges[first], edges[stop] - edges[first]) for first, stop, _ in stretches],
        (0, 1),
        facecolors=[colours.get(best, "lightgrey") for *_, best in stretches],
    )
    band.set_ylim(0, 1)
    band.set_yticks([0.5], ["likeliest"], fontsize="small")
    band.tick_params("y", length=0)
    band.spines[:].set_visible(False)
    _label_times(band, edges[0], edges[-1])
    figure.savefig(path)


def format_time(seconds: float, decimals: int = 0) -> str:
    """Minutes and seconds, and hours where there are any.

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
    """A label on lines of a legend's width, whatever it holds."""
    # A dollar sign would begin a formula, and a leading underscore hide the label.
    text = "\n".join(textwrap.wrap(label, 30, max_lines=3, placeholder=" ..."))
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _window_indices(
    num_video_frames: int, num_frames: int, stride: int, hop: float
) -> np.ndarray:
    """Frames of windows from the video's beginning to its end, int64 [W, num_frames].

    As `sampling.dense_test_indices`: windows are cut out of the list of every
    stride-th frame, whose last is repeated if there are too few. So windows share
    frames, and those that start where a test clip does are the same.

    Args:
        num_video_frames: frames of the video.
        num_frames: frames of a window.
        stride: frames of the video between two of them.
        hop: frames of the video between two windows, at least a stride.
    """
    frames = np.arange(0, num_video_frames, stride, dtype=np.int64)
    spare = max(len(frames) - num_frames, 0)
    starts = np.round(np.arange(0, spare, max(hop / stride, 1))).astype(np.int64)
    starts = np.unique(np.append(starts, spare))
    places = starts[:, None] + np.arange(num_frames)
    return frames[np.minimum(places, len(frames) - 1)]
