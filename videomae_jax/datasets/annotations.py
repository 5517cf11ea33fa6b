"""What public data sets say of their videos: which ones, in which split, what class.

Each reader takes the files as their publishers distribute them.
"""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

from videomae_jax.errors import RecordError


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One video.

    Attributes:
        name: its file name without extension, which copies often change.
        label: its class, or None where that is not published.
        folders: names of folders that tell the right one of several files of this
            name, best first.
    """

    name: str
    label: int | None
    folders: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Annotations:
    """A data set.

    Attributes:
        classes: their names, by label.
        splits: the videos of train, val and test, as far as they are published.
        unused: names of videos that belong to the data set, but to none of `splits`.
    """

    classes: list[str]
    splits: dict[str, list[Entry]]
    unused: frozenset[str] = frozenset()


def kinetics(folder: pathlib.Path) -> Annotations:
    """Reads train.csv, val.csv (or validate.csv) and test.csv, as far as they exist.

    Labels are the alphabetical order of the class names: for Kinetics-400 the usual
    one, from 0 abseiling to 399 zumba.
    """
    rows = {}
    for split, words in _SPLIT_WORDS.items():
        names = [prefix + word for word in words for prefix in _KINETICS_PREFIXES]
        file = _find(folder, [f"{name}.csv" for name in names], split == "train")
        if file:
            rows[split] = _read_kinetics(file)
    classes = sorted({row[1] for found in rows.values() for row in found} - {None})
    label_of = {name: label for label, name in enumerate(classes)} | {None: None}
    return Annotations(
        classes,
        {
            split: [
                # CVDF ships sound copies of some broken videos in a folder of its own.
                Entry(
                    name,
                    label_of[label],
                    ("replacement", "replacement_for_corrupted_k400")
                    + _SPLIT_WORDS[split],
                )
                for name, label in found
            ]
            for split, found in rows.items()
        },
    )


_SPLIT_WORDS = {
    "train": ("train",),
    "val": ("val", "validate", "validation"),
    "test": ("test",),
}
_KINETICS_PREFIXES = ("", "kinetics_") + tuple(
    f"{start}{count}_"
    for count in (400, 600, 700)
    for start in ("kinetics-", "kinetics", "k")
)


def _read_kinetics(file: pathlib.Path) -> list[tuple[str, str | None]]:
    wanted = ("youtube_id", "time_start", "time_end")
    with _open(file, newline="") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if not set(wanted) <= set(columns):
            raise RecordError(
                f"{file}: the first line has to name the columns label, "
                f"{', '.join(wanted)}, as in the official files; it names "
                f"{', '.join(columns) or 'none'}"
            )
        found = []
        for row in reader:
            try:
                start, end = (int(float(row[name])) for name in wanted[1:])
            except (TypeError, ValueError):
                raise RecordError(
                    f"{file}:{reader.line_num}: time_start and time_end have to be "
                    f"numbers of seconds; here they are {row['time_start']!r} and "
                    f"{row['time_end']!r}"
                ) from None
            name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            found.append((name, row.get("label") or None))
    return found


def something_something_v2(folder: pathlib.Path) -> Annotations:
    """Reads the JSON files of either release.

    The class is the template without its brackets, looked up in labels.json. The newer
    release publishes the classes of the test videos, in test-answers.csv.
    """

    def find(name: str, required: bool = True) -> pathlib.Path | None:
        return _find(folder, [f"something-something-v2-{name}", name], required)

    label_file = find("labels.json")
    labels = _read_json(label_file, dict)
    try:
        labels = {name: int(label) for name, label in labels.items()}
    except (TypeError, ValueError):
        labels = {}
    if not labels or sorted(labels.values()) != list(range(len(labels))):
        raise RecordError(
            f"{label_file}: a number from 0 up, each once, is wanted for each class"
        )

    def label_of(text: str, file: pathlib.Path, name: str) -> int:
        text = text.replace("[", "").replace("]", "")
        if text not in labels:
            raise RecordError(
                f"{file}: video {name} is of class {text!r}, which {label_file} lacks: "
                "are both files from the same release?"
            )
        return labels[text]

    splits = {}
    for split, name in (("train", "train.json"), ("val", "validation.json")):
        file = find(name)
        splits[split] = [
            Entry(video, label_of(template, file, video))
            for video, template in _read_videos(file, "id", "template")
        ]
    test, answers = find("test.json", False), find("test-answers.csv", False)
    if test:
        label = {}
        if answers:
            with _open(answers, newline="") as lines:
                for row in csv.reader(lines, delimiter=";"):
                    if len(row) == 2:
                        label[row[0]] = label_of(row[1], answers, row[0])
        splits["test"] = [
            Entry(video, label.get(video)) for (video,) in _read_videos(test, "id")
        ]
    return Annotations(sorted(labels, key=labels.get), splits)


def _read_videos(file: pathlib.Path, *fields: str) -> list[tuple[str, ...]]:
    try:
        return [
            tuple(str(video[field]) for field in fields)
            for video in _read_json(file, list)
        ]
    except (KeyError, TypeError):
        raise RecordError(
            f"{file}: a list of objects, each with {' and '.join(fields)}, is wanted"
        ) from None


def _read_json(file: pathlib.Path, kind: type):
    with _open(file) as text:
        try:
            content = json.load(text)
        except json.JSONDecodeError as error:
            raise RecordError(
                f"{file}: not a whole JSON file ({error}): was it cut short?"
            ) from None
    if not isinstance(content, kind):
        raise RecordError(f"{file}: its JSON is no {kind.__name__}: a different file?")
    return content


def ucf101(folder: pathlib.Path, split: int) -> Annotations:
    """Reads classInd.txt, trainlist0N.txt and testlist0N.txt; the test videos are val.

    Labels are those of classInd.txt less one.
    """
    index = _find(folder, ["classInd.txt"])
    classes = []
    for number, line in _lines(index):
        count, _, name = line.partition(" ")
        if count != str(len(classes) + 1) or not name:
            raise RecordError(
                f"{index}:{number}: `{len(classes) + 1} ClassName` is wanted, not "
                f"{line!r}"
            )
        classes.append(name)
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for key, word in (("train", "train"), ("val", "test")):
        file = _find(folder, [f"{word}list0{split}.txt"])
        splits[key] = []
        for number, line in _lines(file):
            path, _, listed = line.partition(" ")
            class_name, _, name = path.rpartition("/")
            label = label_of.get(class_name)
            if label is None or listed not in ("", str(label + 1)):
                raise RecordError(
                    f"{file}:{number}: `Class/video.avi`, and for training videos the "
                    f"number of the class in {index.name}, are wanted, not {line!r}"
                )
            splits[key].append(Entry(_stem(name), label, (class_name,)))
    return Annotations(classes, splits)


def hmdb51(folder: pathlib.Path, split: int) -> Annotations:
    """Reads CLASS_test_splitN.txt of all classes; the test videos are val.

    Labels are the alphabetical order of the class names.
    """
    ending = f"_test_split{split}.txt"
    first = _find(folder, [f"*{ending}"])
    files = sorted(first.parent.glob(f"*{ending}"))
    classes = sorted(file.name.removesuffix(ending) for file in files)
    splits = {"train": [], "val": []}
    unused = set()
    for label, class_name in enumerate(classes):
        file = first.parent / (class_name + ending)
        for number, line in _lines(file):
            match = re.fullmatch(r"(.+\S)\s+([012])", line)
            if not match:
                raise RecordError(
                    f"{file}:{number}: `video.avi` and 0 (not used), 1 (training) or 2 "
                    f"(test) are wanted, not {line!r}"
                )
            name = _stem(match[1])
            if match[2] == "0":
                unused.add(name)
            else:
                key = "train" if match[2] == "1" else "val"
                splits[key].append(Entry(name, label, (class_name,)))
    return Annotations(classes, splits, frozenset(unused))


def _find(
    folder: pathlib.Path, patterns: Sequence[str], required: bool = True
) -> pathlib.Path | None:
    """Finds a file by its possible names, in the folder or one level below."""
    if not folder.is_dir():
        raise RecordError(
            f"--annotations: {str(folder)!r} is a file; its folder is wanted"
            if folder.exists()
            else f"--annotations: there is no folder {str(folder)!r}"
        )
    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    for places in ([folder], subfolders):
        found = {}
        for place in places:
            for pattern in patterns:
                for file in sorted(place.glob(pattern)):
                    found.setdefault(place, file)
        if len(found) > 1:
            raise RecordError(
                "several folders hold such annotations: give one of them with "
                f"--annotations: {' '.join(str(place) for place in sorted(found))}"
            )
        for file in found.values():
            return file
    if not required:
        return None
    shown = ", ".join(patterns[:3]) + ("..." if len(patterns) > 3 else "")
    raise RecordError(
        f"--annotations: neither {folder} nor a folder in it holds {shown}. "
        "docs/data.md tells where each data set's annotations are found"
    )


def _lines(file: pathlib.Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    with _open(file) as text:
        lines = [line.strip() for line in text]
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def _open(file: pathlib.Path, newline: str | None = None):
    # "replace", because a wrong character matters only if it is in a name, and then
    # shows up as a missing video.
    return open(file, encoding="utf-8-sig", errors="replace", newline=newline)


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem
