"""Videos opened by their packet index: the same frames, without a demuxer."""

import numpy as np
import pytest

from tests.helpers.videos import moving_noise, video_bytes
from videomae_jax.datasets.encode import Settings, encode
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import IndexedVideo, Video


def by_index(encoded, content=None):
    return IndexedVideo(
        content or encoded.video,
        encoded.index,
        fps=encoded.fps,
        size=(encoded.height, encoded.width),
        name="by index",
    )


@pytest.fixture(scope="module")
def encoded():
    return encode(video_bytes(moving_noise(50, 48, 64)), Settings(keyframes=12))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation": 90},
        {"pixel_format": "yuvj420p"},
        {"options": {"colorspace": "bt709"}},
        {"options": {"colorspace": "bt709", "color_range": "pc"}},
        {"ticks": np.cumsum([1, 9, 2, 2, 30, 1, 1, 4, 4, 7, 1, 1])},
    ],
    ids=str,
)
@pytest.mark.parametrize("settings", [Settings(), Settings(b_frames=0, tune="")])
def test_frames_are_those_of_the_file(options, settings, monkeypatch):
    encoded = encode(video_bytes(moving_noise(12, 48, 64), **options), settings)
    with Video(encoded.video) as video:
        frames, fps = video.read(range(video.num_frames)), video.fps
    # Nothing demuxes the file.
    monkeypatch.delattr("videomae_jax.video.decoder.open_container")
    monkeypatch.delattr("videomae_jax.video.container.open_container")
    with by_index(encoded) as video:
        assert video.num_frames == len(frames)
        assert (video.height, video.width) == frames.shape[1:3]
        assert video.fps == pytest.approx(fps)
        np.testing.assert_array_equal(video.read(range(len(frames))), frames)
        for indices in ([5], [11, 0, 11], [7, 3]):
            np.testing.assert_array_equal(video.read(indices), frames[indices])
        with pytest.raises(IndexError, match="by index: frame index 12"):
            video.read([12])
    with pytest.raises(VideoError, match="by index: the video is closed"):
        video.read([0])


def test_the_index_of_another_video_is_noticed(encoded):
    other = encode(video_bytes(moving_noise(40, 48, 64, seed=1)), Settings())
    video = by_index(encoded, other.video)
    with pytest.raises(VideoError, match="by index: "):
        video.read(range(0, 40, 4))


def test_frames_that_may_depend_on_damage_are_refused(encoded):
    with by_index(encoded) as video:
        frames = video.read(range(50))
    begin, size, *_ = encoded.index.packets[0]
    damaged = bytearray(encoded.video)
    damaged[begin + 30 : begin + size] = bytes(size - 30)
    video = by_index(encoded, bytes(damaged))
    with pytest.raises(VideoError, match="by index: "):
        video.read([3])
    np.testing.assert_array_equal(video.read([30]), frames[[30]])


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "libvpx-vp9", "container": "webm"},
        {"codec": "mpeg4"},
        {"container": "mpegts"},
    ],
    ids=str,
)
def test_other_videos_have_no_index(options):
    content = video_bytes(moving_noise(12, 48, 64), **options)
    with Video(content) as video, pytest.raises(ValueError, match="packet"):
        video.packet_index()


def test_only_a_video_in_memory_has_an_index(encoded, tmp_path):
    (tmp_path / "a.mp4").write_bytes(encoded.video)
    with Video(tmp_path / "a.mp4") as video, pytest.raises(ValueError, match="memory"):
        video.packet_index()
