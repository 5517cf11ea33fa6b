"""Labels and class names of lists."""

import pytest

from videomae_jax.data import labels, sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record


def test_lists_with_several_labels(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text('a.mp4 3 1\n"b c.mp4",2\nd.mp4\t0\t0\t5 # comment\n')
    videos = sources.load(str(path), label_kind=LabelKind.MANY)
    assert [video.labels for video in videos] == [(1, 3), (2,), (0, 5)]
    assert labels.counts(videos, 6).tolist() == [1, 1, 1, 1, 0, 1]
    assert labels.multi_hot(videos, 6)[2].tolist() == [1, 0, 0, 0, 0, 1]
    assert len(labels.class_names(videos, "list.txt")) == 6
    with pytest.raises(RecordError, match="a.mp4 has label 3"):
        labels.check(videos, "list.txt", 3)
    path.write_text("e.mp4 1 -2\n")
    with pytest.raises(RecordError, match="'-2' is not a label"):
        sources.load(str(path), label_kind=LabelKind.MANY)
    path.write_text("e.mp4\nf.mp4 0 1\n")  # of no class, and of two
    videos = sources.load(str(path), label_kind=LabelKind.MANY)
    assert labels.multi_hot(videos, 2).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(RecordError, match="config.loss.kind=sigmoid"):
        sources.load(str(path), label_kind=LabelKind.OPTIONAL)


def test_folders_name_classes_if_each_class_has_its_own():
    def names(*rows):
        records = [Record(path, path, labels=own) for path, own in rows]
        return labels.class_names(records, "list.txt", num_classes=4)

    run, sit = ("/k/run/a.mp4", (2,)), ("/k/sit/b.mp4", (0,))
    assert names(run, sit, run) == ["sit", "1", "run", "3"]
    assert names(run) == names(run, ("/k/sit/c.mp4", ())) == ["0", "1", "2", "3"]
    # A class in two folders, and a folder of two classes.
    assert names(run, sit, ("/k/sit/c.mp4", (2,))) == ["0", "1", "2", "3"]
    assert names(run, sit, ("/k/sit/c.mp4", (1,))) == ["0", "1", "2", "3"]
