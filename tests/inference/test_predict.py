"""Recognition of actions in single videos, as a whole and through time."""

import dataclasses
import json
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import official
from tests.helpers.videos import moving_noise, video_bytes, write_folder, write_video
from videomae_jax import VideoClassifier, VideoMAE, __main__, save_pretrained
from videomae_jax.data import augmentation, clips, sampling
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import predict as recognition
from videomae_jax.inference import timeline as timelines
from videomae_jax.inference.predict import predict
from videomae_jax.inference.timeline import Timeline, plot_timeline, timeline
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.video import windows
from videomae_jax.video.decoder import Video

LABELS = ("running", "jumping", "flying", "swimming", "sleeping")
FRAMES, STRIDE, SIZE = 4, 2, 32  # a clip spans 8 frames


@pytest.fixture(scope="module")
def pretrained():
    # Large weights: classes and views must differ by more than rounding.
    model = VideoClassifier(
        width=24, depth=1, heads=2, num_classes=len(LABELS), head_init_scale=50.0
    )
    clip = np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8)
    params = jax.jit(model.init)(jax.random.key(3), clip)["params"]
    feeding = Preprocessing(FRAMES, STRIDE, SIZE, "dense")
    return Pretrained(model, params, LABELS, feeding, source="tiny")


@pytest.fixture(scope="module")
def video():
    return video_bytes(moving_noise(61, 48, 64), rate=10)


def apply(pretrained, views) -> np.ndarray:
    logits = pretrained.model.apply(pretrained.variables, views)
    return np.asarray(jax.nn.softmax(logits))


def as_dict(top):
    return {label: pytest.approx(p, abs=1e-6) for label, p in top}


@pytest.mark.parametrize("rule", ["dense", "exact", "uniform", "mmaction"])
def test_predict_averages_the_probabilities_of_the_views(pretrained, video, rule):
    feeding = Preprocessing(FRAMES, STRIDE, SIZE, rule)
    pretrained = dataclasses.replace(pretrained, preprocessing=feeding)
    read = clips.MultiViewClips(FRAMES, STRIDE, SIZE, rule, segments=2, crops=3)
    with Video(video) as opened:
        views = read(opened, np.random.default_rng(0))
    each = apply(pretrained, views)
    assert np.ptp(each, axis=0).max() > 0.05  # or any one view would do
    top = predict(pretrained, video, segments=2, crops=3, top_k=9)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert dict(top) == as_dict(zip(LABELS, each.mean(axis=0), strict=True))


def test_fast_mode_is_the_central_clip(pretrained, video):
    with Video(video) as opened:
        frames = opened.read(sampling.dense_center_indices(61, FRAMES, STRIDE))
    expected = apply(pretrained, augmentation.spatial_crops(frames, SIZE, 1))[0]
    [(label, probability)] = predict(pretrained, video, 1, 1, top_k=1)
    assert label == LABELS[expected.argmax()]
    assert probability == pytest.approx(expected.max(), abs=1e-6)


def test_without_labels_classes_are_numbered(pretrained, video):
    nameless = dataclasses.replace(pretrained, labels=None)
    top = predict(pretrained, video, segments=1, crops=1)
    numbered = [(f"class {LABELS.index(label)}", p) for label, p in top]
    assert predict(nameless, video, segments=1, crops=1) == numbered
    assert timeline(nameless, video).labels == tuple(f"class {i}" for i in range(5))


def test_all_videos_share_one_compilation(pretrained):
    # A model of its own: the cache may hold that of other tests.
    model = pretrained.model.clone(head_norm_epsilon=1e-5)
    pretrained = dataclasses.replace(pretrained, model=model)
    before = recognition._probabilities._cache_size()
    for length in (5, 30):
        other = video_bytes(moving_noise(length, 40, 72, seed=length))
        predict(pretrained, other, segments=2, crops=2)
        predict(pretrained, other, segments=1, crops=1)
        timeline(pretrained, other)
    assert recognition._probabilities._cache_size() == before + 1


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_batches_make_no_difference(pretrained, video, monkeypatch, backend):
    expected = timeline(pretrained, video, hop=0.6)
    assert len(expected.times) % 4  # so the last batch is filled up
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = timeline(pretrained, video, hop=0.6)
    np.testing.assert_array_equal(found.times, expected.times)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize("bad", ["headless", "pretraining"])
