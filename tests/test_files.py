"""Files are replaced atomically; JSON lines survive a kill."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import disks
from videomae_jax import files
from videomae_jax.errors import OutputError
from videomae_jax.files import JsonLines

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(("mode", "content"), [("w", "é\n"), ("wb", b"\x00\xff")])
def test_atomic_write_replaces_the_file(tmp_path, mode, content):
    path = tmp_path / "a.txt"
    for _ in range(2):  # a new file, and an existing one
        with files.atomic_write(path, mode) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"old"
        expected = content if mode == "wb" else content.encode()
        assert path.read_bytes() == expected
        path.write_bytes(b"old")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file_on_errors(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_needs_a_file(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a"):
        pass  # nothing was written
    assert not list(tmp_path.iterdir())


_KILLED = """
import os, pathlib, signal, sys
from videomae_jax import files

with files.atomic_write(pathlib.Path(sys.argv[1])) as file:
    file.write("new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_keeps_the_old_file(tmp_path):
    path = tmp_path / "a[1].txt"  # the name is not a pattern
    path.write_text("old")
    other = tmp_path / ".a1.txt.00000000.part"
    other.write_text("partial, but of another file")
    killed = subprocess.run([sys.executable, "-c", _KILLED, path])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3
    files.remove_partial(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


def test_read_json_of_missing_and_cut_files(tmp_path):
    path = tmp_path / "a.json"
    assert files.read_json(path) is None
    path.write_text('{"a": [1, 2')
    assert files.read_json(path) is None
    path.write_text('{"a": [1, 2]}')
    assert files.read_json(path) == {"a": [1, 2]}


@settings(deadline=None)
@given(
    head=st.dictionaries(st.text(), _JSON, max_size=3),
    lists=st.dictionaries(st.text(), st.lists(_JSON, max_size=3), max_size=2),
)
def test_write_json_round_trip(head, lists):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        files.write_json(path, head, lists)
        assert files.read_json(path) == {**head, **lists} or head.keys() & lists.keys()
        for rows in lists.values():
            for row in rows:
                assert json.dumps(row) in [
                    line.removesuffix(",") for line in path.read_text().splitlines()
                ]


def test_write_json_has_one_line_per_element(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1, "b": [2]}, {"rows": [{"x": 1}, {"x": 2}], "no": []})
    assert path.read_text() == (
        '{"a": 1,\n"b": [2],\n"rows": [\n{"x": 1},\n{"x": 2}\n],\n"no": [\n\n]}\n'
    )


def test_write_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    files.write_json_lines(path, iter([{"a": 1}, {"b": None}]))
    assert path.read_text() == '{"a": 1}\n{"b": null}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_lines(path, [{"a": float("nan")}])
    assert path.read_text() == '{"a": 1}\n{"b": null}\n'
    for _ in range(2):  # an existing file, and a missing one
        files.write_json_lines(path, [])
        assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 9), max_size=12).map(sorted),
    cut=st.integers(0, 200),
    last_step=st.integers(0, 9),
)
def test_truncated_json_lines_can_be_continued(steps, cut, last_step):
    """A kill cuts the file anywhere; a resumed run drops the rows after its step."""
    with tempfile.TemporaryDirectory() as folder:
        lines = JsonLines(Path(folder, "metrics.jsonl"))
        assert lines.read(9) == []
        lines.truncate(last_step)  # a missing file is not created
        assert not lines.path.exists()
        rows = [{"step": step, "loss": i / 7} for i, step in enumerate(steps)]
        lines.append(rows[:5])
        lines.append(rows[5:])
        assert lines.read(9) == rows
        content = lines.path.read_bytes()
        os.truncate(lines.path, min(cut, len(content)))
        complete = len(json_lines(content[:cut]))
        kept = [row for row in rows[:complete] if row["step"] <= last_step]
        lines.truncate(last_step)
        assert lines.read(9) == kept
        lines.append([{"step": 9}])
        assert lines.read(9) == [*kept, {"step": 9}]
        assert [path.name for path in Path(folder).iterdir()] == ["metrics.jsonl"]


def json_lines(content: bytes) -> list[bytes]:
    """Returns the lines that are complete, with or without their line break."""
    return [line for line in content.splitlines() if line.endswith(b"}")]


def test_rows_without_a_step_are_kept(tmp_path):
    lines = JsonLines(tmp_path / "bad_videos.jsonl")
    lines.path.write_text('{"id": "a"}\n{"id": "b", "step": 4}\n')
    lines.truncate(3)
    assert lines.read(0) == [{"id": "a"}]


def test_urls_and_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.is_url("gs://bucket/a") and not files.is_url(tmp_path / "a")
    assert files.absolute("gs://bucket/a") == "gs://bucket/a"
    assert files.absolute("~/a") == files.absolute("a") == str(tmp_path / "a")


def test_file_size(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_size(str(tmp_path / "a")) == 3
    for missing in (tmp_path / "b", tmp_path / "a" / "b", tmp_path / "a\0b"):
        assert files.file_size(str(missing)) is None
    # epath's class of local paths, in place of one that needs a store.
    local = type(epath.Path(tmp_path))
    monkeypatch.setattr(
        "etils.epath.Path", lambda url: local(url.removeprefix("gs://"))
    )
    assert files.file_size(f"gs://{tmp_path}/a") == 3
    assert files.file_size(f"gs://{tmp_path}/b") is None


def test_a_file_that_cannot_be_written_is_explained(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    too_large = "a.txt cannot be written: file too large; raise the limit"
    with disks.limited(1000):
        with pytest.raises(OutputError, match=too_large):
            with files.atomic_write(path) as file:
                file.write("new" * 1000)
        with pytest.raises(OutputError, match="m.jsonl cannot be written: file too"):
            JsonLines(tmp_path / "m.jsonl").append([{"step": 1}] * 1000)
    assert path.read_text() == "old"
    with pytest.raises(OutputError, match="its folder does not exist, or was removed"):
        with files.atomic_write(tmp_path / "gone" / "a.txt") as file:
            file.write("new")


@pytest.mark.parametrize(
    "code, message",
    [
        (errno.ENOSPC, "no space left on device; .* MiB of its disk are free; free"),
        (errno.EDQUOT, "quota exceeded; .* free; your quota is used up"),
        (errno.EROFS, "read-only file system; mount it for writing, or"),
    ],
)
def test_the_reason_and_the_remedy_are_told(tmp_path, code, message):
    path = tmp_path / "a"
    for error in (
        OSError(code, os.strerror(code)),
        OSError(code, os.strerror(code), str(tmp_path / "a")),
        ValueError(f"RESOURCE_EXHAUSTED: ... [os_error_code='{code}']"),  # TensorStore
        RuntimeError(f"I/O error: no (os error {code})"),  # in Rust: safetensors
    ):
        with pytest.raises(OutputError, match=message) as caught, files.writing(path):
            raise error
        assert str(caught.value).startswith(f"{path} cannot be written: ")
    assert isinstance(caught.value, OSError) and caught.value.exit_code == 1


def test_errors_of_other_files_are_left_as_they_are(tmp_path):
    for error in (
        FileNotFoundError(errno.ENOENT, "no", "/another/file"),
        OSError(errno.EIO, "of reading, perhaps"),
        OSError("no number"),
        ValueError("a defect"),
    ):
        with pytest.raises(type(error)) as caught, files.writing(tmp_path / "a"):
            raise error
        assert caught.value is error
