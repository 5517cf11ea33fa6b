"""Classes of a fine-tuning: from the lists, their names, and labels that do not fit."""

import json

import pytest

from tests.training import test_loop
from tests.training.test_finetune import folder, tiny  # noqa: F401
from videomae_jax.errors import RecordError
from videomae_jax.training import loop
from videomae_jax.training.tasks import finetune

one_device = test_loop.one_device


@pytest.mark.slow
def test_several_labels(folder, tmp_path):
    labels = ("0 2", "1", "2")
    lines = [f"{i}.mp4 {labels[i % 3]}\n" for i in range(11)]
    (tmp_path / "list.txt").write_text("".join(lines))
    path = str(tmp_path / "list.txt")
    config = tiny(folder, **{"loss.kind": "sigmoid", "loss.smoothing": 0.0, "steps": 4})
    config.data.update(
        train=path, validation=path, test=path, root=str(folder), labels=""
    )
    config.data.max_bad_fraction = 0.5
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text())
    assert metrics["videos"] == 10 and metrics["unreadable"] == 1
    assert 0 < metrics["mean_average_precision"] <= 100
    rows = (tmp_path / "run" / "test" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["labels"] for row in rows[:3]] == [[0, 2], [1], [2]]
    last = test_loop.metrics(tmp_path / "run")[-1]
    assert 0 < last["validation/mean_average_precision"] <= 100


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_outside_the_range_and_empty_splits_are_refused(folder, split, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "high.txt").write_text("a.mp4 0\nb.mp4 3\n")
    with pytest.raises(RecordError, match="high.txt: b.mp4 has label 3"):
        finetune.Finetuning(
            tiny(folder, **{f"data.{split}": str(tmp_path / "high.txt")})
        )
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(RecordError, match="names no videos"):
        finetune.Finetuning(
            tiny(folder, **{f"data.{split}": str(tmp_path / "empty.txt")})
        )


def test_class_names_come_from_folders_where_they_can(tmp_path):
    path = tmp_path / "list.txt"
    for name in ("jump", "all"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    path.write_text("jump/a.mp4 1\nrun/a.mp4 0\njump/b.mp4 1\n")
    config = tiny(tmp_path)
    config.data.update(train=str(path), validation="", test="", labels="")
    assert finetune.Finetuning(config).class_names == ["run", "jump"]
    path.write_text("all/a.mp4 1\nall/b.mp4 0\n")
    assert finetune.Finetuning(config).class_names == ["0", "1"]


def test_names_of_a_list_are_classes_for_all_lists(tmp_path):
    for name in "ac":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "train.csv").write_text("path,label\na.mp4,sit down\nb.mp4,run\n")
    (tmp_path / "val.jsonl").write_text('{"path": "c.mp4", "label": "sit down"}\n')
    config = tiny(tmp_path)
    config.data.update(
        train=str(tmp_path / "train.csv"),
        validation=str(tmp_path / "val.jsonl"),
        test="",
        labels="",
    )
    task = finetune.Finetuning(config)
    assert task.class_names == ["run", "sit down"]
    # Alone, the name would be class 0.
    assert [[x.labels for x in videos] for videos in task.lists] == [
        [(1,), (0,)],
        [],
        [(1,)],
    ]
    (tmp_path / "names.txt").write_text("sit down\nwalk\nrun\n")
    config.data.labels = str(tmp_path / "names.txt")
    task = finetune.Finetuning(config)
    assert [x.labels for x in task.training_videos] == [(0,), (2,)]
    (tmp_path / "val.jsonl").write_text('{"path": "c.mp4", "label": "sit"}\n')
    with pytest.raises(
        RecordError, match="val.jsonl:1: 'sit' is none of the 3 classes"
    ):
        finetune.Finetuning(config)


def test_several_labels_need_at_least_one_in_the_list(folder):
    config = tiny(folder, **{"loss.kind": "sigmoid"})
    config.data.update(train=str(folder), labels="")
    with pytest.raises(RecordError, match="no video has a label"):
        finetune.Finetuning(config)
