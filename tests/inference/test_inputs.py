"""Videos in every form that the public functions accept, and forms they refuse."""

import dataclasses
import functools
import pathlib
import warnings

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import videomae_jax as vmae
from tests.helpers.models import random_variables
from tests.helpers.videos import moving_noise, write_video
from videomae_jax.data import augmentation, sampling
from videomae_jax.errors import InputError, RecordError, UserError, VideoError
from videomae_jax.inference import inputs
from videomae_jax.video.decoder import Video

FRAMES, STRIDE, SIZE = 4, 2, 32  # a clip spans 8 frames
CLIP = (FRAMES, SIZE, SIZE, 3)
CENTER = sampling.dense_center_indices(30, FRAMES, STRIDE)


@pytest.fixture(scope="module")
def pretrained():
    model = vmae.VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
    params = random_variables(model)["params"]
    return vmae.Pretrained(
        model, params, ("a", "b", "c"), vmae.Preprocessing(FRAMES, STRIDE, SIZE)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, a list of them, and a folder of images with one video's frames."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "videos").mkdir()
    for name, seed in (("a", 0), ("b", 1)):
        frames = moving_noise(30, 48, 64, seed=seed)
        write_video(folder / f"videos/{name}.mp4", frames)
    (folder / "list.txt").write_text("videos/b.mp4 1\nvideos/a.mp4 0\n")
    (folder / "frames/v0").mkdir(parents=True)
    for number, frame in enumerate(frames_of(folder / "videos/a.mp4"), start=1):
        image = np.ascontiguousarray(frame[..., ::-1])
        cv2.imwrite(str(folder / f"frames/v0/img_{number:05}.jpg"), image)
    return folder


def frames_of(path):
    with Video(path) as video:
        return video.read(range(video.num_frames))


@pytest.fixture(scope="module")
def expected(pretrained, folder):
    """The predictions of both videos, by the first letter of the file's name."""
    return {
        name: vmae.predict(pretrained, folder / f"videos/{name}.mp4") for name in "ab"
    }


def test_frames_are_a_video(pretrained, folder, expected):
    """An array gives what a file of its frames does, bit for bit."""
    frames = frames_of(folder / "videos/a.mp4")
    images = [Image.fromarray(frame) for frame in frames]
    for video in (frames, list(frames), tuple(frames), jnp.asarray(frames), images):
        assert vmae.predict(pretrained, video) == expected["a"]
    for settings in ({}, {"segments": 2, "crops": 1}, {"stride": 1}):
        np.testing.assert_equal(
            vmae.predict(pretrained, frames, **settings),
            vmae.predict(pretrained, folder / "videos/a.mp4", **settings),
        )
    for function in (vmae.features, vmae.center_clip, vmae.attention_rollout):
        np.testing.assert_array_equal(
            function(pretrained, frames), function(pretrained, folder / "videos/a.mp4")
        )


def test_several_videos_give_a_list_in_order(pretrained, folder, expected, monkeypatch):
    a, b = (frames_of(folder / f"videos/{name}.mp4") for name in "ab")
    record = inputs.find_videos(folder / "videos/b.mp4")[0]
    monkeypatch.chdir(folder)
    for videos, names in [
        (np.stack([a, b]), "ab"),
        ([a, b], "ab"),
        (["videos/b.mp4", a, pathlib.Path("videos/a.mp4"), record], "baab"),
        ((pathlib.Path("videos/b.mp4").read_bytes(),), "b"),
        ("videos", "ab"),
        (folder / "videos", "ab"),
        ("videos/*.mp4", "ab"),
        ("**/a.mp4", "a"),
        ("list.txt", "ba"),
        (["videos", "list.txt"], "abba"),
        ((video for video in (a, b)), "ab"),
    ]:
        assert vmae.predict(pretrained, videos) == [expected[name] for name in names]


def test_a_folder_of_images_is_one_video(pretrained, folder):
    path = folder / "frames/v0"
    one = vmae.predict(pretrained, path)
    images = [cv2.imread(str(file))[..., ::-1] for file in sorted(path.iterdir())]
    assert one == vmae.predict(pretrained, images)
    assert vmae.predict(pretrained, folder / "frames") == [one]


def test_found_videos_have_names(folder, monkeypatch):
    monkeypatch.chdir(folder)
    ids = [video.id for video in vmae.find_videos(["videos", "frames/v0", "no.mp4"])]
    assert ids == ["videos/a.mp4", "videos/b.mp4", "frames/v0", "no.mp4"]


def test_features_and_maps_of_several_videos(pretrained, folder):
    paths = [str(folder / f"videos/{name}.mp4") for name in "ab"]
    alone = [vmae.features(pretrained, path) for path in paths]
    both = vmae.features(pretrained, str(folder / "videos"))
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert alone[0].shape == (3, 24)

    clips = vmae.center_clip(pretrained, paths)
    with Video(paths[1]) as video:
        frames = video.read(CENTER)
    np.testing.assert_array_equal(
        clips[1], augmentation.spatial_crops(frames, SIZE, 1)[0]
    )
    maps = vmae.class_activation(pretrained, np.stack(clips), class_index=[2, 1])
    assert maps.shape == (2, 2, 2, 2)
    both = vmae.class_activation(pretrained, paths, class_index=[2, 1])
    np.testing.assert_array_equal(both, maps)
    one = vmae.class_activation(pretrained, paths[1], class_index=1)
    np.testing.assert_allclose(one, maps[1], atol=1e-5)


def test_clips_are_classified_as_they_are(pretrained, folder):
    clip = vmae.center_clip(pretrained, folder / "videos/a.mp4")
    raw = vmae.classify(pretrained, clip[None])
    assert raw.shape == (1, 3) and raw.dtype == np.float32
    [top] = vmae.predict(
        pretrained, folder / "videos/a.mp4", segments=1, crops=1, top_k=1
    )
    assert top[1] == pytest.approx(raw.max(), abs=1e-6)
    model = pretrained.model
    normalized = (clip / 255 - model.pixel_mean) / model.pixel_std
    for clips in (
        normalized[None].astype(np.float32),
        jnp.asarray(normalized[None], jnp.float32),
        [normalized.astype(np.float32)],
        [clip],
    ):
        np.testing.assert_allclose(vmae.classify(pretrained, clips), raw, atol=1e-5)


@pytest.mark.parametrize(
    "clips, message",
    [
        (np.zeros(CLIP, np.uint8), r"got \[4, 32, 32, 3\]; for one clip: clip\[None\]"),
        (np.zeros((1, *CLIP[:3], 1), np.uint8), r"\[B, T, H, W, 3\].*32, 1\]"),
        (np.zeros((1, *CLIP[:3], 4), np.uint8), r"\[B, T, H, W, 3\].*32, 4\]"),
        (np.zeros((2, 3, SIZE, SIZE, 3), np.uint8), "T a multiple of 2"),
        (np.zeros((2, 4, 30, SIZE, 3), np.uint8), "H and W of 16"),
        (np.zeros((0, *CLIP), np.uint8), "got .0, 4, 32, 32, 3"),
        (np.zeros((1, *CLIP), np.int32), r"expected uint8 .* got int32"),
        (np.full((1, *CLIP), 200.0, np.float32), "with values 200 to 200"),
        (np.full((1, *CLIP), np.nan, np.float32), "with values nan to nan"),
    ],
)
def test_clips_that_do_not_fit_are_refused(pretrained, clips, message):
    for call in (vmae.classify, vmae.attention_rollout):
        if call is vmae.classify or clips.ndim == 5:
            with pytest.raises(InputError, match=message):
                call(pretrained, clips)
    assert issubclass(InputError, UserError) and issubclass(InputError, ValueError)


def test_unnormalized_floats_are_noticed(pretrained):
    clips = np.linspace(0, 1, np.prod(CLIP), dtype=np.float32).reshape(1, *CLIP)
    with pytest.warns(UserWarning, match="probably not normalized"):
        vmae.classify(pretrained, clips)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vmae.classify(pretrained, clips * 4 - 2)
        vmae.classify(pretrained, np.zeros((1, *CLIP), np.float32))


@pytest.mark.parametrize(
    "video, message",
    [
        (np.zeros((16, 3, 64, 64), np.uint8), r"np.moveaxis\(frames, -3, -1\)"),
        (np.zeros((16, 64, 64, 4), np.uint8), r"\[T, H, W, 3\].*\[16, 64, 64, 4\]"),
        (np.zeros((16, 64, 64), np.uint8), r"expected uint8 \[T, H, W, 3\]"),
        (np.zeros((64, 64, 3), np.uint8), r"one frame: frame\[None\]"),
        (np.zeros((16, 64, 64, 3)), "with values 0 to 0"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"got uint8 \[0, 64, 64, 3\]"),
        ([np.zeros((64, 64, 3), np.uint8), np.zeros((64, 60, 3), np.uint8)], "shapes"),
        ([np.zeros((64, 64), np.uint8)] * 9, r"got uint8 \[9, 64, 64\]"),
        ([], "list of videos is empty"),
        (3, "a int is not a video; expected a path"),
        ([3], "a int is not a video; expected a path"),
    ],
)
def test_other_values_are_refused(pretrained, video, message):
    for call in (vmae.predict, vmae.features, vmae.center_clip):
        with pytest.raises(InputError, match=message):
            call(pretrained, video)


def test_names_of_no_video_are_refused(pretrained, folder, tmp_path):
    with pytest.raises(RecordError, match="no video matches"):
        vmae.predict(pretrained, str(tmp_path / "*.mp4"))
    with pytest.raises(RecordError, match="holds no videos"):
        vmae.predict(pretrained, tmp_path)
    image = folder / "frames/v0/img_00001.jpg"
    for images in (image, [str(image), str(image)], folder / "frames/v0/*.jpg"):
        with pytest.raises(RecordError, match="img_00001.jpg is an image; .* folder"):
            vmae.predict(pretrained, images)
    with pytest.raises(VideoError, match="no such file"):
        vmae.predict(pretrained, [folder / "videos/a.mp4", tmp_path / "c.mp4"])


def test_frames_that_were_sampled_already_are_noticed(pretrained, folder):
    frames = frames_of(folder / "videos/a.mp4")
    clip = frames[CENTER]
    with pytest.warns(UserWarning, match="4 frames are fewer than a clip spans .7."):
        vmae.predict(pretrained, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [top] = vmae.predict(pretrained, clip, segments=1, crops=1, top_k=1, stride=1)
        uniform = dataclasses.replace(
            pretrained.preprocessing, frame_sampling="uniform"
        )
        vmae.predict(dataclasses.replace(pretrained, preprocessing=uniform), clip)
    path = folder / "videos/a.mp4"
    assert [top] == vmae.predict(pretrained, path, segments=1, crops=1, top_k=1)
    with pytest.raises(ValueError, match="stride=0 must be at least 1"):
        vmae.predict(pretrained, clip, stride=0)


def test_a_video_shorter_than_a_clip_is_noticed(pretrained, folder, tmp_path):
    path = tmp_path / "short.mp4"
    write_video(path, moving_noise(3, 48, 64, seed=0))
    options = {"segments": 1, "crops": 1}
    message = "short.mp4: 3 frames are fewer than the 4 of a clip, so the last one is"
    with pytest.warns(UserWarning, match=message):
        expected = vmae.predict(pretrained, path, **options)
    with pytest.warns(UserWarning, match="^<array>: 3 frames .* 4 of a clip"):
        vmae.predict(pretrained, frames_of(path), stride=1, **options)
    uniform = dataclasses.replace(pretrained.preprocessing, frame_sampling="uniform")
    with pytest.warns(UserWarning, match="so each is taken several times"):
        whole = dataclasses.replace(pretrained, preprocessing=uniform)
        vmae.predict(whole, path, **options)
    assert sum(p for _, p in expected) == pytest.approx(1)


@pytest.mark.parametrize(
    "function",
    [
        vmae.predict,
        vmae.timeline,
        vmae.features,
        vmae.reconstruct,
        vmae.center_clip,
        vmae.classify,
        vmae.attention_rollout,
        functools.partial(vmae.class_activation, class_index=0),
    ],
)
def test_the_model_comes_first(function, pretrained):
    for first, shown in (("a.mp4", "'a.mp4'"), (pathlib.Path("b"), "'b'"), (3, "int")):
        message = f"first argument must be a model, .* got {shown}$"
        with pytest.raises(InputError, match=message):
            function(first, pretrained)


def test_classes_have_numbers_and_names(pretrained, folder):
    clip = vmae.center_clip(pretrained, folder / "videos/a.mp4")[None]

    def activation(class_index, model=pretrained):
        return vmae.class_activation(model, clip, class_index=class_index)

    np.testing.assert_array_equal(activation("b"), activation(1))
    np.testing.assert_array_equal(activation(["c"]), activation(np.array([2])))
    for wrong, message in [
        ("d", "'d' must be in 0 to 2, or the name of one of the classes$"),
        ("bb", "; the nearest is b$"),
        (3, "class_index=3 must be in 0 to 2"),
        (1.5, "class_index=1.5 must"),
    ]:
        with pytest.raises(InputError, match=message):
            activation(wrong)
    twice = dataclasses.replace(pretrained, labels=("a", "b", "b"))
    with pytest.raises(InputError, match="'b' must be .* the name of one of"):
        activation("b", twice)


def test_models_refuse_arrays_as_the_functions_do(pretrained):
    for shape in ((1, 4, 32, 32, 1), (1, 3, 32, 32, 3), (1, 4, 30, 32, 3)):
        with pytest.raises(InputError):
            jax.eval_shape(
                pretrained.model.apply, pretrained.variables, np.zeros(shape, np.uint8)
            )
