"""Describes the lists of a fine-tuning, and finds what is probably wrong with them.

Everything follows from the records: no video is opened, and of a video that two lists
name by different paths nothing is known.
"""

import collections
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from videomae_jax.data import labels
from videomae_jax.models.problem import Problem
from videomae_jax.video.record import Record

# How many names a line lists.
_SHOWN = 5
# A standard error of accuracy, in percentage points, from which it is worth telling.
_LARGE_ERROR = 3.0

Lists = Mapping[str, Sequence[Record]]


def describe(lists: Lists, names: Sequence[str], problem: Problem) -> list[str]:
    """Returns lines about the size of the lists and of their classes or values.

    Args:
        lists: the records of "training", "validation" and "test"; lists that a run does
            not have are empty or absent.
        names: of the classes or values, by logit.
        problem: what the logits mean.
    """
    sizes = [f"{split}={len(records)}" for split, records in lists.items() if records]
    lines = [f"videos: {' '.join(sizes)}"]
    training = lists["training"]
    if problem.is_regression:
        values = np.array([record.values for record in training])
        for name, column in zip(names, values.T, strict=True):
            lines.append(
                f"values of {name}: {column.min():.4g} to {column.max():.4g}, "
                f"mean={column.mean():.4g} std={column.std():.4g}"
            )
        return lines
    for head, classes, counts in _by_head(training, names, problem):
        order = np.argsort(counts, kind="stable")
        fewest, most = order[0], order[-1]
        lines.append(
            f"{head or 'classes'}: {len(classes)}; training videos of a class: "
            f"{counts[fewest]} ({classes[fewest]}) to {counts[most]} ({classes[most]})"
        )
    return lines


def find_problems(lists: Lists, names: Sequence[str], problem: Problem) -> list[str]:
    """Returns lines about what makes training or test doubtful; see `describe`."""
    return [
        *_absent_classes(lists, names, problem),
        *_contradicting_folders(lists, names, problem),
        *_shared_videos(lists),
        *_small_tests(lists, names, problem),
    ]


def _by_head(
    records: Sequence[Record], names: Sequence[str], problem: Problem
) -> Iterator[tuple[str, Sequence[str], np.ndarray]]:
    """Yields each head's name, "" for the only one, its classes, and their videos."""
    for index, (head, classes) in enumerate(problem.split(names).items()):
        own = labels.of_head(records, index) if problem.heads else records
        yield head, classes, labels.counts(own, len(classes))


def _absent_classes(
    lists: Lists, names: Sequence[str], problem: Problem
) -> Iterator[str]:
    if problem.is_regression:
        return
    for split, records in lists.items():
        if not records:
            continue
        for head, classes, counts in _by_head(records, names, problem):
            absent = [classes[i] for i in np.flatnonzero(counts == 0).tolist()]
            # Held-out sets of many classes lack some; only training must not.
            if absent and (split == "training" or len(absent) > len(classes) // 2):
                kind = f"{head} classes" if head else "classes"
                yield (
                    f"{len(absent)} of {len(classes)} {kind} have no {split} video: "
                    f"{_some(absent)}"
                )


def _contradicting_folders(
    lists: Lists, names: Sequence[str], problem: Problem
) -> Iterator[str]:
    """Yields a line if videos are in folders with the name of another class."""
    if problem.is_regression:
        return
    sizes = (size for _, size in problem.heads)
    offsets = list(itertools.accumulate(sizes, initial=0))
    words = [_word(name) for name in names]
    known, pairs, example = set(words), collections.Counter(), ""
    # A video that several lists name is counted once.
    videos = {
        (x.path, x.id, x.labels): x for records in lists.values() for x in records
    }
    for record in videos.values():
        path = record.id if record.is_stored else record.path
        folder = os.path.basename(os.path.dirname(path))
        if _word(folder) not in known:
            continue
        heads = offsets if problem.heads else [0] * len(record.labels)
        own = [o + label for o, label in zip(heads, record.labels, strict=False)]
        if own and _word(folder) not in {words[index] for index in own}:
            example = example or record.id
            pairs[folder, " ".join(names[index] for index in own)] += 1
    if pairs:
        shown = [
            f"{count} in folder {folder!r} have the label of {name!r}"
            for (folder, name), count in pairs.most_common(_SHOWN)
        ]
        yield (
            f"labels contradict folders, such as {example}: {'; '.join(shown)}. Check "
            "the labels of the lists and the order of config.data.labels"
        )


@functools.cache
def _word(name: str) -> str:
    """Returns a name as it compares: jump_rope, "Jump Rope" and jumprope are one."""
    return "".join(character for character in name.lower() if character.isalnum())


def _shared_videos(lists: Lists) -> Iterator[str]:
    """Yields a line for each two lists with the same frames of the same videos.

    Validation and test are often the same list, so only others count.
    """
    training = _ranges(lists["training"])
    found = {
        split: [record.id for record in records if _overlaps(record, training)]
        for split, records in lists.items()
        if split != "training"
    }
    for split, shared in found.items():
        if shared:
            yield (
                f"{len(shared)} of {len(lists[split])} {split} videos are training "
                f"videos, too: {_some(shared)}. They do not show how well new videos "
                "are recognized"
            )


def _key(record: Record) -> tuple[str, str]:
    # Each split has shards of its own: only the name tells that a video is the same.
    return ("name", record.id) if record.is_stored else ("path", record.path)


def _ranges(records: Iterable[Record]) -> dict[tuple, list[tuple[str, float, float]]]:
    """Returns what occurs of each video: unit, first and end."""
    ranges = collections.defaultdict(list)
    for record in records:
        ranges[_key(record)].append(_range(record))
    return ranges


def _range(record: Record) -> tuple[str, float, float]:
    if record.time_range is not None:
        return "seconds", *record.time_range
    if record.frame_range is None:
        return "all", 0, math.inf
    first, count = record.frame_range
    return "frames", first, math.inf if count < 0 else first + count


def _overlaps(record: Record, ranges: Mapping) -> bool:
    unit, first, end = _range(record)
    return any(
        first < other_end and other < end
        for other_unit, other, other_end in ranges.get(_key(record), ())
        if unit == other_unit or "all" in (unit, other_unit)
    )


def _small_tests(lists: Lists, names: Sequence[str], problem: Problem) -> Iterator[str]:
    """Yields a line for each held-out list whose metrics are mostly chance."""
    for split, records in lists.items():
        n = len(records)
        if split == "training" or not records:
            continue
        if problem.is_regression:
            # Of Spearman's correlation, if there is none.
            if n < 30:
                error = 1 / math.sqrt(max(n - 1, 1))
                yield (
                    f"{n} {split} videos are few: a rank correlation up to "
                    f"{2 * error:.2f} may be chance"
                )
            continue
        # Of the share of n independent videos that is correct; largest at 50 %.
        error = 100 * math.sqrt(0.25 / n)
        if error > _LARGE_ERROR:
            yield (
                f"{n} {split} videos are few: the standard error of an accuracy is up "
                f"to {error:.1f} points; differences below {2 * error:.0f} points "
                "may be chance"
            )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
