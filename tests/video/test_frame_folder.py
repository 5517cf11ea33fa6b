"""Frame folders give the images' pixels, and never grey in place of lost ones."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.frames import encode, write_frames
from tests.helpers.videos import moving_noise, write_video
from videomae_jax.data import sources as records
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.video import images
from videomae_jax.video import open as video_open
from videomae_jax.video.decoder import Video
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.record import LabelKind, Record

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
        wanted = cv2.imread(str(path / name.format(number)))[..., ::-1]
        assert np.abs(image.astype(int) - wanted).max() <= 1
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


def test_only_wanted_images_are_opened_and_each_once(folder, monkeypatch):
    opened = []
    decode = images.decode
    monkeypatch.setattr(
        images, "decode", lambda content: opened.append(content) or decode(content)
    )
    with FrameFolder(str(folder), "img_{:05}.png") as video:
        assert not opened
        clip = video.read([2, 6, 2])
    wanted = [(folder / f"img_{n:05}.png").read_bytes() for n in (5, 9)]
    assert opened == wanted
    np.testing.assert_array_equal(clip, FRAMES[[2, 6, 2]])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_kinds_of_pixels_become_rgb(mode):
    image = Image.fromarray(FRAMES[0]).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    decoded = images.decode(file.getvalue())
    assert decoded.shape == (48, 64, 3)
    if mode == "L":
        np.testing.assert_array_equal(decoded[..., 0], np.asarray(image))
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    if mode == "RGBA":
        np.testing.assert_array_equal(decoded, FRAMES[0])


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("left", [0, 1, 40, 0.5, 0.9, -3, -1])
def test_images_that_are_cut_off_are_refused(extension, left):
    content = encode(FRAMES[0], extension)
    end = int(left * len(content)) if isinstance(left, float) else left
    # What is missing, or what a file system put in its place.
    for filled in (b"", bytes(max(len(content) - len(content[:end]), 16))):
        try:
            decoded = images.decode(content[:end] + filled)
        except images.ImageError:
            continue
        # Of a PNG nothing is lost with its last bytes.
        assert extension == ".png" and end in (-3, -1)
        np.testing.assert_array_equal(decoded, FRAMES[0])


def test_a_changed_png_is_refused():
    content = bytearray(encode(FRAMES[0]))
    content[len(content) // 2] ^= 1
    with pytest.raises(images.ImageError, match="damaged"):
        images.decode(bytes(content))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty"),
        (b"hello" * 9, "no JPEG, PNG or WebP"),
        (encode(FRAMES[0])[:999], "is damaged"),
        (cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(), "8 bits"),
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


@pytest.mark.parametrize("frames", [None, (1, 5)])
def test_names_that_do_not_fit(folder, frames):
    with pytest.raises(VideoError) as raised:
        FrameFolder(str(folder), "image_{:06}.jpg", frames).read([0])
    for part in ("img_00003.png, img_00004.png", "config.data.frame_name", "image_{:0"):
        assert part in str(raised.value)


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("none", "no such folder"), ("file", "is a file")):
        for frames in (None, (1, 5)):
            with pytest.raises(VideoError, match=reason):
                FrameFolder(str(tmp_path / name), frames=frames).read([0])


def test_url(folder, monkeypatch):
    monkeypatch.setattr("etils.epath.Path", lambda url: Path(url.removeprefix("gs://")))
    record = Record(f"gs://{folder}", "a", frame_name="img_{:05}.png")
    with video_open.open_video(record) as video:
        np.testing.assert_array_equal(video.read(range(7)), FRAMES)


def test_lists(tmp_path):
    """VideoMAE V2's two kinds of lines, whole folders, and parts of a video file."""
    write_frames(tmp_path / "a", FRAMES, "img_{:05}.png")
    write_frames(tmp_path / "b", FRAMES[::-1], "img_{:05}.png", start=0)
    write_video(str(tmp_path / "c.mp4"), FRAMES)
    with Video(tmp_path / "c.mp4") as video:
        decoded = video.read(range(7))

    def load(text, **kwargs):
        (tmp_path / "list.txt").write_text(text)
        found = records.load(
            str(tmp_path / "list.txt"), frame_name="img_{:05}.png", **kwargs
        )
        for record in found:
            with video_open.open_video(record) as video:
                frames = video.read(range(video.num_frames))
                assert frames.shape[1:] == (video.height, video.width, 3)
            yield frames

    unlabelled = "a 2 5\nb 0 3\nb/\nc.mp4 0 -1\n"
    wanted = [FRAMES[1:6], FRAMES[:3:-1], FRAMES[::-1], decoded]
    for got, expected in zip(load(unlabelled), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    parts = "path,start,total\nc.mp4 1 4\nc.mp4 0 -1\nb/ 0 -1\n"
    wanted = [decoded[1:5], decoded, FRAMES[::-1]]
    for got, expected in zip(load(parts), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    labelled = load("a 5 0\nc.mp4 3\na/ 7\n", label_kind=LabelKind.ONE)
    for got, expected in zip(labelled, [FRAMES[:5], decoded, FRAMES], strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(
        VideoError, match=r"c\.mp4: too short: .* 4 frames from frame 4"
    ):
        list(load("path,start,total\nc.mp4 4 4\n"))


def test_part_of_a_video(tmp_path):
    write_video(str(tmp_path / "c.mp4"), FRAMES)
    record = Record(str(tmp_path / "c.mp4"), "c", frame_range=(2, 4))
    with video_open.open_video(record) as video:
        assert video.fps == pytest.approx(25)
        for index in (-1, 4):
            with pytest.raises(IndexError):
                video.read([index])
    with pytest.raises(VideoError, match="closed"):
        video.read([0])


def test_a_folder_of_frame_folders(tmp_path):
    root = tmp_path / "root"
    for name in ("x/2", "x/10", "y"):
        write_frames(root / name, FRAMES)
    write_video(str(root / "y.mp4"), FRAMES)
    (root / "x" / "cover.jpg").touch()
    found = records.load(str(root))
    assert [record.id for record in found] == ["x/10", "x/2", "y", "y.mp4"]
    assert [bool(record.frame_name) for record in found] == [True, True, True, False]
    [record] = records.load(str(root / "y"))
    assert (record.id, record.path) == ("y", str(root / "y"))
    with pytest.raises(RecordError, match=r"img_00001\.jpg.*frame_name"):
        records.load(str(root / "y"), frame_name="{}.jpg")
    os.rename(root / "y" / "img_00001.jpg", root / "y" / ".hidden.jpg")
    assert len(records.load(str(root / "y"))) == 1
