"""H.264 of which packets are missing: no frame may depend on the decoder's memory."""

import functools

import av
import numpy as np
import pytest

from tests.helpers.videos import change_packets, moving_noise, plain_decode, video_bytes
from videomae_jax.errors import VideoError
from videomae_jax.video import h264
from videomae_jax.video.container import (
    decode_all,
    open_container,
    read_packets,
    video_stream,
)
from videomae_jax.video.decoder import Video
from videomae_jax.video.h264 import PacketParser

_X264 = "keyint=12:scenecut=0:b-adapt=0:bframes=2:b-pyramid=none"
_KINDS = {
    "mp4": {},
    "mkv": {"container": "matroska"},
    "ts": {"container": "mpegts"},
    "other sets": {"container": "mpegts", "params": ":sps-id=3"},
    "10 bits, matrices": {"pixel_format": "yuv422p10le", "params": ":cqm=jvt"},
    "4:4:4, matrices": {"pixel_format": "yuv444p", "params": ":cqm=jvt"},
    "fields": {"params": ":interlaced=1"},
    "slices": {"params": ":slices=3"},
    "long": {"params": ":keyint=250"},
}


@functools.cache
def _content(kind: str, *, open_gop: bool = False) -> bytes:
    chosen = dict(_KINDS[kind])
    params = _X264 + chosen.pop("params", "") + ":open-gop=1" * open_gop
    frames = moving_noise(36, 48, 64)
    return video_bytes(frames, options={"x264-params": params}, **chosen)


def _without(kind: str, lost: int, **settings) -> bytes:
    """Returns a video without the packet at a position."""
    container = _KINDS[kind].get("container", "mp4")
    return change_packets(
        _content(kind, **settings),
        container,
        lambda position, data: b"" if position == lost else data,
    )


def _unsure(content: bytes) -> list[int]:
    """Returns the positions of packets that may refer to a missing one."""
    with open_container(content, "a") as container:
        codec = video_stream(container, "a").codec_context
        parser = PacketParser(codec.extradata or b"")
        pictures = [parser.parse(packet) for packet in read_packets(container, "a")]
    return [index for index, picture in enumerate(pictures) if picture.is_unsure]


@pytest.mark.parametrize("kind", _KINDS)
def test_a_missing_reference_is_noticed(kind):
    assert _unsure(_content(kind)) == []
    # In decoding order each GOP is I P B B P B B P B B P B, and frame types repeat.
    end = 35 if kind == "long" else 23
    assert _unsure(_without(kind, 13)) == [*range(13, end)]


def test_frames_after_a_missing_reference_are_refused():
    """The decoder shows others, which depended on what was decoded before."""
    full = plain_decode(_content("ts"))
    content = _without("ts", 16)
    with Video(content) as video:
        assert video.num_frames == 35
        for indices in ([*range(35)], [17, 18], [18], [22]):
            with pytest.raises(VideoError, match=r"<bytes>: frame \d+ cannot be decod"):
                video.read(indices)
        # Frame 18 is missing, and those up to 15 need only what precedes it.
        sure = [*range(16), *range(23, 35)]
        expected = full[[index + (index > 17) for index in sure]]
        np.testing.assert_array_equal(video.read(sure), expected)
        for index in (3, 15, 30):
            np.testing.assert_array_equal(
                video.read([index])[0], expected[sure.index(index)]
            )
    with pytest.raises(VideoError, match="near frame 1[45]: frames are missing"):
        list(decode_all(content))
    assert len(list(decode_all(content, strict=False))) == 35


def test_frames_without_others_that_refer_to_them_may_be_missing():
    full = plain_decode(_content("ts"))
    with Video(_without("ts", 14)) as video:
        lost = 13
        np.testing.assert_array_equal(video.read(range(35)), np.delete(full, lost, 0))


def test_an_open_gop_is_exact_from_its_keyframe_on():
    """Only frames that are shown before it may refer to what is missing."""
    full = plain_decode(_content("ts", open_gop=True))
    content = _without("ts", 4, open_gop=True)
    assert _unsure(content) == [4, 5, 6, 7, 8, 10, 11]  # the keyframe is at 9
    with Video(content) as video:
        assert video._decoder is not None
        for index in range(4, 11):
            with pytest.raises(VideoError, match=f"frame {index} cannot be decoded"):
                video.read([index])
        # Frame 6 is missing.
        np.testing.assert_array_equal(video.read(range(4)), full[:4])
        np.testing.assert_array_equal(video.read(range(11, 35)), full[12:])
        np.testing.assert_array_equal(video.read([30]), full[31:32])


def test_numbers_that_may_have_gaps(monkeypatch):
    """A stream without one of its temporal layers says so, and is whole."""
    content = _without("mp4", 13)
    assert _unsure(content)
    original = h264._parse_sequence

    def parse(bits):
        identifier, sequence = original(bits)
        return identifier, sequence._replace(has_gaps=True)

    monkeypatch.setattr(h264, "_parse_sequence", parse)
    assert _unsure(content) == []


@pytest.mark.parametrize(
    "unit",
    [
        b"\x67",
        b"\x67\x64\x00\x1e" + bytes(200),  # a number of 1600 bits
        b"\x67\x64\x00\x1e\x80\x00\x00\x00\x01",
        b"\x68",
        b"\x65\x80",
        b"\x41\xff\xff",
        b"\x06\x42\x00\x1e" + b"\xff" * 9,  # a message, not a set
    ],
    ids=bytes.hex,
)
def test_malformed_units(unit):
    for header in (b"", b"\0\0\1" + unit, b"\x01\x64\x00\x1e\xff\xe1\xff" + unit):
        parser = PacketParser(header)
        assert parser._sequences == {}
    picture = PacketParser(b"").parse(av.Packet(b"\0\0\1" + unit))
    assert not picture.is_unsure and not picture.skippable
