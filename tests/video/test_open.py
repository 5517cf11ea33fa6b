"""Whatever a record names is opened: files, segments of files, remote files."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.frames import write_frames
from tests.helpers.videos import moving_noise, write_video
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import file_size, open_video, read_bytes, video_name
from videomae_jax.video.record import Record
from videomae_jax.video.source import FrameSource

FRAMES = moving_noise(7, 48, 64)


@pytest.fixture
def path(tmp_path):
    write_video(str(tmp_path / "c.mp4"), FRAMES)
    return tmp_path / "c.mp4"


@pytest.fixture
def decoded(path):
    with Video(path) as video:
        return video.read(range(7))


@pytest.fixture
def remote(monkeypatch):
    """Lets gs:// name local files."""
    monkeypatch.setattr("etils.epath.Path", lambda url: Path(url.removeprefix("gs://")))


def test_paths_contents_and_records(path, decoded):
    for source in (path, str(path), path.read_bytes(), Record(str(path), "c")):
        with open_video(source) as video:
            assert isinstance(video, FrameSource)
            np.testing.assert_array_equal(video.read([6, 0]), decoded[[6, 0]])
    assert video_name(path) == video_name(str(path)) == str(path)
    assert video_name(b"...") == "<bytes>"
    assert video_name(Record(str(path), "c")) == "c"


def test_segments(path, decoded):
    record = Record(str(path), "c", frame_range=(2, 4))
    with open_video(record) as video:
        assert isinstance(video, FrameSource)
        assert (video.num_frames, video.height, video.width) == (4, 48, 64)
        assert video.fps == pytest.approx(25)
        np.testing.assert_array_equal(video.read(range(4)), decoded[2:6])
        frames = video.decode([3, 1])
        expected = decoded[[5, 3], 8:18, 4:24]
        np.testing.assert_array_equal(frames.pixels((8, 4, 10, 20)), expected)
        assert video.read([]).shape == (0, 48, 64, 3)
        for index in (-1, 4):
            with pytest.raises(IndexError, match="4 frames, 0 to 3"):
                video.read([index])
    with pytest.raises(VideoError, match="closed"):
        video.read([0])
    with pytest.raises(
        VideoError, match=r"c\.mp4: too short: .* 4 frames from frame 4"
    ):
        open_video(Record(str(path), "c", frame_range=(4, 4)))


def test_parts_in_seconds_follow_the_times_of_frames(tmp_path):
    # Red for 2 s, a frame every 0.5 s; then blue, a frame every 0.1 s.
    red, blue = (
        np.full((1, 48, 64, 3), rgb, np.uint8) for rgb in ((255, 0, 0), (0, 0, 255))
    )
    frames = np.concatenate([red] * 4 + [blue] * 20)
    ticks = [0, 50, 100, 150, *range(200, 400, 10)]
    write_video(str(tmp_path / "a.mp4"), frames, ticks=ticks)
    for times, count, first in (
        ((0, 2), 4, 0),  # the end is left out
        ((0.5, 1.5), 2, 1),
        ((2, 4), 20, 4),
        ((1.99, 2.01), 1, 4),
        ((2.3, 9), 17, 7),
    ):
        with open_video(
            Record(str(tmp_path / "a.mp4"), "a", time_range=times)
        ) as video:
            assert (video.num_frames, video.first_frame) == (count, first)
            is_red = video.read(range(count))[..., 0].mean(axis=(1, 2)) > 128
            assert is_red.tolist() == [first + i < 4 for i in range(count)]
    for times in ((4.5, 5), (0.6, 0.9)):
        record = Record(str(tmp_path / "a.mp4"), "a", time_range=times)
        with pytest.raises(VideoError, match="a.mp4: none of its 24 frames is within"):
            open_video(record)
        assert file_size(record) is None
        with pytest.raises(VideoError, match="is not a whole video file"):
            read_bytes(record)


def test_urls(path, decoded, remote, tmp_path):
    with open_video(Record(f"gs://{path}", "c")) as video:
        np.testing.assert_array_equal(video.read(range(7)), decoded)
    with open_video(Record(f"gs://{path}", "c", frame_range=(2, 4))) as video:
        np.testing.assert_array_equal(video.read(range(4)), decoded[2:6])
    folder = write_frames(tmp_path / "a", FRAMES, "img_{:05}.png")
    record = Record(f"gs://{folder}", "a", frame_name="img_{:05}.png")
    with open_video(record) as video:
        np.testing.assert_array_equal(video.read(range(7)), FRAMES)
    with pytest.raises(VideoError, match="gs://.*none.mp4: no such file"):
        open_video(Record(f"gs://{path.parent}/none.mp4", "none"))


def test_unknown_kinds_of_urls():
    record = Record("nowhere://bucket/c.mp4", "c")
    for read in (open_video, read_bytes):
        with pytest.raises(VideoError, match="c.mp4: cannot be read: 'nowhere://'"):
            read(record)


def test_content_and_size_of_files(path):
    record = Record(str(path), "c")
    assert read_bytes(record) == path.read_bytes()
    assert file_size(record) == path.stat().st_size
    segment = Record(str(path), "c", frame_range=(2, 4))
    images = Record(str(path), "c", frame_name="img_{:05}.png")
    for other in (segment, images):
        assert file_size(other) is None
        with pytest.raises(VideoError, match="is not a whole video file"):
            read_bytes(other)
    missing = Record(str(path.parent / "none.mp4"), "none")
    assert file_size(missing) is None
    with pytest.raises(VideoError, match="none.mp4: no such file"):
        read_bytes(missing)
    for absent in ("a\0b", "gs://bucket/c.mp4"):
        assert file_size(Record(absent, "c")) is None
