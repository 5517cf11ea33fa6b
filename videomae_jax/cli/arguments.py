"""Arguments, model loading and output that the commands share."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from videomae_jax.data import labels, sources
from videomae_jax.errors import PretrainedError, UsageError, VideoError, printable
from videomae_jax.processes import available_resources
from videomae_jax.video.frame_folder import DEFAULT_FRAME_NAME
from videomae_jax.video.record import LabelKind, Record

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.interop.pretrained import Pretrained


def count(text: str) -> int:
    """Parses a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def seconds(text: str) -> float:
    """Parses a finite time above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return number


def add_flag(parser: argparse._ActionsContainer, name: str, help: str) -> None:
    """Adds an option without a value."""
    parser.add_argument(name, action="store_true", help=help)


def add_option(
    parser: argparse._ActionsContainer,
    usage: str,
    help: str,
    type: Callable[[str], Any] = str,
    *,
    default: Any = None,
    **options: Any,
) -> None:
    """Adds an option; `usage`, such as "--out FOLDER", names it and its value.

    A default is added to the help text.
    """
    name, _, metavar = usage.partition(" ")
    if default is not None:
        help += " (default %(default)s)"
    parser.add_argument(
        name, metavar=metavar or None, help=help, type=type, default=default, **options
    )


def add_count(
    parser: argparse._ActionsContainer,
    name: str,
    help: str,
    *,
    default: int | None = None,
) -> None:
    """Adds an option that takes a whole number of at least 1."""
    add_option(parser, f"{name} N", help, count, default=default)


def add_model(parser: argparse.ArgumentParser, name: str = "--model") -> None:
    """Adds the argument that names a model, and the options for loading it."""
    action = parser.add_argument(
        name,
        metavar="SRC",
        help="a model on the Hugging Face Hub, a folder, a .pth, .h5 or .safetensors "
        "file, or a work directory of main.py; anything that load_pretrained takes",
    )
    action.required = True
    group = parser.add_argument_group("loading")
    add_option(group, "--revision", "branch, tag or commit of a model on the Hub")
    text = "checkpoint of a work directory: last, best (by validation), or a number"
    add_option(group, "--step", text, default="last")
    add_option(
        group,
        "--labels FILE",
        "class names, one per line in the order of the head, for a model that does not "
        "include them",
    )
    text = "attention heads, if the model does not specify them, or wrongly"
    add_count(group, "--heads", text)
    add_count(group, "--decoder-heads", "attention heads of the decoder")


def load_model(
    args: argparse.Namespace, source: str, *, strict: bool = True, **fields: Any
) -> "Pretrained":
    """Calls `load_pretrained` with the options of `add_model`.

    Raises:
        PretrainedError: the model has another number of classes than the labels.
    """
    from videomae_jax.interop.loading import load_pretrained

    heads = {"heads": args.heads, "decoder_heads": args.decoder_heads}
    fields |= {name: value for name, value in heads.items() if value is not None}
    loaded = load_pretrained(
        source, revision=args.revision, step=args.step, strict=strict, **fields
    )
    if args.labels:
        heads = loaded.problem.heads
        files = args.labels.split(",") if heads else [args.labels]
        names = [labels.read(file) for file in files]
        counts = [len(own) for own in names]
        classes = getattr(loaded.model, "num_classes", 0)
        sizes = [size for _, size in heads] or [classes]
        if counts != sizes:
            raise PretrainedError(
                f"--labels={args.labels} has {_joined(counts)} class names, but the "
                f"head of {source} has {_joined(sizes)} classes"
            )
        loaded = dataclasses.replace(loaded, labels=tuple(itertools.chain(*names)))
    return loaded


def _joined(counts: Iterable[int]) -> str:
    return " + ".join(map(str, counts))


def add_dtype(parser: argparse._ActionsContainer) -> None:
    """Adds the computation dtype, for commands that run a model."""
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="dtype to compute in (default float32); bfloat16 is faster on "
        "accelerators",
    )


def add_frame_name(parser: argparse._ActionsContainer) -> None:
    """Adds the template of image names in frame folders."""
    text = "names of the images in frame folders"
    add_option(parser, "--frame-name TEMPLATE", text, default=DEFAULT_FRAME_NAME)


def add_paths(parser: argparse._ActionsContainer) -> None:
    """Adds the options for resolving the paths of a list."""
    parser.add_argument(
        "--root", default="", help="folder that relative paths of a list start at"
    )
    add_frame_name(parser)


def add_list(parser: argparse.ArgumentParser) -> None:
    """Adds a list of videos and the options for reading it with `load_list`."""
    parser.add_argument(
        "list",
        metavar="LIST",
        help="list file with or without labels, folder, tar shards, or "
        "tfds:FOLDER/SPLIT",
    )
    add_paths(parser)
    kinds = parser.add_mutually_exclusive_group()
    add_flag(kinds, "--multi-label", "a video may have several labels")
    add_flag(kinds, "--values", "numbers to predict instead of labels (regression)")
    add_option(
        kinds,
        "--heads NAMES",
        "a label for each head of the model: the names of their columns, such as "
        "verb,noun",
    )
    add_option(
        parser,
        "--labels FILE",
        "class names, one per line, by label; with --heads a file for each, separated "
        "by commas",
    )


def label_kind(args: argparse.Namespace) -> LabelKind:
    """Returns the labels that a video of the list may have."""
    if args.values:
        return LabelKind.VALUES
    if args.heads:
        return LabelKind.HEADS
    return LabelKind.MANY if args.multi_label else LabelKind.OPTIONAL


def load_list(args: argparse.Namespace) -> tuple[list[Record], list[str] | None]:
    """Reads the list that the arguments of `add_list` name, and its class names.

    These are those of --labels, or those that the list gives, or None. For several
    heads, they are None.
    """
    kind = label_kind(args)
    heads = args.heads.split(",") if args.heads else []
    files = args.labels.split(",") if heads and args.labels else []
    if len(files) not in (0, len(heads)):
        raise UsageError(
            f"--labels={args.labels} must name a file for each of --heads={args.heads}"
        )
    names = labels.read(args.labels) if args.labels and not heads else None
    records = sources.load(
        args.list,
        args.root,
        label_kind=kind,
        frame_name=args.frame_name,
        class_names=[labels.read(file) for file in files] or names,
        label_columns=heads,
    )
    if heads:
        labels.check_heads(records, args.list, len(heads))
    elif names is None and any(record.label_names for record in records):
        names = labels.class_names(records, args.list)
    return records, names


def add_process_pool(parser: argparse._ActionsContainer) -> None:
    """Adds the options of `process_map`."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="time after which a video counts as hanging (default 600); increase it "
        "for hour-long films and slow presets",
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=available_resources().cores,
        metavar="N",
        help="processes, each with one video at a time (default: one per core)",
    )


