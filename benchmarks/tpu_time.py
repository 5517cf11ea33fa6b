"""Estimates how long a training step takes on TPUs, as their compiler expects.

    python benchmarks/tpu_time.py --file new.jsonl
    python benchmarks/tpu_time.py --resume --models B L
    python benchmarks/tpu_time.py --table
    python benchmarks/tpu_time.py BEFORE.json AFTER.json
    python benchmarks/tpu_time.py --paper

Needs no TPU, and measures nothing: libtpu compiles the training step of each
Kinetics-400 recipe for 64 chips, with its batch size and the layout that the library
chooses, and notes the cycles that it expects. Each takes minutes, so each row is
written to the file as soon as it is complete.

Two files of `python -m videomae_jax compile-for-tpu --time --json=FILE` are compared by
kind of work. --paper shows how far the compiler is from paper for single operations:
products at the peak of the matrix units, and copies at the bandwidth of the memory.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import json_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from videomae_jax import config as configuration  # noqa: E402
from videomae_jax.tpu import step_time, topology  # noqa: E402
from videomae_jax.tpu.chips import CHIPS  # noqa: E402
from videomae_jax.tpu.compile import compile_step  # noqa: E402
from videomae_jax.tpu.program import Program  # noqa: E402

MODELS = {
    "S": "k400_vits_pretrain",
    "B": "k400_vitb_pretrain",
    "L": "k400_vitl_pretrain",
    "H": "k400_vith_pretrain",
    "B fine-tuning": "k400_vitb_finetune",
    "L fine-tuning": "k400_vitl_finetune",
}
SLICES = ("v5e-64", "v6e-64", "v5p-128")
# One chip of each generation, to compile single operations for.
CHIP_NAMES = ("v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8")


def rows(models, slices, done):
    """Compiles the models that `done` lacks, and yields a row of the table for each."""
    for model in models:
        for name in slices:
            if (model, name) not in done:
                print(model, name, "...", file=sys.stderr, flush=True)
                row = {"key": [model, name], **compiled(model, name)}
                done[model, name] = row
                yield row


def compiled(model, name):
    """Compiles a step; returns the compiler's figures, or its error."""
    start = time.monotonic()
    config = configuration.load(
        str(ROOT / "configs" / f"{MODELS[model]}.py"),
        ["--config.data.num_classes=400"] if "fine-tuning" in model else [],
    )
    try:
        step = compile_step(config, topology.devices(name), with_time=True)
    except (ValueError, NotImplementedError) as error:
        return {"error": str(error), "seconds": time.monotonic() - start}
    jax.clear_caches()
    return dataclasses.asdict(step)


def table(rows):
    """Returns the rows as a Markdown table, sorted by model and slice."""
    head = (
        *("recipe", "slice", "clips per chip", "ms per step", "clips/s per chip"),
        *("of peak", "GiB", "most of the time"),
    )
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=sort_key):
        lines.append([*row["key"], *cells(row)])
    return markdown(lines)


def sort_key(row):
    """Returns the key to sort rows by; slices that are not in SLICES come last."""
    model, name = row["key"]
    return list(MODELS).index(model), [*SLICES, name].index(name), name


def cells(row):
    """Returns the cells of a row: clips, time, rate, peak, memory, main kinds."""
    if "error" in row:
        return "", "", "", "", "", row["error"].splitlines()[0]
    clips = f"{row['clips']} in {row['grad_accum_steps']}"
    memory = f"{row['needed'] / 2**30:.1f}"
    if row["time"] is None:
        return clips, "", "", "", memory, "does not fit"
    seconds = row["time"]["seconds"]
    kinds = list(row["time"]["kinds"].items())[:4]
    return (
        clips,
        f"{1000 * seconds:.0f}",
        f"{row['clips_per_second']:.0f}",
        f"{row['share_of_peak']:.0%}",
        memory,
        ", ".join(f"{kind} {part / seconds:.0%}" for kind, part in kinds),
    )


