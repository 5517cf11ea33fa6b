"""`Video` returns the pixels of a full decode, or raises a VideoError with a reason."""

import functools
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.kinds import (
    KINDS,
    NUM_FRAMES,
    SIZE,
    VARIABLE_TICKS,
    content_of,
    frames_of,
    x264,
)
from tests.helpers.videos import (
    change_packets,
    content_of_two_sizes,
    moving_noise,
    plain_decode,
    video_bytes,
    write_video,
)
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import PacketDecoder, Video, read_clip
from videomae_jax.video.rgb import VideoFrames


@functools.cache
def _opened(kind: str) -> Video:
    return Video(content_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_reads_the_frames_of_a_full_decode(kind):
    full, video = frames_of(kind), _opened(kind)
    assert video.num_frames == len(full)
    assert (video.height, video.width) == full.shape[1:3]

    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, len(full) - 1), max_size=20))
    def check(indices):
        clip = video.read(indices)
        assert clip.dtype == np.uint8
        np.testing.assert_array_equal(clip, full[indices])

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def check_box(data):
        index = data.draw(st.integers(0, len(full) - 1))
        top = data.draw(st.integers(0, video.height - 1))
        left = data.draw(st.integers(0, video.width - 1))
        height = data.draw(st.integers(1, video.height - top))
        width = data.draw(st.integers(1, video.width - left))
        box = (top, left, height, width)
        expected = full[[index, 0]][:, top : top + height, left : left + width]
        np.testing.assert_array_equal(video.decode([index, 0]).pixels(box), expected)

    check()
    check_box()
    for index in {*range(0, len(full), 5), len(full) - 1}:
        np.testing.assert_array_equal(video.read([index])[0], full[index])
    np.testing.assert_array_equal(video.read(range(len(full))), full)
    # A silent fallback to decoding everything would pass all of the above.
    assert (video._decoder is not None) == KINDS[kind].get("indexed", True)


@pytest.mark.parametrize("kind", ["open gop", "hevc", "vp8", "other codec"])
def test_frames_one_at_a_time(kind):
    frames = [
        VideoFrames([frame], [0], kind).pixels()[0]
        for frame in _opened(kind).decode_each()
    ]
    np.testing.assert_array_equal(frames, frames_of(kind))


def test_num_frames_needs_no_decoding(monkeypatch):
    monkeypatch.delattr(PacketDecoder, "_send")
    monkeypatch.delattr("videomae_jax.video.decoder.decode_all")
    with Video(content_of("pyramid")) as video:
        assert video.num_frames == NUM_FRAMES
        assert video.fps == pytest.approx(25)


@pytest.mark.parametrize("kind", ["mkv", "ts", "mpeg4 avi", "late start"])
def test_average_fps(kind):
    with Video(content_of(kind)) as video:
        assert video.fps == pytest.approx(25, abs=0.1)


def test_average_fps_of_a_variable_rate():
    with Video(content_of("variable rate")) as video:
        assert video.fps == pytest.approx(49 / (VARIABLE_TICKS[-1] / 100))


@pytest.fixture
def sent(monkeypatch):
    """Positions of all packets sent to the decoder."""
    positions = []
    original = PacketDecoder._send

    def spy(self, chosen, indices):
        positions.extend(chosen)
        return original(self, chosen, indices)

    monkeypatch.setattr(PacketDecoder, "_send", spy)
    return positions