def add_videos(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name videos, for `find_videos`."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video file, folder of videos, folder of images (one per frame), pattern "
        "such as 'clips/*.mp4', list (.txt, .csv, .json, .tar), or tfds:FOLDER/SPLIT",
    )
    add_frame_name(parser)


def find_videos(args: argparse.Namespace) -> list[Record]:
    """Returns the named videos; a missing file is included, and fails when opened.

    Raises:
        RecordError: a list, folder or pattern names no video.
    """
    from videomae_jax.inference import inputs

    return inputs.find_videos(args.videos, frame_name=args.frame_name)


def stem(record: Record) -> str:
    """Returns the last part of a video's name, without the extension of a file."""
    name = os.path.basename(record.id.rstrip("/"))
    is_file = record.position is None and not record.frame_name
    return os.path.splitext(name)[0] if is_file else name


def written(files: Iterable[str | os.PathLike]) -> str:
    """Returns the last line of a command, which names the files it has written."""
    return f"wrote {' '.join(map(str, files))}"


def add_json(parser: argparse.ArgumentParser, *, per_video: bool = False) -> None:
    """Adds --json, for `print_result`."""
    each = "a JSON object per video, one per line" if per_video else "a JSON object"
    add_flag(parser, "--json", f"print {each}")


def print_result(
    args: argparse.Namespace, result: dict[str, Any], text: str, **json_options: Any
) -> None:
    """Prints a result: as JSON with --json, otherwise as text."""
    shown = json.dumps(result, **json_options) if args.json else text
    print(printable(shown), flush=True)


def for_each_video(
    args: argparse.Namespace,
    videos: Sequence[Record],
    process: Callable[[Record], tuple[dict[str, Any], str]],
) -> None:
    """Processes videos one by one and prints each result with `print_result`.

    Raises:
        VideoError: at the end, if some videos failed with a VideoError.
    """
    failed = 0
    for video in videos:
        try:
            result, text = process(video)
        except VideoError as error:
            failed += 1
            print(printable(str(error)), file=sys.stderr)
        else:
            print_result(args, result, text)
    if failed:
        raise VideoError(f"{failed} of {len(videos)} videos could not be processed")
