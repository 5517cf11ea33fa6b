"""Boxes go the ways of the official code, and come back."""

import json

import numpy as np
import pytest

from tests.helpers import official
from videomae_jax.data.detection import boxes

CASES = json.loads((official.GOLDEN / "ava/boxes.json").read_text())["detector_repo"]
CROP = 224, 224


def of(size_wh):
    return size_wh[1], size_wh[0]


def close(ours, theirs):
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda x: str(x["movie_size_wh"]))
def test_equals_the_official_code(case):
    movie, image = of(case["movie_size_wh"]), of(case["resized_wh"])
    found = boxes.from_xywh(np.array(case["xywh"]))
    close(found, case["xyxy"])
    clipped = boxes.clip(found, movie)
    kept = boxes.has_area(clipped)
    assert np.flatnonzero(kept).tolist() == case["kept_rows"]
    close(clipped[kept], case["clipped"])
    resized = boxes.resize(clipped[kept], movie, image)
    close(resized, case["resized"])
    close(boxes.enlarge(resized, image), case["extended_test"])
    draws = case["jitter"]
    uniforms = np.array(draws["uniforms_xmin_ymin_xmax_ymax"])
    close(boxes.jitter(resized, uniforms, image), draws["boxes"])
    back = boxes.to_fractions(boxes.resize(resized, image, movie), movie)
    theirs = [[float(x) for x in row.split(",")] for row in case["csv_boxes"]]
    np.testing.assert_allclose(back, theirs, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda x: str(x["movie_size_wh"]))
def test_crops_equal_the_official_code(case):
    """Also of boxes outside, which it trains on."""
    left, top = case["crop"]["x1y1"]
    cropped = boxes.crop(np.array(case["resized"]), (top, left), CROP)
    close(cropped, case["crop"]["boxes"])
    flipped = boxes.flip(cropped, CROP[1])
    close(flipped, case["crop"]["flipped"])
    draws = case["crop"]["flipped_then_jittered"]
    uniforms = np.array(draws["uniforms_xmin_ymin_xmax_ymax"])
    jittered = boxes.jitter(flipped, uniforms, CROP)
    close(jittered, draws["boxes"])
    assert boxes.has_area(jittered).all()
    # The others have boxes outside.
    assert boxes.has_area(flipped).all() == (case["movie_size_wh"] == [256, 256])


def test_no_boxes():
    none = np.zeros((0, 4), np.float32)
    for result in (
        boxes.from_xywh(none),
        boxes.clip(none, CROP),
        boxes.resize(none, CROP, CROP),
        boxes.crop(none, (1, 2), CROP),
        boxes.flip(none, 224),
        boxes.jitter(none, none, CROP),
        boxes.enlarge(none, CROP),
        boxes.to_fractions(none, CROP),
    ):
        assert result.shape == (0, 4) and result.dtype == np.float32
    assert boxes.has_area(none).shape == (0,)


def test_whole_frames():
    frame = np.array([[0, 0, 223, 223]])
    close(boxes.to_fractions(frame, CROP), [[0, 0, 1, 1]])
    close(boxes.enlarge(frame, CROP), frame)
    close(boxes.flip(frame, 224), frame)
    close(boxes.from_xywh(np.array([[0, 0, 224, 224]])), frame)
