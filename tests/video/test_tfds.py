"""Data sets that TFDS has made return the frames and labels that were written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.frames import encode, write_tfds
from tests.helpers.videos import moving_noise
from videomae_jax.data import sources
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.video import images
from videomae_jax.video.open import open_video
from videomae_jax.video.record import LabelKind

CLASSES = ["jump", "run", "sit"]


def _frames(i: int) -> np.ndarray:
    return moving_noise(5 + i, 32, 48, seed=i)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Seven videos of 5 to 11 frames, video i of class i % 3."""
    videos = [(_frames(i), i % 3) for i in range(7)]
    return write_tfds(tmp_path_factory.mktemp("tfds"), videos, CLASSES)


def _change(folder: Path, file: str, **changes) -> None:
    path = folder / "2.0.0" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _copy(made: Path, target: Path) -> Path:
    (target / "clips" / "2.0.0").mkdir(parents=True)
    for path in (made / "2.0.0").iterdir():
        (target / "clips" / "2.0.0" / path.name).write_bytes(path.read_bytes())
    return target / "clips"


@pytest.mark.parametrize("folder", ["", "/2.0.0", "/.."])
def test_frames_and_labels(made, folder):
    records = sources.load(f"tfds:{made}{folder}/train", label_kind=LabelKind.ONE)
    assert len(list((made / "2.0.0").glob("*array_record-*"))) == 2
    lengths = []
    for record in records:
        name, position = re.fullmatch(
            r"(clips-train\..*)__([0-9]+)", record.id
        ).groups()
        assert record.path.endswith(f"/{name}") and record.position == int(position)
        with open_video(record) as video:
            i = video.num_frames - 5
            lengths.append(i)
            assert record.labels == (i % 3,)
            assert (video.height, video.width, video.fps) == (32, 48, None)
            np.testing.assert_array_equal(video.read([4, 0, 4]), _frames(i)[[4, 0, 4]])
    assert sorted(lengths) == list(range(7))
    assert len({record.id for record in records}) == 7


def test_listing_decodes_nothing_and_reads_nothing_without_labels(made, monkeypatch):
    monkeypatch.setattr(images, "decode_image", None)
    assert len(sources.load(f"tfds:{made}/train", label_kind=LabelKind.ONE)) == 7
    assert {r.labels for r in sources.load(f"tfds:{made}/train")} == {(0,), (1,), (2,)}
    several = sources.load(f"tfds:{made}/train", label_kind=LabelKind.MANY)
    labels = [label for record in several for label in record.labels]
    assert sorted(labels) == [0, 0, 0, 1, 1, 2, 2]
    monkeypatch.setattr("videomae_jax.video.shards.read_example", None)
    records = sources.load(f"tfds:{made}/train", label_kind=LabelKind.UNUSED)
    assert {record.labels for record in records} == {()}


def test_only_requested_frames_are_decoded(made, monkeypatch):
    decoded = []
    decode = images.decode_image

    def spy(content, format):
        decoded.append(content)
        return decode(content, format)

    monkeypatch.setattr(images, "decode_image", spy)
    with open_video(sources.load(f"tfds:{made}/train")[0]) as video:
        video.read([1, 3, 1])
        assert len(decoded) == 2
    with pytest.raises(VideoError, match="closed"):
        video.read([0])


def test_a_sequence_of_images(tmp_path):
    folder = write_tfds(tmp_path, [(_frames(0), -1)], CLASSES, is_video=False)
    [record] = sources.load(f"tfds:{folder}/train")
    with open_video(record) as video:
        np.testing.assert_array_equal(video.read(range(5)), _frames(0))
    with pytest.raises(RecordError, match="__0 has no label"):
        sources.load(f"tfds:{folder}/train", label_kind=LabelKind.ONE)
    [record] = sources.load(f"tfds:{folder}/train", label_kind=LabelKind.MANY)
    assert record.labels == ()


def test_bad_videos(tmp_path):
    good = [encode(image, ".jpg") for image in _frames(0)]
    other = encode(_frames(0)[0][:16])
    videos = [
        ([*good[:2], good[2][: len(good[2]) // 2], *good[3:]], 0),
        ([*good[:2], other, *good[3:]], 1),
        ([], 2),
    ]
    folder = write_tfds(tmp_path, videos, CLASSES)
    reasons = {}
    for record in sources.load(f"tfds:{folder}/train", label_kind=LabelKind.ONE):
        with (
            pytest.raises(VideoError) as raised,
            open_video(record) as video,
        ):
            assert video.read([0, 1, 3]).shape == (3, 32, 48, 3)
            video.read([2, 0])
        reasons[record.labels[0]] = str(raised.value)
        assert reasons[record.labels[0]].startswith(f"{record.path}: {record.id}: ")
    assert "frame 2 is damaged: image file is truncated" in reasons[0]
    assert "resolution: frame 2 is 48x16, others 48x32" in reasons[1]
    assert "holds no frames in its feature 'clip'" in reasons[2]


def test_damaged_shard(made, tmp_path):
    folder = _copy(made, tmp_path)
    records = sources.load(f"tfds:{folder}/train", label_kind=LabelKind.UNUSED)
    path = Path(records[0].path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    bad = 0
    for record in records:
        try:
            with open_video(record) as video:
                video.read(range(video.num_frames))
        except VideoError as error:
            bad += 1
            assert str(path) in str(error) and record.path == str(path)
    assert bad == 1
    with pytest.raises(RecordError, match="tfds:.*cannot be read"):
        sources.load(f"tfds:{folder}/train", label_kind=LabelKind.ONE)
    path.unlink()
    with pytest.raises(RecordError, match=f"the shard {path} is missing"):
        sources.load(f"tfds:{folder}/train", label_kind=LabelKind.UNUSED)


def test_other_data_sets(made, tmp_path):
    with pytest.raises(RecordError, match="no split 'test', only tfds:.*clips/trai"):
        sources.load(f"tfds:{made}/test")
    folder = _copy(made, tmp_path)
    source = f"tfds:{folder}/train"
    _change(folder, "dataset_info.json", fileFormat="tfrecord", configName="small")
    with pytest.raises(
        RecordError,
        match="stored as tfrecord.*`tfds build clips/small --file_format=array_record",
    ):
        sources.load(source)
    _change(folder, "dataset_info.json", alternativeFileFormats=["array_record"])
    assert len(sources.load(source)) == 7
    features = json.loads((folder / "2.0.0" / "features.json").read_text())
    own = features["featuresDict"]["features"]
    for changed, message in [
        ({"about": own["about"]}, "no feature of kind Video, only about"),
        (own | {"more": own["clip"]}, "one feature of kind Video, found.*clip"),
        (own | {"more": own["kind"]}, "one feature of kind ClassLabel, found"),
        ({"clip": own["clip"]}, "no feature of kind ClassLabel"),
    ]:
        _change(folder, "features.json", featuresDict={"features": changed})
        with pytest.raises(RecordError, match=message):
            sources.load(source, label_kind=LabelKind.ONE)
    (folder / "3.0.0").mkdir()
    (folder / "3.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(
        RecordError, match="several data sets.*2.0.0/train.*3.0.0/train"
    ):
        sources.load(source)


def test_neither_prepared_nor_made_by_tfds(tmp_path):
    with pytest.raises(RecordError, match="holds no complete split 'train'"):
        sources.load(f"tfds:{tmp_path}/none/train")
    with pytest.raises(RecordError, match="expected tfds:FOLDER/SPLIT"):
        sources.load("tfds:train")
