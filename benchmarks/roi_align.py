"""Measures what RoIAlign and the head of an ActionDetector cost.

    python benchmarks/roi_align.py --model=base --height=256 --width=464 --boxes=16

Prints their share of the detector's forward pass: by floating-point operations of the
products (models/flops.py), and by processor time. Encoder and the rest are compiled
separately and alternate; the best of several rounds counts.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.interop.pretrained import initialize  # noqa: E402
from videomae_jax.models import flops, vit  # noqa: E402
from videomae_jax.models.detector import ActionDetector  # noqa: E402


def seconds(function, *arrays):
    """Returns the time of all processors, or of the clock if others compute."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    jax.block_until_ready(function(*arrays))
    return clock() - start


def main():
    """Prints both shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="a named size")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=224)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--boxes", type=int, default=16, help="of a clip")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = ActionDetector.from_variant(args.model, 80, dtype=args.dtype)
    rng = np.random.default_rng(0)
    shape = (args.batch, args.frames, args.height, args.width, 3)
    video = rng.integers(0, 256, shape, np.uint8)
    sides = [args.width, args.height]
    corners = rng.uniform(0, sides, (args.batch, args.boxes, 2, 2))
    boxes = np.sort(corners, axis=2).reshape(args.batch, args.boxes, 4)
    variables = {"params": initialize(model)}

    @jax.jit
    def encode(variables, video):
        return model.apply(variables, video, method="feature_map")[0]

    @jax.jit
    def classify(variables, feature_map, boxes):
        pooled = model.apply(variables, feature_map, boxes, method="pool_boxes")
        return model.apply(variables, pooled, method="classify")

    feature_map = encode(variables, video)
    boxes = boxes.astype(np.float32)
    jax.block_until_ready(classify(variables, feature_map, boxes))
    rounds = [
        (
            seconds(encode, variables, video),
            seconds(classify, variables, feature_map, boxes),
        )
        for _ in range(args.rounds)
    ]
    encoder, rest = np.min(rounds, axis=0)
    grid = vit.token_grid(shape, model.patch_size, model.tubelet_size)
    of_boxes = flops.box_head(model, grid, args.boxes)
    total = flops.detection(model, grid, args.boxes)
    print(f"{args.model}, {args.batch} clips of {shape[1:]}, {args.boxes} boxes each")
    share = of_boxes / total
    print(f"operations: {of_boxes / 1e9:.3f} of {total / 1e9:.1f} G, {share:.3%}")
    print(
        f"time: {rest * 1e3:.1f} of {(encoder + rest) * 1e3:.1f} ms, "
        f"{rest / (encoder + rest):.2%}, {jax.default_backend()}, jax {jax.__version__}"
    )


if __name__ == "__main__":
    main()
