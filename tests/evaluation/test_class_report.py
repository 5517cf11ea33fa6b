"""The report on lists before training: from records alone, without opening videos."""

import pytest

from videomae_jax.evaluation import class_report
from videomae_jax.models.problem import MULTI_LABEL, REGRESSION, Problem
from videomae_jax.video.record import Record


def records(*labels, folder="videos", **fields):
    """A record for each label or tuple of labels."""
    return [
        Record(
            f"/{folder}/{i}.mp4",
            f"{folder}/{i}.mp4",
            labels=label if isinstance(label, tuple) else (label,),
            **fields,
        )
        for i, label in enumerate(labels)
    ]


def find(names, training, test=(), validation=(), problem=None):
    lists = {"training": training, "test": list(test), "validation": list(validation)}
    return "\n".join(class_report.find_problems(lists, names, problem or Problem()))


def test_sizes_of_lists_and_classes():
    lists = {"training": records(0, 0, 0, 1), "test": records(0), "validation": []}
    assert class_report.describe(lists, ["run", "jump"], Problem()) == [
        "videos: training=4 test=1",
        "classes: 2; training videos of a class: 1 (jump) to 3 (run)",
    ]


def test_each_head_has_classes_of_its_own():
    problem = Problem(heads=(("verb", 2), ("noun", 3)))
    names = ["cut", "mix", "egg", "oil", "bowl"]
    training = records((0, 2), (0, 1), (1, 1))
    lines = class_report.describe({"training": training}, names, problem)
    assert lines[1:] == [
        "verb: 2; training videos of a class: 1 (mix) to 2 (cut)",
        "noun: 3; training videos of a class: 0 (egg) to 2 (oil)",
    ]
    assert "1 of 3 noun classes have no training video: egg" in find(
        names, training, problem=problem
    )


def test_values_have_a_range():
    training = [Record(f"/{x}.mp4", f"{x}.mp4", values=(x, 1.0)) for x in (1.0, 3.0)]
    problem = Problem(REGRESSION)
    lines = class_report.describe({"training": training}, ["speed", "size"], problem)
    assert lines[1:] == [
        "values of speed: 1 to 3, mean=2 std=1",
        "values of size: 1 to 1, mean=1 std=0",
    ]
    found = find(["speed", "size"], training, test=training[:1], problem=problem)
    assert "1 test videos are few: a rank correlation up to 2.00 may be chance" in found
    assert "1 of 1 test videos are training videos, too: 1.0.mp4" in found


def test_classes_without_videos():
    names = [f"class {i}" for i in range(9)]
    found = find(names, records(0, 8))
    assert "7 of 9 classes have no training video: class 1, class 2" in found
    assert "and 2 more" in found
    # A test of many classes lacks some; most of them are worth a line.
    test = records(*range(8), folder="test")
    assert "have no test" not in find(names, records(*range(9)), test)
    found = find(names, records(*range(9)), test[:3])
    assert "6 of 9 classes have no test video" in found


# The names of the label file; as in a file whose lines are swapped.
@pytest.mark.parametrize(
    "names, problem, labels",
    [
        (["right", "left"], None, {"left": 0, "right": 1}),
        (["Jump Rope", "run"], None, {"run": 0, "jump_rope": 1}),
        (["right", "left"], Problem(MULTI_LABEL), {"left": (0,), "right": (1,)}),
        (
            ["right", "left", "slow", "fast"],
            Problem(heads=(("side", 2), ("speed", 2))),
            {"left": (0, 1), "right": (1, 0)},
        ),
    ],
)
def test_folders_contradict_labels(names, problem, labels):
    training = [
        record
        for folder, label in labels.items()
        for record in records(label, label, folder=folder)
    ]
    found = find(names, training, test=training, problem=problem)
    first = next(iter(labels))
    assert f"labels contradict folders, such as {first}/0.mp4: 2 in folder" in found
    assert "config.data.labels" in found
    if problem is None:
        assert "contradict" not in find(names[::-1], training, test=training)


def test_folders_of_other_names_say_nothing():
    training = records(0, 1, folder="part1") + records((1, 0), folder="left")
    assert "contradict" not in find(["right", "left"], training)


def test_videos_of_training_and_test():
    names, training = ["a", "b"], records(0, 1, 0)
    found = find(names, training, test=training[1:] + records(1, folder="new"))
    assert "2 of 3 test videos are training videos, too: videos/1.mp4" in found
    # Validation and test may be the same.
    held_out = records(0, 1, folder="new")
    assert "too" not in find(names, training, test=held_out, validation=held_out)


@pytest.mark.parametrize(
    "training, test, shared",
    [
        ({"frame_range": (0, 100)}, {"frame_range": (99, 10)}, True),
        ({"frame_range": (0, 100)}, {"frame_range": (100, 10)}, False),
        ({"frame_range": (10, -1)}, {"frame_range": (50, 10)}, True),
        ({"frame_range": (0, 100)}, {}, True),
        ({"time_range": (0.0, 2.0)}, {"time_range": (1.9, 3.0)}, True),
        ({"time_range": (0.0, 2.0)}, {"time_range": (2.0, 3.0)}, False),
        # In shards only names tell.
        ({"position": 3}, {"position": 0}, True),
    ],
)
def test_parts_of_videos_are_shared_if_they_overlap(training, test, shared):
    folders = ("train", "test") if "position" in training else ("v", "v")
    ours, theirs = (
        Record(f"/{folder}/x.mp4", "x.mp4", labels=(0,), **fields)
        for folder, fields in zip(folders, (training, test), strict=True)
    )
    assert ("too: x.mp4" in find(["a"], [ours], [theirs])) == shared


def test_small_tests_measure_chance():
    """The standard error of a share p of n videos: sqrt(p (1 - p) / n), p = 0.5."""
    found = find(["a"], records(0), test=records(*[0] * 100, folder="test"))
    assert "standard error of an accuracy is up to 5.0 points" in found
    assert "few" not in find(["a"], records(0), records(*[0] * 400, folder="test"))
