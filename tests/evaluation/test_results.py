"""What an evaluation leaves behind: counted by hand, and read back."""

import csv
import json
import os
import pickle
import pickletools
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from videomae_jax.evaluation import results
from videomae_jax.evaluation.results import Predictions

NAMES = ["run", "jump, high", "sit\ndown", "never", "wave", "clap", "bow"]
FILES = {
    "predictions.jsonl",
    "unreadable.jsonl",
    "metrics.json",
    "per_class.csv",
    "confusion.png",
}


def _of(labels, probabilities, class_names, unreadable=None):
    return Predictions(
        ids=[f"v{i}" for i in range(len(labels))],
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float32),
        class_names=class_names,
        unreadable=unreadable or {},
    )


def _json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def example():
    """7 classes; of 5 videos 3 right at 1, 4 right at 5; 3 more unreadable."""
    probabilities = [
        [0.50, 0.20, 0.10, 0.05, 0.05, 0.05, 0.05],  # run: right
        [0.30, 0.40, 0.10, 0.05, 0.05, 0.05, 0.05],  # run: second, after jump
        [0.05, 0.60, 0.10, 0.10, 0.05, 0.05, 0.05],  # jump: right
        [0.20, 0.20, 0.01, 0.20, 0.20, 0.14, 0.05],  # sit: last
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.25, 0.75],  # bow: right
    ]
    unreadable = {"a/b": (4, "no such file"), "c": (0, "empty"), "d": (3, "broken")}
    return _of([0, 0, 1, 2, 6], probabilities, NAMES, unreadable)


def test_metrics_by_hand(example):
    # The classes have 1/2, 1, 0 and 1 right; the others have no videos.
    assert results.metrics(example) == pytest.approx(
        {
            "videos": 5,
            "unreadable": 3,
            "top1": 60,
            "top5": 80,
            "mean_class": 62.5,
            "top1_counting_unreadable_wrong": 37.5,
            "top5_counting_unreadable_wrong": 50,
        }
    )
    values = results.metrics(example)
    assert {type(x) for x in values.values()} == {int, float}
    assert type(values["videos"]) is int and type(values["unreadable"]) is int


def test_confusion_matrix_by_hand(example):
    expected = np.zeros((7, 7), np.int64)
    expected[0, 0] = expected[0, 1] = expected[1, 1] = expected[6, 6] = 1
    expected[2, 0] = 1  # the first of four equally probable ones
    matrix = results.confusion_matrix(example)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


def test_always_the_same_for_all_is_no_success():
    constant = _of(range(6), np.full((6, 6), 1 / 6), list("abcdef"))
    values = results.metrics(constant)
    assert values["top1"] == values["top5"] == values["mean_class"] == 0
    assert np.trace(results.confusion_matrix(constant)) == 0


def test_equal_probabilities_count_against():
    tied = _of([0, 1], [[0.4, 0.4, 0.2], [0.4, 0.4, 0.2]], ["a", "b", "c"])
    values = results.metrics(tied)
    assert values["top1"] == 0
    assert values["top5"] == 100  # of three classes, the label is among the first three
    matrix = results.confusion_matrix(tied)
    assert matrix.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_fifth_of_equal_ones():
    # Four are more probable, and one is as probable as the label: it may be sixth.
    row = [0.2, 0.2, 0.2, 0.2, 0.08, 0.08, 0.04]
    assert results.metrics(_of([4], [row], NAMES))["top5"] == 0
    row = [0.2, 0.2, 0.2, 0.2, 0.09, 0.07, 0.04]
    assert results.metrics(_of([4], [row], NAMES))["top5"] == 100


def test_one_class(tmp_path):
    one = _of([0, 0], [[1.0], [1.0]], ["all"], {"bad": (0, "empty")})
    values = results.metrics(one)
    assert values["top1"] == values["top5"] == values["mean_class"] == 100
    assert values["top1_counting_unreadable_wrong"] == pytest.approx(200 / 3)
    assert results.confusion_matrix(one).tolist() == [[2]]
    results.write(one, tmp_path, 7)
    assert {path.name for path in tmp_path.iterdir()} == FILES


