"""Help, versions, one-line errors and exit codes of main.py and the commands."""

import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import warnings

import flax
import jax
import pytest

from tests.test_configs import RECIPES
from videomae_jax import __main__ as commands
from videomae_jax.cli import convert, program, reconstruct
from videomae_jax.errors import (
    CompleteRunError,
    ConfigError,
    UsageError,
    VideoError,
)
from videomae_jax.interop import saving
from videomae_jax.models import inpainting, masking

ROOT = pathlib.Path(__file__).parents[2]

# Runs a program, and says at the end whether JAX was imported.
PROGRAM = """
import runpy, sys
name, sys.argv = sys.argv[1], sys.argv[1:]
try:
    if name == "main.py":
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    print("JAX" if "jax" in sys.modules else "no JAX")
"""


def call(*arguments):
    """Returns the exit code, stdout and stderr of a program that does not need JAX."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output, _, imported = result.stdout.rstrip().rpartition("\n")
    assert imported == "no JAX"
    return result.returncode, output, result.stderr


def test_help_of_main_lists_recipes_and_says_how_to_set_fields():
    code, output, errors = call("main.py", "--help")
    assert (code, errors) == (0, "")
    for name in RECIPES:
        assert re.search(rf"^  configs/{name}\.py +\w+", output, re.MULTILINE)
    assert "--config.FIELD=VALUE" in output and "143" in output


@pytest.mark.parametrize("name", ["main.py", "videomae_jax"])
def test_version(name):
    code, output, _ = call(name, "--version")
    assert code == 0
    assert f"jax {jax.__version__}, flax {flax.__version__}" in output


@pytest.mark.parametrize(
    "code, message, arguments",
    [
        (2, "--config is missing, such as configs/digits_pretrain.py", []),
        (2, "--confg: unknown flag; the nearest is --config", ["--confg=x"]),
        (
            2,
            "digits_pretrian.py: file not found; the nearest is "
            "configs/digits_pretrain.py",
            ["--config", "configs/digits_pretrian.py"],
        ),
        (
            2,
            "config.data.batch: unknown field; the nearest is --config.data",
            ["--config=configs/digits_pretrain.py", "--config.data.batch=1"],
        ),
        (
            2,
            "config.data.flip=1.5 must be in [0, 1]",
            ["--config=configs/digits_pretrain.py", "--config.data.flip=1.5"],
        ),
    ],
)
def test_mistakes_are_one_line_before_jax_is_imported(code, message, arguments):
    result, _, errors = call("main.py", *arguments)
    assert result == code
    assert (
        errors.count("\n") == 1 and errors.startswith("error: ") and message in errors
    )


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("predcit: unknown command; the nearest is predict", ["predcit", "a.mp4"]),
        ("--modle: unknown flag; the nearest is --model", ["predict", "--modle=x"]),
        ("unrecognized arguments: b", ["inspect", "a", "b"]),
        ("required: --config, --topology", ["compile-for-tpu"]),
        (
            "--largset: unknown flag; the nearest is --largest",
            ["compile-for-tpu", "--config.steps=3", "--largset"],
        ),
    ],
)
def test_mistakes_in_commands_are_one_line(message, arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        commands.main(arguments)
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors and "--help" in errors


@pytest.mark.parametrize(
    "error, code, message",
    [
        (VideoError("a.mp4: broken"), 1, "error: a.mp4: broken"),
        (ConfigError("config.x is unknown"), 2, "error: config.x is unknown"),
        (UsageError("--a needs --b"), 2, "error: --a needs --b"),
        (CompleteRunError("complete"), 2, "error: complete"),
        (FileNotFoundError(2, "No such file", "x"), 1, "No such file: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted; what was written is kept"),
    ],
)
def test_exit_codes(error, code, message, capsys):
    def fail():
        raise error

    before = signal.getsignal(signal.SIGINT)
    try:
        assert program.run(fail) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert message in capsys.readouterr().err
    assert program.run(lambda: 0) == 0


HELP_OF_ALL = """
import sys
from videomae_jax import __main__
for name in __main__.COMMANDS:
    try:
        __main__.main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
