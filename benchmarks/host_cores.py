"""Estimates how many cores of a host are needed to feed an accelerator.

    python benchmarks/host_cores.py --pretrain=30 --prepared=9 --prepared-4=3 \\
        --finetune=60

The arguments are CPU milliseconds per clip, as measured by
benchmarks/input_pipeline.py. What a chip consumes is calculated, not measured. It
follows from the chip's peak (bfloat16, published by its maker), the share of the peak
that training is assumed to reach, and the arithmetic of ViT-B on 16 frames of 224x224,
of which the backward pass is two thirds.
"""

import argparse

TOKENS, WIDTH, DEPTH = 1568, 768, 12
VISIBLE, DECODER_WIDTH, DECODER_DEPTH = 160, 384, 4
PATCH = 2 * 16 * 16 * 3
# Floating-point operations per second. TPUs: cloud.google.com/tpu/docs/v5e and v6e.
# H100: SXM, without sparsity, www.nvidia.com/en-us/data-center/h100.
PEAKS = {"TPU v5e": 197e12, "TPU v6e": 918e12, "H100": 989e12}


def blocks(tokens, width, depth):
    """Returns the operations of transformer blocks.

    Projections, an MLP with a hidden layer of 4 widths, and attention.
    """
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def pretraining():
    """Returns the operations of pretraining's forward pass per clip."""
    embedding = 2 * VISIBLE * PATCH * WIDTH + 2 * VISIBLE * WIDTH * DECODER_WIDTH
    head = 2 * (TOKENS - VISIBLE) * DECODER_WIDTH * PATCH
    encoder = blocks(VISIBLE, WIDTH, DEPTH)
    return embedding + encoder + blocks(TOKENS, DECODER_WIDTH, DECODER_DEPTH) + head


def finetuning():
    """Returns the operations of fine-tuning's forward pass per clip."""
    return 2 * TOKENS * PATCH * WIDTH + blocks(TOKENS, WIDTH, DEPTH)


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {
        "pretrain": "pretraining, ordinary files",
        "prepared": "pretraining, prepared",
        "prepared-4": "pretraining, prepared, num_samples=4",
        "finetune": "fine-tuning, prepared, num_samples=2",
    }
    for name, text in kinds.items():
        parser.add_argument(f"--{name}", type=float, required=True, help=f"ms: {text}")
    parser.add_argument("--utilization", type=float, default=0.4)
    args = vars(parser.parse_args())
    operations = {"pretraining": 3 * pretraining(), "fine-tuning": 3 * finetuning()}
    for name, count in operations.items():
        print(f"{name}: {count / 1e9:.0f} GFLOP per clip")
    print(f"\n| cores per chip at {args['utilization']:.0%} | clips/s |", end="")
    print(" cores |\n|---|---|---|")
    for chip, peak in PEAKS.items():
        for name, text in kinds.items():
            rate = args["utilization"] * peak / operations[text.partition(",")[0]]
            milliseconds = args[name.replace("-", "_")]
            print(f"| {chip}, {text} | {rate:.0f} | {rate * milliseconds / 1000:.1f} |")


if __name__ == "__main__":
    main()
