"""Records the videos that cannot be read, and stops a run that has too many."""

import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

from videomae_jax.errors import RecordError, TooManyBadVideosError
from videomae_jax.files import JsonLines, is_url
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)

# The fraction of bad videos is taken of at least this many videos, or of the whole data
# set if it is smaller: a few bad ones at the start of a large data set mean little.
MIN_VIDEOS = 1000

# Videos of a list that are looked for before training: enough to tell a wrong folder
# from missing files, few enough for a slow disk.
_LOOKED_FOR = 16


def check_paths(records: Sequence[Record], source: str, root: str) -> None:
    """Checks that some videos of a list exist; if its paths are wrong, none does.

    Only a few are looked for. If some are missing, `BadVideos` decides.

    Args:
        records: of the list. Those in shards, tars or object stores are left out.
        source, root: of the list, as in `sources.load`.

    Raises:
        RecordError: none exists; the message says where the first one is looked for.
    """
    files = [x for x in records if not (x.is_stored or x.feature or is_url(x.path))]
    sample = files[:: -(-len(files) // _LOOKED_FOR) or 1]
    if not sample or any(os.path.exists(x.path) for x in sample):
        return
    first = sample[0]
    start = f"config.data.root={root}" if root else "the folder of the list"
    raise RecordError(
        f"{source}: videos not found: looked for {len(sample)} of {len(records)}, "
        f"first for {first.id!r} at {first.path}. Relative paths start at {start}; "
        "set config.data.root to the folder that they are relative to"
    )


class BadVideos:
    """Writes each bad video once, with its reason, and stops the run at too many.

    Attributes:
        reasons: the reason for each bad video, by record id.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        start_step: int,
        num_records: int,
        max_fraction: float,
        active: bool = True,
        gather: Callable[[list], list[list]] = lambda rows: [rows],
    ):
        """Opens the file, and removes the rows after the step of the checkpoint.

        Args:
            path: the JSON-lines file: id, path and reason of each bad video, and the
                step and row of the batch in which it came first.
            start_step: steps already done.
            num_records: size of the data set.
            max_fraction: the run stops above this fraction of bad videos.
            active: whether to write and warn; true on one of the processes.
            gather: returns the lists of all processes, on every one of them.
        """
        self._file, self._num_records = JsonLines(path), num_records
        self._max_fraction, self._active = max_fraction, active
        self._gather = gather
        self._bad_in_batches: list[dict] = []
        known = self._file.read(start_step)
        self.reasons = {row["id"]: row["reason"] for row in known}
        if active:
            self._file.truncate(start_step)

    def collect(self, step: int, bad: Iterable[tuple[int, Record, str]]) -> None:
        """Keeps the bad videos of a batch (`pipeline.Batch.bad`) until `report`."""
        self._bad_in_batches += [
            dict(step=step, row=row, id=record.id, path=record.path, reason=reason)
            for row, record, reason in bad
        ]

    def report(self, videos_seen: int) -> None:
        """Adds what all processes have collected; every process must call it."""
        rows = itertools.chain(*self._gather(self._bad_in_batches))
        self._bad_in_batches = []
        self.add(rows, videos_seen)

    def add(self, bad: Iterable[dict], videos_seen: int) -> None:
        """Adds bad videos; every process must add the same ones.

        Args:
            bad: rows of the file; videos that it already has are ignored.
            videos_seen: the number of videos that the run has drawn so far.

        Raises:
            TooManyBadVideosError: the fraction of bad videos is above `max_fraction`.
        """
        new = []
        # The order of a run with one process.
        for row in sorted(bad, key=lambda row: (row["step"], row["row"])):
            name, reason = row["id"], row["reason"]
            if name not in self.reasons:
                self.reasons[name] = reason
                new.append(row)
                if self._active:
                    number = len(self.reasons)
                    log.warning("bad video %d, replaced by another: %s", number, reason)
        if not new:
            return
        if self._active:
            self._file.append(new)
        videos = min(self._num_records, max(videos_seen, MIN_VIDEOS))
        if len(self.reasons) > self._max_fraction * videos:
            shown = list(self.reasons.values())[-10:]
            raise TooManyBadVideosError(
                f"{len(self.reasons)} of {videos} videos could not be read, more than "
                f"config.data.max_bad_fraction={self._max_fraction:g} allows. All are "
                f"listed in {self._file.path}; the last ones:\n"
                + "\n".join(f"  {reason}" for reason in shown)
                + "\nRepair or remove these videos and delete their lines from that "
                "file, or raise config.data.max_bad_fraction."
            )
