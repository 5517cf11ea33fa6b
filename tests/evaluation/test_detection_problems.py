"""Mistakes in files of detections, each by its name."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.detections import EXPECTED, read_case, table
from videomae_jax.errors import RecordError
from videomae_jax.evaluation import detection_problems


def case(name="plain", **changes):
    """Ground truth, detections with some changes, and the classes."""
    truth, found, names, _ = read_case(name)
    truth = dataclasses.replace(truth, source="truth.csv")
    found = dataclasses.replace(found, source="found.csv")
    changes = {k: change(getattr(found, k)) for k, change in changes.items()}
    return truth, dataclasses.replace(found, **changes), list(names)


def find(*arguments):
    return detection_problems.find_problems(*arguments)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_cases_have_none_but_what_they_are_about(name):
    truth, found, names = case(name)
    detection_problems.check(truth, found)
    expected = {
        "csv": {"missing scores"},
        "degenerate": {"empty boxes"},
        "double": {"duplicate rows"},
    }
    assert find(truth, found, names).keys() == expected.get(name, set())


def in_pixels(boxes):
    return boxes * [455, 256, 455, 256]


def test_pixel_coordinates():
    truth, found, names = case(boxes=in_pixels)
    message = (
        r"found.csv:1: pixel coordinates: x1=50.05 y1=20.48 x2=191.1 y2=207.36, but "
        "truth.csv has fractions of the frame"
    )
    with pytest.raises(RecordError, match=message):
        detection_problems.check(truth, found)
    pixels = dataclasses.replace(truth, boxes=in_pixels(truth.boxes))
    fractions = case()[1]
    with pytest.raises(RecordError, match=r"truth.csv:1: pixel coordinates.*found.csv"):
        detection_problems.check(pixels, fractions)
    # In both files, they are fine.
    detection_problems.check(pixels, found)
    assert not find(pixels, found, names)


def renamed(pattern):
    return lambda frames: [(pattern.format(video), time) for video, time in frames]


def test_unknown_videos():
    truth, found, _ = case(frames=renamed("clips/{}.mp4"))
    message = (
        "found.csv:1: unknown videos: none of the 2 videos is in truth.csv, such as "
        "'clips/-5KQ66BBWC4.mp4', .*; expected names like '-5KQ66BBWC4', "
    )
    with pytest.raises(RecordError, match=message):
        detection_problems.check(truth, found)
    # Some of them do not stop the evaluation.
    truth, found, names = case(
        frames=lambda frames: [(x.replace("1j20", "1J20"), t) for x, t in frames]
    )
    detection_problems.check(truth, found)
    problem = find(truth, found, names)["unknown videos"]
    assert problem == (
        "4 rows are of videos that truth.csv does not have (1), first '1J20qq1JyX4' in "
        "found.csv:8; the nearest is 1j20qq1JyX4"
    )


def test_unknown_timestamps():
    truth, found, _ = case(frames=lambda frames: [(x, t - 900) for x, t in frames])
    message = (
        "found.csv:1: unknown timestamps: no key frame is in truth.csv. Of "
        "'-5KQ66BBWC4', detections have the seconds 2 to 3, expected 902 to 903"
    )
    with pytest.raises(RecordError, match=message):
        detection_problems.check(truth, found)


@pytest.mark.parametrize(
    "name, text, changes",
    [
        (
            "label offset",
            "with classes one higher in found.csv, the mAP would be 78.33, not 0.00",
            {"classes": lambda x: x - 1},
        ),
        (
            "label offset",
            "with classes one lower in found.csv, the mAP would be 78.33, not 0.00",
            {"classes": lambda x: x + 1},
        ),
        (
            "y before x",
            "with y1,x1,y2,x2 in found.csv, the mAP would be 78.33",
            {"boxes": lambda x: x[:, [1, 0, 3, 2]]},
        ),
        (
            "widths and heights",
            "with x1,y1,width,height in found.csv, the mAP would be 78.33",
            {"boxes": lambda x: np.c_[x[:, :2], x[:, 2:] - x[:, :2]]},
        ),
        (
            "other classes",
            "none that of its own class",
            {"classes": lambda x: x + 100},
        ),
        (
            "other boxes",
            "no detection overlaps ground truth by 0.5",
            {"boxes": lambda x: x / 10},
        ),
        (
            "person ids for scores",
            "all scores are whole numbers, such as 10 in found.csv:11",
            {"scores": lambda x: np.arange(len(x)) * 1.0},
        ),
        (
            "empty boxes",
            "1 of 11 rows have x1 >= x2 or y1 >= y2, first found.csv:3",
            {"boxes": lambda x: np.where(np.arange(11)[:, None] == 2, 0.5, x)},
        ),
        (
            "classes without detections",
            "4 of 5 classes with ground truth have none: ids 1, 4, 12, ...",
            {"classes": lambda x: 0 * x + 80},
        ),
    ],
)
def test_problems(name, text, changes):
    truth, found, names = case(**changes)
    assert text in find(truth, found, names)[name]
    # That is the difference to the original.
    assert name not in find(*case())


def test_duplicate_rows():
    truth, found, names = case()
    again = np.arange(len(found))[[0, 1, 2, 1, 1, *range(3, len(found))]]
    assert find(truth, found.select(again), names)["duplicate rows"] == (
        "2 rows of found.csv repeat others, such as found.csv:2 the one of "
        "found.csv:2. Each detection of a box and class but one is wrong"
    )
    truth = truth.select(np.array([0, *range(len(truth))]))
    assert "1 rows of truth.csv repeat" in find(truth, found, names)["duplicate rows"]
    # The same box with another score, class or key frame is none.
    box = (0.1, 0.2, 0.5, 0.6)
    rows = [("a", 1.0, *box, 1, 0.5), ("a", 1.0, *box, 1, 0.4)]
    rows += [("a", 1.0, *box, 2, 0.5), ("a", 2.0, *box, 1, 0.5)]
    assert "duplicate rows" not in find(table(rows[0]), table(*rows), [1, 2])


def test_key_frames_without_detections():
    box = (0.1, 0.2, 0.5, 0.6)
    truth = table(*[("a", float(t), *box, 1, 1.0) for t in range(5)])
    found = table(*[("a", float(t), *box, 1, 0.5) for t in range(2)])
    name = "key frames without detections"
    assert find(truth, found, [1])[name].startswith("3 of 5 key frames")
    half = truth.select(truth.frame < 4)
    assert name not in find(half, found, [1])


def test_no_detections():
    truth = table(("a", 1.0, 0, 0, 1, 1, 1, 1.0))
    detection_problems.check(truth, table())
    assert find(truth, table(), [1]).keys() == {"no detections"}


def test_mistakes_are_found_in_a_sample_of_large_files(monkeypatch):
    box = (0.1, 0.2, 0.5, 0.6)
    truth = table(*[("a", float(t), *box, t % 3, 1.0) for t in range(99)])
    found = dataclasses.replace(truth, classes=truth.classes + 1)
    text = "the mAP would be 100.00, not 0.00 (of 99 key frames)"
    assert text in find(truth, found, [0, 1, 2])["label offset"]
    monkeypatch.setattr(detection_problems, "_SAMPLE", 10)
    assert "of 10 key frames" in find(truth, found, [0, 1, 2])["label offset"]


def test_noise_is_not_an_offset():
    """Classes at random score as high one higher as they are."""
    rng = np.random.default_rng(0)
    truth, found, names = case("large")
    for _ in range(5):
        found = dataclasses.replace(found, scores=rng.random(len(found)))
        assert not find(truth, found, names)
