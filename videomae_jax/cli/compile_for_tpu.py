"""Compiles the training step of a recipe for a TPU slice, without a TPU.

python -m videomae_jax compile-for-tpu --topology v5e-256 \\
    --config=configs/k400_vitb_pretrain.py --config.model.remat=blocks
python -m videomae_jax compile-for-tpu --topology v5p:2x2x1 --slices 2 --largest \\
    --config=configs/k400_vitl_finetune.py --config.data.num_classes=400

Reports whether the step fits into memory, how it is sharded, and the collectives
between the chips. No video is read. It needs libtpu (`pip install 'jax[tpu]'`) and half
a minute to several minutes, depending on the model. --config and its overrides are
those of main.py.
"""

import argparse
from typing import TYPE_CHECKING

from videomae_jax import config as configuration
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


def run(args: argparse.Namespace) -> None:
    """Compiles the step and prints the result."""
    import jax

    from videomae_jax.tpu import compile, topology

    # Compiling must not occupy the TPU or GPU of this machine.
    jax.config.update("jax_platforms", "cpu")
    config = configuration.load(args.config, args.config_flags)
    devices = topology.devices(args.topology, args.slices)
    clips = config.batch_size * config.data.num_samples / len(devices)
    print(f"compiling for {len(devices)} devices, {clips:g} clips each ...")
    compilation = compile.compile_step(config, devices)
    print(report(compilation), flush=True)
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
        "optimizer": "split over all devices"
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
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


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
