"""Writes the list files of a data set: train.txt, val.txt, test.txt, labels.txt.

    python -m videomae_jax lists ucf101 --videos=UCF-101 --annotations=ucfTrainTestlist
    python -m videomae_jax lists folder --videos=gestures --out=data/gestures
    python -m videomae_jax lists k710 --aliases=names.json --labels=k710.txt

docs/data.md lists what to download and which folders to pass.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

from videomae_jax.cli import arguments
from videomae_jax.data import sources
from videomae_jax.datasets import annotations
from videomae_jax.datasets.annotations import SPLIT_NAMES, Annotations, Entry
from videomae_jax.errors import RecordError
from videomae_jax.files import writing
from videomae_jax.video.record import Record

_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True, slots=True)
class _DataSet:
    read: Callable[..., Annotations]  # from a folder
    num_classes: int
    files: str  # for --help
    numbered_splits: bool = False  # whether `read` also takes a number from 1 to 3


_ANNOTATED = {
    f"kinetics{count}": _DataSet(
        annotations.kinetics, count, "train.csv, val.csv or validate.csv, test.csv"
    )
    for count in (400, 600, 700)
} | {
    "ssv2": _DataSet(
        annotations.something_something_v2,
        174,
        "labels.json, train.json, validation.json and optionally test.json, with or "
        "without the prefix something-something-v2-",
    ),
    "ucf101": _DataSet(
        annotations.ucf101, 101, "the files of ucfTrainTestlist", numbered_splits=True
    ),
    "hmdb51": _DataSet(
        annotations.hmdb51,
        51,
        "the files of testTrainMulti_7030_splits",
        numbered_splits=True,
    ),
    "activitynet": _DataSet(
        annotations.activitynet, 200, "activity_net.v1-3.min.json; a line per segment"
    ),
    "diving48": _DataSet(
        annotations.diving48,
        48,
        "Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json",
    ),
}


@dataclasses.dataclass(slots=True)
class _Split:
    """The content of a list: paths relative to the videos folder, with labels.

    Each row also has the start and end of a part in seconds, or None.
    """

    rows: list[tuple[str, int | None, tuple[float, float] | None]] = dataclasses.field(
        default_factory=list
    )
    # Names of videos that were not found, or are empty files.
    missing: list[str] = dataclasses.field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a subcommand for each data set."""
    parsers = parser.add_subparsers(
        title="data sets", metavar="DATA_SET", dest="data_set", required=True
    )
    for name, data_set in _ANNOTATED.items():
        command = parsers.add_parser(
            name,
            help=f"{data_set.num_classes} classes; reads {data_set.files}",
        )
        _add_common(command, name, data_set.numbered_splits)
        command.add_argument(
            "--annotations",
            required=True,
            metavar="FOLDER",
            help=f"folder that contains {data_set.files}, directly or one level below",
        )
        if data_set.numbered_splits:
            command.add_argument(
                "--split",
                type=int,
                choices=(1, 2, 3),
                default=1,
                help="one of the three splits (default 1); its test videos become val",
            )
    command = parsers.add_parser(
        "folder", help="your own videos, in one folder per class"
    )
    _add_common(command, "folder")
    command.add_argument(
        "--val-fraction",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="share of the videos of each class that goes to val.txt (default 0.1); "
        "not used if there are train, val and test folders",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        help="selects the videos that go to val.txt (default 0)",
    )

    command = parsers.add_parser(
        "k710",
        help="Kinetics-710: merges the lists of Kinetics-400, 600 and 700, made before",
    )
    command.add_argument(
        "--lists",
        nargs="+",
        metavar="FOLDER",
        default=[f"data/kinetics{count}" for count in (400, 600, 700)],
        help="the folders of these lists (default data/kinetics400 and so on)",
    )
    arguments.add_option(
        command,
        "--labels FILE",
        "names of the 710 classes in their order, one per line, or as CSV with their "
        "numbers; by default all names that the lists have, sorted",
    )
    arguments.add_option(
        command,
        "--aliases FILE",
        "names of classes in the lists and, where they differ, in the result: a JSON "
        "object, or CSV with two columns",
    )
    arguments.add_option(
        command,
        "--keep",
        "which list keeps a video that is for training in one data set and for "
        "validation in another; train is VideoMAE V2's rule",
        choices=("val", "train"),
        default="val",
    )
    arguments.add_option(
        command, "--out FOLDER", "where to write the lists", default="data/k710"
    )


def _add_common(
    parser: argparse.ArgumentParser, name: str, numbered_splits: bool = False
) -> None:
    parser.add_argument(
        "--videos",
        required=True,
        metavar="FOLDER",
        help="folder with the videos, at any depth",
    )
    numbered = f", but data/{name}_split2 with --split=2" if numbered_splits else ""
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write the lists; existing ones are replaced (default "
        f"data/{name}{numbered})",
    )
    parser.add_argument(
        "--relative",
        action="store_true",
        help="write paths relative to --videos, for use with --config.data.root",
    )
    parser.add_argument(
        "--strict", action="store_true", help="write nothing if a video is missing"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text}")
    return value


