"""Pixels are those of decord, which read the videos of all published weights."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from videomae_jax.datasets.encode import Settings, encode
from videomae_jax.errors import VideoError
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import open_video
from videomae_jax.video.rgb import progressive
from videomae_jax.video.source import PixelFormat

_GOLDEN = Path(__file__).parents[1] / "golden/decord"
_FILES = json.loads((_GOLDEN / "frames.json").read_text())["files"]
_INTERLACED = [name for name in _FILES if name.startswith("interlaced")]


@pytest.mark.parametrize("name", _FILES)
def test_frames_equal_those_of_decord(name):
    with Video(_GOLDEN / name) as video:
        frames = video.read(range(video.num_frames))
        assert list(frames.shape) == _FILES[name]["shape"]
        assert hashlib.sha256(frames.tobytes()).hexdigest() == _FILES[name]["sha256"]
        for box in ((3, 5, 17, 30), (0, 0, 1, 1), (2, 4, 28, 40)):
            top, left, height, width = box
            np.testing.assert_array_equal(
                video.decode([1, 0]).pixels(box),
                frames[[1, 0], top : top + height, left : left + width],
            )


@pytest.mark.parametrize("name", _INTERLACED)
def test_prepared_frames_of_interlaced_videos_are_the_same(name):
    with Video(_GOLDEN / name) as video:
        frames = video.read(range(6)).astype(int)
    for short_side in (48, 32):
        encoded = encode((_GOLDEN / name).read_bytes(), Settings(short_side, crf=0))
        with Video(encoded.video) as video:
            prepared = video.read(range(6)).astype(int)
        if short_side == 48:
            np.testing.assert_array_equal(prepared, frames)
            continue
        # Scaled as a whole, not field by field.
        with av.open(_GOLDEN / name) as container:
            decoded = list(container.decode(video=0))
        by_field, as_a_whole = (
            np.stack([x.reformat(42, 32).to_ndarray(format="rgb24") for x in versions])
            for versions in (decoded, map(progressive, decoded))
        )
        assert abs(prepared - as_a_whole).mean() < abs(prepared - by_field).mean() / 3


def _write(path, codec: str, pixel_format: str, frames, layout: str, **options) -> str:
    """Encodes frames, an array whose pixels are in PyAV's format `layout`."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=layout)))
        file.mux(stream.encode(None))
    return str(path)


DEEP = np.random.default_rng(0).integers(0, 65536, (3, 32, 48)).astype(np.uint16)
RGBA = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 4)).astype(np.uint8)
FULL = (0, 65535)


def test_gray_video_is_one_channel(tmp_path):
    gray = np.uint8(DEEP >> 8)
    path = _write(tmp_path / "gray.mkv", "ffv1", "gray", gray, "gray")
    with open_video(path, PixelFormat(1)) as video:
        np.testing.assert_array_equal(video.read(range(3))[..., 0], gray)
        box = video.decode([2, 0]).pixels((3, 5, 7, 9))
    np.testing.assert_array_equal(box[..., 0], gray[[2, 0], 3:10, 5:14])
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read([1])[0], np.dstack([gray[1]] * 3))


def test_16_bits_of_gray_video_are_kept(tmp_path):
    path = _write(tmp_path / "deep.mkv", "ffv1", "gray16le", DEEP, "gray16le")
    for channels in (1, 3):
        with open_video(path, PixelFormat(channels, FULL)) as video:
            frames = video.read([2, 0, 1])
        assert frames.dtype == np.uint16
        expected = np.stack([DEEP[[2, 0, 1]]] * channels, axis=-1)
        np.testing.assert_array_equal(frames, expected)
    with open_video(path, PixelFormat(1)) as video:
        with pytest.raises(VideoError, match=r"deep.mkv: .* set config.data.value_r"):
            video.read([0])
    with pytest.raises(VideoError, match="gray has 16 bits, of which 8 would be kept"):
        encode(Path(path).read_bytes(), Settings(32))


def test_alpha_of_videos_is_never_dropped(tmp_path):
    path = _write(tmp_path / "alpha.mov", "qtrle", "argb", RGBA, "rgba")
    with open_video(path, PixelFormat(4)) as video:
        np.testing.assert_array_equal(video.read(range(3)), RGBA)
    for channels in (1, 3):
        with open_video(path, PixelFormat(channels)) as video:
            with pytest.raises(VideoError, match=r"alpha.mov: has transparent pixels"):
                video.read([0])
    with pytest.raises(VideoError, match="has transparent pixels"):
        encode(Path(path).read_bytes(), Settings(32))
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    path = _write(tmp_path / "opaque.mov", "qtrle", "argb", opaque, "rgba")
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read(range(3)), opaque[..., :3])


def test_colour_becomes_gray_for_a_model_of_one_channel():
    for name in _FILES:
        path = str(_GOLDEN / name)
        with open_video(path) as video:
            rgb = video.read([0, 1]).astype(float)
        with open_video(path, PixelFormat(1)) as video:
            gray = video.read([0, 1])
            box = video.decode([1]).pixels((3, 5, 17, 30))
        np.testing.assert_array_equal(box[0], gray[1, 3:20, 5:35])
        luma = rgb @ (0.299, 0.587, 0.114)
        assert abs(gray[..., 0] - luma).mean() < 3
        with open_video(path, PixelFormat(2)) as video:
            with pytest.raises(VideoError, match="has 3 channels .RGB. .*expected 2"):
                video.read([0])


def test_alpha_beside_the_packets_of_webm_is_refused(tmp_path):
    """FFmpeg's decoders of VP8 and VP9 return such videos without their alpha."""
    options = {"auto-alt-ref": "0"}
    path = _write(tmp_path / "a.webm", "libvpx", "yuva420p", RGBA, "rgba", **options)
    with pytest.raises(VideoError, match=r"a.webm: its alpha channel would be lost"):
        open_video(path)
