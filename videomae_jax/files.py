"""Files of a run with a JSON object a line, each with the step that it belongs to."""

import json
import pathlib


def read(path: pathlib.Path, last_step: int) -> list[dict]:
    """The rows up to a step, in their order; none if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut short when the run was killed
    # Bad videos had no steps at first.
    return [row for row in rows if row.get("step", 0) <= last_step]


def drop_after(path: pathlib.Path, last_step: int) -> None:
    """Forgets what a run wrote after the checkpoint from which it now goes on.

    A kill leaves the old file or the new one.
    """
    if path.exists():
        new = path.with_suffix(".tmp")
        new.write_text(_text(read(path, last_step)))
        new.replace(path)


def append(path: pathlib.Path, rows: list[dict]) -> None:
    """Adds rows at the end, making the file if needed."""
    with path.open("a") as file:
        file.write(_text(rows))


def _text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)
