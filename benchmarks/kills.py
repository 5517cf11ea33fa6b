"""Kills runs and commands at random moments, starts them again, and compares.

    python benchmarks/kills.py --kills=50

Each kill is a SIGKILL, at a random moment between the first sign of work and the end,
of one process: a run that trains, a run that fine-tunes and validates, a test
(config.mode=eval), one process of a run on two hosts (two processes of this machine
that JAX connects), a worker process of a run on one or two hosts, and `prepare`, a
worker process of `prepare` or `features`. The same command is then started again, if it
has not finished, and what it leaves is compared with that of a run that nobody
disturbed: the rows of metrics.jsonl but the speed, the parameters, the predictions,
each bit for bit; of `prepare` and `features` all files, byte for byte, but hidden ones
that end with .part.

Prints a line for each kill, and at the end, for each kind, how many were equal or
different, refused to start again, and hung: processes that had not ended a minute after
the kill, or a restart that took a minute longer than thrice the undisturbed run, as the
machine may be busy with something else by then. The order is a function of --seed; what
a moment hits is not.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import decode  # noqa: E402
from benchmarks.outcomes import Table  # noqa: E402
from tests.helpers.videos import moving_noise, write_folder, write_video  # noqa: E402

PATIENCE = 60  # seconds
SPEED = ("clips_per_second_per_device", "data_wait_fraction", "mfu")
OUTCOMES = ("equal", "different", "refused", "hung")

# A model of milliseconds a step, so that the time goes into what may go wrong.
SMALL = (
    "batch_size=4",
    "data.num_frames=4",
    "data.stride=2",
    "data.image_size=32",
    "data.num_workers=0",
    "model.width=24",
    "model.depth=1",
    "log_every=3",
    "checkpoint.every=4",
)
PRETRAINING = (
    "--config=configs/k400_vits_pretrain.py:debug",
    *(f"--config.{x}" for x in SMALL),
    "--config.mask.ratio=0.75",
    "--config.model.decoder_width=24",
    "--config.picture.every=0",
)
FINETUNING = (
    "--config=configs/k400_vits_finetune.py:debug",
    *(f"--config.{x}" for x in SMALL),
    "--config.data.labels=",
    "--config.data.rand_augment=",
    "--config.init.source=",
    "--config.model.position_size=32",
    "--config.ema.decay=0.9",
    "--config.evaluation.every=5",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to kill."""

    name: str
    command: tuple[str, ...]  # {out} is its folder
    ready: str  # text in its log from which on it may be killed; "": its folder exists
    result: Callable[[pathlib.Path], Mapping[str, Any]]  # of its folder, to compare
    victim: str = "process"  # or "worker"
    processes: int = 1
    start_from: pathlib.Path | None = None  # content of its folder