def comparison(before, after):
    """Returns a table of two reports of compile-for-tpu, by kind and part."""
    before, after = before["time"], after["time"]
    lines = [("ms per step", "before", "after", "after / before"), ["---"] * 4]
    lines.append(ratio("all", before["seconds"], after["seconds"]))
    for group, title in (("kinds", ""), ("modules", "part: ")):
        old, new = before[group], after[group]
        lines += [
            ratio(title + name, old.get(name, 0), new.get(name, 0))
            for name in sorted({*old, *new}, key=lambda name: -old.get(name, 0))
        ]
    return markdown(lines)


def ratio(name, before, after):
    """Returns a line of the comparison."""
    change = f"{after / before:.2f}" if before else "new"
    return name, f"{1000 * before:.2f}", f"{1000 * after:.2f}", change


def paper():
    """Compiles single operations; returns a table of the compiler's time and paper's.

    Paper's is the larger of two times: products at the peak of the matrix units, and
    reading arguments and writing results at the bandwidth of the memory.
    """
    lines = [("operation", "TPU", "compiler, ms", "paper, ms", "ratio"), ["---"] * 5]
    for operation, (function, shapes, flops, moved) in OPERATIONS.items():
        for name in CHIP_NAMES:
            device = topology.devices(name)[0]
            chip = CHIPS[device.device_kind]
            expected = expected_seconds(function, shapes, device)
            least = max(flops / chip.peak, moved / chip.memory)
            generation = name.partition("-")[0]
            times = f"{1000 * expected:.2f}", f"{1000 * least:.2f}"
            lines.append((operation, generation, *times, f"{expected / least:.2f}"))
    return markdown(lines)


def expected_seconds(function, shapes, device):
    """Returns what the compiler of a device expects of a function of arrays."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes
    ]
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return step_time.read(Program(text), CHIPS[device.device_kind]).seconds


def scan(x, weights):
    """Multiplies by each of the weights in turn, as a scan over layers does."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


_BF16, _F32 = jnp.bfloat16, jnp.float32
_SIDE, _ROWS, _WIDTH, _LAYERS = 8192, 16384, 2048, 12
# The function, its arguments, the operations of its products, and the bytes that it
# reads and writes.
OPERATIONS = {
    "product, 8192 x 8192 x 8192, bfloat16": (
        jnp.matmul,
        [((_SIDE, _SIDE), _BF16)] * 2,
        2 * _SIDE**3,
        3 * 2 * _SIDE**2,
    ),
    "copy with another layout, 256 MiB": (
        lambda x: x.swapaxes(0, 1),
        [((8, _ROWS, 512), _F32)],
        0,
        2 * 4 * 8 * _ROWS * 512,
    ),
    "addition of 1, 256 MiB": (
        lambda x: x + 1,
        [((_ROWS, 4096), _F32)],
        0,
        2 * 4 * _ROWS * 4096,
    ),
    "scan over 12 products, 16384 x 2048 x 2048, bfloat16": (
        scan,
        [((_ROWS, _WIDTH), _BF16), ((_LAYERS, _WIDTH, _WIDTH), _BF16)],
        _LAYERS * 2 * _ROWS * _WIDTH**2,
        0,
    ),
}


def markdown(lines):
    """Returns lines of cells as a Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main():
    """Compiles, writes rows and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "reports", nargs="*", metavar="JSON", help="two reports to compare"
    )
    json_rows.add_arguments(parser, "tpu_time.jsonl", "docs/performance.md")
    parser.add_argument("--paper", action="store_true", help="single operations")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--slices", nargs="+", default=SLICES)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if args.reports:
        if len(args.reports) != 2:
            parser.error("two reports are compared")
        reports = (json.loads(pathlib.Path(x).read_text()) for x in args.reports)
        print(comparison(*reports))
        return
    if args.paper:
        print(paper())
        return
    done = json_rows.read(parser, args)
    if not args.table:
        json_rows.append(args, rows(args.models, args.slices, done))
    print(table(done.values()))


if __name__ == "__main__":
    main()
