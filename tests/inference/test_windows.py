"""Windows: which frames they have, and what becomes of their pixels."""

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers import official
from videomae_jax.inference.windows import Windows
from videomae_jax.video.open import open_video


@pytest.mark.parametrize("data_set, hop", [("THUMOS14", 4), ("FINEACTION", 16)])
def test_windows_are_those_of_v2s_script(data_set, hop):
    golden = json.loads((official.GOLDEN / "v2/tad_windows.json").read_text())
    windows = Windows(golden["frames_per_window"], 1, hop)
    for frames, starts in golden["starts"][data_set].items():
        indices = windows.indices(int(frames))
        if not starts:  # the script ends with an error
            assert indices.tolist() == [
                [*range(int(frames)), *[int(frames) - 1] * (16 - int(frames))]
            ]
            continue
        assert (indices == indices[:, :1] + np.arange(16)).all()
        found = indices[:, 0].tolist()
        if isinstance(starts, dict):
            assert len(found) == starts["count"]
            found, starts = found[:3] + found[-3:], starts["first"] + starts["last"]
        assert found == starts


@pytest.mark.parametrize("name", ["up", "down"])
def test_frames_are_resized_as_by_v2s_script(name):
    arrays = np.load(official.GOLDEN / "v2/tad.npz")
    frames = arrays[f"{name}/frames_uint8_thwc"]
    windows = Windows(2, 1, 4, size=tuple(arrays[f"{name}/size"].tolist()), raw=True)
    with open_video(frames) as video:
        [clip] = windows.read(video)
    step = int(arrays[f"{name}/stride_of_output"])
    expected = arrays[f"{name}/output_cthw"].transpose(1, 2, 3, 0)
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip[:, ::step, ::step], expected, atol=1e-6)
    # Rounded to pixels, or averaged, it is another picture.
    squashed = dataclasses.replace(windows, squash=True, raw=False)._crop(frames)
    assert np.abs(squashed[:, ::step, ::step] / 255 - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("frames", "hop", "count"),
    [
        # VideoMAE V2's range(0, N - 15, hop).
        (16, 4, 1),
        (19, 4, 1),
        (20, 4, 2),
        (100, 4, 22),
        (5400, 4, 1347),
        (5400, 16, 337),
        # That range is empty.
        (15, 4, 1),
        (1, 4, 1),
    ],
)
def test_windows_of_consecutive_frames_are_those_of_v2(frames, hop, count):
    windows = Windows(num_frames=16, frame_stride=1, hop=hop)
    indices = windows.indices(frames)
    assert len(indices) == count
    starts = list(range(0, frames - 15, hop)) or [0]
    assert indices[:, 0].tolist() == starts
    assert indices.max() < frames
    if frames > 15:
        assert (np.diff(indices, axis=1) == 1).all()


def test_windows_with_a_stride_lie_within_the_video():
    windows = Windows(num_frames=4, frame_stride=3, hop=2)
    assert windows.indices(14).tolist() == [
        [0, 3, 6, 9],
        [2, 5, 8, 11],
        [4, 7, 10, 13],
    ]
    assert windows.indices(5).tolist() == [[0, 3, 4, 4]]
