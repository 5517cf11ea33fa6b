"""Trains for hours with worker processes, kills again and again, records memory.

    python benchmarks/soak.py --hours=2 --kill-every=180 --out=soak

Every --kill-every seconds SIGKILL hits a pretraining with two worker processes: three
times one of its workers, which the run replaces, then the run itself, which is started
again. Every ten seconds the resident memory (RSS and, of it, what is not shared) of
each process goes to OUT/memory.jsonl, and each start, kill and end to OUT/events.jsonl.

At the end the script prints

- how many starts and kills there were, how many restarts failed or stood still for
  longer than two minutes, and which processes outlived a kill by a minute;
- for the run and for its workers: the largest memory in the first and in the last
  quarter of the soak, and the growth per hour: a straight line through the memory of
  each process from its third minute on, weighted with the time it covers;
- whether all rows of metrics.jsonl equal those of a second run of the first
  --compare-steps steps, which nothing disturbs, and whether rows that were written
  again after a kill were the same as before it.

Linux only.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import decode, kills  # noqa: E402

SAMPLE_SECONDS = 10
STANDSTILL_SECONDS = 120
WARM_UP_SECONDS = 120
MB = 10**6
STEPS = 10**6  # more than are ever done


class Soak:
    """The run, what is known of it, and its records."""

    def __init__(self, out: pathlib.Path, command: list[str], rng: random.Random):
        """Names the files and the command."""
        self.workdir, self._out = out / "run", out
        self._command, self._rng = command, rng
        self._start = time.monotonic()
        self.process: subprocess.Popen | None = None
        self.samples: list[dict] = []
        self.counts: collections.Counter = collections.Counter()
        self.rows: dict[int, dict] = {}  # of metrics.jsonl, by step
        self._last_row = 0.0

    def seconds(self) -> float:
        """Returns the time since the start."""
        return time.monotonic() - self._start

    def start(self) -> None:
        """Starts the run, or starts it again."""
        self.counts["starts"] += 1
        with (self._out / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._command, f"--workdir={self.workdir}"],
                cwd=kills.ROOT,
                stdout=log,
                stderr=log,
            )
        self._last_row = self.seconds()
        self._event("start", self.process.pid)

    def kill(self) -> None:
        """Kills the run, or one of its workers; starts the run again if it ended."""
        pids = kills.workers(self.process.pid)
        is_worker = bool(pids) and self.counts["kills"] % 4 < 3
        victim = self._rng.choice(pids) if is_worker else self.process.pid
        self.counts["kills"] += 1
        self.counts["kills of workers"] += is_worker
        self._event("kill of a worker" if is_worker else "kill", victim)
        os.kill(victim, kills.signal.SIGKILL)
        if is_worker:
            return
        self.process.wait()
        deadline = time.monotonic() + kills.PATIENCE
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            if time.monotonic() > deadline:
                self.counts["orphans"] += 1
                self._event("orphans", self.process.pid)
                break
            time.sleep(0.1)
        self.read_rows()
        self.start()

    def sample(self) -> None:
        """Records the memory of all processes; starts again a run that has ended."""
        if self.process.poll() is not None:
            self.counts["ends"] += 1
            self._event(f"ended with {self.process.returncode}", self.process.pid)
            self.start()
        pids = [self.process.pid, *kills.workers(self.process.pid)]
        with (self._out / "memory.jsonl").open("a") as file:
            for pid in pids:
                role = "run" if pid == self.process.pid else "worker"
                try:
                    rss, own = resident(pid)
                except (OSError, KeyError):
                    continue  # it has ended
                row = {"s": round(self.seconds()), "pid": pid, "role": role}
                self.samples.append(row | {"rss": rss, "own": own})
                file.write(json.dumps(self.samples[-1]) + "\n")
        before = len(self.rows)
        self.read_rows()
        if len(self.rows) > before:
            self._last_row = self.seconds()
        elif self.seconds() - self._last_row > STANDSTILL_SECONDS:
            self.counts["standstills"] += 1
            self._event("no progress", self.process.pid)
            self._last_row = self.seconds()

    def read_rows(self) -> None:
        """Compares the rows of metrics.jsonl with those that were there before."""
        file = self.workdir / "metrics.jsonl"
        for row in kills.metrics(file) if file.exists() else []:
            known = self.rows.setdefault(row["step"], row)
            self.counts["rows that changed"] += known != row

    def _event(self, what: str, pid: int) -> None:
        with (self._out / "events.jsonl").open("a") as file:
            row = {"s": round(self.seconds()), "event": what, "pid": pid}
            file.write(json.dumps(row | {"rows": len(self.rows)}) + "\n")


def resident(pid: int) -> tuple[int, int]:
    """Returns the bytes of a process in memory, and those that it does not share."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    rss, own = (int(fields[x].split()[0]) * 1024 for x in ("VmRSS", "RssAnon"))
    return rss, own


