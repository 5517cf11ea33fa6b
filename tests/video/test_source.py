"""When frames are shown: times of files, segments and sources with only a rate."""

import numpy as np
import pytest

from tests.helpers.frames import write_frames
from tests.helpers.videos import moving_noise, video_bytes
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import Video
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.source import VideoSegment

# A phone in the dark: 25 frames a second, then 6.25. In hundredths of a second.
_TICKS = [*range(0, 40, 4), *range(40, 200, 16)]


@pytest.fixture(scope="module")
def phone():
    return video_bytes(moving_noise(20, 32, 48), ticks=_TICKS)


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"x264-params": "keyint=8:bframes=3"}},
        {"container": "mpegts"},
        {"container": "matroska"},
        {"container": "webm", "codec": "libvpx"},
        {"ticks": [tick + 1003 for tick in _TICKS]},
        {"audio": True},
    ],
    ids=str,
)
def test_frames_have_their_own_times(settings):
    content = video_bytes(moving_noise(20, 32, 48), **({"ticks": _TICKS} | settings))
    with Video(content) as video:
        times = video.frame_times
        assert times.dtype == np.float64 and len(times) == 21
        np.testing.assert_allclose(times[:20], np.array(_TICKS) / 100, atol=1e-3)
        # The last frame lasts as long as the one before it.
        assert times[20] - times[19] == pytest.approx(0.16, abs=2e-3)


@pytest.mark.parametrize("codec", ["ffvhuff", "libx264"])
def test_times_of_files_without_a_packet_table(codec):
    # AVI has the times of decoding only; these codecs have no packet table there.
    content = video_bytes(
        moving_noise(20, 32, 48),
        codec=codec,
        container="avi",
        options={"bf": "3"} if codec == "libx264" else {},
    )
    with Video(content) as video:
        assert video._decoder is None
        times = video.frame_times
    np.testing.assert_allclose(times[:19], np.arange(19) / 25, atol=0.04)
    assert (np.diff(times) > 0).all()


def test_frames_between_two_times(phone):
    with Video(phone) as video:
        assert video.frames_between(0, 0.4) == range(10)  # 0.4 is frame 10's own time
        assert video.frames_between(0.4) == range(10, 20)
        assert video.frames_between(0.41, 0.73) == range(11, 13)
        assert video.frames_between(-5, 100) == range(20)
        for start, end in ((0.41, 0.55), (2.0, None), (0.5, 0.5), (1, 0)):
            with pytest.raises(VideoError, match="none of its 20 frames is within"):
                video.frames_between(start, end)


def test_times_of_a_segment_start_at_its_first_frame(phone):
    with VideoSegment(Video(phone), 8, 5) as segment:
        assert segment.first_frame == 8
        np.testing.assert_allclose(
            segment.frame_times, [0, 0.04, 0.08, 0.24, 0.4, 0.56], atol=1e-12
        )
        assert segment.frames_between(0.08, 0.4) == range(2, 4)
    with VideoSegment(Video(phone), 15, 5) as segment:  # to the end
        np.testing.assert_allclose(np.diff(segment.frame_times), 0.16)


def test_without_times_the_rate_gives_them(tmp_path):
    path = write_frames(tmp_path / "a", moving_noise(5, 32, 48))
    with FrameFolder(str(path)) as folder:
        assert folder.frame_times is None
        with pytest.raises(VideoError, match="frame rate unknown"):
            folder.frames_between(0, 1)
        folder.fps = 25.0
        assert folder.frame_times.tolist() == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
        assert folder.frames_between(0.04, 0.12) == range(1, 3)
    single = video_bytes(moving_noise(1, 32, 48))
    with Video(single) as video:
        assert video.frame_times.tolist() == [0, 0.04]