@given(st.data(), st.integers(1, 9), st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_metrics_of_any_predictions(data, classes, videos):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few different values, so that many are equal.
    probabilities = rng.integers(0, 4, (videos, classes)) / 4
    labels = rng.integers(classes, size=videos)
    found = _of(labels, probabilities, [str(c) for c in range(classes)])
    values = results.metrics(found)
    matrix = results.confusion_matrix(found)
    assert values["top1"] <= values["top5"]
    assert values["top1"] == pytest.approx(100 * np.trace(matrix) / videos)
    assert (
        matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=classes).tolist()
    )
    recalls = [matrix[c, c] / matrix[c].sum() for c in set(labels.tolist())]
    assert values["mean_class"] == pytest.approx(100 * np.mean(recalls))
    if classes <= 5:
        assert values["top5"] == 100
    for name in ("top1", "top5"):
        assert values[f"{name}_counting_unreadable_wrong"] == values[name]


@pytest.mark.parametrize("make_folder", [True, False])
def test_files(example, tmp_path, make_folder):
    folder = tmp_path if make_folder else tmp_path / "runs" / "test"
    results.write(example, folder, 7)
    assert {path.name for path in folder.iterdir()} == FILES

    rows = _json_lines(folder / "predictions.jsonl")
    assert [row["id"] for row in rows] == example.ids
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

    rows = _json_lines(folder / "unreadable.jsonl")
    assert rows == [
        {"id": "a/b", "label": 4, "reason": "no such file"},
        {"id": "c", "label": 0, "reason": "empty"},
        {"id": "d", "label": 3, "reason": "broken"},
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"step": 7} | results.metrics(example)

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
        picture = results.confusion_picture(results.confusion_matrix(example), NAMES)
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_probabilities_to_six_decimals(tmp_path):
    third = _of([0], [[1 / 3, 2 / 3, 1e-9]], ["a", "b", "c"])
    results.write(third, tmp_path, 7, top_k=1)
    row = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert row["probabilities"] == [0.333333, 0.666667, 0]
    assert row["top_k"] == [["b", 0.666667]]


def test_writing_again_replaces_everything(example, tmp_path):
    results.write(example, tmp_path, 7)
    results.write(_of([1], [[0, 1]], ["a", "b"]), tmp_path, 7)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (tmp_path / "unreadable.jsonl").read_text() == ""
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["videos"] == 1


