"""Files of a test: written, read back, and replaced atomically."""

import csv
import importlib.util
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_metrics import (
    example,
    heads_example,
    multi_label_example,
    single_label,
)
from videomae_jax.errors import ConfigError
from videomae_jax.evaluation import metrics, results
from videomae_jax.files import partial_path
from videomae_jax.video.record import LabelKind

FILES = {
    "predictions.jsonl",
    "unreadable.jsonl",
    "metrics.json",
    "per_class.csv",
    "confusion.png",
}


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_class(tmp_path):
    one = single_label([0, 0], [[1.0], [1.0]], ["all"], {"bad": ((0,), "empty")})
    values = metrics.compute(one)
    assert values["top1"] == values["mean_class"] == 100 and "top5" not in values
    assert values["top1_counting_unreadable_wrong"] == pytest.approx(200 / 3)
    assert metrics.confusion_matrix(one).tolist() == [[2]]
    results.write(one, tmp_path, step=7)
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("make_folder", [True, False])
def test_files(tmp_path, make_folder):
    folder = tmp_path if make_folder else tmp_path / "runs" / "test"
    results.write(example(), folder, step=7)
    assert {path.name for path in folder.iterdir()} == FILES

    rows = read_json_lines(folder / "predictions.jsonl")
    assert [row["id"] for row in rows] == example().ids
    assert [row["label"] for row in rows] == [0, 0, 1, 2, 6]
    assert rows[3]["label_name"] == "sit\ndown"
    assert rows[1] == {
        "id": "v1",
        "label": 0,
        "label_name": "run",
        "top_k": [
            ["jump, high", 0.4],
            ["run", 0.3],
            ["sit\ndown", 0.1],
            ["never", 0.05],
            ["wave", 0.05],
        ],
        "probabilities": [0.3, 0.4, 0.1, 0.05, 0.05, 0.05, 0.05],
    }

    rows = read_json_lines(folder / "unreadable.jsonl")
    assert rows == [
        {"id": "a/b", "label": 4, "reason": "no such file"},
        {"id": "c", "label": 0, "reason": "empty"},
        {"id": "d", "label": 3, "reason": "broken"},
    ]
    values = json.loads((folder / "metrics.json").read_text())
    assert values == {"step": 7} | metrics.compute(example())

    with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "label", "videos", "top1", "top5", "most_confused_with"],
        ["run", "0", "2", "50.00", "100.00", "jump, high"],
        ["jump, high", "1", "1", "100.00", "100.00", ""],
        ["sit\ndown", "2", "1", "0.00", "0.00", "run"],
        ["never", "3", "0", "", "", ""],
        ["wave", "4", "0", "", "", ""],
        ["clap", "5", "0", "", "", ""],
        ["bow", "6", "1", "100.00", "100.00", ""],
    ]

    with Image.open(folder / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_files_of_several_heads(tmp_path):
    results.write(heads_example({"e": ((1, 1), "broken")}), tmp_path, step=7)
    confusions = {"confusion_verb.png", "confusion_noun.png"}
    written = {path.name for path in tmp_path.iterdir()}
    assert written == FILES - {"confusion.png"} | confusions
    rows = read_json_lines(tmp_path / "predictions.jsonl")
    assert rows[2] == {
        "id": "c",
        "label": {"verb": 2, "noun": 1},
        "label_name": {"verb": "cut", "noun": "pan"},
        "top_k": {
            "verb": [["take", 0.5], ["put", 0.3], ["cut", 0.2]],
            "noun": [["pan", 0.9], ["egg", 0.1]],
        },
        "probabilities": {"verb": [0.5, 0.3, 0.2], "noun": [0.1, 0.9]},
    }
    [row] = read_json_lines(tmp_path / "unreadable.jsonl")
    assert row == {"id": "e", "label": {"verb": 1, "noun": 1}, "reason": "broken"}
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["head", "class", "label", "videos", "top1", "top5", "most_confused_with"],
        ["verb", "take", "0", "2", "50.00", "", "cut"],
        ["verb", "put", "1", "1", "100.00", "", ""],
        ["verb", "cut", "2", "1", "0.00", "", "take"],
        ["noun", "egg", "0", "2", "0.00", "", "pan"],
        ["noun", "pan", "1", "2", "100.00", "", ""],
    ]


def test_files_of_several_labels(tmp_path):
    results.write(multi_label_example(), tmp_path, step=7)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"confusion.png"}
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values == {"step": 7} | metrics.compute(multi_label_example())
    rows = read_json_lines(tmp_path / "predictions.jsonl")
    assert rows[1] == {"id": "b", "labels": [0, 1], "probabilities": [0.2, 0.8, 0.5]}
    [row] = read_json_lines(tmp_path / "unreadable.jsonl")
    assert row == {"id": "d", "labels": [0, 2], "reason": "broken"}
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", "label", "videos", "average_precision"],
        ["run", "0", "2", "83.33"],
        ["jump", "1", "2", "100.00"],
        ["never", "2", "0", ""],
    ]


def test_probabilities_to_six_decimals(tmp_path):
    third = single_label([0], [[1 / 3, 2 / 3, 1e-9]], ["a", "b", "c"])
    results.write(third, tmp_path, step=7, top_k=1)
    row = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert row["probabilities"] == [0.333333, 0.666667, 0]
    assert row["top_k"] == [["b", 0.666667]]