def run(args: argparse.Namespace) -> None:
    """Writes the lists and prints a summary."""
    if args.data_set == "k710":
        return _merge(args)
    root = os.path.abspath(os.path.expanduser(args.videos))
    if not os.path.isdir(root):
        raise RecordError(f"--videos: folder {args.videos!r} not found")
    messages = []
    if args.data_set == "folder":
        paths = _find_videos(root)
        options = {"val_fraction": args.val_fraction, "seed": args.seed}
        classes, splits, others = _from_folders(root, paths, **options)
    else:
        data_set = _ANNOTATED[args.data_set]
        numbers = (args.split,) if data_set.numbered_splits else ()
        folder = pathlib.Path(args.annotations).expanduser()
        known = data_set.read(folder, *numbers)
        if len(known.classes) != data_set.num_classes:
            messages.append(
                f"note: the annotations name {len(known.classes)} classes, not "
                f"{data_set.num_classes}; labels may differ from the usual ones"
            )
        paths = _find_videos(root)
        splits, others = _match(root, paths, known)
        classes = known.classes
    missing = _missing(root, splits)
    if args.strict and missing:
        raise RecordError("\n".join(["--strict: videos are missing", *missing]))

    number = getattr(args, "split", 1)
    suffix = f"_split{number}" if number > 1 else ""
    out = pathlib.Path(args.out or f"data/{args.data_set}{suffix}").expanduser()
    prefix = "" if args.relative else root
    records = {name: _records(split, prefix) for name, split in splits.items()}
    files = _write(out, classes, records)
    print(_table(splits))
    messages.append(f"{len(classes)} classes: {_some(classes)}")
    messages += missing
    if others:
        messages.append(
            f"{len(others)} of the {len(paths)} videos in {root} are not in any list, "
            f"for example {_some(others)}"
        )
    for name, split in splits.items():
        if not split.rows:
            messages.append(f"{name}.txt is not written: none of its videos was found")
        elif any(label is None for _, label, _ in split.rows):
            messages.append(f"{name}.txt has no labels: the annotations have none")
    if args.relative:
        messages.append(f"use them with --config.data.root={root}")
    print(*messages, arguments.written(files), sep="\n")


def _merge(args: argparse.Namespace) -> None:
    """Writes the lists of Kinetics-710 and prints a summary."""
    from videomae_jax.datasets import kinetics710  # imports JAX

    out = pathlib.Path(args.out).expanduser()
    merged = kinetics710.merge(
        [pathlib.Path(folder).expanduser() for folder in args.lists],
        classes=kinetics710.read_classes(args.labels) if args.labels else None,
        aliases=kinetics710.read_aliases(args.aliases) if args.aliases else None,
        keep=args.keep,
    )
    splits = {
        name: _Split([(x.path, x.labels[0], None) for x in videos])
        for name, videos in merged.splits.items()
    }
    files = _write(out, merged.classes, merged.splits)
    print(_table(splits), *merged.messages, arguments.written(files), sep="\n")


def _find_videos(root: str) -> list[str]:
    """Returns the sorted paths of all videos below a folder; follows links."""

    def fail(error: OSError):
        message = f"{error.filename} cannot be listed: {error.strerror}"
        raise RecordError(message) from error

    paths, seen = [], set()
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        target = os.path.realpath(folder)
        if target in seen:  # a link to a folder above it, or a second link
            folders.clear()
            continue
        seen.add(target)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(sources.EXTENSIONS) and not name.startswith("."):
                paths.append(os.path.relpath(os.path.join(folder, name), root))
    if not paths:
        raise RecordError(
            f"--videos: no videos ({' '.join(sources.EXTENSIONS)}) found in or below "
            f"{root}"
        )
    return sorted(paths)


