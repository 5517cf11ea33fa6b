"""Pixels are those of decord, which read the videos of all published weights."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from videomae_jax.datasets.encode import Settings, encode
from videomae_jax.video.decoder import Video
from videomae_jax.video.rgb import progressive

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
