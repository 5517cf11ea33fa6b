"""Metrics of detections as a table, as JSON and as a picture."""

import json

import numpy as np
import pytest

from tests.helpers.detections import read_case, table
from videomae_jax.evaluation import detection, detection_report


@pytest.fixture
def metrics():
    truth, found, names, excluded = read_case("double")
    return detection.evaluate(truth, found, list(names), excluded=excluded), names


def test_table(metrics):
    assert detection_report.as_table(*metrics) == [
        "   id  class                        AP    boxes  detections",
        "    1  bend/bow (at the waist)   50.00        1           2",
        "    4  dance                         -        0           0",
        "   12  stand                     83.33        2           4",
        "   17  carry/hold (an object)   100.00        1           2",
        "   80  watch (a person)          83.33        2           3",
        "small boxes (area up to 0.21): mAP 100.00, 100.00 % of 2 found",
        "medium boxes (area up to 0.24): mAP 83.33, 100.00 % of 2 found",
        "large boxes (area up to 0.28): mAP 50.00, 100.00 % of 2 found",
    ]


def test_json(metrics):
    values = json.loads(json.dumps(detection_report.as_json(metrics[0])))
    assert values["mAP"] == metrics[0].mean_ap == pytest.approx(0.7916666666666666)
    assert values["tie_range"] == pytest.approx(
        [0.7916666666666665, 0.9166666666666665]
    )
    assert values["per_class"]["4"] is None and values["per_class"]["1"] == 0.5
    assert values["by_size"]["small"]["ground_truth"] == 2
    assert values["counts"]["left_out"]["over_limit"] == 0


def test_picture(metrics):
    figure = detection_report.plot(*metrics)
    bars, curves, sizes = figure.axes
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names[0] == "bend/bow (at the waist)" and "dance" not in names
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(
        [50, 250 / 3, 250 / 3, 100]
    )
    # What is drawn below a curve is the average precision.
    for line, width in zip(reversed(curves.lines), bars.patches, strict=True):
        recall, precision = line.get_data(orig=True)
        area = np.sum(np.diff(recall) * precision[1:])
        assert 100 * area == pytest.approx(width.get_width())
    assert [bar.get_height() for bar in sizes.patches] == pytest.approx(
        [100, 250 / 3, 50, 100, 100, 100]
    )


def test_picture_of_a_class_that_is_never_right(tmp_path):
    truth = table(("a", 1.0, 0, 0, 1, 1, 1, 1.0))
    metrics = detection.evaluate(truth, table())
    figure = detection_report.plot(metrics, {1: "$x^"})
    assert figure.axes[0].get_yticklabels()[0].get_text() == "$x^"
    figure.savefig(tmp_path / "x.png")
