"""Encoded videos have the same frames, in exactly the given time range."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.prepared import ROOT, frames_of
from tests.helpers.videos import moving_noise, video_bytes
from videomae_jax.datasets.encode import Settings, Trim, encode
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import Video


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pixel_format": "yuvj420p"},
        {"pixel_format": "yuv444p"},
        {"codec": "ffv1", "pixel_format": "gray", "container": "matroska"},
        {"codec": "libvpx-vp9", "container": "webm"},
        {"options": {"colorspace": "bt709"}},
        {"audio": True},
        {"rotation": 90},
        {"rotation": 180},
        {"rotation": 270, "flip": True},
    ],
    ids=str,
)
def test_frame_i_stays_frame_i(how):
    # Smooth, so that halving the resolution of colors does not matter.
    rows, columns, times = np.ogrid[:48, :80, :20]
    planes = [rows * 3 + times * 4, columns * 3 - times * 4, rows + columns + times]
    planes = [np.broadcast_to(plane % 512, (48, 80, 20)) for plane in planes]
    frames = np.stack([abs(plane - 255) for plane in planes], -1).transpose(2, 0, 1, 3)
    content = video_bytes(np.clip(frames, 0, 255).astype(np.uint8), **how)
    expected = frames_of(content)
    encoded = encode(content, Settings(crf=4))
    result = frames_of(encoded.video)
    assert result.shape == expected.shape
    assert (encoded.num_frames, encoded.height, encoded.width) == result.shape[:3]
    assert encoded.fps == 25
    errors = abs(result.astype(int)[:, None] - expected[None]).mean((2, 3, 4))
    assert errors.diagonal().max() < 2
    assert (errors.argmin(1) == np.arange(20)).all()


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((48, 80), 32, (32, 52)),
        ((80, 48), 32, (52, 32)),
        ((48, 80), 320, (48, 80)),
        ((49, 81), 320, (48, 80)),  # 4:2:0 needs even sizes
        ((49, 81), 48, (48, 78)),
    ],
)
def test_sizes(size, short_side, expected):
    options = {"codec": "ffv1", "pixel_format": "yuv444p", "container": "matroska"}
    content = video_bytes(moving_noise(3, *size), **options)
    encoded = encode(content, Settings(short_side))
    assert (encoded.height, encoded.width) == expected
    assert frames_of(encoded.video).shape == (3, *expected, 3)


def test_varying_rates_keep_all_frames():
    ticks = np.cumsum([1, 9, 2, 2, 30, 1, 1, 4, 4, 7, 1, 1])
    content = video_bytes(moving_noise(12, 48, 64), ticks=ticks)
    encoded = encode(content, Settings(crf=10))
    expected, result = frames_of(content), frames_of(encoded.video)
    errors = abs(result.astype(int)[:, None] - expected[None]).mean((2, 3, 4))
    assert (errors.argmin(1) == np.arange(12)).all()
    with Video(content) as video:
        assert encoded.fps == pytest.approx(video.fps, rel=1e-3)


def test_the_same_frames_give_the_same_bytes():
    # x264's MB-tree reads uninitialized memory, which differs within one process, too.
    content = video_bytes(moving_noise(40, 98, 130))
    first = encode(content, Settings())
    for size in (64, 200):
        encode(video_bytes(moving_noise(9, size, size)), Settings())
        assert encode(content, Settings()) == first
    code = (
        "import hashlib, sys\n"
        "from videomae_jax.datasets.encode import Settings, encode\n"
        "content = sys.stdin.buffer.read()\n"
        "print(hashlib.md5(encode(content, Settings()).video).hexdigest())"
    )
    for filling in ("1", "200"):
        environment = os.environ | {"MALLOC_PERTURB_": filling}
        environment["MALLOC_MMAP_THRESHOLD_"] = "1000000000"
        other = subprocess.run(
            [sys.executable, "-c", code],
            input=content,
            capture_output=True,
            check=True,
            cwd=ROOT,
            env=environment,
        )
        assert other.stdout.decode().strip() == hashlib.md5(first.video).hexdigest()


def test_damage_anywhere_is_an_error():
    content = bytearray(video_bytes(moving_noise(30, 48, 64), options={"g": "10"}))
    middle = content.index(b"mdat") + 4000
    content[middle : middle + 1500] = bytes(1500)
    with pytest.raises(VideoError, match="^<bytes>: damaged near frame"):
        encode(bytes(content), Settings())
    with pytest.raises(VideoError, match="^<bytes>: damaged near frame"):
        encode(bytes(content), None)


@pytest.mark.parametrize(
    ("trim", "kept"),
    [
        ((0.4, 0.8), range(10, 20)),
        ((0.0, 0.41), range(0, 11)),
        ((0.41, None), range(11, 30)),
        ((1.13, 99.0), range(29, 30)),  # AVI times are accurate to 0.03 s
        ((0.0, None), range(30)),
    ],
    ids=str,
)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "h264"])
def test_trimming_keeps_exactly_the_frames_in_its_range(container, trim, kept):
    # In a transport stream the first time is not 0; a raw stream has no times.
    frames = moving_noise(30, 48, 64)
    content = video_bytes(frames, container=container, options={"crf": "4"})
    expected = frames_of(content)
    assert len(expected) == 30
    encoded = encode(content, Settings(crf=4), Trim(*trim))
    result = frames_of(encoded.video)
    assert encoded.num_frames == len(result) == len(kept)
    errors = abs(result.astype(int)[:, None] - expected[None]).mean((2, 3, 4))
    assert (errors.argmin(1) == kept).all()


def test_trimming_with_a_varying_rate():
    ticks = np.cumsum([50, 10, 3, 3, 30, 4, 4, 4, 8, 20, 1, 1])  # hundredths of seconds
    content = video_bytes(moving_noise(12, 48, 64), ticks=ticks)
    expected = frames_of(content)
    # After the first frame: 0, .1, .13, .16, .46, .5, .54, .58, .66, .86, .87, .88 s.
    encoded = encode(content, Settings(crf=4), Trim(0.13, 0.66))
    result = frames_of(encoded.video)
    errors = abs(result.astype(int)[:, None] - expected[None]).mean((2, 3, 4))
    assert errors.argmin(1).tolist() == [2, 3, 4, 5, 6, 7]
    with Video(content) as video:
        assert encoded.fps == pytest.approx(video.fps, rel=1e-3)
    with pytest.raises(VideoError, match=r"none of its 12 frames is within 0\.9: s; "):
        encode(content, Settings(), Trim(0.9, None))
    with pytest.raises(VideoError, match=r"within 0\.2:0\.4 s"):
        encode(content, Settings(), Trim(0.2, 0.4))
