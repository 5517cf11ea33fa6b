"""Prediction of the actions of single videos."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import official
from tests.helpers.models import apply as apply_model
from tests.helpers.models import random_variables
from tests.helpers.videos import moving_noise, video_bytes, write_folder
from videomae_jax import VideoClassifier, VideoMAE, __main__, save_pretrained
from videomae_jax.data import augmentation, clips, sampling
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import predict as prediction
from videomae_jax.inference.features import features
from videomae_jax.inference.predict import predict
from videomae_jax.inference.timeline import plot_timeline, timeline
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models.problem import MULTI_LABEL, Problem
from videomae_jax.models.sizes import Framing
from videomae_jax.video.decoder import Video

LABELS = ("running", "jumping", "flying", "swimming", "sleeping")
FRAMES, STRIDE, SIZE = 4, 2, 32  # a clip spans 8 frames


@pytest.fixture(scope="module")
def pretrained():
    model = VideoClassifier(24, depth=1, heads=2, num_classes=len(LABELS))
    params = random_variables(model)["params"]
    preprocessing = Preprocessing(FRAMES, STRIDE, SIZE, "dense")
    return Pretrained(model, params, LABELS, preprocessing, source="tiny")


@pytest.fixture(scope="module")
def video():
    return video_bytes(moving_noise(61, 48, 64), rate=10)


def apply(pretrained, views) -> np.ndarray:
    logits = apply_model(pretrained.model, pretrained.variables, views)
    return np.asarray(jax.nn.softmax(logits))


def as_dict(top):
    return {label: pytest.approx(p, abs=1e-6) for label, p in top}


@pytest.mark.parametrize("rule", ["dense", "exact", "uniform", "mmaction"])
def test_predict_averages_the_probabilities_of_the_views(pretrained, video, rule):
    preprocessing = Preprocessing(FRAMES, STRIDE, SIZE, rule)
    pretrained = dataclasses.replace(pretrained, preprocessing=preprocessing)
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
    [(label, probability)] = predict(pretrained, video, segments=1, crops=1, top_k=1)
    assert label == LABELS[expected.argmax()]
    assert probability == pytest.approx(expected.max(), abs=1e-6)


def test_every_clip_is_framed_as_the_model_says(pretrained, video):
    framing = Framing((SIZE, SIZE), False, "bicubic")
    preprocessing = dataclasses.replace(pretrained.preprocessing, framing=framing)
    squashed = dataclasses.replace(pretrained, preprocessing=preprocessing)
    with Video(video) as opened:
        frames = opened.read(range(opened.num_frames))
    small = augmentation.resize(frames, (SIZE, SIZE), "bicubic")
    indices = sampling.dense_center_indices(61, FRAMES, STRIDE)
    np.testing.assert_array_equal(
        prediction.center_clip(squashed, video), small[indices]
    )
    expected = apply(pretrained, small[indices][None])[0]
    top = predict(squashed, video, segments=1)
    assert dict(top) == as_dict(zip(LABELS, expected, strict=True))
    first = timeline(squashed, video).probabilities[0]
    window = small[: FRAMES * STRIDE : STRIDE][None]
    np.testing.assert_allclose(first, apply(pretrained, window)[0], atol=1e-6)
    [row, *_] = features(squashed, video)
    expected = pretrained.model.apply(pretrained.variables, window, method="features")
    np.testing.assert_allclose(row, expected[0], atol=1e-5)


def test_several_crops_of_whole_frames_are_refused(pretrained, video):
    preprocessing = dataclasses.replace(
        pretrained.preprocessing, framing=Framing((SIZE, SIZE), False, "bilinear")
    )
    squashed = dataclasses.replace(pretrained, preprocessing=preprocessing)
    assert predict(squashed, video) == predict(squashed, video, crops=1)
    with pytest.raises(
        PretrainedError, match="crops=3 must be 1 for tiny.*cuts nothing"
    ):
        predict(squashed, video, crops=3)
    assert predict(pretrained, video) == predict(pretrained, video, crops=3)


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
    before = prediction._outputs._cache_size()
    for length in (5, 30):
        other = video_bytes(moving_noise(length, 40, 72, seed=length))
        predict(pretrained, other, segments=2, crops=2)
        predict(pretrained, other, segments=1, crops=1)
        timeline(pretrained, other)
    assert prediction._outputs._cache_size() == before + 1


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_batches_make_no_difference(pretrained, video, monkeypatch, backend):
    expected = timeline(pretrained, video, hop=0.6)
    assert len(expected.times) % 4  # the last batch is padded
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    result = timeline(pretrained, video, hop=0.6)
    np.testing.assert_array_equal(result.times, expected.times)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize("bad", ["headless", "pretraining"])
def test_models_without_classes_are_refused(pretrained, video, bad):
    if bad == "headless":
        model = pretrained.model.clone(num_classes=0)
    else:
        model = VideoMAE.from_variant("tiny")
    pretrained = dataclasses.replace(pretrained, model=model)
    for call in (predict, timeline):
        with pytest.raises(PretrainedError, match="tiny is .* fine-tune this one"):
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


def test_command_takes_the_frames_that_transformers_takes(
    command, pretrained, capsys, tmp_path
):
    folder = write_folder(tmp_path, 1)  # a video of 12 frames
    with Video(folder / "0.mp4") as opened:
        frames = opened.read(range(12))
    for frames_option, indices in (
        ("like-transformers", [0, 3, 6, 9]),
        ("like-transformers-first", [0, 1, 2, 3]),
    ):
        assert command(folder, "--json", f"--frames={frames_option}") == 0
        row = json.loads(capsys.readouterr().out)
        clip = augmentation.spatial_crops(frames[indices], SIZE, 1)
        expected = as_dict(zip(LABELS, apply(pretrained, clip)[0], strict=True))
        top = {x["label"]: x["probability"] for x in row["predictions"]}
        assert top == expected


def test_command_prints_json(command, pretrained, capsys, tmp_path):
    write_folder(tmp_path, 2)
    pattern = tmp_path / "*.mp4"
    assert command(pattern, "--json") == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x["video"] for x in objects] == [str(tmp_path / f"{i}.mp4") for i in (0, 1)]
    for x in objects:
        top = {y["label"]: y["probability"] for y in x["predictions"]}
        assert top == as_dict(predict(pretrained, x["video"]))


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_command_continues_after_an_unreadable_video(command, capsys, tmp_path, form):
    folder = write_folder(tmp_path, 2)
    (folder / "0.mp4").write_bytes(b"")
    assert command(folder, folder / "none.mp4", "--fast", *form) == 1
    printed = capsys.readouterr()
    assert "0.mp4" not in printed.out and "1.mp4" in printed.out
    assert "0.mp4: empty file" in printed.err
    assert "none.mp4: no such file" in printed.err
    assert "error: 2 of 3 videos could not be processed" in printed.err


def test_command_refuses_options_that_exclude_each_other(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 2)
    for code, arguments, message in [
        (2, (folder, "--timeline", "--fast"), "cannot be combined with --timeline"),
        (2, (folder, "--hop=1", "--frames=like-transformers"), "--frames and --over"),
        (2, (folder, "--fast", "--crops=1"), "--fast means --segments=1 --crops=1"),
        (2, (folder, "--plot=a.png"), "--plot must be used with one video, got 2"),
        (1, (tmp_path / "*.avi",), "no video matches"),
    ]:
        assert command(*arguments) == code
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
    assert "a pretraining model and predicts no classes" in capsys.readouterr().err


def test_overlays_show_the_likeliest_class(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 2)
    out = tmp_path / "overlays"
    assert command(folder, "--fast", f"--overlays={out}") == 0
    assert sorted(file.name for file in out.iterdir()) == [
        f"{i}_activation.{kind}" for i in range(2) for kind in ("gif", "png")
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"wrote {out}/1_activation.gif {out}/1_activation.png"
    with Image.open(out / "0_activation.gif") as picture:
        assert picture.n_frames == FRAMES


def test_a_plot_is_named_last(command, capsys, tmp_path):
    plot = tmp_path / "plot.png"
    assert command(write_folder(tmp_path, 1), f"--plot={plot}") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {plot}"
    assert plot.stat().st_size


def test_labels_from_a_file_must_fit_the_head(command, capsys, tmp_path):
    folder = write_folder(tmp_path, 1)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    assert command(folder, "--fast", "--json", f"--labels={names}") == 0
    row = json.loads(capsys.readouterr().out)
    assert {x["label"] for x in row["predictions"]} == set("abcde")
    names.write_text("a\nb\n")
    assert command(folder, f"--labels={names}") == 1
    assert "has 2 class names, but the head of" in capsys.readouterr().err


def test_a_multi_label_model_gives_each_class_its_own_probability(pretrained, video):
    several = dataclasses.replace(pretrained, problem=Problem(MULTI_LABEL))
    views = clips.CenterClips(FRAMES, STRIDE, SIZE, "dense")
    with Video(video) as opened:
        [view] = views(opened, np.random.default_rng())
    logits = pretrained.model.apply(pretrained.variables, view[None])[0]
    expected = dict(zip(LABELS, np.asarray(jax.nn.sigmoid(logits)), strict=True))
    assert as_dict(predict(several, video, segments=1, crops=1)) == expected
