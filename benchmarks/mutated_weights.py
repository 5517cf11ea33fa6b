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
import collections
import functools
import pathlib
import resource
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.helpers import mutations  # noqa: E402
from videomae_jax.datasets.process_pool import TaskFailure, process_map  # noqa: E402

SECONDS, BYTES = 20, 2e9
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if outcome.seconds > SECONDS or max(peak, children) > BYTES:
        kind = "limits"
    return kind, outcome.reason


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
    counts = {name: collections.Counter() for name in [*layouts, "all"]}
    folder = tempfile.TemporaryDirectory(prefix="mutated_weights_")
    results = process_map(
        functools.partial(judge, folder=folder.name),
        jobs,
        num_workers=args.workers,
        timeout=6 * SECONDS,  # which the first files need, and the undamaged model
    )
    for index, result in results:
        kind, reason = "", ""
        if isinstance(result, TaskFailure):
            kind = "limits" if result.kind == "timeout" else "exception"
            reason = result.reason
        else:
            kind, reason = result
        for name in (jobs[index].layout, "all"):
            counts[name][kind] += 1
        if kind in OUTCOMES[3:]:
            print(f"{kind}: {jobs[index]} {reason[:300]!a}", flush=True)
    folder.cleanup()
    print(f"\n| layout | {' | '.join(OUTCOMES)} |\n{'|---' * (1 + len(OUTCOMES))}|")
    for name, count in counts.items():
        print(f"| {name} | {' | '.join(str(count[x]) for x in OUTCOMES)} |")
    if any(counts["all"][outcome] for outcome in OUTCOMES[3:]):
        sys.exit(1)


if __name__ == "__main__":
    main()
