"""Runs the benchmarks and tests that a GPU is needed for; see gpu_report.sh.

Writes one table, report.md, and the output of all parts, log.txt. The table is written
line by line: what was measured is kept, whatever happens to a later part. The outcome
of a part is each row of the tables that it prints, or its last line. A part has a limit
of its own, and all together end before nine minutes.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOTAL = 520  # seconds
SHORTEST = 20  # a part is not started with less time than this

PACKAGES = "jax jaxlib flax optax torch transformers".split()


@dataclasses.dataclass
class Part:
    """A command that is measured: its name in the table, seconds at most, arguments."""

    name: str
    seconds: float
    arguments: list[str]


def parts(gigabytes: float, folder: str) -> list[Part]:
    """Returns the parts for a GPU with so much memory, the most important first."""

    def step(name, batch, seconds, *arguments):
        # These fit 80 GB, which three processes share.
        batch = max(int(batch * min(1, gigabytes / 80)) // 4 * 4, 4)
        common = ["--attention=xla,cudnn", "--steps=5", f"--limit={seconds - 35}"]
        return Part(
            f"{name}, {batch} clips",
            seconds,
            ["benchmarks/train_step.py", f"--batch={batch}", *common, *arguments],
        )

    attention = ["--batch=24", "--heads=12", "--tokens=1568"]
    return [
        step("ViT-B pretraining", 64, 150, "--variant=base"),
        step("ViT-B fine-tuning", 24, 140, "--variant=base", "--task=finetune"),
        step("ViT-L pretraining", 48, 170, "--variant=large"),
        Part("attention, 24 x 12 heads", 50, ["benchmarks/attention.py", *attention]),
        Part("tests/models", 90, tests("tests/models")),
        Part("digits_pretrain", 90, digits(folder, 200)),
    ]


def rehearsal(folder: str) -> list[Part]:
    """Returns the same parts, tiny and for the CPU."""
    tiny = "--variant=tiny --frames=2 --size=64 --batch=2 --rounds=2 --steps=1".split()
    common = ["--attention=xla,by_head", "--compile", "--limit=300", *tiny]
    step = ["benchmarks/train_step.py", *common]
    attention = ["--batch=1", "--heads=2", "--tokens=128", "--rounds=2"]
    return [
        Part("pretraining", 400, step),
        Part("fine-tuning", 400, [*step, "--task=finetune"]),
        Part("attention", 200, ["benchmarks/attention.py", *attention]),
        Part("tests/models/test_vit.py", 200, tests("tests/models/test_vit.py")),
        Part("digits_pretrain", 400, digits(folder, 4)),
    ]


def tests(path: str) -> list[str]:
    """Returns the arguments that test what one device is enough for.

    Warnings of other releases than the supported ones are no failures here.
    """
    several = importlib.util.find_spec("xdist") and (os.cpu_count() or 1) >= 8
    options = ["-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", "-q", "-ra"]
    workers = ["-n", "4", "--dist", "loadfile"] if several else []
    mark = ["-m", "not slow and not eight_devices", "--continue-on-collection-errors"]
    return ["-m", "pytest", *options, *workers, *mark, path]


def digits(folder: str, steps: int) -> list[str]:
    """Returns the arguments of a short run, from making videos to a checkpoint."""
    fields = {"steps": steps, "log_every": max(steps // 4, 1), "picture.every": 0}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    config = "--config=configs/digits_pretrain.py"
    return ["main.py", config, f"--workdir={folder}/digits", *overrides]


def run(part: Part, limit: float, log, environment: dict) -> list[tuple[str, str]]:
    """Runs a part and returns its rows: names and outcomes, in one line each."""
    print(f"\n== {part.name}: {' '.join(part.arguments)}", file=log, flush=True)
    start = log.tell()
    process = subprocess.Popen(
        [sys.executable, *part.arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,
    )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        # Also what it has started.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    log.seek(start)
    text = log.read()
    log.seek(0, os.SEEK_END)
    return outcomes(part.name, text, code, limit)


def outcomes(
    name: str, text: str, code: int | None, limit: float
) -> list[tuple[str, str]]:
    """Returns the rows of a part from its output and exit code, None if stopped."""
    rows, head = [], None
    for line in re.findall(r"^\| ?(.*)\|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        if head is None:
            head = cells
        elif not set(line) <= set("-|"):
            values = zip(cells[1:], head[1:], strict=True)
            # Words explain themselves: a failure.
            words = [f"{x} {y}" if x[:1].isdigit() else x for x, y in values if x]
            rows.append((f"{name}: {cells[0]}", ", ".join(words)))
    last = " ".join((text.strip().splitlines() or ["no output"])[-1].split())
    last = last.replace("|", " ")[:300]
    if code is None:
        rows.append((name, f"stopped after {limit:.0f} s; last line: {last}"))
    elif code and (missing := re.findall(r"No module named '([\w.]+)'", text)):
        rows.append((name, f"skipped or in part: not installed: {missing[0]}; {last}"))
    elif code:
        rows.append((name, f"failed, exit code {code}: {last}"))
    return rows or [(name, last)]


def card() -> tuple[str, float]:
    """Returns the first GPU with its driver, and its memory in GB."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        text = subprocess.check_output(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: no GPU was found ({error}); --rehearse needs none")
    name, driver, mebibytes = text.splitlines()[0].split(", ")
    gigabytes = float(mebibytes) * 2**20 / 1e9
    return f"{name}, {gigabytes:.0f} GB, driver {driver}", gigabytes


