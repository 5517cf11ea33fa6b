"""What commands have in common: loading a model, reading and printing arguments."""

import argparse
import dataclasses

from videomae_jax.data import labels
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Pretrained, PretrainedError

_WHAT = (
    "whatever load_pretrained takes: a name on the Hugging Face hub, a folder, a .pth, "
    ".h5 or .safetensors file, or a workdir of main.py"
)


def add_source(parser: argparse.ArgumentParser, name: str = "--model") -> None:
    """Adds the argument that names a model, and those that help to load it."""
    if name.startswith("-"):
        parser.add_argument(name, required=True, metavar="SRC", help=_WHAT)
    else:
        parser.add_argument(name, metavar="SRC", help=_WHAT)
    group = parser.add_argument_group("loading")
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes, one a line in the order of the head, for a model "
        "whose source does not name them",
    )
    group.add_argument(
        "--heads",
        type=count,
        help="attention heads, where the source does not tell them",
    )
    group.add_argument("--decoder-heads", type=count, help="the same of the decoder")


def add_dtype(parser: argparse._ActionsContainer) -> None:
    """Adds the computation dtype, for commands that run the model."""
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="what the model computes in (default float32); bfloat16 is faster on "
        "accelerators",
    )


def load(
    args: argparse.Namespace, source: str, strict: bool = True, **fields
) -> Pretrained:
    """Loads the model that the arguments name.

    Raises:
        PretrainedError: if it cannot be loaded, or has another number of classes.
        RecordError: if the file of labels cannot be read.
    """
    given = {"heads": args.heads, "decoder_heads": args.decoder_heads}
    fields |= {name: value for name, value in given.items() if value is not None}
    loaded = load_pretrained(source, revision=args.revision, strict=strict, **fields)
    if args.labels:
        names = tuple(labels.read(args.labels))
        classes = getattr(loaded.model, "num_classes", 0)
        if len(names) != classes:
            raise PretrainedError(
                f"--labels: {args.labels} names {len(names)} classes, but the head of "
                f"{source} has {classes}"
            )
        loaded = dataclasses.replace(loaded, labels=names)
    return loaded


def printable(text: str) -> str:
    """Text without the bytes of file names that are no characters."""
    return text.encode(errors="replace").decode()


def count(text: str) -> int:
    """Reads an argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def seconds(text: str) -> float:
    """Reads an argument that is a time above 0, and finite."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
