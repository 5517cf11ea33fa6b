"""The rules in which evaluators of AVA's action detections differ."""

import dataclasses
from typing import Literal

import numpy as np

HEAP_SIZE = 50  # of AVA's evaluation


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of an evaluator.

    Attributes:
        summary: whose rules these are, in a few words.
        key_frames: which key frames count, and in which order. "detected": all with
            detections, in their order; without ground truth, all are wrong there.
            "named": of these, those that the ground truth names. "annotated": those
            with ground truth of an evaluated class, in its order.
        order: in which order the detections of a key frame take ground truth. "first",
            "last": by score; of equal ones, the first or the last row comes first.
            "rows": the first row first, whatever the scores. "heap": by score, after
            all have passed a heap of HEAP_SIZE, all evaluated classes together, so that
            only the best remain.
        keeps_empty: whether boxes without width or height are wrong; otherwise they do
            not count.
        counts_excluded: whether the ground truth of excluded key frames is among what
            could have been found.
        counts_undetected: whether a class that is never detected has the AP 0;
            otherwise it has none.
        dtype: of boxes and scores.
    """

    summary: str
    key_frames: Literal["detected", "named", "annotated"]
    order: Literal["first", "last", "rows", "heap"]
    keeps_empty: bool = False
    counts_excluded: bool = False
    counts_undetected: bool = True
    dtype: type[np.floating] = np.float64


VARIANTS = {
    "activitynet": Rules("AVA's own evaluation, since 2020", "named", "heap"),
    "videomae": Rules("behind the published numbers of VideoMAE", "detected", "last"),
    "slowfast": Rules("behind those of SlowFast", "detected", "rows"),
    "mmaction2": Rules(
        "behind those of MMAction2",
        "annotated",
        "first",
        keeps_empty=True,
        counts_excluded=True,
        counts_undetected=False,
        dtype=np.float32,
    ),
}
