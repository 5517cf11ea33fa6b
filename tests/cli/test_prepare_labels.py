"""Labels of every kind are kept in prepared data sets."""

import pytest

from tests.helpers.prepared import prepare, serial, videos  # noqa: F401
from videomae_jax.data import sources
from videomae_jax.errors import RecordError
from videomae_jax.video.open import read_bytes
from videomae_jax.video.record import LabelKind


def test_values_and_heads(videos, tmp_path, serial):
    path = f"{videos.parent}/0.mp4"
    (tmp_path / "values.csv").write_text(f"path,x,y\n{path},7.25,-1\n{path},0,2\n")
    prepare(tmp_path / "values.csv", tmp_path / "values", "--values")
    source = f"tfds:{tmp_path}/values/train"
    loaded = sources.load(source, label_kind=LabelKind.VALUES)
    assert [record.values for record in loaded] == [(7.25, -1.0), (0.0, 2.0)]
    with pytest.raises(RecordError, match="has no label"):
        sources.load(source, label_kind=LabelKind.ONE)
    with pytest.raises(RecordError, match="run `prepare` with --heads"):
        sources.load(source, label_kind=LabelKind.HEADS)

    (tmp_path / "heads.csv").write_text(f"path,noun,verb\n{path},egg,cut\n")
    for name, classes in (("verbs", "mix\ncut\n"), ("nouns", "egg\n")):
        (tmp_path / f"{name}.txt").write_text(classes)
    given = (tmp_path / "heads.csv", tmp_path / "heads", "--heads=verb,noun")
    with pytest.raises(RecordError, match="--labels=verbs.txt,nouns.txt"):
        prepare(*given)
    prepare(*given, f"--labels={tmp_path}/verbs.txt,{tmp_path}/nouns.txt")
    source = f"tfds:{tmp_path}/heads/train"
    [record] = sources.load(source, label_kind=LabelKind.HEADS)
    assert record.labels == (1, 0)
    with pytest.raises(RecordError, match="set config.data.heads=verb,noun"):
        sources.load(source, label_kind=LabelKind.ONE)
    with pytest.raises(RecordError, match="run `prepare` with --values"):
        sources.load(source, label_kind=LabelKind.VALUES)


def test_classes_several_labels_and_none(videos, tmp_path, serial):
    import tensorflow_datasets as tfds

    names = tmp_path / "labels.txt"
    names.write_text("zero\none\ntwo\n")
    prepare(videos, tmp_path / "named", f"--labels={names}", "--copy")
    info = tfds.builder_from_directory(tmp_path / "named/1.0.0").info
    assert info.features["label"].names == ["zero", "one", "two"]
    assert info.metadata["train"]["settings"]["encoding"] is None
    records = sources.load(f"tfds:{tmp_path}/named/train")
    original = (videos.parent / "0.mp4").read_bytes()
    assert read_bytes(records[0]) == original

    names.write_text("zero\none\n")
    with pytest.raises(RecordError, match="label 2"):
        prepare(videos, tmp_path / "other", f"--labels={names}")

    several = tmp_path / "several.txt"
    several.write_text(f"{videos.parent}/0.mp4 2 0\n{videos.parent}/1.mp4\n")
    prepare(several, tmp_path / "several", "--multi-label", "--copy")
    source = f"tfds:{tmp_path}/several/train"
    several = sources.load(source, label_kind=LabelKind.MANY)
    assert [r.labels for r in several] == [(0, 2), ()]
    with pytest.raises(RecordError, match="several labels: .*=sigmoid.*data.heads"):
        sources.load(source)
    with pytest.raises(RecordError, match="no label for each head"):
        sources.load(source, label_kind=LabelKind.HEADS)
    rows = tfds.data_source("several", data_dir=tmp_path, split="train")
    assert [list(row["label"]) for row in rows] == [[0, 2], []]

    none = tmp_path / "none.txt"
    none.write_text(f"{videos.parent}/0.mp4\n")
    prepare(none, tmp_path / "none", "--copy")
    source = f"tfds:{tmp_path}/none/train"
    assert [r.labels for r in sources.load(source)] == [()]
    with pytest.raises(RecordError, match="0.mp4 has no label"):
        sources.load(source, label_kind=LabelKind.ONE)
    rows = tfds.data_source("none", data_dir=tmp_path, split="train")
    assert [row["label"] for row in rows] == [-1]


def test_names_must_be_valid_in_tfds(videos, tmp_path):
    with pytest.raises(RecordError, match="'My-Set' cannot be the name"):
        prepare(videos, tmp_path / "My-Set")
    with pytest.raises(RecordError, match="'a-b' cannot be the name"):
        prepare(videos, tmp_path / "tiny", "--split=a-b")
    assert not list(tmp_path.iterdir())


def test_classes_of_heads_and_values_are_kept(videos, tmp_path, serial):
    path = tmp_path / "list.csv"
    path.write_text(f"path,noun,verb\n{videos.parent}/0.mp4,3,17\n")
    prepare(path, tmp_path / "heads", "--heads=noun,verb", "--copy")
    source = f"tfds:{tmp_path}/heads/train"

    def labels(*columns):
        kind = LabelKind.HEADS
        (record,) = sources.load(source, label_kind=kind, label_columns=columns)
        return record.labels

    assert labels() == labels("noun", "verb") == (3, 17)
    assert labels("verb", "noun") == (17, 3)
    with pytest.raises(RecordError, match="heads noun, verb, not for scene"):
        labels("scene", "noun")
    with pytest.raises(RecordError, match="set config.data.heads=noun,verb"):
        sources.load(source, label_kind=LabelKind.ONE)

    path.write_text(f"path,arousal,valence\n{videos.parent}/0.mp4,7.25,3\n")
    prepare(path, tmp_path / "values", "--values", "--copy")
    for source in (f"tfds:{tmp_path}/values/train", str(path)):
        for columns, values in {
            (): (7.25, 3.0),
            ("arousal", "valence"): (7.25, 3.0),
            ("valence", "arousal"): (3.0, 7.25),
            ("other", "names"): (7.25, 3.0),
        }.items():
            kind = LabelKind.VALUES
            (record,) = sources.load(source, label_kind=kind, label_columns=columns)
            assert record.values == values
            assert sorted(record.value_names) == ["arousal", "valence"]
