"""The account of videos that could not be read: never silent, never too many."""

import json
import logging
import pathlib
from collections.abc import Iterable

from videomae_jax.data.records import Record

log = logging.getLogger(__name__)

# The share of bad videos is judged against at least so many, or the whole data set if
# it is smaller: a few bad ones at the start of a large data set say nothing yet.
JUDGED_AGAINST = 1000


class TooManyBadVideosError(RuntimeError):
    """More videos than allowed could not be read; the message lists them."""


class BadVideos:
    """Writes each bad video once, with its reason, and stops the run at too many.

    Attributes:
        reasons: the reason for each bad record's id.
    """

    def __init__(self, path: pathlib.Path, num_records: int, max_fraction: float):
        """Continues the account in `path`, a JSONL file, if it is there.

        Args:
            path: the file, with one object `{"id", "path", "reason"}` a line.
            num_records: size of the data set.
            max_fraction: the share of bad videos from which on the run stops.
        """
        self._path, self._num_records = path, num_records
        self._max_fraction = max_fraction
        self.reasons: dict[str, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                # A run killed while writing leaves half a line: it is found again.
                if line.endswith("}"):
                    row = json.loads(line)
                    self.reasons[row["id"]] = row["reason"]

    def add(self, bad: Iterable[tuple[Record, str]], videos_seen: int) -> None:
        """Takes note of bad videos.

        Args:
            bad: records and reasons; those already known are ignored.
            videos_seen: how many videos the run has drawn so far.

        Raises:
            TooManyBadVideosError: if the bad ones are more than the allowed share of
                the videos seen.
        """
        new = [(record, reason) for record, reason in bad]
        new = [pair for pair in dict(new).items() if pair[0].id not in self.reasons]
        if not new:
            return
        with self._path.open("a") as file:
            for record, reason in new:
                self.reasons[record.id] = reason
                row = {"id": record.id, "path": record.path, "reason": reason}
                file.write(json.dumps(row) + "\n")
                log.warning(
                    "bad video %d, replaced by another: %s", len(self.reasons), reason
                )
        judged = min(self._num_records, max(videos_seen, JUDGED_AGAINST))
        if len(self.reasons) > self._max_fraction * judged:
            shown = list(self.reasons.values())[-10:]
            raise TooManyBadVideosError(
                f"{len(self.reasons)} of {judged} videos could not be read, more than "
                f"config.data.max_bad_fraction = {self._max_fraction:g} allows. "
                f"All are in {self._path}; the last ones:\n"
                + "\n".join(f"  {reason}" for reason in shown)
                + "\nMend or remove them, or raise config.data.max_bad_fraction."
            )
