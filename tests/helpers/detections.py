"""AVA's golden evaluation cases, and tables of boxes for tests."""

import json
import pathlib

import numpy as np

from videomae_jax.data.detection import box_files
from videomae_jax.data.detection.box_files import Boxes

FOLDER = pathlib.Path(__file__).parents[1] / "golden/ava/evaluation"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
# The names that the file has for the variants.
EVALUATORS = {
    "activitynet": "activitynet",
    "videomae": "detector_repo",
    "slowfast": "slowfast",
    "mmaction2": "mmaction2",
}


def read_case(name):
    """Returns ground truth, detections, names of classes, excluded key frames."""
    folder = FOLDER / name
    return (
        box_files.read_ground_truth(f"{folder}/groundtruth.csv"),
        box_files.read_detections(f"{folder}/detections.csv"),
        box_files.read_label_map(f"{FOLDER}/{EXPECTED[name]['label_map']}"),
        box_files.read_key_frames(f"{folder}/excluded.csv"),
    )


def table(*rows):
    """Returns boxes of rows (video, seconds, x1, y1, x2, y2, class, score)."""
    frames = list(dict.fromkeys(row[:2] for row in rows))
    values = np.array([row[2:] for row in rows], float).reshape(-1, 6)
    return Boxes(
        frames,
        np.array([frames.index(row[:2]) for row in rows], int),
        values[:, :4],
        values[:, 4].astype(int),
        values[:, 5],
    )
