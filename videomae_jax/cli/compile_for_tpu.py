"""Compiles the training step of a recipe for a TPU slice, without a TPU.

python -m videomae_jax compile-for-tpu --topology v5e-256 \\
    --config=configs/k400_vitb_pretrain.py --config.model.remat=blocks
python -m videomae_jax compile-for-tpu --topology v5p:2x2x1 --slices 2 --largest \\
    --config=configs/k400_vitl_finetune.py --config.data.num_classes=400
python -m videomae_jax compile-for-tpu --topology v6e-8 --time --json=step.json \\
    --config=configs/k400_vitb_pretrain.py

Reports whether the step fits into memory, how it is sharded, and the collectives
between the chips; with --time also how long the compiler expects it to take, and on
what. No video is read and nothing is measured. It needs libtpu (`pip install
'jax[tpu]'`) and half a minute to several minutes, depending on the model. --config and
its overrides are those of main.py.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING

from videomae_jax import config as configuration
from videomae_jax import files
from videomae_jax.cli import arguments

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.tpu.compile import Compilation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_option(
        parser,
        "--config FILE",
        "recipe, as for main.py; FILE:debug and --config.FIELD=VALUE also work",
        required=True,
    )
    arguments.add_option(
        parser,
        "--topology SLICE",
        "a slice such as v5e-8, v6e-256 or v5p-128, or a generation and grid of chips "
        "such as v5e:2x4 or tpu7x:2x2x1",
        required=True,
    )
    arguments.add_count(parser, "--slices", "number of such slices", default=1)
    arguments.add_flag(
        parser,
        "--largest",
        "find the most clips (of 1, 2, 3, 4, 6, 8, 12, ...) that fit on a device at "
        "once, by compiling for several numbers; each takes minutes",
    )
    arguments.add_flag(
        parser,
        "--time",
        "report how long the compiler expects a step to take, by kind of work, by part "
        "of the model, and by the largest operations",
    )
    arguments.add_option(
        parser,
        "--json FILE",
        "also write the report as JSON; benchmarks/tpu_time.py compares two such files",
        pathlib.Path,
    )


def run(args: argparse.Namespace) -> None:
    """Compiles the step and prints the result."""
    import jax

    from videomae_jax.tpu import compile, topology

    # Compiling must not occupy the TPU or GPU of this machine.
    jax.config.update("jax_platforms", "cpu")
    if args.time:
        # A program from a cache would name lines of the code that it was cached with.
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    config = configuration.load(args.config, args.config_flags)
    devices = topology.devices(args.topology, args.slices)
    clips = config.batch_size * config.data.num_samples / len(devices)
    print(f"compiling for {len(devices)} devices, {clips:g} clips each ...")
    compilation = compile.compile_step(config, devices, with_time=args.time)
    print(report(compilation), flush=True)
    if args.json:
        with files.atomic_write(args.json) as file:
            json.dump(dataclasses.asdict(compilation), file, indent=1)
    if args.largest:
        _print_largest(config, devices, compilation)


def report(compilation: "Compilation") -> str:
    """Formats a compilation for people."""
    c = compilation
    lines = {
        "devices": f"{c.devices} x {c.device_kind}",
        "batch": f"{c.clips} clips per device in {c.grad_accum_steps} micro-batch(es)",
        "parameters": f"split {c.plan.fsdp} ways"
        if c.plan.fsdp > 1
        else "a copy on each device",
        "optimizer": "split over each slice"
        if c.plan.shard_optimizer
        else "as the parameters",
        "because": c.plan.reason,
        "memory": f"{'fits' if c.fits else 'DOES NOT FIT'}: needs {_size(c.needed)} of "
        f"{_size(c.available)} per device",
    }
    if c.traffic is not None:
        lines["arguments"] = f"{_size(c.arguments)}: state and batch"
        lines["temporaries"] = f"{_size(c.temporaries)}: activations, gradients"
        lines["output"] = f"{_size(c.outputs)}, of which {_size(c.aliased)} in place"
        for kind, traffic in c.traffic.items():
            size = _size(traffic.bytes)
            lines[kind] = f"{traffic.count} per step, {size} per device"
    lines["compiled in"] = f"{c.seconds:.0f} s"
    width = max(18, *map(len, lines))
    text = "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())
    return text + (_time_report(c) if c.time else "")


def _time_report(c: "Compilation") -> str:
    """Formats the time that the compiler expects."""
    assert c.time and c.clips_per_second and c.share_of_peak
    milliseconds = 1000 * c.time.seconds
    lines = [
        "",
        "",
        "expected by the compiler, not measured:",
        f"{milliseconds:.1f} ms per step, {c.clips_per_second:.1f} clips/s per device, "
        f"{c.share_of_peak:.1%} of the peak",
    ]
    for title, parts in (
        ("kind of work", c.time.kinds),
        ("part of the step", c.time.modules),
    ):
        lines += ["", f"{title:24} {'ms':>8}  share"]
        lines += [
            f"{name:24} {1000 * seconds:8.2f}  {seconds / c.time.seconds:5.1%}"
            for name, seconds in parts.items()
        ]
    lines += ["", f"{'largest operations':24} {'ms':>8}  times"]
    lines += [
        f"{x.kind:24} {1000 * x.seconds:8.2f}  {x.times:5}  {x.source or 'no line'}  "
        f"{x.module}  {x.type[:60]}"
        for x in c.time.largest
    ]
    lines += ["", "Kernels are estimated by this library, from their matrix products."]
    if c.time.overlapped:
        lines.append(
            f"Collectives of {1000 * c.time.overlapped:.2f} ms overlap with operations "
            "and are not counted."
        )
    lines += ["Not in these times, because the compiler does not estimate it:"]
    lines += [
        f"{name}: {x.count} times, {_size(x.bytes)}"
        for name, x in c.time.unknown.items()
    ]
    return "\n".join(lines)


def _print_largest(config, devices, first: "Compilation") -> None:
    from videomae_jax.tpu import compile

    print("\nlargest number of clips per device:", flush=True)
    most = 0
    for tried in compile.search_largest(config, devices, first):
        print(
            f"{tried.clips:5} clips: {'fit' if tried.fits else 'do not fit'}, need "
            f"{_size(tried.needed)} of {_size(tried.available)} "
            f"({tried.seconds:.0f} s)",
            flush=True,
        )
        most = max(most, tried.clips * tried.fits)
    print("the batch of the recipe in such micro-batches:", flush=True)
    best = None
    for tried in compile.search_micro_batch(config, devices, most):
        at_once = tried.clips // tried.grad_accum_steps
        print(
            f"{tried.clips:5} clips, {at_once} at once: "
            f"{'fit' if tried.fits else 'do not fit'} ({tried.seconds:.0f} s)",
            flush=True,
        )
        best = at_once if tried.fits else None
    if best:
        print(f"set --config.micro_batch_per_device={best}")
    else:
        print(
            "not even one clip fits. --config.model.remat=blocks needs the least "
            "memory; a larger slice or --config.mesh.fsdp shards the parameters more"
        )


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"
