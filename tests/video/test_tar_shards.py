"""Videos in tar shards: the same frames and labels as from files, at random."""

import io
import json
import tarfile

import numpy as np
import pytest

from tests.helpers.prepared import prepare, serial  # noqa: F401
from tests.helpers.videos import moving_noise, write_video
from videomae_jax.data import labels, sources
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.data.pipeline import VideoList, batches
from videomae_jax.datasets import probe
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.inference.inputs import find_videos
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import file_size, open_video, read_bytes
from videomae_jax.video.record import LabelKind


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def contents():
    """Returns the contents of three video files."""
    videos = []
    for i in range(3):
        target = io.BytesIO()
        write_video(target, moving_noise(12 + i, 48, 64, seed=i), container="mp4")
        videos.append(target.getvalue())
    return videos


@pytest.fixture
def folder(tmp_path, contents):
    """Writes three shards, with labels as numbers in each way."""
    a, b, c = contents
    (tmp_path / "data").mkdir()
    write_tar(
        tmp_path / "data/train-000000.tar",
        # A long name, which takes headers of its own.
        [("000.cls", "3"), ("000.mp4", a), (f"x/{'y' * 120}.mp4", b)]
        + [(f"x/{'y' * 120}.json", json.dumps({"fps": 25, "label": 0}))],
    )
    write_tar(
        tmp_path / "data/train-000001.tar",
        [("./002.front.mp4", c), ("./002.cls", "1\n"), ("._z.mp4", b"x"), ("n.md", "")],
    )
    return tmp_path / "data"


def test_members_are_records(folder, contents, monkeypatch):
    monkeypatch.chdir(folder.parent)
    expected = [((3,), contents[0]), ((0,), contents[1]), ((1,), contents[2])]
    for source in (
        "data",
        "wds:data",
        "data/train-*.tar",
        "data/train-{000000..000001}.tar",
        "wds:data/train-00000{0,1}.tar",
    ):
        records = sources.load(source, label_kind=LabelKind.ONE)
        assert [(x.labels, read_bytes(x)) for x in records] == expected
    assert [x.id for x in records] == [
        "000.mp4",
        f"x/{'y' * 120}.mp4",
        "./002.front.mp4",
    ]
    assert all(file_size(record) is None for record in records)
    for record, content in zip(records, contents, strict=True):
        with open_video(record) as video, Video(content) as same:
            assert video.name == f"{record.path}: {record.id}"
            np.testing.assert_array_equal(video.read([11, 2]), same.read([11, 2]))
    unlabelled = sources.load("data", label_kind=LabelKind.UNUSED)
    assert [x.labels for x in unlabelled] == [(), (), ()]
    assert [x.id for x in find_videos("data/*.tar")] == [x.id for x in records]
    assert [x.id for x in find_videos("data")][0] == "data/000.mp4"


