"""The report on a GPU has a line for each part, also one that fails or is stopped."""

import os
import sys

import pytest

from benchmarks import gpu_report

TABLE = (
    "| | ms | of peak |\n|---|---|---|\n| xla | 12 | 30.1% |\n| cudnn | failed: X | |"
)


def run(tmp_path, script, limit=20.0):
    part = gpu_report.Part("step", limit, ["-c", script])
    with open(tmp_path / "log.txt", "a+") as log:
        return gpu_report.run(part, limit, log, dict(os.environ))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("print('2 passed in 3 s')", ["2 passed in 3 s"]),
        (f"print({TABLE!r}); print('end')", ["12 ms, 30.1% of peak", "failed: X"]),
        ("raise ValueError('a | b')", ["failed, exit code 1: ValueError: a   b"]),
        ("import not_there", ["skipped or in part: not installed: not_there; "]),
    ],
)
def test_outcomes(tmp_path, script, expected):
    outcomes = [outcome for _, outcome in run(tmp_path, script)]
    assert len(outcomes) == len(expected)
    for outcome, start in zip(outcomes, expected, strict=True):
        assert outcome.startswith(start)


def test_what_was_measured_before_the_limit_is_kept(tmp_path):
    child = "import time; time.sleep(60)"
    script = (
        f"import subprocess; print({TABLE!r}, flush=True); "
        f"subprocess.run([{sys.executable!r}, '-c', {child!r}])"
    )
    rows = run(tmp_path, script, limit=1.5)
    assert rows[:2] == [
        ("step: xla", "12 ms, 30.1% of peak"),
        ("step: cudnn", "failed: X"),
    ]
    assert rows[2][1].startswith(
        "stopped after 2 s; last line: | cudnn".replace("|", " ")
    )
    # The output of the next part begins where this one's ends.
    assert run(tmp_path, "print('next')") == [("step", "next")]
    assert "cudnn" in (tmp_path / "log.txt").read_text()