def versions() -> str:
    """Returns the versions of packages, and those of the extra `train` that lack."""
    known = {x.metadata["Name"]: x.version for x in importlib.metadata.distributions()}
    installed = {re.sub("[-_.]+", "-", x).lower(): y for x, y in known.items() if x}
    have = [f"{x} {installed.get(x, 'not installed')}" for x in PACKAGES]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [*project["optional-dependencies"]["train"], "pytest", "hypothesis"]
    needed = {re.split("[^a-z0-9-]", x.lower().replace("_", "-"))[0] for x in extra}
    lacking = sorted(needed - set(installed))
    have += ["cuDNN " + y for x, y in installed.items() if "nvidia-cudnn" in x]
    text = f"Python {platform.python_version()}, {', '.join(have)}"
    return f"{text}. Not installed: {', '.join(lacking) or 'nothing'}"


def main():
    """Writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/gpu_report")
    options = parser.parse_args()
    start = time.monotonic()
    device, gigabytes = ("CPU, a rehearsal", 0) if options.rehearse else card()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(options.out / "report.md", "w") as report,
        open(options.out / "log.txt", "w+") as log,
    ):
        jax_platform = "cpu" if options.rehearse else "cuda"
        environment = os.environ | {
            # Without it JAX would compute on the CPU if it does not find the GPU.
            "JAX_PLATFORMS": jax_platform,
            "VIDEOMAE_JAX_TEST_PLATFORM": jax_platform,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            # Also keeps how products were tuned: the same in all parts.
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
            "PYTHONUNBUFFERED": "1",
        }

        def write(line):
            print(line, flush=True)
            print(line, file=report, flush=True)

        write(f"{device}; {versions()}\n\n| part | outcome |\n|---|---|")
        chosen = rehearsal(folder) if options.rehearse else parts(gigabytes, folder)
        for part in chosen:
            limit = part.seconds
            if not options.rehearse:
                limit = min(limit, TOTAL - (time.monotonic() - start))
            if limit < SHORTEST:
                write(f"| {part.name} | skipped: no time is left |")
                continue
            for name, outcome in run(part, limit, log, environment):
                write(f"| {name} | {outcome} |")
        write(f"| all | {time.monotonic() - start:.0f} s |")


if __name__ == "__main__":
    main()
