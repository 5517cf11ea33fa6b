"""Timelines: windows over the whole video, segments, plots."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import moving_noise, video_bytes, write_video
from tests.inference.test_predict import (
    FRAMES,
    LABELS,
    SIZE,
    STRIDE,
    apply,
    as_dict,
    command,  # noqa: F401
    pretrained,  # noqa: F401
    video,  # noqa: F401
)
from videomae_jax.data import augmentation
from videomae_jax.errors import VideoError
from videomae_jax.inference import timeline as timelines
from videomae_jax.inference import windows
from videomae_jax.inference.predict import predict
from videomae_jax.inference.timeline import Timeline, plot_timeline, timeline
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.video import decoder
from videomae_jax.video.decoder import Video


def test_no_time_without_a_frame_rate(pretrained, video, monkeypatch):
    monkeypatch.setattr(decoder, "_average_fps", lambda *args: None)
    with pytest.raises(VideoError, match="frame rate unknown"):
        timeline(pretrained, video)


def test_windows_are_clips_through_the_whole_video(pretrained, video):
    result = timeline(pretrained, video, hop=0.6)  # 61 frames, 10 a second
    starts, ends = result.times.T
    np.testing.assert_allclose(starts[:-1], 0.6 * np.arange(len(starts) - 1))
    assert ends[-1] == pytest.approx(6.1)
    np.testing.assert_allclose((ends - starts)[:-1], FRAMES * STRIDE / 10)
    assert result.times.dtype == np.float64 and result.labels == LABELS

    with Video(video) as opened:
        for start, probabilities in zip(starts, result.probabilities, strict=True):
            indices = round(start * 10) + STRIDE * np.arange(FRAMES)
            views = augmentation.spatial_crops(opened.read(indices), SIZE, 1)
            np.testing.assert_allclose(
                apply(pretrained, views)[0], probabilities, atol=1e-6
            )


def test_windows_at_the_ends_are_test_clips(pretrained, video):
    # Segments of a test begin and end with the video too.
    result = timeline(pretrained, video)
    mean = result.probabilities[[0, -1]].mean(axis=0)
    top = predict(pretrained, video, segments=2, crops=1)
    assert dict(top) == as_dict(zip(LABELS, mean, strict=True))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_a_short_video_is_one_window(pretrained, length):
    short = video_bytes(moving_noise(length, 48, 64), rate=10)
    result = timeline(pretrained, short, hop=0.1)
    np.testing.assert_allclose(result.times, [[0, length / 10]])
    with Video(short) as opened:
        indices = np.minimum([0, 2, 4, 6], (length - 1) // 2 * 2)
        views = augmentation.spatial_crops(opened.read(indices), SIZE, 1)
    np.testing.assert_allclose(
        apply(pretrained, views), result.probabilities, atol=1e-6
    )


def test_a_window_in_seconds_spreads_its_frames(pretrained, video):
    result = timeline(pretrained, video, hop=2.0, window=2.0)  # a stride of 5 frames
    np.testing.assert_allclose(result.times[:2], [[0, 2], [2, 4]])
    assert result.times[-1, 1] == pytest.approx(6.1)


@pytest.mark.parametrize("hop", [0.01, 0.25, 1.7, 100])
def test_windows_reach_both_ends(pretrained, video, hop):
    result = timeline(pretrained, video, hop=hop)
    assert result.times[0, 0] == 0 and result.times[-1, 1] == pytest.approx(6.1)
    assert (np.diff(result.times[:, 0]) > 0).all()


def test_frames_are_read_once_in_short_runs(pretrained, monkeypatch):
    reads = []
    read = Video.read

    def counting(self, indices):
        reads.append(list(indices))
        return read(self, indices)

    monkeypatch.setattr(Video, "read", counting)
    run = 30
    monkeypatch.setattr(windows, "RUN_BYTES", run * 3 * (48 * 64 + 4 * SIZE**2))
    peaks = []
    for length in (300, 900):
        long = video_bytes(moving_noise(300, 48, 64).repeat(length // 300, axis=0))
        with Video(long) as opened:
            _, frames = opened.height, opened.num_frames
            times = opened.frame_times[:-1:STRIDE]
            positions = timelines._window_positions(times, FRAMES, hop=4 / 25)
            indices = STRIDE * positions
            reads.clear()
            tracemalloc.start()
            result = windows.read_windows(
                opened,
                indices,
                size=SIZE,
                crop=lambda frames: augmentation.spatial_crops(frames, SIZE, 1)[0],
            )
            assert sum(1 for _ in result) == len(indices)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert max(map(len, reads)) == run
        assert sum(reads, []) == list(range(0, frames, STRIDE))
    assert peaks[1] < 1.2 * peaks[0]
    # The results are the same.
    expected = timeline(pretrained, long, hop=1.0)
    monkeypatch.undo()
    result = timeline(pretrained, long, hop=1.0)
    np.testing.assert_array_equal(result.probabilities, expected.probabilities)


def test_frames_between_distant_windows_are_not_read(pretrained, video, monkeypatch):
    reads = []
    read = Video.read
    monkeypatch.setattr(Video, "read", lambda self, i: reads.extend(i) or read(self, i))
    result = timeline(pretrained, video, hop=4.0)
    assert result.times.tolist() == [[0, 0.8], [4, 4.8], [5.4, 6.1]]
    assert len(reads) == 3 * FRAMES


def test_neighbouring_windows_of_a_class_become_a_segment():
    best = [0, 0, 1, 2, 2, 2, 0]
    probabilities = np.full((7, 3), 0.1, np.float32)
    probabilities[range(7), best] = 0.8
    probabilities[4, 2] = 0.5
    starts = np.arange(7.0)
    line = Timeline(np.stack([starts, starts + 3], 1), probabilities, ("a", "b", "c"))
    segments = line.segments()
    assert [x.label for x in segments] == ["a", "b", "c", "a"]
    assert [x.start for x in segments] == [0, 3, 4, 7]
    assert [x.end for x in segments] == [3, 4, 7, 9]
    assert segments[2].probability == pytest.approx(0.7)


@pytest.mark.parametrize("count", [1, 90, 2000])
def test_the_plot_is_an_image(tmp_path, count):
    # Labels that matplotlib could take for a formula, or hide.
    labels = ("x $ y $ z", "_private", "", "long " * 40, *map(str, range(20)))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(24), count)
    starts = np.arange(count) * 1.5
    result = Timeline(
        np.stack([starts, starts + 2], 1), probabilities.astype(np.float32), labels
    )
    plot_timeline(tmp_path / "a.png", result, top_k=24)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.size == (1500, 600)
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 50


@pytest.mark.parametrize(
    "seconds, decimals, text",
    [
        (0, 0, "0:00"),
        (59.94, 1, "0:59.9"),
        (59.96, 1, "1:00.0"),
        (59.6, 0, "1:00"),
        (3599.99, 1, "1:00:00.0"),
        (7384.5, 1, "2:03:04.5"),
    ],
)
def test_times_are_minutes_and_seconds(seconds, decimals, text):
    assert timelines.format_time(seconds, decimals) == text


def test_command_shows_a_timeline(command, pretrained, capsys, tmp_path):
    path, plot = tmp_path / "a.mp4", tmp_path / "a.png"
    write_video(path, moving_noise(61, 48, 64), rate=10)
    result = timeline(pretrained, path, hop=0.4)
    segments = result.segments()
    assert command(path, "--timeline", "--hop=0.4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path) and len(lines) == 1 + len(segments)
    assert lines[1].split()[:2] == ["0:00.0", "-"]
    assert lines[-1].split()[2] == "0:06.1"
    assert [line.split()[-1] for line in lines[1:]] == [x.label for x in segments]

    assert command(path, "--hop=0.4", f"--plot={plot}", "--json", "--top-k=2") == 0
    [x] = map(json.loads, capsys.readouterr().out.splitlines())
    assert [len(y["predictions"]) for y in x["windows"]] == [2] * len(result.times)
    assert [y["start"] for y in x["windows"]] == pytest.approx(result.times[:, 0])
    assert [y["label"] for y in x["segments"]] == [x.label for x in segments]
    with Image.open(plot) as image:
        assert image.size == (1500, 600)


@pytest.fixture(scope="module")
def by_colour():
    """A classifier that answers by the mean colour of its clip: red or blue."""
    model = VideoClassifier(width=24, depth=1, heads=2, num_classes=2)
    clip = jnp.zeros((1, 4, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    kernel = np.zeros((2, 16, 16, 3, 24), np.float32)
    kernel[..., 0, 0] = kernel[..., 2, 1] = 1
    params["encoder"]["embedding"]["kernel"] = kernel.reshape(-1, 24)
    params["norm"]["scale"] = np.ones(24, np.float32)
    params["head"]["kernel"][0, 0] = params["head"]["kernel"][1, 1] = 10
    preprocessing = Preprocessing(num_frames=4, stride=1, image_size=32)
    return Pretrained(model, params, ("red", "blue"), preprocessing)


def _red_then_blue(red: int, rates: tuple[int, int], blue: int, **settings) -> bytes:
    """Returns a video whose rate changes, from one to the other, with its colour."""
    frames = np.zeros((red + blue, 32, 32, 3), np.uint8)
    frames[:red, ..., 0] = frames[red:, ..., 2] = 255
    first, second = (120 // rate for rate in rates)  # ticks of a frame
    ticks = first * np.arange(red), first * red + second * np.arange(blue)
    return video_bytes(frames, rate=30, ticks=np.concatenate(ticks), **settings)


@pytest.mark.parametrize(
    "rates, red, change",
    [((30, 30), 60, 2.0), ((30, 4), 60, 2.0), ((4, 30), 12, 3.0), ((60, 15), 90, 1.5)],
)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_times_are_those_of_the_frames(by_colour, rates, red, change, container):
    # As phones record in the dark: frames per second change, and with them the action.
    video = _red_then_blue(red, rates, 40, container=container)
    fine, coarse = (timeline(by_colour, video, hop=hop) for hop in (0.02, 0.25))
    end = change + 40 / rates[1]
    for result, tolerance in (fine, 1.1 / min(rates[0], 30)), (coarse, 0.3):
        before, after = result.segments()
        assert (before.start, before.label, after.label) == (0, "red", "blue")
        assert before.end == after.start == pytest.approx(change, abs=tolerance)
        assert after.end == pytest.approx(end, abs=2e-3)
        assert result.times[-1, 1] == after.end


def test_windows_of_seconds_have_frames_that_many_seconds_apart(by_colour):
    video = _red_then_blue(60, (30, 4), 32)  # 2 s, then 8 s
    result = timeline(by_colour, video, hop=1.0, window=2.0)
    np.testing.assert_allclose(np.diff(result.times, axis=1)[:-1], 2, rtol=0.1)
    starts = result.times[:-1, 0]  # at the nearest multiple of half a second
    np.testing.assert_allclose(starts, np.arange(len(starts)), atol=0.27)
    # The clips have the frames of that time.
    blue = result.probabilities[:-1, 1]
    assert (blue[starts >= 2] > 0.99).all() and (blue[starts + 1.6 < 2] < 0.01).all()
    before, after = result.segments()
    assert before.end == pytest.approx(2, abs=0.6) and after.end == pytest.approx(10)