def test_writing_again_replaces_everything(tmp_path):
    results.write(example(), tmp_path, step=7)
    partial_path(tmp_path / "confusion.png").touch()  # of a test that was killed
    results.write(single_label([1], [[0, 1]], ["a", "b"]), tmp_path, step=7)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (tmp_path / "unreadable.jsonl").read_text() == ""
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["videos"] == 1


def test_a_failed_write_keeps_the_old_files(tmp_path, monkeypatch):
    results.write(example(), tmp_path, step=7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args):
        yield {"id": "v0"}
        raise OSError("disk full")

    monkeypatch.setattr(results, "_rows", fails)
    with pytest.raises(OSError, match="disk full"):
        results.write(example(), tmp_path, step=7)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_are_written_last(tmp_path, monkeypatch):
    def fails(*args):
        raise OSError("disk full")

    for name in ("_class_table", "plot_confusion"):
        results.write(multi_label_example(), tmp_path, step=6)
        with monkeypatch.context() as patch:
            patch.setattr(results, name, fails)
            with pytest.raises(OSError, match="disk full"):
                results.write(example(), tmp_path, step=7)
        assert not (tmp_path / "metrics.json").exists()


def test_names_that_are_not_text(tmp_path):
    names = [os.fsdecode(b"caf\xe9"), "日本"]
    results.write(single_label([0, 1], [[1, 0], [1, 0]], names), tmp_path, step=7)
    assert b"\ncaf\xe9,0,1" in (tmp_path / "per_class.csv").read_bytes()
    row = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert row["label_name"] == names[0]


@pytest.mark.parametrize("size", [1, 25, 26, 120, 121, 710])
def test_confusion_fits_any_number_of_classes(size, tmp_path):
    matrix = np.diag(np.full(size, 20))
    matrix[0, -1] = 20
    names = [f"Balance Beam, walking on a very long rope {i}" for i in range(size)]
    figure = results.plot_confusion(matrix, names)
    figure.savefig(tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) <= max(1600, 4 * size)
    axes = figure.axes[0]
    bounds = axes.get_window_extent()
    assert bounds.width >= 2 * size and bounds.height >= 2 * size  # pixels
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    if size <= 120:
        assert len(ticks) == size and set(ticks) == {"Balance Beam, walking on a ..."}
    else:
        assert 3 < len(ticks) < 30
    cells = [text.get_text() for text in axes.texts]
    assert cells == (["20"] * np.count_nonzero(matrix) if size <= 25 else [])


def test_confusion_colours_are_shares_of_a_row():
    matrix = np.array([[8, 0, 0], [2, 6, 0], [0, 0, 0]])
    figure = results.plot_confusion(matrix, ["a", "b$_$", "_c"])
    axes = figure.axes[0]
    [image] = axes.images
    expected = [[1, 0, 0], [0.25, 0.75, 0], [None] * 3]  # no videos: the background
    assert image.get_array().tolist() == expected
    assert axes.get_facecolor() == pytest.approx((0.827, 0.827, 0.827, 1), abs=1e-3)
    red, green, blue, _ = image.cmap(image.norm([0, 0.25, 1.0])).T
    assert (np.diff(red) < -0.2).all() and (np.diff(green) < -0.2).all()
    assert (red < blue).all()
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "8", (0, 1): "2", (1, 1): "6"}  # column, row
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["a", "b$_$", "_c"]
    figure.draw_without_rendering()  # a dollar sign starts no formula


def test_a_dump_is_checked_with_the_config(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in (LabelKind.ONE, LabelKind.MANY):
        results.check_dump("", kind)
    with pytest.raises(ConfigError, match="dump='a.pkl' .* pip install torch"):
        results.check_dump("a.pkl", LabelKind.ONE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    results.check_dump("a.pkl", LabelKind.ONE)
    with pytest.raises(ConfigError, match="dump='a.pkl' needs one label a video"):
        results.check_dump("a.pkl", LabelKind.MANY)
    with pytest.raises(ConfigError, match="config.loss.kind=mse means values"):
        results.check_dump("a.pkl", LabelKind.VALUES)
    with pytest.raises(ConfigError, match="config.data.heads means several"):
        results.check_dump("a.pkl", LabelKind.HEADS)


def test_mmaction_dump(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "dumps" / "out.pkl"
    results.write_mmaction_dump(example(), path)
    assert [x.name for x in path.parent.iterdir()] == ["out.pkl"]
    content = path.read_bytes()
    assert content[:2] == b"\x80\x04"  # the protocol
    rows = pickle.loads(content)
    assert type(rows) is list and len(rows) == 5
    guesses = [0, 1, 1, 0, 6]
    for number, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        assert type(row) is dict
        assert list(row) == ["gt_label", "pred_score", "pred_label"]
        assert row["gt_label"].dtype == row["pred_label"].dtype == torch.int64
        assert row["gt_label"].tolist() == [example().labels[number]]
        assert row["pred_label"].tolist() == [guess]
        assert row["pred_score"].dtype == torch.float32
        expected = example().probabilities[number]
        np.testing.assert_array_equal(row["pred_score"].numpy(), expected)
