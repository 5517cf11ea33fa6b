"""Features: the right windows, independent of other videos and of the devices."""

import dataclasses
import functools
import logging
import threading

import jax
import numpy as np
import pytest

from tests.helpers import official
from tests.helpers.models import apply as apply_model
from tests.helpers.models import random_variables
from tests.helpers.videos import moving_noise, write_video
from videomae_jax.data import augmentation
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference.features import (
    Extractor,
    FeatureChunk,
    Unreadable,
)
from videomae_jax.inference.features import features as extract
from videomae_jax.inference.windows import Windows
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import Framing
from videomae_jax.video.decoder import Video

PREPROCESSING = Preprocessing(num_frames=4, stride=2, image_size=32)
LENGTHS = (12, 3, 25, 1, 40, 9)  # frames of the videos


@functools.cache
def classifier(seed=0):
    model = VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
    params = random_variables(model, seed)["params"]
    return Pretrained(model, params, preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def pretrained():
    return classifier()


@pytest.fixture(scope="module")
def mae():
    model = VideoMAE(24, 1, 2, 24, 1, 2)
    params = random_variables(model)["params"]
    return Pretrained(model, params, preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos in two folders, and a list of them with labels."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for i, length in enumerate(LENGTHS):
        path = folder / "ab"[i % 2] / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, moving_noise(length, 48, 64, seed=i), options={"g": "5"})
        lines.append(f"{path.relative_to(folder)} {i % 3}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


def by_hand(pretrained, path, starts, stride, **apply):
    """Computes the features of each window alone, by their definition."""
    with Video(path) as video:
        frames = video.read(range(video.num_frames))
    [crops] = augmentation.spatial_crops(frames, 32, 1)
    rows = []
    for start in starts:
        indices = [min(start + k * stride, len(frames) - 1) for k in range(4)]
        clip = crops[indices][None]
        model, variables = pretrained.model, pretrained.variables
        rows.append(apply_model(model, variables, clip, **apply)[0])
    return np.stack(rows)


def golden_tad():
    """Returns the arrays of V2's script, and its tiny model of 7 classes."""
    arrays = np.load(official.GOLDEN / "v2/tad.npz")
    params = official.classifier_parameters(arrays, "features/param/")
    model = VideoClassifier(22, 2, 2, 7, patch_size=14, mlp_ratio=48 / 11)
    preprocessing = Preprocessing(image_size=28)
    return arrays, Pretrained(model, params, preprocessing=preprocessing)


def test_features_are_those_of_v2s_script():
    arrays, pretrained = golden_tad()
    frames = arrays["features/video_uint8_thwc"]
    for data_set, hop in (("THUMOS14", 4), ("FINEACTION", 16)):
        windows = Windows.of(pretrained, hop=hop, like="videomaev2-tad")
        features = extract(pretrained, frames, windows=windows)
        expected = arrays[f"features/{data_set}"]
        np.testing.assert_allclose(features, expected, atol=5e-5)
    windows = Windows.of(pretrained, hop=4, like="videomaev2-tad-normalized")
    assert windows == Windows(16, 1, 4, 28, squash=True)
    [normalized, *_] = extract(pretrained, frames, windows=windows)
    # The same frames, normalized, of which ours have been rounded to pixels.
    [expected] = arrays["features/first_window_if_normalised"]
    np.testing.assert_allclose(normalized, expected, atol=0.02)
    assert np.abs(normalized - arrays["features/THUMOS14"][0]).max() > 0.1
    with pytest.raises(ValueError, match="like='tad' must be one of: videomaev2-tad"):
        Windows.of(pretrained, like="tad")


def test_another_framing_is_another_setting(pretrained):
    assert (
        Windows.of(pretrained).to_json()["framing"] is None
    )  # as before there were any
    framing = Framing((32, 32), crop=False)
    preprocessing = dataclasses.replace(PREPROCESSING, framing=framing)
    squashed = dataclasses.replace(pretrained, preprocessing=preprocessing)
    assert Windows.of(squashed).to_json()["framing"]["resize"] == [32, 32]


def test_windows_fit_the_model_and_are_checked(pretrained):
    assert Windows.of(pretrained) == Windows(4, 2, 8, 32)
    assert Windows.of(pretrained, hop=3, frame_stride=1) == Windows(4, 1, 3, 32)
    with pytest.raises(ValueError, match="hop=0 must be at least 1"):
        Windows.of(pretrained, hop=0)
    with pytest.raises(PretrainedError, match="5 frames"):
        Extractor(pretrained, Windows.of(pretrained, num_frames=5))


def test_features_are_those_of_the_model(pretrained, folder):
    path = folder / "a/2.mp4"
    features = extract(pretrained, path, windows=Windows.of(pretrained, hop=3))
    expected = by_hand(pretrained, path, range(0, 25 - 6, 3), 2, method="features")
    assert features.dtype == np.float32 and features.shape == (7, 24)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0.1  # windows differ
    content = extract(
        pretrained, path.read_bytes(), windows=Windows.of(pretrained, hop=3)
    )
    np.testing.assert_array_equal(content, features)


def test_an_encoder_without_a_head_gives_the_same(pretrained, folder):
    params = {k: v for k, v in pretrained.params.items() if k != "head"}
    model = pretrained.model.clone(num_classes=0)
    headless = dataclasses.replace(pretrained, model=model, params=params)
    path = folder / "a/0.mp4"
    np.testing.assert_array_equal(extract(headless, path), extract(pretrained, path))


def test_pretraining_models_give_the_mean_of_their_tokens(mae, folder):
    path = folder / "a/0.mp4"
    tokens = by_hand(mae, path, [0], 2, method="encode")
    features = extract(mae, path)
    np.testing.assert_allclose(features, tokens.mean(axis=1), atol=1e-5)
    features = extract(mae, path, tokens=True)
    np.testing.assert_allclose(features, tokens.reshape(1, 2, 2, 2, 24), atol=1e-5)


def test_detectors_give_the_mean_of_their_tokens(folder):
    model = ActionDetector(24, 1, 2, 3, position_size=(32, 32))
    params = random_variables(model)["params"]
    detector = Pretrained(model, params, preprocessing=PREPROCESSING)
    path = folder / "a/0.mp4"
    tokens = by_hand(detector, path, [0], 2, method="tokens")
    np.testing.assert_allclose(extract(detector, path), tokens.mean(1), atol=1e-5)


def test_tokens_lie_on_the_grid(pretrained, folder):
    path = folder / "a/0.mp4"
    features = extract(
        pretrained, path, windows=Windows.of(pretrained, hop=4), tokens=True
    )
    tokens = by_hand(pretrained, path, [0, 4], 2, method="tokens")
    assert features.shape == (2, 2, 2, 2, 24)
    np.testing.assert_allclose(features[1, 1, 0, 1], tokens[1, 4 + 0 + 1], atol=1e-5)
    np.testing.assert_allclose(features.reshape(tokens.shape), tokens, atol=1e-5)


def test_squashed_windows_have_the_whole_frame(folder, pretrained):
    windows = Windows.of(pretrained, frame_stride=1, hop=4, squash=True)
    with Video(folder / "a/0.mp4") as video:
        first, *_ = windows.read(video)
        frames = video.read(range(4))
    expected = augmentation.crop_and_resize(frames, (0, 0, 48, 64), 32, 32)
    np.testing.assert_array_equal(first, expected)
    [cut] = augmentation.spatial_crops(frames, 32, 1)
    assert (cut != first).any()


def test_a_video_shorter_than_a_window_is_padded_with_a_warning(
    pretrained, folder, caplog
):
    with caplog.at_level(logging.WARNING):
        extract(pretrained, folder / "a/0.mp4")
        assert not caplog.messages
        [padded] = extract(pretrained, folder / "b/1.mp4")
    path = folder / "b/1.mp4"
    assert caplog.messages == [
        f"{path}: 3 frames are fewer than the 7 that a window spans, so the last one "
        "is repeated"
    ]
    [expected] = by_hand(pretrained, path, [0], 2, method="features")
    np.testing.assert_allclose(padded, expected, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_other_videos_and_devices_change_nothing(
    pretrained, folder, monkeypatch, devices, batch_size
):
    windows = Windows.of(pretrained, hop=3)
    paths = sorted(folder.glob("*/*.mp4"))
    alone = [extract(pretrained, path, windows=windows) for path in paths]
    everything = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: everything[:devices])
    extractor = Extractor(pretrained, windows, batch_size=batch_size)
    for order in (paths, paths[::-1]):
        chunks = [[] for _ in order]
        for chunk in extractor(order, num_threads=3):
            assert chunk.first == sum(map(len, chunks[chunk.video.index]))
            chunks[chunk.video.index].append(chunk.values)
        for path, values in zip(order, chunks, strict=True):
            features = np.concatenate(values)
            np.testing.assert_array_equal(features, alone[paths.index(path)])


def test_each_frame_is_decoded_once_in_bounded_runs(folder, pretrained, monkeypatch):
    reads = []
    read = Video.read
    monkeypatch.setattr(
        Video, "read", lambda self, i: reads.append(list(i)) or read(self, i)
    )
    monkeypatch.setattr(
        "videomae_jax.inference.windows.RUN_BYTES", 7 * 3 * (48 * 64 + 4096)
    )
    windows = Windows(num_frames=4, frame_stride=2, hop=3, size=32)
    with Video(folder / "a/4.mp4") as video:
        video.height  # noqa: B018  finding it out reads a frame, too
        reads.clear()
        features = np.stack(list(windows.read(video)))
        frames = read(video, range(40))
    indices = windows.indices(40)
    assert max(map(len, reads)) == 7
    assert np.array_equal(np.concatenate(reads), np.unique(indices))
    [crops] = augmentation.spatial_crops(frames, 32, 1)
    np.testing.assert_array_equal(features, crops[indices])


def test_unreadable_videos_come_after_their_chunks(folder, pretrained, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    windows = Windows.of(pretrained)
    videos = [bad, folder / "a/0.mp4", tmp_path / "missing.mp4"]
    chunks = list(Extractor(pretrained, windows)(videos, num_threads=1))
    assert [type(chunk) for chunk in chunks] == [FeatureChunk, Unreadable, Unreadable]
    assert {chunk.index for chunk in chunks[1:]} == {0, 2}
    with pytest.raises(VideoError, match="bad.mp4"):
        extract(pretrained, bad)


def test_an_error_of_a_thread_is_raised_and_threads_end(pretrained, folder):
    before = threading.active_count()
    windows = Windows.of(pretrained, hop=1)
    with pytest.raises(TypeError):
        list(Extractor(pretrained, windows)([folder / "a/0.mp4", None], num_threads=2))
    chunks = Extractor(pretrained, windows)([folder / "a/4.mp4"] * 9, num_threads=2)
    next(chunks)
    chunks.close()
    assert threading.active_count() <= before


def test_features_that_are_not_finite_are_refused(pretrained, folder):
    params = jax.tree.map(lambda x: x * np.nan, pretrained.params)
    broken = dataclasses.replace(pretrained, params=params)
    with pytest.raises(PretrainedError, match="not finite"):
        extract(broken, folder / "a/0.mp4")