def _match(
    root: str, paths: Sequence[str], known: Annotations
) -> tuple[dict[str, _Split], list[str]]:
    """Finds the annotated videos; also returns the paths of all other videos."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(_name(path), []).append(path)
    splits = {}
    for key, entries in known.splits.items():
        splits[key] = split = _Split()
        for entry in entries:
            names = entry.name, entry.name.removeprefix("v_")
            own = next((by_name[name] for name in names if name in by_name), ())
            path = _choose(root, own, entry)
            if path is None:
                split.missing.append(entry.name)
            else:
                split.rows.append((path, entry.label, entry.times))
    names = [entry.name for entries in known.splits.values() for entry in entries]
    if not any(split.rows for split in splits.values()):
        raise RecordError(
            f"none of the {len(names)} annotated videos found in or below {root}. "
            f"Expected names such as {_some(names)} "
            f"({' '.join(sources.EXTENSIONS)}, not empty); the {len(paths)} videos "
            f"there have names such as {_some(paths)}"
        )
    named = known.unused.union(names, (name.removeprefix("v_") for name in names))
    return splits, [path for path in paths if _name(path) not in named]


def _choose(root: str, paths: Sequence[str], entry: Entry) -> str | None:
    """Returns the path of a video, the one in the best folder if there are several."""

    def rank(path: str) -> int:
        parts = path.split(os.sep)[:-1]
        ranks = (i for i, name in enumerate(entry.folders) if name in parts)
        return next(ranks, len(entry.folders))

    return next((p for p in sorted(paths, key=rank) if not _is_empty(root, p)), None)


def _from_folders(
    root: str, paths: Sequence[str], *, val_fraction: float, seed: int
) -> tuple[list[str], dict[str, _Split], list[str]]:
    """Reads class folders; returns classes, splits, and paths outside class folders."""
    tops = {path.split(os.sep)[0] for path in paths if os.sep in path}
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    # A single `train` folder among others is a class of vehicles, not a split.
    is_split = tops == {"train"} or "train" in tops and len(tops & split_of.keys()) > 1
    depth = 1 if is_split else 0
    members: dict[tuple[str, str], list[str]] = {}
    others = []
    for path in paths:
        parts = path.split(os.sep)
        if len(parts) < depth + 2 or is_split and parts[0] not in split_of:
            others.append(path)
        else:
            split = split_of[parts[0]] if is_split else ""
            members.setdefault((parts[depth], split), []).append(path)
    classes = sorted({name for name, _ in members})
    if len(classes) < 2:
        raise RecordError(
            f"--videos: expected one folder per class, at least two, in {root}"
            f"{' (train, val, test)' if is_split else ''}, with the videos in or below "
            f"it. Found {len(paths)} videos, such as {_some(paths)}"
        )
    splits = {split: _Split() for split in SPLIT_NAMES}
    for (class_name, split), own in sorted(members.items()):
        empty = [path for path in own if _is_empty(root, path)]
        good = [path for path in own if path not in empty]
        chosen = {split: good} if is_split else _divide(good, val_fraction, seed)
        for key, selected in chosen.items():
            label = classes.index(class_name)
            splits[key].rows += [(path, label, None) for path in selected]
        splits[split or "train"].missing += empty
    return classes, {k: v for k, v in splits.items() if v.rows or v.missing}, others


def _divide(paths: Sequence[str], fraction: float, seed: int) -> dict[str, list[str]]:
    """Splits the videos of a class; each side gets at least one of two or more."""
    count = round(len(paths) * fraction)
    if fraction and len(paths) > 1:
        count = min(max(count, 1), len(paths) - 1)

    def draw(path: str) -> bytes:
        # By name, so that adding a video moves few of the others.
        return hashlib.sha256(f"{seed}:{path}".encode(errors="replace")).digest()

    val = set(sorted(paths, key=draw)[:count])
    return {
        "train": [path for path in paths if path not in val],
        "val": [path for path in paths if path in val],
    }


def _records(split: _Split, root: str) -> list[Record]:
    return [
        Record(
            os.path.join(root, path),
            "",
            labels=() if label is None else (label,),
            time_range=times,
        )
        for path, label, times in split.rows
    ]


def _write(
    out: pathlib.Path, classes: Sequence[str], splits: dict[str, list[Record]]
) -> list[pathlib.Path]:
    """Writes the lists that are not empty, and the classes; returns the files."""
    for name in classes:
        if name.strip().splitlines() != [name]:
            raise RecordError(
                f"class {name!r} starts or ends with a space, or contains a line "
                "break. Rename its folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    lists = {out / f"{name}.txt": own for name, own in splits.items() if own}
    for file, records in lists.items():
        sources.write_records(file, records)
    names = out / "labels.txt"
    with writing(names):
        names.write_text("\n".join([*classes, ""]), encoding="utf-8", newline="\n")
    return [*lists, names]


def _table(splits: dict[str, _Split]) -> str:
    rows: list[tuple] = [("split", "videos", "classes", "missing")]
    for name, split in splits.items():
        labels = {label for _, label, _ in split.rows} - {None}
        rows.append((name, len(split.rows), len(labels), len(split.missing)))
    return "\n".join(f"{a:6} {b:>8} {c:>8} {d:>8}" for a, b, c, d in rows)


def _missing(root: str, splits: dict[str, _Split]) -> list[str]:
    return [
        f"{name}: {len(split.missing)} missing from {root} or empty files: "
        f"{_some(split.missing)}"
        for name, split in splits.items()
        if split.missing
    ]


def _is_empty(root: str, path: str) -> bool:
    return not os.path.getsize(os.path.join(root, path))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]).encode(errors="replace").decode()
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
