"""Tables whose rows take minutes each: JSON lines, written one by one."""

import argparse
import json
import pathlib
from collections.abc import Iterable


def add_arguments(parser: argparse.ArgumentParser, file: str, page: str) -> None:
    """Adds --file, by default `file` beside this module, --resume and --table."""
    parser.add_argument(
        "--file",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent / file,
        help=f"JSON lines (default: those of {page})",
    )
    parser.add_argument("--resume", action="store_true", help="compile what it lacks")
    parser.add_argument("--table", action="store_true", help="only print the file")


def read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict:
    """Returns the rows of the file by their keys.

    Ends with an error if there are some, but neither --resume nor --table.
    """
    if args.file.exists() and not (args.resume or args.table):
        parser.error(f"{args.file} exists: set --resume, --table or another --file")
    text = args.file.read_text() if args.file.exists() else ""
    return {tuple(row["key"]): row for row in map(json.loads, text.splitlines())}


def append(args: argparse.Namespace, rows: Iterable[dict]) -> None:
    """Writes each row to the file as soon as it is complete."""
    for row in rows:
        with args.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
