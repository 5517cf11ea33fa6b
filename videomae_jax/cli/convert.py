"""Converts a model to another format.

    python -m videomae_jax convert runs/finetune out/ --format=huggingface --verify
    python -m videomae_jax convert MCG-NJU/videomae-base out/ --format=official
    python -m videomae_jax convert k710.pth out/ --labels=k710.txt --classes-from=k400.txt

huggingface: config.json, preprocessor_config.json, model.safetensors, for transformers.
official: checkpoint.pth, for the scripts of VideoMAE and VideoMAE V2; needs PyTorch.
jax: config.json and model.safetensors, with the names of this library.
"""  # noqa: E501

import argparse
import pathlib

from videomae_jax.cli import arguments
from videomae_jax.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_model(parser, "source")
    parser.add_argument("target", metavar="DST", help="folder to write to")
    arguments.add_option(
        parser,
        "--format",
        "format to write",
        choices=("huggingface", "official", "jax"),
        required=True,
    )
    parser.add_argument(
        "--classes-from",
        "--classes",
        metavar="FILE",
        dest="classes",
        help="classes to keep, one name per line, in their new order; for example "
        "those of Kinetics-400 for a model of Kinetics-710",
    )
    arguments.add_option(
        parser,
        "--aliases FILE",
        "names in --classes-from and, where they differ, in the model: a JSON object, "
        "or CSV with two columns",
    )
    arguments.add_flag(
        parser,
        "--verify",
        "compare the outputs of the result, read back, with the model's on random "
        "clips; with transformers, if installed, also the outputs and the pixels of a "
        "source of its format, and the outputs of a result in it",
    )
    arguments.add_option(
        parser, "--clip VIDEO", "a video for --verify; by default it makes one"
    )


def run(args: argparse.Namespace) -> None:
    """Converts the model."""
    if args.clip and not args.verify:
        raise UsageError("--clip must be used together with --verify")
    if args.aliases and not args.classes:
        raise UsageError("--aliases must be used together with --classes-from")
    # Imported here: --help does not wait for JAX.
    from videomae_jax.cli import verify
    from videomae_jax.datasets import kinetics710
    from videomae_jax.interop import edit_head
    from videomae_jax.interop.saving import save_pretrained

    pretrained = arguments.load_model(args, args.source)
    if args.verify and pretrained.format == "huggingface":
        # With other heads than the source's, the outputs differ on purpose.
        if not (args.heads or args.decoder_heads):
            lines = verify.source(pretrained, args.source, args.revision, args.clip)
            print("".join(f"{line}\n" for line in lines), end="")
    if args.classes:
        aliases = kinetics710.read_aliases(args.aliases) if args.aliases else {}
        names = kinetics710.read_classes(args.classes)
        pretrained = edit_head.select_classes(pretrained, names, aliases=aliases)
    save_pretrained(args.target, pretrained, format=args.format)
    if args.verify:
        lines = verify.written(pretrained, pathlib.Path(args.target), args.format)
        print(*lines, sep="\n")
    print(f"{arguments.written([args.target])} ({args.format})")