def test_training_reads_the_clips_that_files_give(folder, tmp_path, contents):
    for name, content in zip("abc", contents, strict=True):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    (tmp_path / "list.txt").write_text("a.mp4 3\nb.mp4 0\nc.mp4 1\n")
    clips = PretrainingClips(
        num_frames=4, stride=2, size=32, scales=(1,), flip=0.5, num_samples=1
    )
    read = []
    for source in (folder, tmp_path / "list.txt"):
        records = sources.load(str(source), label_kind=LabelKind.ONE)
        with batches(
            [VideoList(records)],
            clips,
            batch_size=4,
            patch_shape=(2, 16),
            seed=0,
            steps=range(2),
            label_array=labels.to_array(records, LabelKind.ONE),
        ) as stream:
            read.append([batch.arrays for batch in stream])
    for one, other in zip(*read, strict=True):
        np.testing.assert_array_equal(one["patches"], other["patches"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_names_values_and_several_labels(tmp_path, contents):
    a, b, c = contents
    path = tmp_path / "a.tar"
    write_tar(path, [("a.mp4", a), ("a.txt", "run"), ("b.mp4", b), ("b.txt", "jump")])
    loaded = sources.load(str(path), label_kind=LabelKind.ONE)
    assert [(x.labels, x.label_names) for x in loaded] == [
        ((1,), ("run",)),
        ((0,), ("jump",)),
    ]
    names = ["run", "sit", "jump"]
    loaded = sources.load(str(path), label_kind=LabelKind.ONE, class_names=names)
    assert [x.labels for x in loaded] == [(0,), (2,)]
    with pytest.raises(RecordError, match="a.tar: a.mp4: 'run' is none of the 1 class"):
        sources.load(str(path), label_kind=LabelKind.ONE, class_names=["jump"])
    write_tar(path, [("a.mp4", a), ("a.cls", "7.25"), ("b.mp4", b), ("b.cls", "1")])
    loaded = sources.load(str(path), label_kind=LabelKind.VALUES)
    assert [x.values for x in loaded] == [(7.25,), (1.0,)]
    write_tar(path, [("a.mp4", a), ("a.json", '{"labels": [5, 2]}')])
    [record] = sources.load(str(path), label_kind=LabelKind.MANY)
    assert record.labels == (2, 5)
    [record] = sources.load(str(path), label_kind=LabelKind.HEADS)
    assert record.labels == (5, 2)
    write_tar(path, [("a.mp4", a), ("b/a.mp4", b), ("a.mp4", c)])
    assert [x.id for x in sources.load(str(path))] == ["a.mp4", "b/a.mp4", "a.mp4#2"]
    with pytest.raises(RecordError, match="a.tar: a.mp4: the label is missing"):
        sources.load(str(path), label_kind=LabelKind.ONE)


def test_what_is_no_tar_shard(tmp_path, contents, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar("a.tar", [("a.txt", "3")])
    with pytest.raises(RecordError, match="a.tar: the tar holds no videos"):
        sources.load("a.tar")
    write_tar("b.tar", [("a.mp4", contents[0])], mode="w:gz")
    with pytest.raises(RecordError, match="b.tar: not a tar archive, or .* compressed"):
        sources.load("b.tar")
    write_tar("c.tar", [("a.mp4", contents[0]), ("b.mp4", contents[1])])
    content = (tmp_path / "c.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(content[: len(contents[0]) + 2000])
    with pytest.raises(RecordError, match="c.tar: .*cut off"):
        sources.load("c.tar")
    # Where `tarfile` would end the archive: before, in and after the second header.
    size = 1024 + -(-len(contents[0]) // 512) * 512
    damaged = bytearray(content)
    damaged[size - 512 + 150] ^= 1  # in the checksum
    for bad, message in (
        (content[: size - 512], "cut off"),
        (content[: size - 512 + 100], "cut off"),
        (bytes(damaged), "damaged: no header of a member at byte"),
        (content + content, "more follows after the end of the archive.*cat"),
    ):
        (tmp_path / "c.tar").write_bytes(bad)
        with pytest.raises(RecordError, match=f"c.tar: {message}"):
            sources.load("c.tar")
    (tmp_path / "c.tar").write_bytes(content.rstrip(b"\0") + bytes(5000))
    assert len(sources.load("c.tar")) == 2
    with pytest.raises(RecordError, match="https://x.org/a.tar: a web.*: download it$"):
        sources.load("https://x.org/a.tar")
    for source in ("none.tar", "none-*.tar", "c{0..1}.tar", "wds:none"):
        with pytest.raises(RecordError, match="tar not found: .*(none|c0)"):
            sources.load(source)

    # A tar that changes after it was listed.
    write_tar("d.tar", [("a.mp4", contents[0]), ("b.mp4", contents[1])])
    records = sources.load("d.tar")
    write_tar("d.tar", [("a.mp4", contents[0])])
    with pytest.raises(VideoError, match="d.tar: b.mp4: .*(shorter|not a video|empty)"):
        open_video(records[1])


def test_tars_are_probed_and_prepared(folder, tmp_path, serial):  # noqa: F811
    records = sources.load(str(folder), label_kind=LabelKind.ONE)
    for i, record in enumerate(records):
        result = probe.probe(probe.Job(record, decode=True, digest=True))
        assert (result.num_frames, result.decoded_frames) == (12 + i, 12 + i)
        assert result.size == record.byte_range[1]
    with pytest.raises(RecordError, match="a list cannot name a video in a shard"):
        sources.write_records(tmp_path / "clean.txt", records)
    prepare(folder, tmp_path / "made")
    stored = sources.load(f"tfds:{tmp_path}/made/train", label_kind=LabelKind.ONE)
    assert [x.labels for x in stored] == [(3,), (0,), (1,)]
    with open_video(stored[1]) as video:
        assert video.num_frames == 13