sys.exit("jax" in sys.modules)
"""


def test_help_of_a_command_does_not_wait_for_jax():
    command = [sys.executable, "-c", HELP_OF_ALL]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    "command, flag, known",
    [
        (convert, "--format", saving.FORMATS),
        (reconstruct, "--mask", masking.KINDS),
        (reconstruct, "--unpatch-stats", inpainting.UNPATCH_STATS),
    ],
)
def test_choices_of_a_command_are_those_of_the_function(command, flag, known):
    parser = program.Parser()
    command.add_arguments(parser)
    assert set(parser._option_string_actions[flag].choices) == set(known)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "a.mp4", "--model=x", "--fast", "--crops=3"], "--fast means"),
        (["predict", "a", "b", "--model=x", "--plot=p.png"], "with one video, got 2"),
        (["convert", "x", "y", "--format=jax", "--clip=a.mp4"], "--clip must be used"),
        (["convert", "x", "y", "--format=jax", "--aliases=a"], "--aliases must be"),
        (["features", "a.txt", "b.txt", "--model=x", "--out=o"], "expected one list"),
        (
            ["prepare", "a.txt", "o", "--split=train", "--copy", "--trim=:3"],
            "cannot be combined with --copy",
        ),
    ],
)
def test_arguments_that_do_not_fit_each_other(arguments, message, capsys):
    assert commands.main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_warnings_of_a_command_are_one_line(capsys, monkeypatch):
    from videomae_jax.cli import inspect

    monkeypatch.setattr(inspect, "run", lambda args: warnings.warn("few", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert commands.main(["inspect", "x"]) == 0
    assert capsys.readouterr().err == "warning: few\n"


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        program.run(lambda: 1 // 0)


def test_an_interrupt_does_not_wait_for_threads():
    script = (
        "import threading, time; from videomae_jax.cli import program\n"
        "threading.Thread(target=time.sleep, args=[600]).start()\n"
        "print('kept', end='')\n"
        "program.end(program.INTERRUPTED)"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"kept", b"")


def test_a_broken_pipe_that_is_not_the_output_is_a_defect(capfd):
    def fail():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        program.run(fail)


def test_a_recipe_that_does_not_parse_breaks_no_other(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.py").write_text("def get_config(:\n")
    (tmp_path / "main.py").write_text((ROOT / "main.py").read_text())
    recipes = runpy.run_path(str(tmp_path / "main.py"))["recipes"]
    assert "mine.py" in recipes()[0] and "line 1" in recipes()[0]


def test_a_reader_may_leave():
    """As in `python -m videomae_jax | head -1`."""
    script = (
        "import sys, time; from videomae_jax.cli import program\n"
        "def main():\n    sys.stdin.read()\n    print('x' * 100000)\n    return 0\n"
        "sys.exit(program.run(main))"
    )
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        os.close(reader)
        _, errors = process.communicate(b"")
    assert process.returncode == 1 and errors == b""


def test_a_failed_program_does_not_wait_for_its_threads():
    code = (
        "import threading, time\n"
        "from videomae_jax.cli import program\n"
        "threading.Thread(target=time.sleep, args=[60]).start()\n"
        "program.end(1)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30)
    assert result.returncode == 1


def test_names_cannot_command_a_terminal(capsys):
    def fail():
        raise VideoError("a\x1b[2J\nerror: b\udcff.mp4: broken")

    assert program.run(fail) == 1
    message = "error: a\\x1b[2J\\nerror: b\\udcff.mp4: broken\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_that_a_terminal_cannot_encode(tmp_path, encoding):
    """Tables, and names of files that are no characters."""
    name = os.fsdecode("vidéo-".encode() + b"\xff")
    (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    code = (
        "from videomae_jax.cli import program; from videomae_jax.video.open import "
        "open_video; import glob, sys\n"
        "def main():\n"
        "    print(*glob.glob('*')); open_video(glob.glob('*')[0])\n"
        "sys.exit(program.run(main))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    shown = {"ascii": "vid\\xe9o-\\udcff.mp4", "utf-8": "vidéo-\\udcff.mp4"}[encoding]
    assert result.stdout.decode() == f"{shown}\n"
    assert result.returncode == 1 and b"Traceback" not in result.stderr
    assert f"error: {shown}: not a video" in result.stderr.decode()
