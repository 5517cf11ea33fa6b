"""Frames of a clip: the rows of VideoMAE V2's code."""

import json

import numpy as np
import pytest

from tests.helpers.official import V2
from videomae_jax.data import sources
from videomae_jax.data.clips import SAMPLERS
from videomae_jax.data.sampling import sample_pretrain
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.record import LabelKind


class Fixed:
    """Random numbers that are all at the same share of their range."""

    def __init__(self, share):
        self.share = share

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        value = low + int(self.share * (high - low))
        return value if size is None else np.full(size, value)


V2_ROWS = json.loads((V2 / "sampling.json").read_text())


def _v2(name, rule, key):
    """Compares a sampler with all rows of V2's code, but for the videos it cannot."""
    sampler, compared = SAMPLERS[rule], set()
    for row in next(rows for title, rows in V2_ROWS.items() if title.startswith(name)):
        count, rate = row["num_frames"], row.get("rate", 4)
        if row["mode"] == "train":
            indices = sampler.train(Fixed(row["draw"]), count, 16, rate)
        elif row["mode"] == "validation":
            indices = sampler.validation(count, 16, rate)
        else:
            indices = sampler.test(count, 16, rate, row["segments"])
        keys = {key, f"{key}_of_view"} & row.keys()
        expected = np.array(row[keys.pop()]) - (key == "frames")  # images count from 1
        if (expected < 0).all():  # it asks for frame -1, the last one, 16 times
            expected = np.array([0] * (16 - count) + list(range(count)))
        assert indices.tolist() == expected.tolist(), row
        compared.add((row["mode"], count))
    return compared


def test_frames_are_those_of_v2():
    assert len(_v2("dense_video", "dense", "indices")) == 12
    assert len(_v2("sparse_video", "sparse", "indices")) == 18
    assert len(_v2("raw_frames", "uniform", "frames")) == 15


@pytest.mark.parametrize(
    "row", V2_ROWS["hybrid_pretrain (--data_root ROOT, --sampling_rate 4)"], ids=str
)
def test_hybrid_pretraining_reads_the_images_of_v2(row, tmp_path):
    """V2 tells SSv2 and AVA by words of the path, which are fields here."""
    name = row["line"].split()[0]
    stride = 2 if name.startswith("SomethingV2/") else 4
    frame_name = "img_{:05}.jpg"
    if name.startswith("AVA2.2/"):
        frame_name = "image_{:06}.jpg"
    (tmp_path / "train.csv").write_text(f"{row['line']}\n")
    [record] = sources.load(
        str(tmp_path / "train.csv"),
        str(tmp_path / "ROOT"),
        label_kind=LabelKind.UNUSED,
        frame_name=frame_name,
    )
    draw = Fixed(row["draw"])
    if name.endswith(".mp4"):
        assert record.path == str(tmp_path / "ROOT" / name) and not record.is_part
        count = row["video_frames_if_video"]
        indices = sample_pretrain(draw, count, 16, stride)
        assert indices.tolist() == row["indices"]
        return
    folder = FrameFolder(record.path, record.frame_name, record.frame_range)
    indices = sample_pretrain(draw, folder.num_frames, 16, stride)
    files = [f"{record.path}/{folder.image_name(int(i))}" for i in indices]
    assert files == [str(tmp_path / file) for file in row["files"]]
