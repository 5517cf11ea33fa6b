"""Computes the mean average precision of detected actions, from AVA's csv files.

    python -m videomae_jax evaluate-detections ava_val_v2.2.csv result.csv \\
        --labels=ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
        --excluded=ava_val_excluded_timestamps_v2.2.csv
    python -m videomae_jax evaluate-detections truth.csv mine.csv --variant=videomae
    python -m videomae_jax evaluate-detections truth.csv mine.csv --json=metrics.json

Rows of both files are video,timestamp,x1,y1,x2,y2,class and, of detections, the score.
Numbers of different variants must not be compared. Where detections have equal scores,
the range of the mAP over all rankings of these is reported, too.
"""

import argparse
import importlib.util
import json
import pathlib
import sys

import numpy as np

from videomae_jax.cli import arguments
from videomae_jax.data.detection import box_files
from videomae_jax.errors import RecordError, printable
from videomae_jax.evaluation import (
    detection,
    detection_problems,
    detection_report,
    pictures,
)
from videomae_jax.evaluation.detection import DetectionMetrics
from videomae_jax.evaluation.detection_rules import VARIANTS
from videomae_jax.files import atomic_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = "\n".join(
        ["variants:"] + [f"  {name:12}  {x.summary}" for name, x in VARIANTS.items()]
    )
    parser.add_argument("ground_truth", metavar="GT.csv", help="annotated boxes")
    parser.add_argument("detections", metavar="DET.csv", help="detected boxes")
    arguments.add_option(
        parser,
        "--labels FILE",
        "the classes to evaluate, a .pbtxt; AVA's has 60 of its 80 (default: all that "
        "occur)",
    )
    arguments.add_option(
        parser, "--excluded FILE", "key frames to leave out, video,timestamp"
    )
    arguments.add_option(
        parser,
        "--variant NAME",
        "whose rules to follow, see below",
        default="activitynet",
        choices=tuple(VARIANTS),
    )
    arguments.add_option(parser, "--json FILE", "write the metrics", pathlib.Path)
    arguments.add_option(
        parser,
        "--picture FILE",
        "draw AP of classes, precision over recall, metrics by size, as PNG",
        pathlib.Path,
    )


def run(args: argparse.Namespace) -> None:
    """Evaluates a file of detections."""
    if args.picture and importlib.util.find_spec("matplotlib") is None:
        raise RecordError("--picture needs matplotlib: pip install matplotlib")
    names = box_files.read_label_map(args.labels) if args.labels else {}
    excluded = box_files.read_key_frames(args.excluded) if args.excluded else set()
    ground_truth = box_files.read_ground_truth(args.ground_truth)
    detections = box_files.read_detections(args.detections)
    detection_problems.check(ground_truth, detections)
    # Without --labels, the AP of classes without ground truth is null.
    occurring = np.union1d(ground_truth.classes, detections.classes).tolist()
    classes = list(names) or occurring
    metrics = detection.evaluate(
        ground_truth,
        detections,
        classes,
        excluded=excluded,
        rules=VARIANTS[args.variant],
    )
    problems = detection_problems.find_problems(ground_truth, detections, classes)
    for name, text in problems.items():
        print(printable(f"warning: {name}: {text}"), file=sys.stderr)

    print(printable("\n".join(_as_text(metrics, names, args.variant))))
    if args.json:
        result = {
            "variant": args.variant,
            **detection_report.as_json(metrics),
            "class_names": names,
            "problems": problems,
        }
        with atomic_write(args.json) as file:
            file.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
    if args.picture:
        pictures.save(args.picture, detection_report.plot(metrics, names))
    files = [file for file in (args.json, args.picture) if file]
    if files:
        print(arguments.written(files))


def _as_text(
    metrics: DetectionMetrics, names: dict[int, str], variant: str
) -> list[str]:
    """Formats the metrics for people."""
    worst, best = metrics.tie_range
    ties = f"; {100 * worst:.2f} to {100 * best:.2f} by the order of equal scores"
    left_out = [f"{name}={number}" for name, number in metrics.left_out.items()]
    return [
        *detection_report.as_table(metrics, names),
        f"key_frames={metrics.key_frames} boxes={metrics.ground_truth} "
        f"detections={metrics.detections}; left out: {' '.join(left_out)}",
        f"mAP {100 * metrics.mean_ap:.2f} % ({variant}{ties if worst < best else ''})",
    ]
