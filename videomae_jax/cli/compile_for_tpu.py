"""Compiles a recipe's training step for a TPU slice, on any computer, without a TPU.

python -m videomae_jax compile-for-tpu --topology v5e-256 \\
    --config=configs/k400_vitb_pretrain.py --config.model.remat=blocks
python -m videomae_jax compile-for-tpu --topology v5p:2x2x1 --slices 2 --largest \\
    --config=configs/k400_vitl_finetune.py --config.data.num_classes=400

Tells whether it fits the memory, how it is laid out, and what the chips send each other
in a step. No video is read. It takes libtpu (`pip install 'jax[tpu]'`), and from half a
minute to some for a large model. The config and its flags are those of main.py.
"""

import argparse
import runpy

import jax
from absl import flags
from ml_collections import config_flags

from videomae_jax.cli import arguments
from videomae_jax.tpu import compile, topology


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the recipe, as for main.py, with :debug and --config.FIELD=VALUE",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="SLICE",
        help="the slice: v5e-8, v6e-256, v5p-128..., or generation and grid of chips: "
        "v5e:2x4, tpu7x:2x2x1...",
    )
    parser.add_argument(
        "--slices", type=arguments.count, default=1, help="so many of them (default 1)"
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="look for the most clips (of 1, 2, 3, 4, 6, 8, 12 and so on) that a "
        "device takes at once, by compiling with more and more (or fewer and fewer) of "
        "them: some minutes each",
    )


def run(args: argparse.Namespace) -> None:
    """Compiles, and prints what came out.

    Raises:
        OSError: if there is no such config.
        SystemExit: with what was wrong with slice or config, or why the compiler
            refused.
    """
    # Compiling must not take a real TPU or GPU from those who use it.
    jax.config.update("jax_platforms", "cpu")
    try:
        config = read_config(args.config, args.config_flags)
        devices = topology.devices(args.topology, args.slices)
        clips = config.batch_size * config.data.num_samples / len(devices)
        print(f"compiling for {len(devices)} devices, {clips:g} clips each ...")
        compilation = compile.compile_step(config, devices)
        print(report(compilation), flush=True)
        if args.largest:
            _print_largest(config, devices, compilation)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def read_config(file: str, overrides: list[str]):
    """The config of a file, `FILE` or `FILE:debug`, with `--config.FIELD=VALUE`s.

    Raises:
        OSError: if there is no such file.
        ValueError: if there is no such field or option, or a value does not suit it.
    """
    path, _, option = file.partition(":")
    config = runpy.run_path(path)["get_config"](option)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=overrides
        )
        rest = values(["", *overrides])[1:]
    except (AttributeError, KeyError, flags.Error) as error:
        raise ValueError(f"{error} (configs/common.py explains every field)") from error
    if rest:
        raise ValueError(f"not a flag: {' '.join(rest)}")
    return values.config


def report(compilation: compile.Compilation) -> str:
    """What the compiler said, in words."""
    c = compilation
    lines = {
        "devices": f"{c.devices} x {c.device_kind}",
        "batch": f"{c.clips} clips per device in {c.accumulation} micro-batch(es)",
        "parameters": f"split {c.layout.fsdp} ways"
        if c.layout.fsdp > 1
        else "a copy on each device",
        "optimizer": "split over all devices"
        if c.layout.shard_optimizer
        else "as the parameters",
        "because": c.layout.reason,
        "memory": f"{'fits' if c.fits else 'DOES NOT FIT'}: needs {_size(c.needed)} of "
        f"{_size(c.available)} a device",
    }
    if c.fits:
        lines["arguments"] = f"{_size(c.arguments)}: state and batch"
        lines["temporaries"] = f"{_size(c.temporaries)}: activations, gradients"
        lines["output"] = f"{_size(c.outputs)}, of which {_size(c.aliased)} in place"
        for kind, traffic in c.traffic.items():
            lines[kind] = f"{traffic.count} a step, {_size(traffic.bytes)} a device"
    lines["compiled in"] = f"{c.seconds:.0f} s"
    width = max(18, *map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def _print_largest(config, devices, first: compile.Compilation) -> None:
    print("\nlooking for the most clips that a device takes at once:", flush=True)
    most = 0
    for tried in compile.largest(config, devices, first):
        print(
            f"{tried.clips:5} clips: {'fit' if tried.fits else 'do not fit'}, need "
            f"{_size(tried.needed)} of {_size(tried.available)} "
            f"({tried.seconds:.0f} s)",
            flush=True,
        )
        most = max(most, tried.clips * tried.fits)
    print("and the batch of the recipe in such micro-batches:", flush=True)
    best = None
    for tried in compile.with_the_batch(config, devices, most):
        at_once = tried.clips // tried.accumulation
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
            "not even one clip fits: --config.model.remat=blocks takes least memory, "
            "and a larger slice or --config.mesh.fsdp splits the parameters further"
        )


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"
