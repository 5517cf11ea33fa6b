"""Reads the annotations of public data sets: videos, splits, and classes.

Each function takes the files as their publishers distribute them.
"""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import IO, Any

from videomae_jax.errors import RecordError

# Names that publishers and users give to the files or folders of a split.
SPLIT_NAMES = {
    "train": ("train",),
    "val": ("val", "validate", "validation", "valid"),
    "test": ("test",),
}
_KINETICS_PREFIXES = ("", "kinetics_") + tuple(
    f"{start}{count}_"
    for count in (400, 600, 700)
    for start in ("kinetics-", "kinetics", "k")
)
# CVDF ships intact copies of some broken videos in a folder of its own.
_KINETICS_REPLACEMENTS = ("replacement", "replacement_for_corrupted_k400")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One annotated video."""

    name: str  # of the file, without its extension, which often differs between copies
    label: int | None  # None if it is not published
    # Names of the folders to prefer if several files have this name, best first.
    folders: tuple[str, ...] = ()
    times: tuple[float, float] | None = None  # start and end of a part, in seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Annotations:
    """An annotated data set."""

    classes: list[str]  # names, by label
    splits: dict[str, list[Entry]]  # the published ones of train, val and test
    unused: frozenset[str] = frozenset()  # names of videos that are in no split


def kinetics(folder: pathlib.Path) -> Annotations:
    """Reads train.csv and, if they exist, val.csv (or validate.csv) and test.csv.

    Labels follow the alphabetical order of the class names. For Kinetics-400 this is
    the usual order, from 0 abseiling to 399 zumba.
    """
    rows = {}
    for split, names in SPLIT_NAMES.items():
        patterns = [f"{prefix}{n}.csv" for n in names for prefix in _KINETICS_PREFIXES]
        file = (_find if split == "train" else _find_optional)(folder, patterns)
        if file:
            rows[split] = _read_kinetics(file)
    classes = sorted({label for split in rows.values() for _, label in split} - {None})
    label_of = {name: label for label, name in enumerate(classes)} | {None: None}
    splits = {}
    for split, videos in rows.items():
        folders = _KINETICS_REPLACEMENTS + SPLIT_NAMES[split]
        splits[split] = [
            Entry(name, label_of[label], folders) for name, label in videos
        ]
    return Annotations(classes, splits)


def _read_kinetics(file: pathlib.Path) -> list[tuple[str, str | None]]:
    required = ("youtube_id", "time_start", "time_end")
    with _open(file, newline="") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if not set(required) <= set(columns):
            raise RecordError(
                f"{file}: the first line must name the columns label, "
                f"{', '.join(required)}, as in the official files, but it names "
                f"{', '.join(columns) or 'none'}"
            )
        videos = []
        for row in reader:
            try:
                start, end = (int(float(row[name])) for name in required[1:])
            except (TypeError, ValueError):
                raise RecordError(
                    f"{file}:{reader.line_num}: time_start and time_end must be "
                    f"numbers of seconds, got {row['time_start']!r} and "
                    f"{row['time_end']!r}"
                ) from None
            name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            videos.append((name, row.get("label") or None))
    return videos


def something_something_v2(folder: pathlib.Path) -> Annotations:
    """Reads the JSON files of either release.

    The class is the template without its brackets, looked up in labels.json. The newer
    release publishes the classes of the test videos in test-answers.csv.
    """

    def patterns(name: str) -> list[str]:
        return [f"something-something-v2-{name}", name]

    label_file = _find(folder, patterns("labels.json"))
    labels = _read_json(label_file, dict)
    try:
        labels = {name: int(label) for name, label in labels.items()}
    except (TypeError, ValueError):
        labels = {}
    if not labels or sorted(labels.values()) != list(range(len(labels))):
        raise RecordError(f"{label_file}: labels must be 0, 1, 2, ..., each used once")

    def label_of(text: str, file: pathlib.Path, name: str) -> int:
        text = text.replace("[", "").replace("]", "")
        if text not in labels:
            raise RecordError(
                f"{file}: video {name} has class {text!r}, which is not in "
                f"{label_file}: are both files from the same release?"
            )
        return labels[text]

    splits = {}
    for split, name in (("train", "train.json"), ("val", "validation.json")):
        file = _find(folder, patterns(name))
        splits[split] = [
            Entry(video, label_of(template, file, video))
            for video, template in _read_videos(file, "id", "template")
        ]
    test = _find_optional(folder, patterns("test.json"))
    answers = _find_optional(folder, patterns("test-answers.csv"))
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
    return Annotations(sorted(labels, key=labels.__getitem__), splits)


def _read_videos(file: pathlib.Path, *fields: str) -> list[tuple[str, ...]]:
    videos = _read_json(file, list)
    try:
        return [tuple(str(video[field]) for field in fields) for video in videos]
    except (KeyError, TypeError):
        raise RecordError(
            f"{file}: expected a list of objects, each with {' and '.join(fields)}"
        ) from None


def _read_json(file: pathlib.Path, kind: type) -> Any:
    with _open(file) as text:
        try:
            content = json.load(text)
        except json.JSONDecodeError as error:
            raise RecordError(
                f"{file}: not a complete JSON file ({error}). Was it cut off?"
            ) from None
    if not isinstance(content, kind):
        raise RecordError(
            f"{file}: expected a JSON {kind.__name__}, got "
            f"{type(content).__name__}. Is it the right file?"
        )
    return content


def ucf101(folder: pathlib.Path, split: int) -> Annotations:
    """Reads classInd.txt, trainlist0N.txt and testlist0N.txt; the test videos are val.

    Labels are the numbers in classInd.txt minus one.
    """
    index = _find(folder, ["classInd.txt"])
    classes = []
    for line_number, line in _lines(index):
        number, _, name = line.partition(" ")
        if number != str(len(classes) + 1) or not name:
            raise RecordError(
                f"{index}:{line_number}: expected `{len(classes) + 1} ClassName`, got "
                f"{line!r}"
            )
        classes.append(name)
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for key, word in (("train", "train"), ("val", "test")):
        file = _find(folder, [f"{word}list0{split}.txt"])
        splits[key] = []
        for line_number, line in _lines(file):
            path, _, number = line.partition(" ")
            class_name, _, name = path.rpartition("/")
            label = label_of.get(class_name)
            if label is None or number not in ("", str(label + 1)):
                raise RecordError(
                    f"{file}:{line_number}: expected `Class/video.avi`, followed for "
                    f"training videos by the number of the class in {index.name}, got "
                    f"{line!r}"
                )
            splits[key].append(Entry(_stem(name), label, (class_name,)))
    return Annotations(classes, splits)


def hmdb51(folder: pathlib.Path, split: int) -> Annotations:
    """Reads CLASS_test_splitN.txt of all classes; the test videos are val.

    Labels follow the alphabetical order of the class names.
    """
    ending = f"_test_split{split}.txt"
    folder = _find(folder, [f"*{ending}"]).parent
    files = {f.name.removesuffix(ending): f for f in folder.glob(f"*{ending}")}
    classes = sorted(files)
    splits = {"train": [], "val": []}
    unused = set()
    for label, class_name in enumerate(classes):
        file = files[class_name]
        for line_number, line in _lines(file):
            match = re.fullmatch(r"(.+\S)\s+([012])", line)
            if not match:
                raise RecordError(
                    f"{file}:{line_number}: expected `video.avi` and 0 (not used), "
                    f"1 (training) or 2 (test), got {line!r}"
                )
            name = _stem(match[1])
            if match[2] == "0":
                unused.add(name)
            else:
                key = "train" if match[2] == "1" else "val"
                splits[key].append(Entry(name, label, (class_name,)))
    return Annotations(classes, splits, frozenset(unused))


def activitynet(folder: pathlib.Path) -> Annotations:
    """Reads activity_net.v1-3.min.json, or that of version 1.2: a row per segment.

    Labels follow the alphabetical order of the class names. The videos of the test
    split have no annotations, and are listed whole.
    """
    file = _find(folder, ["activity_net*.json", "*activitynet*.json"])
    keys = {"training": "train", "validation": "val", "testing": "test"}
    found: list[tuple[str, str, str | None, tuple[float, float] | None]] = []
    try:
        for name, video in _read_json(file, dict)["database"].items():
            split = keys[video["subset"]]
            if split == "test":
                found.append((split, name, None, None))
            for part in video["annotations"]:
                start, end = map(float, part["segment"])
                if start < end:  # some segments are empty
                    found.append((split, name, str(part["label"]), (start, end)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"{file}: expected ActivityNet's form, `database` with a subset and "
            f"annotations of each video, but {error!r}"
        ) from None
    classes = sorted({label for _, _, label, _ in found if label is not None})
    label_of = {name: number for number, name in enumerate(classes)}
    splits: dict[str, list[Entry]] = {"train": [], "val": []}
    for split, name, label, times in found:
        number = None if label is None else label_of[label]
        # Downloaders write v_ before the id.
        own = splits.setdefault(split, [])
        own.append(Entry(f"v_{name}", number, times=times))
    return Annotations(classes, splits)


def diving48(folder: pathlib.Path) -> Annotations:
    """Reads Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json.

    The test videos are val. Videos are cut already, so the frames that the files name
    are all of each.
    """
    vocabulary = _read_json(_find(folder, ["Diving48_vocab.json"]), list)
    classes = [" ".join(x) if isinstance(x, list) else str(x) for x in vocabulary]
    splits = {}
    for key, word in (("train", "train"), ("val", "test")):
        file = _find(folder, [f"Diving48_V2_{word}.json", f"Diving48_{word}.json"])
        splits[key] = []
        for name, number in _read_videos(file, "vid_name", "label"):
            if not number.isdecimal() or int(number) >= len(classes):
                raise RecordError(
                    f"{file}: video {name} has label {number}, but Diving48_vocab.json "
                    f"names {len(classes)} classes: are both files of one release?"
                )
            splits[key].append(Entry(name, int(number)))
    return Annotations(classes, splits)


def _find(folder: pathlib.Path, patterns: Sequence[str]) -> pathlib.Path:
    """Finds a file by its possible names, in the folder or one level below."""
    file = _find_optional(folder, patterns)
    if file:
        return file
    shown = ", ".join(patterns[:3]) + ("..." if len(patterns) > 3 else "")
    raise RecordError(
        f"--annotations: {shown} not found in {folder} or one folder below. "
        "docs/data.md lists where to download the annotations of each data set"
    )


def _find_optional(
    folder: pathlib.Path, patterns: Sequence[str]
) -> pathlib.Path | None:
    """Finds a file as `_find` does; returns None if it does not exist."""
    if not folder.is_dir():
        raise RecordError(
            f"--annotations: {str(folder)!r} is a file, expected its folder"
            if folder.exists()
            else f"--annotations: folder {str(folder)!r} not found"
        )
    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    for candidates in ([folder], subfolders):
        matches = {}
        for candidate in candidates:
            for pattern in patterns:
                for file in sorted(candidate.glob(pattern)):
                    matches.setdefault(candidate, file)
        if len(matches) > 1:
            raise RecordError(
                "several folders contain such annotations. Pass one of them as "
                f"--annotations: {' '.join(str(path) for path in sorted(matches))}"
            )
        if matches:
            return next(iter(matches.values()))
    return None


def _lines(file: pathlib.Path) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, with their numbers."""
    with _open(file) as text:
        lines = [line.strip() for line in text]
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def _open(file: pathlib.Path, newline: str | None = None) -> IO[str]:
    # "replace": a wrong character matters only in a name, where it shows up as a
    # missing video.
    return open(file, encoding="utf-8-sig", errors="replace", newline=newline)


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem
