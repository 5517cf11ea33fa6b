"""Containers are opened or refused with a reason; a full decode returns every frame."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.helpers.videos import (
    change_packets,
    content_of_two_sizes,
    moving_noise,
    plain_decode,
    video_bytes,
)
from videomae_jax.datasets.probe import Job, probe
from videomae_jax.errors import VideoError
from videomae_jax.video.container import decode_all
from videomae_jax.video.decoder import Video, read_clip
from videomae_jax.video.record import Record

_SIZE = (48, 64)


def _audio_only(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), "fltp", "mono"
        )
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))


def _with_cover(path, streams=("audio", "cover")):
    """Writes silence, a cover picture and a video of 5 frames, in any order."""
    image = moving_noise(1, *_SIZE)[0]
    with av.open(str(path), "w") as out:
        added = {}
        for kind in streams:
            if kind == "audio":
                codec = "libmp3lame" if path.suffix == ".mp3" else "aac"
                added[kind] = out.add_stream(codec, rate=8000, layout="mono")
                continue
            added[kind] = out.add_stream("mjpeg" if kind == "cover" else "libx264", 25)
            added[kind].height, added[kind].width = _SIZE
            added[kind].pix_fmt = "yuvj420p" if kind == "cover" else "yuv420p"
            if kind == "cover":
                added[kind].disposition = Disposition.attached_pic
        for kind, stream in added.items():
            for t in range({"cover": 1, "video": 5, "audio": 0}[kind]):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = t, Fraction(1, 25)
                out.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            if kind == "audio":
                silence = np.zeros((1, 1152), np.float32)
                sound = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
                sound.sample_rate = 8000
                out.mux(stream.encode(sound))
            out.mux(stream.encode(None))


def _moov_last() -> bytes:
    content = video_bytes(moving_noise(50, *_SIZE))
    assert content.index(b"mdat") < content.index(b"moov")
    return content[: content.index(b"moov") - 100]


def _cut() -> bytes:
    content = video_bytes(
        moving_noise(30, *_SIZE), container_options={"movflags": "faststart"}
    )
    return content[: len(content) * 2 // 3]


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("missing.mp4", lambda path: None, "no such file"),
        ("folder.mp4", lambda path: path.mkdir(), "is a directory"),
        ("empty.mp4", lambda path: path.touch(), r"empty file \(0 bytes\)"),
        ("text.mp4", lambda path: path.write_text("hello\n" * 99), "not a video"),
        ("zeros.mp4", lambda path: path.write_bytes(bytes(999)), "not a video"),
        ("sound.mp4", _audio_only, "no video stream: only audio$"),
        ("m.mp4", _with_cover, "no video stream: only audio and a cover picture$"),
        ("m.mp3", _with_cover, "no video stream: only audio and a cover picture$"),
        ("no_moov.mp4", lambda path: path.write_bytes(_moov_last()), "not a video, or"),
        ("cut.mp4", lambda path: path.write_bytes(_cut()), r"cut off: \d+ of 30"),
    ],
)
def test_unreadable_files(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    with pytest.raises(VideoError, match=reason) as info:
        read_clip(path)
    assert str(info.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "streams", [("cover", "video"), ("video", "cover"), ("audio", "cover", "video")]
)
def test_a_cover_picture_is_not_the_video(tmp_path, streams):
    _with_cover(tmp_path / "a.mp4", streams)
    with av.open(str(tmp_path / "a.mp4")) as container:
        pictures = [x.disposition for x in container.streams.video]
    assert sum(x & Disposition.attached_pic > 0 for x in pictures) == 1
    with Video(tmp_path / "a.mp4") as video:
        assert video.num_frames == 5 and video.fps == pytest.approx(25)
        expected = video.read(range(5))
    decoded = list(decode_all(tmp_path / "a.mp4"))
    np.testing.assert_array_equal(
        expected, [frame.to_ndarray(format="rgb24") for frame in decoded]
    )
    result = probe(Job(Record(str(tmp_path / "a.mp4"), "a"), True, False))
    assert not isinstance(result, str) and result.num_frames == 5


def test_unreadable_bytes():
    with pytest.raises(VideoError, match=r"<bytes>: empty file \(0 bytes\)"):
        Video(b"")
    with pytest.raises(VideoError, match="<bytes>: not a video"):
        Video(b"hello\n" * 99)


def test_a_title_that_is_not_utf8(tmp_path):
    """PyAV 18 refuses such files, newer releases read them."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "CAFECAFE"
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        for image in moving_noise(4, 32, 32):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.count(b"CAFECAFE") == 1
    path.write_bytes(content.replace(b"CAFECAFE", b"CAF\xe9CAF\xe9"))
    try:
        with Video(path) as video:
            assert len(video.read([0, 3])) == 2
    except VideoError as error:
        assert "not UTF-8" in str(error)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"container": "avi", "options": {"g": "12", "bf": "3"}},
        {"codec": "libvpx-vp9", "container": "webm"},
        {"codec": "ffvhuff", "container": "avi"},
    ],
    ids=str,
)
def test_decode_all(options, strict):
    content = video_bytes(moving_noise(30, *_SIZE), **options)
    frames = list(decode_all(content, strict=strict))
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    np.testing.assert_array_equal(decoded, plain_decode(content))
    assert len(decoded) == 30
    assert all(frame.time_base for frame in frames)


def test_decode_all_refuses_damage_and_changes_of_the_resolution():
    damaged = change_packets(
        video_bytes(moving_noise(50, *_SIZE), container="matroska"),
        "matroska",
        lambda position, data: (
            data[:4] + b"\xff" * (len(data) - 4) if position == 13 else data
        ),
    )
    with pytest.raises(VideoError, match="a name: damaged near frame 1"):
        list(decode_all(damaged, "a name"))
    two_sizes = content_of_two_sizes("h264")
    with pytest.raises(
        VideoError, match="<bytes>: .* frame 10 is 96x64, earlier .* 64x"
    ):
        list(decode_all(two_sizes))
    assert len(list(decode_all(two_sizes, strict=False))) == 20