def test_models_without_classes_are_refused(pretrained, video, bad):
    if bad == "headless":
        model = pretrained.model.clone(num_classes=0)
    else:
        model = VideoMAE.from_variant("tiny")
    pretrained = dataclasses.replace(pretrained, model=model)
    for call in (predict, timeline):
        with pytest.raises(PretrainedError, match="tiny: .* fine-tune this one"):
            call(pretrained, video)


def test_arguments_are_checked(pretrained, video, tmp_path):
    for wrong in ({"segments": 0}, {"crops": 0}, {"top_k": 0}):
        with pytest.raises(ValueError):
            predict(pretrained, video, **wrong)
    for wrong in ({"hop": 0}, {"hop": float("nan")}, {"window": -1}):
        with pytest.raises(ValueError, match="above 0"):
            timeline(pretrained, video, **wrong)
    with pytest.raises(ValueError, match="top_k"):
        plot_timeline(tmp_path / "a.png", timeline(pretrained, video), top_k=0)


def test_unreadable_videos_are_refused(pretrained, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for call in (predict, timeline):
        with pytest.raises(VideoError, match="a.mp4: not a video"):
            call(pretrained, tmp_path / "a.mp4")
        with pytest.raises(VideoError, match="b.mp4: no such file"):
            call(pretrained, tmp_path / "b.mp4")


def test_no_time_without_a_frame_rate(pretrained, video, monkeypatch):
    monkeypatch.setattr(Video, "_average_fps", lambda self: None)
    with pytest.raises(VideoError, match="frame rate"):
        timeline(pretrained, video)


def test_windows_are_clips_through_the_whole_video(pretrained, video):
    found = timeline(pretrained, video, hop=0.6)  # 61 frames, 10 a second
    starts, ends = found.times.T
    np.testing.assert_allclose(starts[:-1], 0.6 * np.arange(len(starts) - 1))
    assert ends[-1] == pytest.approx(6.1)
    np.testing.assert_allclose((ends - starts)[:-1], FRAMES * STRIDE / 10)
    assert found.times.dtype == np.float64 and found.labels == LABELS

    with Video(video) as opened:
        for start, probabilities in zip(starts, found.probabilities, strict=True):
            indices = round(start * 10) + STRIDE * np.arange(FRAMES)
            views = augmentation.spatial_crops(opened.read(indices), SIZE, 1)
            np.testing.assert_allclose(
                apply(pretrained, views)[0], probabilities, atol=1e-6
            )


def test_windows_at_the_ends_are_test_clips(pretrained, video):
    # Segments of a test begin and end with the video too.
    found = timeline(pretrained, video)
    mean = found.probabilities[[0, -1]].mean(axis=0)
    top = predict(pretrained, video, segments=2, crops=1)
    assert dict(top) == as_dict(zip(LABELS, mean, strict=True))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_a_short_video_is_one_window(pretrained, length):
    short = video_bytes(moving_noise(length, 48, 64), rate=10)
    found = timeline(pretrained, short, hop=0.1)
    np.testing.assert_allclose(found.times, [[0, length / 10]])
    with Video(short) as opened:
        indices = np.minimum([0, 2, 4, 6], (length - 1) // 2 * 2)
        views = augmentation.spatial_crops(opened.read(indices), SIZE, 1)
    np.testing.assert_allclose(apply(pretrained, views), found.probabilities, atol=1e-6)


def test_a_window_in_seconds_spreads_its_frames(pretrained, video):
    found = timeline(pretrained, video, hop=2.0, window=2.0)  # a stride of 5 frames
    np.testing.assert_allclose(found.times[:2], [[0, 2], [2, 4]])
    assert found.times[-1, 1] == pytest.approx(6.1)


@pytest.mark.parametrize("hop", [0.01, 0.25, 1.7, 100])
def test_windows_leave_no_end_out(pretrained, video, hop):
    found = timeline(pretrained, video, hop=hop)
    assert found.times[0, 0] == 0 and found.times[-1, 1] == pytest.approx(6.1)
    assert (np.diff(found.times[:, 0]) > 0).all()


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
            indices = timelines._window_indices(frames, FRAMES, STRIDE, hop=4)
            reads.clear()
            tracemalloc.start()
            found = windows.read_windows(
                opened,
                indices,
                SIZE,
                lambda frames: augmentation.spatial_crops(frames, SIZE, 1)[0],
            )
            assert sum(1 for _ in found) == len(indices)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert max(map(len, reads)) == run
        assert sum(reads, []) == list(range(0, frames, STRIDE))
    assert peaks[1] < 1.2 * peaks[0]
    # And what comes of it is the same.
    expected = timeline(pretrained, long, hop=1.0)
    monkeypatch.undo()
    found = timeline(pretrained, long, hop=1.0)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_frames_between_distant_windows_are_not_read(pretrained, video, monkeypatch):
    reads = []
    read = Video.read
    monkeypatch.setattr(Video, "read", lambda self, i: reads.extend(i) or read(self, i))
    found = timeline(pretrained, video, hop=4.0)
    assert found.times.tolist() == [[0, 0.8], [4, 4.8], [5.4, 6.1]]
    # The first is read for its size, too.
    assert len(reads) == 1 + 3 * FRAMES


def test_neighbouring_windows_of_a_class_are_joined():
    best = [0, 0, 1, 2, 2, 2, 0]
    probabilities = np.full((7, 3), 0.1, np.float32)
    probabilities[range(7), best] = 0.8
    probabilities[4, 2] = 0.5
    starts = np.arange(7.0)
    line = Timeline(np.stack([starts, starts + 3], 1), probabilities, ("a", "b", "c"))
    parts = line.segments()
    assert [part.label for part in parts] == ["a", "b", "c", "a"]
    assert [part.start for part in parts] == [0, 3, 4, 7]
    assert [part.end for part in parts] == [3, 4, 7, 9]
    assert parts[2].probability == pytest.approx(0.7)


@pytest.mark.parametrize("count", [1, 90, 2000])
def test_the_plot_is_a_picture(tmp_path, count):
    # Labels that a plot could take for a formula, or for hidden.
    labels = ("x $ y $ z", "_private", "", "long " * 40, *map(str, range(20)))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(24), count)
    starts = np.arange(count) * 1.5
    found = Timeline(
        np.stack([starts, starts + 2], 1), probabilities.astype(np.float32), labels
    )
    plot_timeline(tmp_path / "a.png", found, top_k=24)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.size == (1500, 600)
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
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


@pytest.fixture(scope="module")
def command(pretrained, tmp_path_factory):
    """Runs `python -m videomae_jax predict ARGUMENTS`; returns the exit status."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_pretrained(folder, pretrained, format="jax")

    def run(*arguments):
        return __main__.main(["predict", f"--model={folder}", *map(str, arguments)])

    return run


def test_command_prints_a_table_for_each_video(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 2)
    assert command(folder, folder / "0.mp4", "--top-k=2", "--fast") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        str(folder / name) for name in ("0.mp4", "1.mp4", "0.mp4")
    ]
    assert len(lines) == 3 * (1 + 2)
    assert lines[1].split()[0].endswith("%") and lines[1].split()[1] in LABELS


def test_command_prints_json(command, pretrained, capsys, tmp_path):
    write_folder(tmp_path, 2)
    pattern = tmp_path / "*.mp4"
    assert command(pattern, "--json") == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x["video"] for x in objects] == [str(tmp_path / f"{i}.mp4") for i in (0, 1)]
    for x in objects:
        found = {y["label"]: y["probability"] for y in x["predictions"]}
        assert found == as_dict(predict(pretrained, x["video"]))


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_command_goes_on_after_an_unreadable_video(command, capsys, tmp_path, form):
    folder = write_folder(tmp_path, 2)
    (folder / "0.mp4").write_bytes(b"")
    assert command(folder, folder / "none.mp4", "--fast", *form) == 1
    printed = capsys.readouterr()
    assert "0.mp4" not in printed.out and "1.mp4" in printed.out
    assert "0.mp4: empty file" in printed.err
    assert "none.mp4: no such file" in printed.err
    assert "error: 2 of 3 videos could not be read" in printed.err


def test_command_shows_a_timeline(command, pretrained, capsys, tmp_path):
    path, plot = tmp_path / "a.mp4", tmp_path / "a.png"
    write_video(path, moving_noise(61, 48, 64), rate=10)
    found = timeline(pretrained, path, hop=0.4)
    parts = found.segments()
    assert command(path, "--timeline", "--hop=0.4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path) and len(lines) == 1 + len(parts)
    assert lines[1].split()[:2] == ["0:00.0", "-"]
    assert lines[-1].split()[2] == "0:06.1"
    assert [line.split()[-1] for line in lines[1:]] == [part.label for part in parts]

    assert command(path, "--hop=0.4", f"--plot={plot}", "--json", "--top-k=2") == 0
    [x] = map(json.loads, capsys.readouterr().out.splitlines())
    assert [len(y["predictions"]) for y in x["windows"]] == [2] * len(found.times)
    assert [y["start"] for y in x["windows"]] == pytest.approx(found.times[:, 0])
    assert [y["label"] for y in x["segments"]] == [part.label for part in parts]
    with Image.open(plot) as picture:
        assert picture.size == (1500, 600)


def test_command_refuses_what_does_not_go_together(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 2)
    for arguments, message in [
        ((folder, "--timeline", "--fast"), "do not go with"),
        ((folder, "--fast", "--crops=1"), "the one or the other"),
        ((folder, "--plot=a.png"), "one video, and there are 2"),
        ((tmp_path / "*.avi",), "there is no video"),
    ]:
        assert command(*arguments) == 1
        assert message in capsys.readouterr().err
    for argument in ("--plot=a.txt", "--plot=no/a.png", "--hop=0", "--top-k=0"):
        with pytest.raises(SystemExit):
            command(folder, argument)
        assert argument.split("=")[0] in capsys.readouterr().err


def test_command_finds_no_video_in_an_empty_folder(command, capsys, tmp_path):
    assert command(tmp_path) == 1
    assert "holds no videos" in capsys.readouterr().err


def test_a_model_without_classes_ends_the_command(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 1)
    model = official.GOLDEN / "checkpoints" / "hf_pretrain"
    assert command(folder, f"--model={model}") == 1
    assert "a pretraining model tells no classes" in capsys.readouterr().err


def test_overlays_show_the_likeliest_class(command, tmp_path):
    folder = write_folder(tmp_path, 2)
    out = tmp_path / "overlays"
    assert command(folder, "--fast", f"--overlays={out}") == 0
    assert sorted(file.name for file in out.iterdir()) == [
        f"{i}_activation.{kind}" for i in range(2) for kind in ("gif", "png")
    ]
    with Image.open(out / "0_activation.gif") as picture:
        assert picture.n_frames == FRAMES


def test_labels_from_a_file_and_what_does_not_fit(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 1)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    assert command(folder, "--fast", "--json", f"--labels={names}") == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["label"] for row in told["predictions"]} == set("abcde")
    names.write_text("a\nb\n")
    assert command(folder, f"--labels={names}") == 1
    assert "names 2 classes, but the head of" in capsys.readouterr().err


def test_a_multi_label_model_gives_each_class_its_own_probability(pretrained, video):
    several = dataclasses.replace(pretrained, multi_label=True)
    views = clips.CenterClips(FRAMES, STRIDE, SIZE, "dense")
    with Video(video) as opened:
        [view] = views(opened, np.random.default_rng())
    logits = pretrained.model.apply(pretrained.variables, view[None])[0]
    expected = dict(zip(LABELS, np.asarray(jax.nn.sigmoid(logits)), strict=True))
    assert as_dict(predict(several, video, 1, 1)) == expected
