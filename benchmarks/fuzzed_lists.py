"""Counts what becomes of damaged lists: refused, or loaded.

    python benchmarks/fuzzed_lists.py [--files=3000]

Damages lists of every form (plain, headers, CSV, JSON, JSON lines, annotations of data
sets) by bits, bytes, lines, columns and very long runs, and loads each as every kind of
task would, and lists of one very long line. A list counts once:

    refused     with a RecordError
    loaded      it is a list
    exception   anything else, or the process died
    limits      more than 20 s, or more than 2 GB

The last two must be 0.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.outcomes import Table, judged  # noqa: E402
from videomae_jax.data import sources  # noqa: E402
from videomae_jax.errors import RecordError  # noqa: E402
from videomae_jax.video.record import LabelKind  # noqa: E402

LISTS = (
    "a/1.mp4 0\nb/2.mp4 1\n# comment\n\nc/3.avi 2\n",
    "\"juggling balls/b 2.mp4\" 1\n'it''s.mp4' 2\n",
    "a.mp4 run fast\nb.mp4 walk\n",
    "a.mp4\t3\nb b.mp4\t4\n",
    "a.mp4 2.5 4.0 3\nb.mp4 1:02.5 2:00 1\n",
    "frames/ 1 20 3\nother/ 5 7 1\n",
    'path,label\na b.mp4,run\n"c,d.mp4",walk\n',
    "path,start,total,label\na.mp4,0,16,1\nb.mp4,5,-1,2\n",
    "file;verb;noun\na.mp4;1;2\nb.mp4;3;4\n",
    "video_path\tstart_seconds\tend_seconds\tlabel\na.mp4\t1.5\t2.5\t3\n",
    '[{"path": "a.mp4", "label": 3}, {"path": "b.mp4", "label": [1, 2]}]\n',
    '{"path": "a.mp4", "label": "run"}\n{"path": "b.mp4", "label": "walk"}\n',
    '{"a.mp4": 3, "b.mp4": {"label": 4, "start_frame": 1, "end_frame": 9}}\n',
    "label,youtube_id,time_start,time_end,split\nrun,abc,1,11,train\n",
    '{"database": {"abc": {"subset": "training", "annotations": []}}}\n',
)
RUNS = (
    " 1", "\t", " ", ",", ";", '"', "'", " #", "\n", "[", "{", '{"a":', "0", "9", ":",
    "1:", "a.mp4 ", ".", "-", "\\", "\0", "é", "\ud800", ",a", "[1,", "youtube_id ",
    '"something" ', "path ", "1e9 ", "a.mp4;", "''", '""', "(", "=", " \t ",
)  # fmt: skip
LONG = (
    "a.mp4" + " 1" * 100_000,
    "a.mp4 x" + "," * 100_000 + " y",
    "a.mp4\tb" + " " * 100_000 + "c",
    'a.mp4 "' + " #" * 100_000,
    "path," + ",".join(map(str, range(100_000))),
    'path,label\n"a.mp4",1' + " " * 100_000 + "2",
    "path,label\na.mp4," + "9" * 100_000,
    "a.mp4 1" + ":1" * 100_000 + " 5.5 3",
    "a.mp4 " + "9" * 5000 + ":1 5.5 3",
    "[\n" + "\n" * 100_000 + '{"x": 1}]',
    '{"a' + "something" * 20_000,
    "youtube_id " * 20_000,
    '{"path": "a.mp4", "label": ' + "[" * 100_000,
    '{"path": "a.mp4", "label": ' + "1" * 5000 + "}",
)
KINDS = tuple(LabelKind)


def damaged(seed: int) -> bytes:
    """Returns a damaged list."""
    rng = np.random.default_rng(seed)
    text = LISTS[seed % len(LISTS)]
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(text) + 1))
        match int(rng.integers(6)):
            case 0:  # a run, most often short
                run = RUNS[int(rng.integers(len(RUNS)))]
                count = int(rng.choice([1, 3, 100, 5000, 100_000]))
                text = text[:place] + run * count + text[place:]
            case 1:
                text = text[:place]
            case 2:
                end = place + int(rng.integers(1, 9))
                text = text[:place] + text[end:]
            case 3:
                lines = text.split("\n")
                rng.shuffle(lines)
                text = "\n".join(lines)
            case 4:
                other = LISTS[int(rng.integers(len(LISTS)))]
                text = text[:place] + other + text[place:]
            case 5:
                text = text.replace(text[place : place + 1] or " ", " , ", 3)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(int(rng.choice([0, 0, 1, 5]))):
        if data:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def load(case: int | str) -> tuple[str, str]:
    """Loads a list, damaged if `case` is a seed; returns outcome and empty reason."""
    content = case.encode() if isinstance(case, str) else damaged(case)
    outcome = "refused"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "list.txt")
        path.write_bytes(content)
        for kind in KINDS:
            try:
                sources.load(str(path), label_kind=kind)
                outcome = "loaded"
            except RecordError as error:
                str(error)
    return outcome, ""


def main() -> None:
    """Prints the counts, and the lists that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="of the first list")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    cases = [*LONG, *range(args.seed, args.seed + args.files)]
    table = Table("lists", ["refused", "loaded", "exception", "limits"], forbidden=2)
    for case, outcome, reason in judged(load, cases, num_workers=args.workers):
        kind = "long lines" if isinstance(case, str) else "damaged"
        table.add(kind, outcome, f"{str(case)[:40]} {reason}")
    table.finish()


if __name__ == "__main__":
    main()
