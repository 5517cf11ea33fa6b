"""Frame folders return the pixels of their images, and name images that are bad."""

import cv2
import numpy as np
import pytest

from tests.helpers.frames import encode, write_frames
from tests.helpers.videos import moving_noise
from videomae_jax.errors import VideoError
from videomae_jax.video import images
from videomae_jax.video.frame_folder import (
    FrameFolder,
    check_frame_name,
    frame_number,
    frame_numbers,
)

FRAMES = moving_noise(7, 48, 64)


@pytest.fixture
def folder(tmp_path):
    return write_frames(tmp_path / "a", FRAMES, "img_{:05}.png", start=3)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
def test_pixels_are_those_of_opencv(tmp_path, extension):
    name = "frame{:d}" + extension
    path = write_frames(tmp_path / "a", FRAMES, name)
    with FrameFolder(str(path), name) as video:
        assert (video.num_frames, video.fps) == (7, None)
        assert (video.height, video.width) == (48, 64)
        read = video.read([5, 0, 5])
    assert read.dtype == np.uint8 and read.shape == (3, 48, 64, 3)
    for image, number in zip(read, (6, 1, 6), strict=True):
        # Grey, cut off or turned images would differ by far more.
        expected = cv2.imread(str(path / name.format(number)))[..., ::-1]
        assert np.abs(image.astype(int) - expected).max() <= 1
        if extension == ".png":
            np.testing.assert_array_equal(image, FRAMES[number - 1])


def test_reading(folder):
    with FrameFolder(str(folder), "img_{:05}.png", (4, 3)) as video:
        assert video.num_frames == 3
        np.testing.assert_array_equal(video.read(range(3)), FRAMES[1:4])
        assert video.read([]).shape == (0, 48, 64, 3)
        for index in (-1, 3):
            with pytest.raises(IndexError, match="0 to 2"):
                video.read([0, index])
    video.close()
    with pytest.raises(VideoError, match="closed"):
        video.read([0])


def test_only_requested_images_are_opened_and_each_once(folder, monkeypatch):
    opened = []
    decode = images.decode_image
    monkeypatch.setattr(
        images,
        "decode_image",
        lambda content, format: opened.append(content) or decode(content, format),
    )
    with FrameFolder(str(folder), "img_{:05}.png") as video:
        assert not opened
        clip = video.read([2, 6, 2])
    assert opened == [(folder / f"img_{n:05}.png").read_bytes() for n in (5, 9)]
    np.testing.assert_array_equal(clip, FRAMES[[2, 6, 2]])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"hello" * 9, "is not a JPEG, PNG, WebP or TIFF"),
        (encode(FRAMES[0])[:999], "is damaged"),
        (cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(), "of uint16"),
        (encode(FRAMES[0][:40]), "resolution: img_00005.png is 64x40, others 64x48"),
    ],
)
def test_a_bad_image_is_named(folder, content, message):
    (folder / "img_00005.png").write_bytes(content)
    with FrameFolder(str(folder), "img_{:05}.png") as video:
        assert video.read([0, 1, 3]).shape == (3, 48, 64, 3)
        with pytest.raises(VideoError, match=message) as raised:
            video.read([1, 2])
    assert str(raised.value).startswith(f"{folder}: ")
    assert "img_00005.png" in str(raised.value)


def test_missing_images(folder):
    (folder / "img_00005.png").unlink()
    (folder / "notes.txt").touch()
    with pytest.raises(VideoError, match="img_00005.png is missing between img_00003"):
        FrameFolder(str(folder), "img_{:05}.png")
    with FrameFolder(str(folder), "img_{:05}.png", (3, 7)) as video:
        video.read([0, 1, 3])
        with pytest.raises(VideoError, match=r"img_00005.png is missing: .*7 images"):
            video.read([2])
    with FrameFolder(str(folder), "img_{:05}.png", (1, 7)) as video:
        with pytest.raises(VideoError, match=r"has 6, img_00003.png to img_00009.png"):
            video.read([0])


def test_sizes_and_an_unreadable_image(folder):
    (folder / "img_00005.png").unlink()
    (folder / "img_00005.png").mkdir()
    (folder / "img_00009.png").unlink()
    with FrameFolder(str(folder), "img_{:05}.png", (3, 7)) as video:
        assert video.size(0) == (folder / "img_00003.png").stat().st_size
        assert video.content(0) == (folder / "img_00003.png").read_bytes()
        reason = f"{folder}: img_00005.png: cannot be read: Is a directory"
        with pytest.raises(VideoError, match=reason):
            video.read([2])
        for method in (video.size, video.content):
            with pytest.raises(VideoError, match=r"img_00009.png is missing: .*has 6"):
                method(6)


@pytest.mark.parametrize("frame_range", [None, (1, 5)])
def test_names_that_do_not_fit(folder, frame_range):
    with pytest.raises(VideoError) as raised:
        FrameFolder(str(folder), "image_{:06}.jpg", frame_range).read([0])
    for part in ("img_00003.png, img_00004.png", "config.data.frame_name", "image_{:0"):
        assert part in str(raised.value)


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("none", "no such folder"), ("file", "is a file")):
        for frame_range in (None, (1, 5)):
            with pytest.raises(VideoError, match=reason):
                FrameFolder(str(tmp_path / name), frame_range=frame_range).read([0])


@pytest.mark.parametrize("template", ["img_{:05}.jpg", "{}.png", "{:d}x.webp", "{0}"])
def test_templates(template):
    check_frame_name(template)
    names = [template.format(n) for n in (12, 3, 123456)]
    assert frame_numbers(template, [*names, "cover.jpg"]) == [3, 12, 123456]
    assert frame_number(template, "cover.jpg") is None


@pytest.mark.parametrize(
    "template", ["", "img.jpg", "a/{}.jpg", "{}{}.jpg", "{x}.jpg", "{:x}.jpg", "{"]
)
def test_other_templates_are_refused(template):
    with pytest.raises(ValueError, match="is not a template of image names"):
        check_frame_name(template)


def test_a_number_with_other_padding_does_not_fit():
    assert frame_number("img_{:05}.jpg", "img_00012.jpg") == 12
    assert frame_number("img_{:05}.jpg", "img_12.jpg") is None
