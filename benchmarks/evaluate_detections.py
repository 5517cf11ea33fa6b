"""Measures what the evaluation of AVA-like files of detections costs.

    python benchmarks/evaluate_detections.py --key-frames=5700

Makes about two boxes a key frame, annotates some of 80 classes, and detects all 80 of
each box with scores of 5 decimals. Prints for each variant the processor time and the
memory of `evaluate-detections`, the mAP, and its range over orders of equal scores.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from videomae_jax.data.detection import box_files  # noqa: E402
from videomae_jax.evaluation.detection_rules import VARIANTS  # noqa: E402


def write_files(folder, num_frames):
    """Writes gt.csv and det.csv; returns their numbers of rows."""
    rng = np.random.default_rng(0)
    frames = [(f"video_{i // 897:05d}", 902.0 + i % 897) for i in range(num_frames)]
    count = int(2.2 * num_frames)
    low = rng.uniform(0, 0.5, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, (count, 2))], axis=1)
    frame = np.sort(rng.integers(0, num_frames, count))
    is_true = rng.random((count, 80)) < 0.03
    row, label = np.nonzero(is_true)
    truth = box_files.Boxes(
        frames, frame[row], boxes[row], label + 1, np.ones(len(row))
    )
    box_files.write_boxes(f"{folder}/gt.csv", truth, scores=False)
    a = np.where(is_true, 1.0, 0.2)  # true classes have higher scores
    row, label = np.divmod(np.arange(80 * count), 80)
    near = boxes + rng.normal(0, 0.02, boxes.shape)
    found = box_files.Boxes(
        frames, frame[row], near[row], label + 1, rng.beta(a, 5).ravel()
    )
    box_files.write_boxes(f"{folder}/det.csv", found, scores=True)
    return len(truth), len(found)


def main():
    """Prints a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-frames", type=int, default=5700, help="AVA has 57,000")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_files(folder, args.key_frames)
        print(f"ground_truth={rows[0]} detections={rows[1]}")
        for variant in VARIANTS:
            result = f"{folder}/{variant}.json"
            command = [sys.executable, "-m", "videomae_jax", "evaluate-detections"]
            files = [f"{folder}/gt.csv", f"{folder}/det.csv", f"--json={result}"]
            process = subprocess.Popen(
                [*command, *files, f"--variant={variant}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{variant}: exit status {process.returncode}")
            metrics = json.loads(pathlib.Path(result).read_text())
            worst, best = metrics["tie_range"]
            print(
                f"variant={variant} cpu_seconds={usage.ru_utime + usage.ru_stime:.1f} "
                f"max_rss_mb={usage.ru_maxrss / 1024:.0f} mAP={metrics['mAP']:.6f} "
                f"tie_range={best - worst:.1e}"
            )


if __name__ == "__main__":
    main()