def undisturbed_rows(
    out: pathlib.Path, command: list[str], steps: int
) -> dict[int, dict]:
    """Returns the rows of the first steps of a run that nothing disturbs."""
    workdir = out / "undisturbed"
    with (out / "undisturbed.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, f"--workdir={workdir}"],
            cwd=kills.ROOT,
            stdout=log,
            stderr=log,
        )
    rows: dict[int, dict] = {}
    while process.poll() is None and max(rows, default=0) < steps:
        time.sleep(1)
        if (workdir / "metrics.jsonl").exists():
            found = kills.metrics(workdir / "metrics.jsonl")
            rows = {row["step"]: row for row in found}
    process.kill()
    process.wait()
    return {step: row for step, row in rows.items() if step <= steps}


def growth(samples: list[dict], name: str) -> float:
    """Returns the growth of memory in bytes per hour, over all processes."""
    lives = collections.defaultdict(list)
    for row in samples:
        lives[row["pid"]].append((row["s"], row[name]))
    slopes, weights = [], []
    for life in lives.values():
        times, values = np.array(life, float).T
        is_warm = times >= times[0] + WARM_UP_SECONDS
        if is_warm.sum() > 2:
            times, values = times[is_warm], values[is_warm]
            slopes.append(np.polyfit(times, values, 1)[0])
            weights.append(times[-1] - times[0])
    return 3600 * float(np.average(slopes, weights=weights)) if slopes else np.nan


def print_memory(samples: list[dict]) -> None:
    """Prints the table of the memory."""
    end = max(row["s"] for row in samples)
    print("| MB | largest, first quarter | last quarter | growth per hour |")
    print("|---|---|---|---|")
    for role in ("run", "worker"):
        for name, text in (("rss", "resident"), ("own", "not shared")):
            rows = [row for row in samples if row["role"] == role]
            early = [row[name] for row in rows if row["s"] <= end / 4]
            late = [row[name] for row in rows if row["s"] >= 3 * end / 4]
            print(
                f"| {role}, {text} | {max(early, default=0) / MB:.0f} | "
                f"{max(late, default=0) / MB:.0f} | "
                f"{growth(rows, name) / MB:+.1f} |"
            )


def main():
    """Soaks, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--kill-every", type=float, default=180, metavar="SECONDS")
    parser.add_argument("--compare-steps", type=int, default=600)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    decode.print_hardware()
    out = args.out.resolve()
    if out.exists():
        parser.error(f"{out} exists: give another folder, or remove it")
    out.mkdir(parents=True)
    videos = out / "videos"
    videos.mkdir()
    kills.write_folder(videos, 12)
    os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "1"
    command = [
        "main.py",
        *kills.PRETRAINING,
        "--config.data.num_workers=2",
        "--config.log_every=10",
        "--config.checkpoint.every=50",
        f"--config.steps={STEPS}",
        f"--config.data.train={videos}",
    ]
    soak = Soak(out, command, random.Random(args.seed))
    soak.start()
    next_kill, end = args.kill_every, 3600 * args.hours
    while soak.seconds() < end:
        time.sleep(SAMPLE_SECONDS)
        soak.sample()
        if next_kill <= soak.seconds() < end:
            soak.kill()
            next_kill += args.kill_every
    soak.process.kill()
    soak.process.wait()
    soak.read_rows()
    steps = min(args.compare_steps, max(soak.rows, default=0))
    expected = undisturbed_rows(out, command, steps)
    different = sum(soak.rows.get(step) != row for step, row in expected.items())
    counts = soak.counts
    print(
        f"{args.hours:g} h, {max(soak.rows, default=0)} steps; {counts['starts']} "
        f"starts, {counts['kills']} kills ({counts['kills of workers']} of workers); "
        f"ended by itself: {counts['ends']}, stood still: {counts['standstills']}, "
        f"workers that outlived a run: {counts['orphans']}\n"
        f"rows of metrics: {len(soak.rows)}, changed after a kill: "
        f"{counts['rows that changed']}; of the first {len(expected)}, "
        f"different from an undisturbed run: {different}\n"
    )
    print_memory(soak.samples)
    shutil.rmtree(out / "undisturbed", ignore_errors=True)


if __name__ == "__main__":
    main()
