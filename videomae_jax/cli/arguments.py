"""What commands have in common: loading a model, reading and printing arguments."""

import argparse
import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator

from videomae_jax.data import labels, resources, sources
from videomae_jax.errors import PretrainedError, RecordError
from videomae_jax.files import absolute
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.video import frame_names
from videomae_jax.video.record import LabelKind, Record

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


def add_frame_name(parser: argparse._ActionsContainer) -> None:
    """Adds how images of frame folders are named."""
    parser.add_argument(
        "--frame-name",
        default=frame_names.DEFAULT,
        metavar="TEMPLATE",
        help="names of the images in frame folders (default %(default)s)",
    )


def add_paths(parser: argparse._ActionsContainer) -> None:
    """Adds how the paths of a list are read."""
    parser.add_argument(
        "--root", default="", help="folder that relative paths of a list start at"
    )
    add_frame_name(parser)


def add_list(parser: argparse.ArgumentParser) -> None:
    """Adds a list of videos, labelled or not, and how it is read."""
    parser.add_argument(
        "list",
        metavar="LIST",
        help="a list file with or without labels, a folder, or tfds:FOLDER/SPLIT",
    )
    add_paths(parser)
    parser.add_argument(
        "--multi-label", action="store_true", help="a line may have several labels"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one a line, by label"
    )


def add_isolated(parser: argparse._ActionsContainer) -> None:
    """Adds how many videos are worked on at a time, and for how long."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="that a video may take before it counts as hanging (default 600); give "
        "more for films of hours and slow presets",
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=resources.measure().cores,
        metavar="N",
        help="processes, each with a video of its own (default: one for each core)",
    )


def add_videos(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name videos, for `find_videos`."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="a video file, a folder of them, a folder of images (one for each frame), "
        "a pattern such as 'clips/*.mp4', a list (.txt, .csv), or tfds:FOLDER/SPLIT",
    )
    add_frame_name(parser)


def find_videos(args: argparse.Namespace) -> list[Record]:
    """The videos that arguments name; a missing file is one, to be told later.

    Raises:
        RecordError: if a list, folder or pattern names none.
    """
    return list(_find(args.videos, args.frame_name))


def _find(names: Iterable[str], frame_name: str) -> Iterator[Record]:
    for name in names:
        if os.path.isdir(name):
            for record in sources.load(name, frame_name=frame_name):
                is_name = record.path == absolute(name)
                id = name if is_name else os.path.join(name, record.id)
                yield dataclasses.replace(record, id=id)
        elif name.startswith(("tfds:", "digits:")) or name.endswith((".txt", ".csv")):
            yield from sources.load(
                name, label_kind=LabelKind.UNUSED, frame_name=frame_name
            )
        elif glob.has_magic(name) and not os.path.exists(name):
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise RecordError(f"there is no video {name!r}")
            yield from _find(found, frame_name)
        else:
            yield Record(absolute(name), name)


def stem(record: Record) -> str:
    """The last part of a video's name, without its extension if it is a file."""
    name = os.path.basename(record.id.rstrip("/"))
    is_file = record.position is None and not record.frame_name
    return os.path.splitext(name)[0] if is_file else name


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
