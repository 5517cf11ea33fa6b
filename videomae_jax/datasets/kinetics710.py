"""Merges the lists of Kinetics-400, 600 and 700 into those of Kinetics-710.

The three share most of their videos and classes, under names that sometimes differ.
"""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from videomae_jax.data import labels, sources
from videomae_jax.data.bad_videos import check_paths
from videomae_jax.errors import RecordError, nearest
from videomae_jax.files import read_json
from videomae_jax.models.problem import class_key
from videomae_jax.video.record import LabelKind, Record

_SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Merged:
    """Lists of several data sets in one.

    Attributes:
        classes: their names, by label.
        splits: the videos of "train" and "val", in the order of the data sets.
        messages: what was removed, and which names did not match.
    """

    classes: list[str]
    splits: dict[str, list[Record]]
    messages: list[str]


def merge(
    folders: Sequence[pathlib.Path],
    *,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    keep: str = "val",
) -> Merged:
    """Merges lists, and removes videos that are there twice.

    Videos are the same if their YouTube ids are. Of those in several training lists, or
    in several validation lists, the first one is kept.

    Args:
        folders: of the lists train.txt, val.txt and labels.txt of each data set.
        classes: names of the classes of the result, by label; by default all names that
            occur, sorted.
        aliases: the name of a class in the result, by its name in the lists, where they
            differ. Case, underscores and repeated blanks never matter.
        keep: the split that keeps the videos that are in both: "val", or "train" as in
            VideoMAE V2 (section 4), whose validation videos are fewer.

    Raises:
        RecordError: a file is missing or malformed, or a class has no name in the
            result; the message has all of these.
    """
    for folder in folders:
        if not (folder / "labels.txt").is_file():
            raise RecordError(
                f"--lists: {folder}/labels.txt not found: expected a folder of lists, "
                "as `python -m videomae_jax lists kinetics400` makes"
            )
    theirs = {folder: labels.read(str(folder / "labels.txt")) for folder in folders}
    aliases = aliases or {}
    renamed = {class_key(name): new for name, new in aliases.items()}
    names = {
        folder: [renamed.get(class_key(name), name) for name in own]
        for folder, own in theirs.items()
    }
    if classes is None:
        spelt = [(class_key(name), name) for own in names.values() for name in own]
        first = dict(reversed(spelt))  # spelt as in the first data set
        classes = [first[key] for key in sorted(first)]
    numbers = {class_key(name): number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise RecordError("--labels: the name of a class occurs twice")
    _check_known(names, numbers, classes)
    splits, messages = {}, _unshared(names, classes)
    used = {class_key(name) for own in theirs.values() for name in own}
    unused = [name for name in aliases if class_key(name) not in used]
    if unused:
        messages.append(
            f"{len(unused)} names of --aliases are in no list: {', '.join(unused)}"
        )
    for split in _SPLITS:
        found: dict[str, Record] = {}
        count = conflicts = 0
        for folder, own in names.items():
            for record in _load(folder / f"{split}.txt", len(own)):
                label = numbers[class_key(own[record.labels[0]])]
                record = dataclasses.replace(record, labels=(label,))
                kept = found.setdefault(youtube_id(record.path), record)
                count += 1
                conflicts += kept.labels != record.labels
        splits[split] = found
        messages.append(
            f"{split}: {count - len(found)} of {count} videos were there twice, "
            f"{conflicts} of them with another class"
        )
    other = "train" if keep == "val" else "val"
    both = splits[other].keys() & splits[keep].keys()
    messages.append(f"{other}: removed {len(both)} videos that are also in {keep}")
    splits[other] = {id: x for id, x in splits[other].items() if id not in both}
    kept = {split: list(videos.values()) for split, videos in splits.items()}
    return Merged(list(classes), kept, messages)


def youtube_id(path: str) -> str:
    """Returns the id in the name of a video, <id>_<start>_<end>.mp4 or <id>.mp4."""
    stem = pathlib.PurePath(path).stem
    match = re.fullmatch(r"(.+)_[0-9]{6}_[0-9]{6}", stem)
    return match[1] if match else stem


def read_classes(path: str) -> list[str]:
    """Returns the names of a file: a name per line, or a table of numbers and names.

    Raises:
        RecordError: the file is missing or malformed.
    """
    if not path.lower().endswith(".csv"):
        return labels.read(path)
    rows = [row for row in _read_table(path) if row[0].isdecimal()]
    rows.sort(key=lambda row: int(row[0]))
    if not rows or [int(row[0]) for row in rows] != list(range(len(rows))):
        raise RecordError(f"{path}: expected rows `number,name` with 0, 1, 2 ...")
    return [name for _, name in rows]


def read_aliases(path: str) -> dict[str, str]:
    """Returns the names of a file by other names: a JSON object, or `name,new name`.

    Raises:
        RecordError: the file is missing or malformed.
    """
    if path.lower().endswith(".csv"):
        return {name: new for name, new in _read_table(path)}
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise RecordError(f"--aliases: file not found: {path!r}")
    content = read_json(file)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) for name in content.values()
    ):
        raise RecordError(
            f"{path}: expected a JSON object from names of classes to other names, or "
            "a .csv file with these two columns"
        )
    return content


def _read_table(path: str) -> list[list[str]]:
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig", newline="") as file:
            rows = [[x.strip() for x in row] for row in csv.reader(file) if row]
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise RecordError(f"{path}: row {number}: expected two columns, got {row}")
    return rows


def _load(file: pathlib.Path, num_classes: int) -> list[Record]:
    videos = sources.load(str(file), label_kind=LabelKind.ONE)
    labels.check(videos, str(file), num_classes)
    check_paths(videos, str(file), "")
    return videos


def _check_known(
    names: Mapping[pathlib.Path, Sequence[str]],
    numbers: Mapping[str, int],
    classes: Sequence[str],
) -> None:
    """Raises RecordError if a name is none of the classes; the message has all."""
    lines = [
        f"  {folder}: {name}{nearest(class_key(name), numbers)}"
        for folder, own in names.items()
        for name in own
        if class_key(name) not in numbers
    ]
    if lines:
        raise RecordError(
            f"{len(lines)} names are none of the {len(classes)} classes of --labels. "
            "Give those that they have there by --aliases, a JSON object:\n"
            + "\n".join(lines)
        )


def _unshared(
    names: Mapping[pathlib.Path, Sequence[str]], classes: Sequence[str]
) -> list[str]:
    """Returns which classes are in one data set only, or in none."""
    keys = {folder: set(map(class_key, own)) for folder, own in names.items()}
    lonely: dict[str, list[str]] = {}
    for name in classes:
        folders = [folder for folder in keys if class_key(name) in keys[folder]]
        if len(folders) < 2:
            where = f"only in {folders[0]}" if folders else "in no list"
            lonely.setdefault(where, []).append(name)
    return [
        f"{len(own)} classes are {where}: {', '.join(own)}"
        for where, own in lonely.items()
    ]
