"""Times the implementations of attention, and PyTorch's.

    python benchmarks/attention.py --batch=4 --heads=3 --tokens=1568

Times forward and backward pass together, and the forward pass alone, for each
implementation that this device supports. They alternate, and the best of several rounds
counts. PyTorch's scaled_dot_product_attention is included if it is installed. One that
fails is reported in its line of the table.
"""

import argparse
import os
import pathlib
import sys
import time
import traceback

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from videomae_jax.models.layers import attention  # noqa: E402

IMPLEMENTATIONS = {
    "cpu": ["xla", "by_head"],
    "gpu": ["xla", "cudnn"],
    "tpu": ["xla", "fused", "splash"],
}


def ours(implementation, shape, dtype):
    """Returns two functions, forward and backward pass, and forward pass alone.

    Both wait for their results. Ours takes arrays with the heads side by side.
    """
    batch, heads, tokens, width = shape
    arrays = [
        jax.random.normal(key, (batch, tokens, heads * width), dtype)
        for key in jax.random.split(jax.random.key(0), 4)
    ]

    def attend(query, key, value):
        return attention.attend(
            query, key, value, heads=heads, implementation=implementation
        )

    def both(query, key, value, gradient):
        return jax.vjp(attend, query, key, value)[1](gradient)

    both, forward = jax.jit(both), jax.jit(attend)
    return (
        lambda: jax.block_until_ready(both(*arrays)),
        lambda: jax.block_until_ready(forward(*arrays[:3])),
    )


def torchs(shape, dtype):
    """Returns the same functions of PyTorch, on its GPU if it has one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"device": device, "dtype": getattr(torch, dtype)}
    arrays = [torch.randn(shape, **options, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(shape, **options)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        out = torch.nn.functional.scaled_dot_product_attention(*arrays)
        wait()
        return out

    def both():
        forward().backward(gradient)
        wait()

    return both, forward


def main():
    """Prints a line for each implementation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1568)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--dtype", help="default: float32 on a CPU, otherwise bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    platform = jax.default_backend()
    dtype = args.dtype or ("float32" if platform == "cpu" else "bfloat16")
    shape = (args.batch, args.heads, args.tokens, args.width)
    calls = {name: ours(name, shape, dtype) for name in IMPLEMENTATIONS[platform]}
    try:
        calls["PyTorch"] = torchs(shape, dtype)
    except ImportError:
        print("PyTorch is not installed")
    failed = {}
    for name, functions in calls.items():
        try:
            for function in functions:  # compiles it
                function()
        except Exception as error:
            traceback.print_exc()
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
    best = {name: [float("inf")] * 2 for name in calls if name not in failed}
    for _ in range(args.rounds):
        for name, functions in calls.items():
            if name in failed:
                continue
            for i, function in enumerate(functions):
                start = time.perf_counter()
                function()
                seconds = time.perf_counter() - start
                best[name][i] = min(best[name][i], seconds)
    print(
        f"{shape}, {dtype}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"jax {jax.__version__}\n"
    )
    print("| | ms forward and backward | ms forward |\n|---|---|---|")
    for name, (both, forward) in best.items():
        print(f"| {name} | {1000 * both:.2f} | {1000 * forward:.2f} |")
    for name, error in failed.items():
        print(f"| {name} | failed: {error[:200].replace('|', ' ')} | |")


if __name__ == "__main__":
    main()