def test_failed_writing_leaves_no_half_files(example, tmp_path, monkeypatch):
    results.write(example, tmp_path, 7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args):
        yield {"id": "v0"}
        raise OSError("disk full")

    monkeypatch.setattr(results, "_rows", fails)
    with pytest.raises(OSError, match="disk full"):
        results.write(example, tmp_path, 7)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_are_written_last(example, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError("disk full")

    for name in ("_per_class", "confusion_picture"):
        with monkeypatch.context() as patch:
            patch.setattr(results, name, fails)
            with pytest.raises(OSError, match="disk full"):
                results.write(example, tmp_path, 7)
        assert not (tmp_path / "metrics.json").exists()


def test_names_that_are_not_text(tmp_path):
    names = [os.fsdecode(b"caf\xe9"), "日本"]
    results.write(_of([0, 1], [[1, 0], [1, 0]], names), tmp_path, 7)
    assert b"\ncaf\xe9,0,1" in (tmp_path / "per_class.csv").read_bytes()
    row = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert row["label_name"] == names[0]


@pytest.mark.parametrize("size", [1, 2, 8, 25, 26, 101, 174, 400, 710, 1600])
def test_picture_sizes(size):
    matrix = np.diag(np.full(size, 20))
    matrix[0, -1] = 20
    names = [f"Balance Beam, walking on a very long rope {i}" for i in range(size)]
    picture = results.confusion_picture(matrix, names)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    limit = 1600 if size < 1500 else size + 150
    assert max(picture.shape) <= limit
    if size > 25:
        assert min(picture.shape[:2]) > 1000


def test_picture_colours():
    matrix = np.array([[8, 0, 0], [2, 6, 0], [0, 0, 0]])
    picture = results.confusion_picture(matrix, ["a", "b", "c"]).astype(int)
    cell = 56
    # The first fully dark pixel is inside the first cell, beside its lines.
    dark = (picture == [8, 48, 107]).all(axis=2)
    row, column = np.argwhere(dark)[0] + 4
    inside = picture[row::cell, column::cell][:3, :3]
    assert inside[0, 0].tolist() == [8, 48, 107]
    assert inside[0, 1].tolist() == [255, 255, 255]
    assert inside[1, 0].tolist() == [107, 174, 214]
    assert inside[1, 1].sum() < inside[1, 0].sum()
    assert (inside[2] == 235).all()


class _StandIn(types.ModuleType):
    """A module torch whose from_numpy returns the array."""

    @staticmethod
    def from_numpy(array):
        assert isinstance(array, np.ndarray) and array.flags.writeable
        return array


def test_mmaction_dump(example, tmp_path, monkeypatch):
    path = tmp_path / "dumps" / "out.pkl"
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    results.write_mmaction_dump(example, path)
    assert "torch" not in sys.modules
    assert [x.name for x in path.parent.iterdir()] == ["out.pkl"]
    monkeypatch.setitem(sys.modules, "torch", _StandIn("torch"))
    rows = pickle.loads(path.read_bytes())
    assert type(rows) is list and len(rows) == 5
    guesses = [0, 1, 1, 0, 6]
    for number, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        assert type(row) is dict
        assert list(row) == ["gt_label", "pred_score", "pred_label"]
        assert row["gt_label"].dtype == row["pred_label"].dtype == np.int64
        assert row["gt_label"].tolist() == [example.labels[number]]
        assert row["pred_label"].tolist() == [guess]
        assert row["pred_score"].dtype == np.float32
        np.testing.assert_array_equal(row["pred_score"], example.probabilities[number])


def test_mmaction_dump_names_only_lasting_functions(example, tmp_path):
    path = tmp_path / "out.pkl"
    results.write_mmaction_dump(example, path)
    strings, functions = [], set()
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        assert opcode.proto <= 4 and opcode.name != "GLOBAL"
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "STACK_GLOBAL":
            functions.add(".".join(strings[-2:]))
    assert functions == {"torch.from_numpy", "numpy.frombuffer", "builtins.bytearray"}


def test_mmaction_dump_leaves_a_loaded_torch_alone(example, tmp_path, monkeypatch):
    real = _StandIn("torch")
    monkeypatch.setitem(sys.modules, "torch", real)
    results.write_mmaction_dump(example, tmp_path / "out.pkl")
    assert sys.modules["torch"] is real


def test_refuses_nothing():
    with pytest.raises(ValueError, match="nothing was evaluated: there are no videos"):
        _of([], np.zeros((0, 2)), ["a", "b"])
    message = "nothing was evaluated: none of 2 videos could be .*, x: empty"
    with pytest.raises(ValueError, match=message):
        _of([], np.zeros((0, 2)), ["a", "b"], {"x": (0, "empty"), "y": (1, "broken")})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad):
    message = "2 of 4 videos have .* not finite; the first is v1"
    with pytest.raises(ValueError, match=message):
        _of([0] * 4, [[1, 0], [0, bad], [bad, bad], [0, 1]], ["a", "b"])


def test_refuses_an_id_twice():
    values = np.zeros((3, 2), np.float32)
    labels = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="the id 'x' occurs 2 times"):
        Predictions(["x", "y", "x"], labels, values, ["a", "b"], {})
    with pytest.raises(ValueError, match="'y' is both a readable and an unreadable"):
        Predictions(["x", "y", "z"], labels, values, ["a", "b"], {"y": (0, "?")})


def test_refuses_labels_that_are_no_class():
    with pytest.raises(ValueError, match="v1 has label 2, but labels are 0 to 1"):
        _of([0, 2], [[1, 0], [1, 0]], ["a", "b"])
    with pytest.raises(ValueError, match="bad has label -1"):
        _of([0], [[1, 0]], ["a", "b"], {"bad": (-1, "empty")})


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2,)])
def test_refuses_sizes_that_differ(shape):
    with pytest.raises(ValueError, match="for 2 videos and 2 classes, labels make"):
        _of([0, 1], np.zeros(shape), ["a", "b"])
