"""Videos of every codec, container and structure that the decoder must read exactly."""

import functools

import numpy as np

from tests.helpers.videos import moving_noise, plain_decode, video_bytes
from videomae_jax.video.container import decode_all
from videomae_jax.video.rgb import VideoFrames

NUM_FRAMES = 50
SIZE = (48, 64)


def x264(params: str, **settings) -> dict:
    """Returns settings of `write_video`."""
    return {"options": {"x264-params": params}, **settings}


def _vpx(codec: str, **options) -> dict:
    options = {"deadline": "realtime", "cpu-used": "8", "g": "15"} | options
    return {"codec": codec, "container": "webm", "options": options}


def _gop(codec: str, container: str, b_frames: int = 0, **settings) -> dict:
    settings |= {"codec": codec, "container": container, "max_b_frames": b_frames}
    return settings | {"options": {"g": "12"}}


_UNEVEN = [0, 1, 9, 10, 30]
VARIABLE_TICKS = [40 * (t // 5) + _UNEVEN[t % 5] for t in range(NUM_FRAMES)]

# Settings of the encoder. `indexed` is False where packets determine no table: AVI
# has no times for B-frames.
KINDS = {
    "h264": {},
    "pyramid": x264("bframes=3:b-pyramid=normal:keyint=20"),
    "weighted": x264("weightp=2:weightb=1:bframes=2:keyint=30"),
    "references": x264("refs=4:bframes=3:keyint=25"),
    "open gop": x264("open-gop=1:keyint=12:bframes=3"),
    "open gop ts": x264("open-gop=1:keyint=12:bframes=3", container="mpegts"),
    "intra refresh ts": x264("intra-refresh=1:keyint=12", container="mpegts"),
    "fastdecode": {"options": {"tune": "fastdecode", "g": "10"}},
    "one gop": x264("keyint=250:scenecut=0:bframes=3"),
    "intra only": x264("keyint=1"),
    "slices": x264("slices=4:sliced-threads=1:keyint=12:bframes=2"),
    "interlaced": x264("interlaced=1:keyint=12:bframes=2"),
    "variable rate": x264("keyint=12:bframes=2", ticks=VARIABLE_TICKS),
    "late start": {"ticks": [4 * t + 1003 for t in range(NUM_FRAMES)]},
    "with audio": {"audio": True},
    "fragmented": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "odd size": {"pixel_format": "yuv444p", "size": (143, 175)},
    "odd size vp9": _vpx("libvpx-vp9") | {"size": (143, 175)},
    "mov": {"container": "mov"},
    "mkv": x264("keyint=12:bframes=3", container="matroska"),
    "ts": x264("keyint=12:bframes=3", container="mpegts"),
    "flv": x264("keyint=12:bframes=3", container="flv"),
    "avi": x264("keyint=12:bframes=0", container="avi"),
    "avi b": x264("keyint=12:bframes=3", container="avi", indexed=False),
    "hevc": {
        "codec": "libx265",
        "options": {"x265-params": "keyint=12:log-level=none:pools=1"},
    },
    "hevc no b": {
        "codec": "libx265",
        "options": {"x265-params": "keyint=12:bframes=0:log-level=none:pools=1"},
    },
    "vp9": _vpx("libvpx-vp9"),
    "vp9 alt-ref": _vpx("libvpx-vp9", **{"lag-in-frames": "16", "auto-alt-ref": "1"}),
    "vp8": _vpx("libvpx"),
    "mpeg4": _gop("mpeg4", "mp4"),
    "mpeg4 b": _gop("mpeg4", "mp4", 2),
    "mpeg4 avi": _gop("mpeg4", "avi"),
    "mpeg4 avi b": _gop("mpeg4", "avi", 2),
    "mpeg2 ts": _gop("mpeg2video", "mpegts", 2),
    "mjpeg avi": _gop("mjpeg", "avi", pixel_format="yuvj420p"),
    "ffv1": _gop("ffv1", "matroska"),
    "other codec": _gop("ffvhuff", "avi", indexed=False),
    "single frame": {"num_frames": 1},
    "raw h264": x264("keyint=12:bframes=2", container="h264", indexed=False),
}


_LIKE_DECORD = ("interlaced", "odd size vp9")


@functools.cache
def content_of(kind: str) -> bytes:
    """Returns the content of a file."""
    chosen = dict(KINDS[kind])
    chosen.pop("indexed", None)
    size = chosen.pop("size", SIZE)
    return video_bytes(
        moving_noise(chosen.pop("num_frames", NUM_FRAMES), *size), **chosen
    )


@functools.cache
def frames_of(kind: str) -> np.ndarray:
    """Returns all frames, which differ: uint8 [num_frames, height, width, 3]."""
    if kind in _LIKE_DECORD:
        # Not converted as PyAV does; tests/video/test_rgb.py compares with decord.
        decoded = list(decode_all(content_of(kind)))
        frames = VideoFrames(decoded, range(len(decoded)), kind).pixels()
    else:
        frames = plain_decode(content_of(kind))
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames)
    return frames
