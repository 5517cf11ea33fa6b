"""Reconstructions of videos and clips, and the command."""

import argparse
import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import videomae_jax as vmae
from tests.helpers import videos
from tests.helpers.models import apply, random_variables
from videomae_jax.cli import reconstruct as command
from videomae_jax.data import augmentation
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import reconstruct
from videomae_jax.interop import loading
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models import inpainting, masking, vit
from videomae_jax.video.decoder import Video


@pytest.fixture(scope="module")
def pretrained():
    decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    model = vmae.VideoMAE(width=24, depth=2, heads=2, patch_size=8, **decoder)
    params = random_variables(model)["params"]
    return Pretrained(model, params, None, Preprocessing(4, 2, 32))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "moving.mp4"
    videos.write_video(path, videos.moving_noise(30, 48, 64), rate=20)
    return path


def frames_of(path):
    with Video(path) as video:
        return video.read(range(video.num_frames))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    "settings, frames, fps",
    [
        ({}, [11, 13, 15, 17], 10),
        ({"start": 20, "stride": 1, "seed": 3}, [20, 21, 22, 23], 20),
        ({"mask": "random", "mask_ratio": 0.5}, [11, 13, 15, 17], 10),
        ({"unpatch_stats": "hidden"}, [11, 13, 15, 17], 10),
    ],
)
def test_a_video_is_read_masked_and_filled_in(
    pretrained, path, settings, frames, fps, normalized
):
    pretrained = dataclasses.replace(pretrained, normalized_targets=normalized)
    result = vmae.reconstruct(pretrained, path, **settings)

    with Video(path) as video:
        clip = augmentation.spatial_crops(video.read(frames), 32, 1)[0]
    np.testing.assert_array_equal(result.original, clip)
    assert result.fps == pytest.approx(fps)

    model, clip = pretrained.model, clip[None]
    draw = masking.KINDS[settings.get("mask", "tube")]
    key = jax.random.key(settings.get("seed", 0))
    ratio = settings.get("mask_ratio", 0.9)
    visible, masked = draw(key, 1, grid=(2, 4, 4), ratio=ratio)
    patch = {"patch_size": 8, "tubelet_size": 2}
    prediction = apply(model, pretrained.variables, clip, visible, masked)
    target = vmae.pixel_targets(clip, masked, **patch, normalize=normalized)
    loss = vmae.reconstruction_loss(prediction, target)
    assert result.loss == pytest.approx(float(loss), rel=1e-5)
    filled = inpainting.fill_in(
        prediction,
        clip,
        visible=visible,
        masked=masked,
        **patch,
        normalized_targets=normalized,
        unpatch_stats=settings.get("unpatch_stats", "visible"),
    )
    # Compiled as one, sums have another order: a rounding may fall on the other side.
    difference = result.reconstruction.astype(int) - np.asarray(filled[0])
    assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 0.01

    hidden = np.zeros((1, 32, 1, 1), np.uint8)
    hidden[:, np.asarray(masked[0])] = 1
    hidden = np.broadcast_to(hidden[..., 0], (1, 32, 2 * 8 * 8 * 3))
    hidden = np.asarray(vit.unpatchify(hidden, (2, 4, 4), 8, 2))[0].astype(bool)
    assert (result.masked[hidden] == 128).all()
    np.testing.assert_array_equal(result.masked[~hidden], result.original[~hidden])
    np.testing.assert_array_equal(
        result.reconstruction[~hidden], result.original[~hidden]
    )


def test_a_path_its_content_and_its_frames_give_the_same(pretrained, path):
    one = vmae.reconstruct(pretrained, path)
    frames = frames_of(path)
    content = vmae.reconstruct(pretrained, path.read_bytes())
    array = vmae.reconstruct(pretrained, frames)
    # Frames that have been sampled already.
    clip = vmae.reconstruct(pretrained, frames[[11, 13, 15, 17]], stride=1)
    for result in (content, array, clip):
        np.testing.assert_array_equal(one.reconstruction, result.reconstruction)
        assert one.loss == result.loss
    assert array.fps is clip.fps is None


def test_several_videos_give_a_list(pretrained, path):
    frames = frames_of(path)
    batch = np.stack([frames, frames[::-1]])
    alone = [vmae.reconstruct(pretrained, video) for video in batch]
    for several in (batch, list(batch), [str(path), frames[::-1]]):
        results = vmae.reconstruct(pretrained, several)
        assert [x.loss for x in results] == [x.loss for x in alone]
    assert alone[0].loss != alone[1].loss


def test_mask_and_ratio_are_those_of_the_run(pretrained, path):
    trained = dataclasses.replace(pretrained, mask="random", mask_ratio=0.5)
    result = vmae.reconstruct(trained, path)
    assert (result.mask, result.mask_ratio) == ("random", 0.5)
    told = vmae.reconstruct(pretrained, path, mask="random", mask_ratio=0.5)
    np.testing.assert_array_equal(result.masked, told.masked)
    assert vmae.reconstruct(trained, path, mask="tube").mask == "tube"
    default = vmae.reconstruct(pretrained, path)
    assert (default.mask, default.mask_ratio) == ("tube", 0.9)


