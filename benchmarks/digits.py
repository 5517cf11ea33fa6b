"""Makes the README's table: what pretraining gains on the embedded digits.

    python benchmarks/digits.py

Pretrains once (unless runs/digits_pretrain exists), then fine-tunes, trains from
scratch and trains a linear probe, with three seeds each, and prints a Markdown table.
Fine-tuning also starts from the random weights that pretraining started from: one step
at its learning rate of 0. Takes about 17 minutes on two CPU cores.
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

from configs import (  # noqa: E402
    digits_finetune,
    digits_linear_probe,
    digits_pretrain,
    digits_scratch,
)
from videomae_jax.training import loop, reporting  # noqa: E402

UNTRAINED = "pretraining's random weights, fine-tuned"
# Title: name of the run, recipe, and steps (None: the recipe's).
RUNS = {
    "pretrained, fine-tuned": ("digits_finetune", digits_finetune, None),
    UNTRAINED: ("digits_untrained", digits_finetune, None),
    "from scratch": ("digits_scratch", digits_scratch, None),
    "pretrained, linear probe": ("digits_linear_probe", digits_linear_probe, None),
    "from scratch, longer": ("digits_scratch_longer", digits_scratch, 400),
}


def main():
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs", help="folder of the work directories")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    runs = pathlib.Path(arguments.runs)
    reporting.start_log(logging.INFO)

    start = time.perf_counter()
    pretrained = runs / "digits_pretrain"
    loop.train_and_evaluate(digits_pretrain.get_config(), str(pretrained))
    pretraining_seconds = time.perf_counter() - start
    config = digits_pretrain.get_config()
    config.steps = 1
    untrained = runs / "benchmark" / "digits_pretrain_one_step"
    loop.train_and_evaluate(config, str(untrained))

    lines = []
    for title, (name, recipe, steps) in RUNS.items():
        accuracies, seconds = [], []
        for seed in range(arguments.seeds):
            config = recipe.get_config()
            config.seed = seed
            config.steps = steps or config.steps
            if config.init.source:
                source = untrained if title == UNTRAINED else pretrained
                config.init.source = str(source)
            workdir = runs / "benchmark" / f"{name}_seed{seed}"
            if workdir.exists():
                sys.exit(f"{workdir} exists: remove it, or set another --runs")
            start = time.perf_counter()
            loop.train_and_evaluate(config, str(workdir))
            seconds.append(time.perf_counter() - start)
            metrics = json.loads((workdir / "test" / "metrics.json").read_text())
            accuracies.append(metrics["top1"])
        lines.append(
            f"| {title} | {config.steps} | "
            f"{' / '.join(f'{x:.1f}' for x in accuracies)} | "
            f"{statistics.mean(accuracies):.1f} | {statistics.mean(seconds):.0f} s |"
        )
    print(f"\npretraining: {pretraining_seconds:.0f} s (0 if it already existed)")
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, "
        f"{jax.devices()[0].platform}, Python {platform.python_version()}, "
        f"jax {jax.__version__}\n"
    )
    seeds = ", ".join(map(str, range(arguments.seeds)))
    print(f"| 400 labels | steps | top-1 %, seeds {seeds} | mean | wall-clock |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
