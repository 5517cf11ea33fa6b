"""Arrays as videos: in memory, in .npy and in .npz files."""

import re

import numpy as np
import pytest

from videomae_jax.errors import VideoError
from videomae_jax.video.open import open_video
from videomae_jax.video.record import Record
from videomae_jax.video.source import PixelFormat

# Frames of one channel with 12 bits, and the range that they are scaled by.
DEPTH = np.random.default_rng(0).integers(0, 4096, (5, 6, 8, 1)).astype(np.uint16)
RANGE = (0, 4095)
SCALED = np.rint(DEPTH / 4095 * 65535).astype(np.uint16)
BYTES = np.random.default_rng(1).integers(0, 256, (5, 6, 8, 2)).astype(np.uint8)


def read(path, format, indices=range(5)):
    with open_video(Record(str(path), "a"), format) as video:
        assert (video.height, video.width, video.fps) == (6, 8, None)
        return video.read(indices)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "depth.npy", DEPTH)
    np.save(folder / "bytes.npy", BYTES)
    np.savez_compressed(folder / "one.npz", anything=DEPTH)
    np.savez(folder / "named.npz", video=DEPTH, label=np.int64(3))
    return folder


@pytest.mark.parametrize("name", ["depth.npy", "one.npz", "named.npz"])
def test_reads_exactly_the_requested_frames(folder, name):
    frames = read(folder / name, PixelFormat(1, RANGE), [4, 0, 0])
    assert frames.dtype == np.uint16
    np.testing.assert_array_equal(frames, SCALED[[4, 0, 0]])
    with open_video(folder / name, PixelFormat(1, RANGE)) as video:
        box = video.decode([3, 1]).pixels((1, 2, 3, 4))
    np.testing.assert_array_equal(box, SCALED[[3, 1], 1:4, 2:6])
    part = Record(str(folder / name), "a", frame_range=(2, 3))
    with open_video(part, PixelFormat(1, RANGE)) as video:
        np.testing.assert_array_equal(video.read(range(3)), SCALED[2:])


def test_bytes_stay_as_they_are(folder):
    frames = read(folder / "bytes.npy", PixelFormat(2))
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, BYTES)


@pytest.mark.parametrize(
    "values, bounds",
    [
        (DEPTH[..., 0], RANGE),  # without an axis of channels
        (DEPTH.astype(np.float64) / 4095, (0, 1)),
        (np.float32(DEPTH) - 1000, (-1000, 3095)),
        (DEPTH.astype(np.int32) * 100000, (0, 409500000)),
        (np.asfortranarray(DEPTH.astype(">u2")), RANGE),
    ],
)
def test_values_are_scaled_by_their_range(tmp_path, values, bounds):
    np.save(tmp_path / "a.npy", values)
    frames = read(tmp_path / "a.npy", PixelFormat(1, bounds))
    np.testing.assert_allclose(frames, SCALED, rtol=0, atol=1)


def test_values_beyond_the_range_are_clipped(folder):
    frames = read(folder / "depth.npy", PixelFormat(1, (1000, 2000)))
    assert (frames[DEPTH <= 1000] == 0).all() and (frames[DEPTH >= 2000] == 65535).all()
    # All 16 bits of the source are kept where the range is theirs.
    full = read(folder / "depth.npy", PixelFormat(1, (0, 65535)))
    np.testing.assert_array_equal(full, DEPTH)


@pytest.mark.parametrize(
    "array, format, message",
    [
        (DEPTH, PixelFormat(1), "values of uint16, of unknown range: set config.data"),
        (DEPTH, PixelFormat(3, RANGE), "shape [5, 6, 8, 1]; expected [time, height, w"),
        (DEPTH[0, 0], PixelFormat(1, RANGE), "got uint16 [8, 1]"),
        (DEPTH[None], PixelFormat(1, RANGE), "got uint16 [1, 5, 6, 8, 1]"),
        (DEPTH > 7, PixelFormat(1), "expected numbers [time, height, width, channels]"),
        (DEPTH[:0], PixelFormat(1), "is empty: [0, 6, 8, 1]"),
        (np.array([{}]), PixelFormat(1), "cannot be read as an array"),
        (np.where(DEPTH < 99, np.nan, DEPTH), PixelFormat(1, RANGE), "not a number"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, format, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(VideoError, match=f"a.npy: .*{re.escape(message)}"):
        with open_video(str(tmp_path / "a.npy"), format) as video:
            video.read(range(video.num_frames))


def test_damaged_files_are_refused(folder, tmp_path):
    content = (folder / "depth.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-10])
    (tmp_path / "text.npy").write_text("frames")
    content = bytearray((folder / "one.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "changed.npz").write_bytes(content)
    np.savez(tmp_path / "several.npz", a=DEPTH, b=DEPTH)
    for name, reason in [
        ("cut.npy", "cannot be read as an array"),
        ("text.npy", "cannot be read as an array"),
        ("changed.npz", "cannot be read as an array"),
        ("several.npz", "holds a, b; expected one array, or one named `video`"),
        ("missing.npy", "no such file"),
    ]:
        with pytest.raises(VideoError, match=f"{name}: {reason}"):
            open_video(str(tmp_path / name))