def test_a_model_compiles_once(pretrained, path):
    pretrained = dataclasses.replace(pretrained, model=pretrained.model.clone(heads=3))
    before = reconstruct._mask_and_fill._cache_size()
    for seed in range(3):
        vmae.reconstruct(pretrained, path, seed=seed, start=seed)
        # Equal models share it, as a model loaded twice.
        pretrained = dataclasses.replace(pretrained, model=pretrained.model.clone())
    assert reconstruct._mask_and_fill._cache_size() == before + 1


def test_invalid_models_and_arguments_are_refused(pretrained, path):
    classifier = vmae.VideoClassifier(width=24, depth=1, heads=2, num_classes=2)
    with pytest.raises(PretrainedError, match="model.pth has no decoder"):
        vmae.reconstruct(Pretrained(classifier, {}, source="model.pth"), path)
    with pytest.raises(VideoError, match="no such file"):
        vmae.reconstruct(pretrained, path.parent / "none.mp4")
    video = np.zeros((8, 32, 32, 3), np.uint8)
    for wrong, settings, message in [
        (path, {"mask": "cell"}, "mask='cell' must be one of: random, tube"),
        (path, {"mask_ratio": 1.0}, "mask ratio=1.0 hides 16 of 16"),
        (path, {"unpatch_stats": "own"}, "unpatch_stats='own' must be"),
        (path, {"start": 23}, "start=23 must be from 0 to 22"),
        (path, {"stride": 0}, "stride"),
        (video[..., :1], {}, r"uint8 \[T, H, W, 3\].* got uint8 \[8, 32, 32, 1\]"),
        (video / 255, {}, "expected uint8 .* got float64 .* values 0 to 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            vmae.reconstruct(pretrained, wrong, **settings)


def run_command(monkeypatch, pretrained, *arguments):
    def load(source, revision=None, step="", strict=True):
        assert source == "SRC" and revision is None
        return pretrained

    monkeypatch.setattr(loading, "load_pretrained", load)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*map(str, arguments), "--model=SRC"]))


def test_command_writes_images_and_animations(
    pretrained, path, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "new" / "folder"
    run_command(monkeypatch, pretrained, path, f"--out={out}", "--attention")
    names = [
        f"moving_{kind}.{ending}"
        for kind in ("reconstruction", "attention")
        for ending in ("gif", "png", "mp4")
    ]
    assert sorted(file.name for file in out.iterdir()) == sorted(names)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: loss=")
    assert first.endswith(" mask=tube mask_ratio=0.9")
    assert last.split() == ["wrote", *(str(out / name) for name in names)]
    result = vmae.reconstruct(pretrained, path)
    with Image.open(out / "moving_reconstruction.png") as image:
        strip = np.asarray(image)
    shown = (result.original, result.masked, result.reconstruction)
    for row, clip in enumerate(shown):
        frame = strip[130 * row : 130 * row + 128 : 4, -128::4]
        np.testing.assert_array_equal(frame, clip[3])
    # Below a line of labels.
    with Video(str(out / "moving_reconstruction.mp4")) as video:
        assert (video.num_frames, video.height, video.width) == (4, 150, 3 * 130 - 2)
        assert video.fps == pytest.approx(10)
    with Video(str(out / "moving_attention.mp4")) as video:
        assert (video.num_frames, video.height, video.width) == (4, 150, 2 * 130 - 2)


def test_command_continues_after_a_bad_video(
    pretrained, path, tmp_path, monkeypatch, capsys
):
    short = tmp_path / "moving.mp4"  # of the same name
    videos.write_video(short, videos.moving_noise(8, 48, 64))
    with pytest.raises(VideoError, match="2 of 4 videos could not be processed"):
        run_command(
            monkeypatch,
            pretrained,
            *(path, tmp_path / "none.mp4", short, path),
            *(f"--out={tmp_path}", "--start=5", "--json", "--formats=png"),
            *("--mask=random", "--mask-ratio=0.5", "--seed=4", "--stride=1"),
        )
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    expected = vmae.reconstruct(
        pretrained, path, mask="random", mask_ratio=0.5, seed=4, start=5, stride=1
    )
    for row, name in zip(rows, ("moving", "moving-3"), strict=True):
        assert row["video"] == str(path)
        assert row["loss"] == pytest.approx(expected.loss, abs=1e-6)
        assert row["files"] == [str(tmp_path / f"{name}_reconstruction.png")]
    none, late = captured.err.splitlines()
    assert none == f"{tmp_path / 'none.mp4'}: no such file"
    assert late.startswith(f"{short}: ") and "start=5 must be from 0 to 4" in late


def test_command_refuses_unknown_formats(pretrained, path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, pretrained, path, "--formats=gif,jpg")
    assert "must be a list of gif, png, mp4, got 'gif,jpg'" in capsys.readouterr().err


def test_importing_needs_no_video_or_plot_packages():
    absent = "import sys; sys.modules |= dict.fromkeys(['av', 'PIL', 'matplotlib'])"
    modules = "videomae_jax.inference.reconstruct, videomae_jax.inference.attribution"
    subprocess.run([sys.executable, "-c", f"{absent}; import {modules}"], check=True)
