"""Measures what distillation gains over labels, for a small model of the digits.

    python benchmarks/distill_digits.py

The teacher is the model of configs/digits_finetune.py, pretrained by
configs/digits_pretrain.py; both are trained unless `--runs` has them. The student has a
third of its width, and 1,000 steps of the same pretraining. From there, with the same
schedule and three seeds, it learns from 400 labels, or from the teacher: on the same
400 videos, or on all 3,000 training videos, whose labels are not used. Students read
videos that were decoded once, into arrays.

Each run adds a line to a file; with --resume, the script continues after the last.
Prints a Markdown table.
"""

import argparse
import json
import logging
import os
import pathlib
import platform
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import json_rows  # noqa: E402
import numpy as np  # noqa: E402

from configs import common, digits_finetune, digits_pretrain  # noqa: E402
from videomae_jax.data import digits  # noqa: E402
from videomae_jax.training import loop, reporting  # noqa: E402
from videomae_jax.video.open import open_video  # noqa: E402

WIDTH, HEADS = 42, 6  # of 128 and 8
PRETRAINING_STEPS, STEPS = 1000, 600
# For a batch of 256: three times the recipe's, for a smaller model.
BASE_LR = 0.024
SEEDS = 3
TOKENS = {"distill.feature_weight": 1.0}
# Title: name of the runs, what the student learns from, fields of the config.
ROWS = {
    "400 labels": ("labels", "labels", {}),
    "teacher, the same 400 videos": ("teacher", "teacher", {}),
    "teacher and its tokens, the same 400 videos": ("tokens", "teacher", TOKENS),
    "teacher and its tokens, 3,000 videos": (
        "tokens_all",
        "teacher",
        TOKENS | {"data.train": "train"},
    ),
}


def decode(folder):
    """Decodes the digits data set into a folder of arrays with the same lists."""
    source = digits.ensure()
    for name in digits.LISTS:
        lines = []
        for line in (source / f"{name}.txt").read_text().splitlines():
            path, label = line.split()
            array = (folder / path).with_suffix(".npy")
            lines.append(f"{array.relative_to(folder)} {label}\n")
            if not array.exists():
                array.parent.mkdir(parents=True, exist_ok=True)
                with open_video(str(source / path)) as video:
                    np.save(array, video.read(range(digits.FRAMES)))
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def read_arrays(config, folder):
    """Lets a config read the arrays of a folder in place of the videos."""
    for split in ("train", "validation", "test"):
        if split in config.data:
            name = config.data[split].removeprefix("digits:")
            config.data[split] = str(folder / f"{name}.txt")
    return config


def pretraining():
    """Returns the pretraining of the student."""
    config = digits_pretrain.get_config()
    config.model.update(width=WIDTH, heads=HEADS)
    config.model.update(decoder_width=WIDTH, decoder_heads=HEADS)
    config.steps = PRETRAINING_STEPS
    config.picture.clips = 0
    return config


def by_labels(source, **fields):
    """Returns the student's training by labels; `fields` are of the config."""
    config = digits_finetune.get_config()
    config.model.update(width=WIDTH, heads=HEADS)
    config.init.source = str(source)
    config.steps = STEPS
    config.optimizer.base_lr = BASE_LR
    config.evaluation.every = config.checkpoint.every = STEPS
    config.evaluation.segments = 1
    config.log_every = 100
    config.update_from_flattened_dict(fields)
    return config


def by_teacher(source, teacher, **fields):
    """Returns the student's training by a teacher."""
    config = common.distill().unlock()
    config.update(by_labels(source).to_dict())
    config.task = "distill"
    config.loss.smoothing = 0.0
    config.teacher.update(source=str(teacher), dtype="float32")
    config.update_from_flattened_dict(fields)
    return config.lock()


def measure(runs, done):
    """Trains what is missing, and yields a row for each student."""

    def train(name, config):
        loop.train_and_evaluate(config, str(runs / name))
        return runs / name

    pretrained = train("digits_pretrain", digits_pretrain.get_config())
    config = digits_finetune.get_config()
    config.init.source = str(pretrained)
    teacher = train("digits_finetune", config)
    arrays = decode(runs / "distill_digits" / "arrays")
    student = train("distill_digits/pretrain", read_arrays(pretraining(), arrays))
    for seed in range(SEEDS):
        for title, (name, by, fields) in ROWS.items():
            if (title, seed) in done:
                continue
            if by == "labels":
                config = by_labels(student, seed=seed, **fields)
            else:
                config = by_teacher(student, teacher, seed=seed, **fields)
            start = time.perf_counter()
            read_arrays(config, arrays)
            workdir = train(f"distill_digits/{name}_seed{seed}", config)
            seconds = round(time.perf_counter() - start)
            metrics = json.loads((workdir / "test" / "metrics.json").read_text())
            yield {"key": [title, seed], "top1": metrics["top1"], "seconds": seconds}


def main():
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default="runs")
    json_rows.add_arguments(parser, "distill_digits.jsonl", "docs/videomae_v2.md")
    args = parser.parse_args()
    done = json_rows.read(parser, args)
    if not args.table:
        reporting.start_log(logging.INFO)
        json_rows.append(args, measure(args.runs, done))
        args.table = True
        print(
            f"\n{os.cpu_count()} cores, {platform.machine()}, "
            f"{jax.devices()[0].platform}, Python {platform.python_version()}, "
            f"jax {jax.__version__}"
        )
    rows = json_rows.read(parser, args)
    seeds = ", ".join(map(str, range(SEEDS)))
    print(f"\n| learns from | top-1 %, seeds {seeds} | mean | wall-clock |")
    print("|---|---|---|---|")
    for title in ROWS:
        own = [rows[title, seed] for seed in range(SEEDS) if (title, seed) in rows]
        if not own:
            print(f"| {title} | not run | | |")
            continue
        accuracies = [row["top1"] for row in own]
        print(
            f"| {title} | {' / '.join(f'{x:.1f}' for x in accuracies)} | "
            f"{statistics.mean(accuracies):.1f} | "
            f"{statistics.mean(row['seconds'] for row in own):.0f} s |"
        )


if __name__ == "__main__":
    main()
