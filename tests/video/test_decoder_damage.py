"""Damaged videos: frames are exact or refused, whatever else is read."""

import struct

import numpy as np
import pytest

from benchmarks import damaged_videos
from tests.helpers.kinds import NUM_FRAMES, SIZE, content_of, frames_of, x264
from tests.helpers.videos import change_packets, moving_noise, plain_decode, video_bytes
from videomae_jax.errors import VideoError
from videomae_jax.video.container import decode_all
from videomae_jax.video.decoder import Video


def test_frames_that_the_decoder_drops():
    """If a frame that the packets announce is missing, frames near it are refused."""
    clean, full = content_of("hevc"), frames_of("hevc")
    delimiter = bytes.fromhex("00000003460150")  # instead of a picture
    content = change_packets(
        clean, "mp4", lambda position, data: delimiter if position == 25 else data
    )
    with Video(clean) as video:
        dropped = video._decoder.table.positions.index(25)
    with Video(content) as video:
        for _ in range(2):  # the second time as well
            with pytest.raises(VideoError, match=f"<bytes>: frames? .*{dropped}.* exa"):
                video.read([2, dropped])
        np.testing.assert_array_equal(video.read([2, 40]), full[[2, 40]])


def test_a_cut_mkv_returns_its_complete_frames():
    content = video_bytes(
        moving_noise(40, *SIZE), container="matroska", **x264("bframes=0:keyint=10")
    )
    content = content[: len(content) // 2]
    with Video(content) as video:
        assert 10 < video.num_frames < 30
        expected = plain_decode(content)[: video.num_frames - 1]
        np.testing.assert_array_equal(video.read(range(len(expected))), expected)


def test_times_that_lack_the_order_of_frames_from_somewhere_on():
    """B-frames with times of decoding: no single frame may be found by its time."""
    clean = video_bytes(
        moving_noise(30, *SIZE), **x264("keyint=10:bframes=2:b-adapt=0:scenecut=0")
    )
    # The table of differences between the two times: counts of packets, and ticks.
    content, box = bytearray(clean), clean.index(b"ctts")
    (entries,) = struct.unpack_from(">I", clean, box + 8)
    (_, usual), position = struct.unpack_from(">II", clean, box + 12), 0
    for entry in range(box + 12, box + 12 + 8 * entries, 8):
        if position >= 16:
            struct.pack_into(">I", content, entry + 4, usual)
        position += struct.unpack_from(">I", clean, entry)[0]
    with Video(bytes(content)) as video:
        full = video.read(range(30))
    for index in range(30):
        with Video(bytes(content)) as video:
            np.testing.assert_array_equal(video.read([index])[0], full[index])


def test_damage_in_the_middle():
    """Frames that may depend on damage are refused, those before and after exact."""
    clean = video_bytes(
        moving_noise(40, *SIZE),
        container="matroska",
        **x264("bframes=2:b-pyramid=none:b-adapt=0:keyint=10:scenecut=0"),
    )
    full = plain_decode(clean)

    def smash(position, data):
        return data[:4] + b"\xff" * (len(data) - 4) if position == damaged else data

    with Video(clean) as video:
        damaged = video._decoder.table.positions[13]
        content = change_packets(clean, "matroska", smash)
    with Video(content) as video:
        for index in (*range(11), *range(20, 40)):
            np.testing.assert_array_equal(video.read([index])[0], full[index])
        for index in (13, 14, 16, 19):
            with pytest.raises(VideoError, match=f"<bytes>: frame {index} cannot be"):
                video.read([2, index])
        # A failed read does not affect later ones.
        np.testing.assert_array_equal(video.read([2, 25]), full[[2, 25]])


def _answers(video, indices):
    """Returns the digest of each frame of a read, or its error."""
    try:
        return [image.tobytes() for image in video.read(indices)]
    except VideoError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "container"), [("ffv1", "matroska"), ("mjpeg avi", "avi")]
)
def test_damage_that_the_decoder_only_logs(kind, container):
    """These decoders return damaged frames as if nothing had happened."""

    def smash(position, data):
        middle = len(data) // 2
        smashed = data[:middle] + bytes(40) + data[middle + 40 :]
        return smashed if position == 14 else data

    clean = content_of(kind)
    content = change_packets(clean, container, smash)
    with Video(content) as video:
        for _ in range(2):  # the second time as well
            for indices in ([14], [2, 14]):
                with pytest.raises(VideoError, match="frame 14 cannot be decoded"):
                    video.read(indices)
        for index in (11, 24, 49):
            np.testing.assert_array_equal(
                video.read([index])[0], frames_of(kind)[index]
            )
    with pytest.raises(VideoError, match="<bytes>: damaged near frame 14"):
        list(decode_all(content))


def test_gaps_do_not_depend_on_what_else_is_read():
    """Parts that a decoder leaves out show the memory as it was."""
    clean = video_bytes(
        moving_noise(NUM_FRAMES, *SIZE),
        codec="ffv1",
        container="matroska",
        options={"level": "1", "g": "12"},  # without checksums
    )
    content = change_packets(
        clean,
        "matroska",
        lambda position, data: data[: len(data) * 2 // 3] if position == 17 else data,
    )
    seen = set()
    with Video(content) as shared:
        for others in ([], [3, 16], [*range(16)], [16, 20, 45]):
            indices = [*others, 17, 19]
            for _ in range(2):
                seen.add(str(_answers(shared, indices)[-2:]))
                with Video(content) as video:
                    seen.add(str(_answers(video, indices)[-2:]))
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", damaged_videos.CLIPS)
def test_damaged_files(name):
    """No read depends on earlier ones; the seeds are those that once did."""
    seeds = {
        "h264 mp4": [50041],
        "h264 ts": [131],
        "hevc mp4": [193],
        "vp8 webm": [1, 49, 73, 79],
        "mpeg4 avi": [13],
        "mpeg4 mp4": [11, 19],
        "mjpeg mov": [13, 19],
        "mjpeg avi": [4, 7],
    }
    for seed in (*range(3), *seeds.get(name, ())):
        outcome, _ = damaged_videos.read(damaged_videos.File(name, seed))
        assert outcome in ("refused", "right", "concealed"), seed