class Job:
    """The processes of a case at work."""

    def __init__(self, case: Case, out: pathlib.Path):
        """Starts them."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        command = [word.format(out=out) for word in case.command]
        self._case, self._out = case, out
        self._log = out.with_name(f"{out.name}.log").open("w+b")
        self.processes = []
        for i in range(case.processes):
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
            if case.processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(case.processes),
                    "JAX_PROCESS_ID": str(i),
                }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=self._log,
                    stderr=self._log,
                )
            )

    def log(self) -> str:
        """Returns what the processes have written."""
        return os.pread(self._log.fileno(), 10**6, 0).decode(errors="replace")

    def wait_until_ready(self) -> None:
        """Returns as soon as the processes work, or have ended."""
        text = self._case.ready
        while not (text in self.log() if text else self._out.exists()):
            if self.ended():
                break
            time.sleep(0.01)

    def ended(self) -> bool:
        """Returns whether all processes have ended."""
        return all(process.poll() is not None for process in self.processes)

    def wait(self, seconds: float) -> bool:
        """Returns whether all processes end in time."""
        deadline = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.ended()

    def succeeded(self) -> bool:
        """Returns whether all processes have ended with exit code 0."""
        return all(process.poll() == 0 for process in self.processes)

    def kill(self, rng: random.Random) -> bool:
        """Kills one process; returns False if there is none any more."""
        victim = rng.choice(self.processes).pid
        if self._case.victim == "worker":
            pids = workers(victim)
            if not pids:
                return False
            victim = rng.choice(pids)
        if self.ended():
            return False
        os.kill(victim, signal.SIGKILL)
        return True

    def close(self) -> None:
        """Kills what is left."""
        for process in self.processes:
            process.kill()
            process.wait()
        self._log.close()


def workers(pid: int) -> list[int]:
    """Returns the processes that `multiprocessing` has spawned from a process."""
    found = []
    for file in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text().split()
            found += [int(x) for x in children if "spawn_main" in command_line(int(x))]
        except OSError:
            pass  # one has ended
    return sorted(found)


def command_line(pid: int) -> str:
    """Returns the words of a process's command."""
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def metrics(file: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl without the speed."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            pass  # cut off by a kill
    return [{name: row[name] for name in row if name not in SPEED} for row in rows]


def result_of_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns metrics, parameters and predictions of a run."""
    import jax

    from videomae_jax.interop.loading import load_pretrained

    variables = load_pretrained(str(workdir)).variables
    arrays = {
        jax.tree_util.keystr(path): np.asarray(x).tobytes()
        for path, x in jax.tree.leaves_with_path(variables)
    }
    rows = metrics(workdir / "metrics.jsonl")
    return {"metrics.jsonl": rows} | arrays | result_of_test(workdir)


def result_of_test(workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a test, if there was one."""
    return files(workdir / "test")


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of all files of a folder but those that were cut off."""
    paths = (x for x in folder.rglob("*") if x.is_file() and x.suffix != ".part")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def make_cases(base: pathlib.Path) -> list[Case]:
    """Writes the videos, trains the model to be tested, and returns all cases."""
    videos, longer = base / "videos", base / "longer"
    videos.mkdir()
    longer.mkdir()
    write_folder(videos, 12)
    for i in range(12):
        write_video(longer / f"{i}.mp4", moving_noise(100 + i, 120, 160, seed=i))
    labelled = videos / "labelled.txt"
    labelled.write_text("".join(f"{i}.mp4 {i % 3}\n" for i in range(12)))
    pretraining = (
        "main.py",
        *PRETRAINING,
        f"--config.data.train={videos}",
        "--workdir={out}",
    )
    finetuning = (
        "main.py",
        *FINETUNING,
        *(f"--config.data.{x}={labelled}" for x in ("train", "validation", "test")),
        "--workdir={out}",
    )
    compiled, planned = "compiled the train step", "workers: num_workers="
    finetuned = base / "finetuned"
    job = Job(Case("", (*finetuning, "--config.steps=30"), "", files), finetuned)
    job.wait(10 * PATIENCE)
    assert job.succeeded(), job.log()
    job.close()
    testing = (
        *finetuning,
        "--config.mode=eval",
        "--config.evaluation.segments=8",
        "--config.evaluation.crops=3",
    )
    package = ("-m", "videomae_jax")
    prepare = (
        *(*package, "prepare", str(longer), "{out}/data", "--split=train"),
        *("--shard-videos=3", "--preset=veryslow", "--workers=2"),
    )
    features = (
        *(*package, "features", str(longer), f"--model={finetuned}"),
        *("--out={out}", "--hop=1", "--threads=2"),
    )
    steps = "--config.steps=30"
    run = result_of_run
    return [
        Case("training", (*pretraining, steps), compiled, run),
        Case("fine-tuning", (*finetuning, steps), compiled, run),
        Case("test", testing, planned, result_of_test, start_from=finetuned),
        Case(
            "two hosts",
            (*finetuning, steps),
            compiled,
            run,
            processes=2,
        ),
        Case(
            "worker of two hosts",
            (*pretraining, steps, "--config.data.num_workers=1"),
            compiled,
            run,
            victim="worker",
            processes=2,
        ),
        Case(
            "worker of training",
            (*pretraining, steps, "--config.data.num_workers=2"),
            compiled,
            run,
            victim="worker",
        ),
        Case(
            "worker of a test",
            (*testing, "--config.data.num_workers=2"),
            planned,
            result_of_test,
            victim="worker",
            start_from=finetuned,
        ),
        Case("prepare", prepare, "", files),
        Case("worker of prepare", prepare, "", files, victim="worker"),
        Case("features", features, "", files),
    ]


def new_folder(case: Case, out: pathlib.Path) -> pathlib.Path:
    """Makes the folder as it is before the first start."""
    shutil.rmtree(out, ignore_errors=True)
    if case.start_from:
        shutil.copytree(case.start_from, out)
        shutil.rmtree(out / "test")
    return out


@dataclasses.dataclass
class Undisturbed:
    """A case that was left alone."""

    before: float  # seconds until it is ready to be killed
    after: float  # seconds from there to its end
    result: Mapping[str, Any]


def undisturbed(case: Case, out: pathlib.Path) -> Undisturbed:
    """Lets a case work to its end."""
    start = time.monotonic()
    job = Job(case, new_folder(case, out))
    job.wait_until_ready()
    ready = time.monotonic()
    job.wait(10 * PATIENCE)
    end = time.monotonic()
    assert job.succeeded(), job.log()
    job.close()
    return Undisturbed(ready - start, end - ready, case.result(out))


def killed(
    case: Case, out: pathlib.Path, whole: Undisturbed, rng: random.Random
) -> tuple[str, str]:
    """Kills and restarts a case; returns the outcome, and what happened."""
    while True:  # until a kill arrives before the end
        job = Job(case, new_folder(case, out))
        job.wait_until_ready()
        ready = time.monotonic()
        moment = rng.uniform(0, whole.after)
        job.wait(moment)
        if job.kill(rng):
            break
        # The programs are compiled by now.
        job.wait(PATIENCE)
        whole.after = min(whole.after, time.monotonic() - ready)
        job.close()
    story = f"killed after {moment:.2f} of {whole.after:.2f} s"
    children = [pid for process in job.processes for pid in workers(process.pid)]
    survived = case.victim == "worker"
    if not job.wait(PATIENCE + 3 * survived * whole.after):
        story += f"; still there: {job.log()[-2000:]}"
        job.close()
        return "hung", story
    finished = job.succeeded()
    story += "; finished" if finished else f"; {last_line(job)}"
    job.close()
    deadline = time.monotonic() + PATIENCE
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in children):
        if time.monotonic() > deadline:
            return "hung", f"{story}; its workers {children} are still there"
        time.sleep(0.02)
    if not finished:
        job = Job(case, out)
        in_time = job.wait(PATIENCE + 3 * (whole.before + whole.after))
        log, succeeded = job.log(), job.succeeded()
        job.close()
        if not in_time:
            return "hung", f"{story}; restart: {log[-2000:]}"
        if not succeeded:
            return "refused", f"{story}; restart: {log[-2000:]}"
    found = case.result(out)
    names = sorted(found.keys() | whole.result.keys())
    different = [name for name in names if found.get(name) != whole.result.get(name)]
    if different:
        return "different", f"{story}; {', '.join(different)}"
    return "equal", story


def last_line(job: Job) -> str:
    """Returns the end of the log of a job, on one line."""
    lines = job.log().strip().splitlines()
    return lines[-1][:150] if lines else "no output"


def main():
    """Prints the outcome of each kill, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", help="names, separated by commas; default: all")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    decode.print_hardware()
    table = Table("killed", OUTCOMES, forbidden=3)
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "cache"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        cases, wholes = make_cases(base), {}
        if args.cases:
            cases = [case for case in cases if case.name in args.cases.split(",")]
        for i in range(args.kills):
            case = cases[i % len(cases)]
            if case.name not in wholes:
                wholes[case.name] = undisturbed(case, base / "whole")
            outcome, story = killed(case, base / "killed", wholes[case.name], rng)
            table.add(case.name, outcome)
            print(f"{i + 1}. {case.name}: {outcome}: {story}", flush=True)
    table.finish()


if __name__ == "__main__":
    main()
