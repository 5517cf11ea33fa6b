"""Counts what becomes of damaged and hostile files of weights, of each layout.

    python benchmarks/mutated_weights.py [--files=2000] [--workers=1] [LAYOUT ...]

Writes a small model in each layout, changes bytes, numbers and JSON values of its files
(`tests/helpers/mutations.py`; the same ones for the same seed), and loads it as
`load_pretrained` does. A file counts once:

    refused       with a PretrainedError or CheckpointError that names it
    right         loaded, and all values and settings equal those before the damage
    unnoticed     loaded with other values, which this layout cannot notice: it has no
                  checksums, or the mutation has renewed them
    wrong         loaded with other values, although the layout has checksums
    exception     any other error, or the process died
    limits        more than 20 s, or more than 2 GB

The last three must be 0.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.outcomes import SECONDS, Table, judged  # noqa: E402
from tests.helpers import mutations  # noqa: E402

OUTCOMES = "refused right unnoticed wrong exception limits".split()


class Job(NamedTuple):
    """One damaged file."""

    layout: str
    seed: int


@functools.cache
def damaged(layout: str, folder: str) -> mutations.Damaged:
    """Returns the undamaged model of a layout, in a folder of this process."""
    mutations.remember_shapes()
    return mutations.Damaged(layout, pathlib.Path(tempfile.mkdtemp(dir=folder)))


def judge(job: Job, *, folder: str) -> tuple[str, str]:
    """Loads a damaged file; returns its outcome and the reason."""
    outcome = damaged(job.layout, folder).outcome(job.seed)
    kind = outcome.kind
    if kind == "wrong" and not mutations.LAYOUTS[job.layout].has_checksums:
        kind = "unnoticed"
    return "limits" if outcome.seconds > SECONDS else kind, outcome.reason


def main() -> None:
    """Prints a table, and the files that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layouts", nargs="*", help="default all")
    parser.add_argument("--files", type=int, default=2000, help="of each layout")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    layouts = args.layouts or list(mutations.LAYOUTS)
    seeds = range(args.seed, args.seed + args.files)
    jobs = [Job(layout, seed) for layout in layouts for seed in seeds]
    table = Table("layout", OUTCOMES, forbidden=3)
    with tempfile.TemporaryDirectory(prefix="mutated_weights_") as folder:
        for job, outcome, reason in judged(
            functools.partial(judge, folder=folder),
            jobs,
            num_workers=args.workers,
            timeout=6 * SECONDS,  # which the first files need, and the undamaged model
        ):
            table.add(job.layout, outcome, f"{job} {reason}")
    table.finish()


if __name__ == "__main__":
    main()
