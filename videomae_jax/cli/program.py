"""Parts shared by main.py and the commands: one-line errors, exit codes, --version.

Exit codes:

    0    done
    1    failed; the last line says why, or a traceback shows a defect of this library
    2    wrong arguments: unknown, out of range, or not fitting each other, and the same
         of config files and fields; or nothing was done because a run is complete
    130  interrupted by Ctrl-C; what was written is kept
    143  training was stopped by SIGTERM or Ctrl-C, after it has saved its last step

Imports nothing heavy: --help and mistakes are answered at once.
"""

import argparse
import io
import itertools
import os
import platform
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn

from videomae_jax import __version__
from videomae_jax.errors import UserError, nearest, printable

USAGE = 2
INTERRUPTED = 128 + signal.SIGINT


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and name what was probably meant."""

    def __init__(self, **options):
        """Creates a parser that keeps line breaks and takes no abbreviations."""
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the program; --help has the usage."""
        self.exit(USAGE, f"error: {message}; see {self.prog} --help\n")

    def check_flags(self, argv: Sequence[str], prefixes: tuple[str, ...] = ()) -> None:
        """Ends the program if it does not have a flag, even if it also lacks another.

        Args:
            argv: its arguments.
            prefixes: what other flags may start with, such as "--config.".
        """
        known = dict(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in set(argv) & set(action.choices):
                    known |= action.choices[name]._option_string_actions
        for argument in itertools.takewhile(lambda x: x != "--", argv):
            name = argument.partition("=")[0]
            if not name.startswith("--") or name in known:
                continue
            if not name.startswith(prefixes):
                hint = nearest(name, known)
                self.error(f"{name}: unknown flag{hint}")


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds --version, which names the packages that results depend on."""
    packages = [f"videomae_jax {__version__}"]
    for name in ("jax", "flax"):
        try:
            packages.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            packages.append(f"{name} not installed")
    packages.append(f"Python {platform.python_version()}")
    parser.add_argument("--version", action="version", version=", ".join(packages))


def run(main: Callable[[], int]) -> int:
    """Calls a program; returns its exit code.

    Errors that the user can fix, those of files and networks, and interrupts end it
    with one line. Anything else is a defect and keeps its traceback. Characters that a
    terminal cannot show are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except KeyboardInterrupt:
        # Another one ends this process at once, whatever it is still cleaning up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("\ninterrupted; what was written is kept", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _output_is_broken():
            raise
        # The reader of the output, such as `head`, has ended. Python would complain
        # again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1


def end(code: int) -> NoReturn:
    """Ends this process with an exit code; after a failure, whatever still runs."""
    threads = set(threading.enumerate()) - {threading.current_thread()}
    if code == INTERRUPTED or (code and not all(x.daemon for x in threads)):
        # Threads of JAX may still compile. They crash if the interpreter is taken down
        # under them. Threads of Orbax may wait for others, of a save that has failed.
        # Worker processes and shared memory end with this process.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _output_is_broken() -> bool:
    """Returns whether stdout is a pipe that is not read any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