def test_unreferenced_packets_are_not_decoded(sent):
    content = video_bytes(
        moving_noise(64, *SIZE),
        **x264("keyint=250:scenecut=0:b-adapt=0:bframes=3:b-pyramid=none"),
    )
    read_clip(content, num_frames=16, stride=4)
    # Every fourth frame is an I- or P-frame: no B-frame is needed.
    assert len(sent) == 16
    sent.clear()
    read_clip(content, num_frames=2, stride=1)
    assert len(sent) == 3  # I, the P that follows the B-frames, the requested B


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_decoding_starts_at_keyframes_and_stops_early(sent, container):
    content = video_bytes(
        moving_noise(60, *SIZE),
        **x264("keyint=10:min-keyint=10:scenecut=0:bframes=0"),
        container=container,
    )
    with Video(content) as video:
        video.read([42, 3, 42])
    assert sent == [0, 1, 2, 3, 40, 41, 42]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_upright(rotation, flip):
    frames = moving_noise(12, *SIZE)
    content = video_bytes(frames, options={"g": "5"}, rotation=rotation, flip=flip)
    expected = np.rot90(plain_decode(content), rotation // 90, axes=(1, 2))
    if flip:
        expected = expected[:, :, ::-1]
    with Video(content) as video:
        assert (video.height, video.width) == expected.shape[1:3]
        np.testing.assert_array_equal(video.read([11, 2]), expected[[11, 2]])


@pytest.mark.parametrize("orientation", [1, 6])
def test_frames_with_exif(orientation):
    """Orientation 6 means a clockwise turn, which PyAV 18 cannot read."""
    target, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    with av.open(target, "w", format="mov") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for i, image in enumerate(moving_noise(4, *SIZE)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", exif=exif)
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts = stream, i, i
            packet.time_base, packet.is_keyframe = Fraction(1, 25), True
            out.mux(packet)
    expected = plain_decode(target.getvalue())
    if orientation == 6:
        expected = np.rot90(expected, -1, axes=(1, 2))
    with Video(target.getvalue()) as video:
        assert video.num_frames == 4
        if orientation == 6 and av.__version__ < "19":
            with pytest.raises(VideoError, match="frame 2 cannot be turned upright"):
                video.read([2])
        else:
            np.testing.assert_array_equal(video.read([2, 0]), expected[[2, 0]])


@pytest.mark.parametrize("first", [3, 10, 17])
def test_edit_lists(first):
    """An edit list that drops leading frames: full decode drops them too."""
    content = video_bytes(moving_noise(30, *SIZE), **x264("keyint=10:bframes=2"))
    before = plain_decode(content)
    entry = content.index(b"elst") + 12
    duration, start = struct.unpack_from(">II", content, entry)
    step = 512  # ticks per frame; the movie's own clock has 1000 per second
    edited = bytearray(content)
    struct.pack_into(">II", edited, entry, duration - 40 * first, start + first * step)
    full = plain_decode(bytes(edited))
    np.testing.assert_array_equal(full, before[first:])
    with Video(bytes(edited)) as video:
        assert video._decoder is not None
        assert video.num_frames == 30 - first
        # Second 0 is the first frame that is shown.
        np.testing.assert_allclose(video.frame_times, np.arange(31 - first) / 25)
        for indices in ([0], [5, 1], range(len(full))):
            np.testing.assert_array_equal(video.read(indices), full[list(indices)])


def test_invisible_vp8_frames():
    def hide(position, data):
        if position % 7 == 3:
            return bytes([data[0] & ~0x10]) + data[1:]
        return data

    content = change_packets(content_of("vp8"), "webm", hide)
    full = plain_decode(content)
    assert len(full) < NUM_FRAMES
    with Video(content) as video:
        assert video._decoder is not None
        np.testing.assert_array_equal(video.read(range(len(full))), full)
        np.testing.assert_array_equal(video.read([20, 33]), full[[20, 33]])
        assert video.num_frames == len(full)


def test_mpeg4_packets_without_a_picture():
    # The header of a P-picture, 25 time increments a second, then "not coded".
    empty = bytes.fromhex("000001b6") + bytes([0b01_0_1_0000, 0b0_1_0_11111])

    def drop(position, data):
        return empty if position % 7 == 3 else data

    content = change_packets(content_of("mpeg4"), "mp4", drop)
    full = plain_decode(content)
    assert len(full) < NUM_FRAMES
    with Video(content) as video:
        assert video.num_frames == len(full)
        np.testing.assert_array_equal(video.read([20, 33]), full[[20, 33]])


def test_timestamps_that_the_decoder_contradicts():
    """A table with the wrong order is replaced by a full decode."""
    with Video(content_of("one gop")) as video:
        table = video._decoder.table
        times, (a, b) = table.times, table.positions[10:12]
        times[a], times[b] = times[b], times[a]
        np.testing.assert_array_equal(video.read([25])[0], frames_of("one gop")[25])
        assert video._decoder is None


def test_paths_and_clips(tmp_path):
    path = tmp_path / "a:b %d.mp4"  # not to be taken for a protocol or a pattern
    frames = moving_noise(40, *SIZE)
    write_video(str(path), frames)
    full = plain_decode(path.read_bytes())
    for source in (path, str(path), path.read_bytes()):
        clip = read_clip(source, num_frames=8, stride=3, start=5)
        np.testing.assert_array_equal(clip, full[5:27:3])
    with pytest.raises(VideoError, match=r"8 frames, 5 apart.*need 41.*has 40") as info:
        read_clip(path, num_frames=8, stride=5, start=5)
    assert str(info.value).startswith(str(path))
    for arguments in ({"num_frames": 0}, {"stride": 0}, {"start": -1}):
        with pytest.raises(ValueError, match="must be at least 1"):
            read_clip(path, **arguments)


def test_indices_out_of_range():
    with Video(content_of("h264")) as video:
        for index in (-1, NUM_FRAMES):
            with pytest.raises(
                IndexError, match=f"index {index} is out of .* 50 frames"
            ):
                video.read([0, index])
        with pytest.raises(TypeError):
            video.read([1.5])
        assert video.read(np.array([4])).shape == (1, *SIZE, 3)
        assert video.read([]).shape == (0, *SIZE, 3)


def test_closed():
    video = Video(content_of("h264"))
    video.close()
    video.close()
    for indices in ([0], []):
        with pytest.raises(VideoError, match="<bytes>: the video is closed"):
            video.read(indices)


def test_resolution_changes_are_refused():
    with Video(content_of_two_sizes("mpegts")) as video:
        assert video.num_frames == 20
        assert video.read([1, 9]).shape == (2, *SIZE, 3)
        with pytest.raises(VideoError, match="resolution: frame 12 is 96x64, .* 64x48"):
            video.read([1, 12])
