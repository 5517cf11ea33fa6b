"""Files of a run or a data set: replaced atomically, JSON, and JSON lines."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar

from videomae_jax.errors import OutputError, UserError

if TYPE_CHECKING:
    from etils import epath

# A pathlib.Path, or an epath.Path, which may name an object of a store (gs://...).
_Path = TypeVar("_Path", pathlib.Path, "epath.Path")

# What to do about errors of writing.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up: delete other files, or ask for more",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use another disk",
    errno.EROFS: "mount it for writing, or use another folder",
    errno.EACCES: "allow this user to write there, or use another folder",
    errno.EPERM: "allow this user to write there, or use another folder",
    errno.ENOENT: "its folder does not exist, or was removed",
    errno.ESTALE: "its folder was removed on the file server",
}

# How TensorStore, and libraries in Rust, write the error numbers of the system.
_CODE = re.compile(r"os_error_code='(\d+)'|\(os error (\d+)\)")

# Ends the names of files that are not finished.
PARTIAL_SUFFIX = ".part"
_WEB = ("http://", "https://")
_TIMEOUT = 60  # seconds without an answer


def is_url(path: str | os.PathLike) -> bool:
    """Returns whether a path names an object of a store, such as gs://bucket/x."""
    return "://" in os.fspath(path)


def absolute(path: str) -> str:
    """Returns a path from the root on, with ~ expanded; URLs are left as they are."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """Opens a file, or what a URL names, to be read.

    https:// is read by the standard library, gs://, s3:// and hf:// by the file systems
    of fsspec, which may need a package each.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read. The reason is one line, whatever the store raises.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            yield file
        return
    with _one_line_errors(), _open_url(path) as file:
        yield file


def open_regular(path: str | os.PathLike) -> IO[bytes]:
    """Opens a local file to be read, unless it is a pipe, a device or a socket.

    These could block for ever or never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def list_folder(path: str) -> list[str]:
    """Returns the names in a folder, or in what a URL names; see `open_binary`."""
    if not is_url(path):
        return os.listdir(path)
    if path.startswith(_WEB):
        raise OSError("a web server does not list its folders")
    from etils import epath

    with _one_line_errors():
        return [entry.name for entry in epath.Path(path).iterdir()]


def _open_url(url: str) -> Any:
    if url.startswith(_WEB):
        # Imported here: few runs need them.
        import urllib.error
        import urllib.request

        try:
            return urllib.request.urlopen(url, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise FileNotFoundError(url) from error
            raise OSError(f"HTTP {error.code} {error.reason}") from error
    from etils import epath

    return epath.Path(url).open("rb")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Makes an OSError of whatever the client of a store raises."""
    try:
        yield
    except (FileNotFoundError, UserError):  # the latter are about the content
        raise
    except KeyError as error:  # of epath
        raise OSError(
            f"{error} is not supported here: expected https://, gs://, s3:// or hf://"
        ) from error
    except Exception as error:
        reason = getattr(error, "reason", None) or error  # without urllib's brackets
        message = str(reason).strip().partition("\n")[0] or type(error).__name__
        raise OSError(message) from error


def file_size(path: str) -> int | None:
    """Returns the size of a file, or of what a URL names, in bytes; None if missing."""
    try:
        if not is_url(path):
            return os.path.getsize(path)
        from etils import epath

        with _one_line_errors():
            return epath.Path(path).stat().length
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None


@contextlib.contextmanager
def writing(
    path: str | os.PathLike, temporary: str | os.PathLike | None = None
) -> Iterator[None]:
    """Makes one sentence of the system's errors when the body writes a file.

    Errors that name other files are left as they are.

    Args:
        path: the file that the body writes, or the folder that it creates.
        temporary: the name that the file has until it is complete.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            code, name = error.errno, error.filename
        elif found := _CODE.search(str(error)):
            code, name = int(found[1] or found[2]), None
        else:
            raise
        if name is None:
            is_of_path = code in _REMEDIES
        else:  # or a folder on the way to it, or a file in it
            name = pathlib.PurePath(os.fsdecode(name))
            is_of_path = name == (temporary and pathlib.PurePath(temporary)) or (
                name.is_relative_to(path) or pathlib.PurePath(path).is_relative_to(name)
            )
        if not is_of_path:
            raise
        raise output_error(path, code) from error


def output_error(path: str | os.PathLike, code: int) -> OutputError:
    """Returns the error of a file or folder that cannot be written.

    Args:
        path: the file.
        code: the reason, of `errno`.
    """
    is_full = code in (errno.ENOSPC, errno.EDQUOT)
    space = _free_space(path) if is_full else ""
    details = [os.strerror(code).lower(), space, _REMEDIES.get(code)]
    return OutputError(
        f"{os.fspath(path)} cannot be written: {'; '.join(filter(None, details))}"
    )


def _free_space(path: str | os.PathLike) -> str:
    """Returns how much may be written to the disk of a file; "" if not known."""
    folder = pathlib.Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        disk = os.statvfs(folder)
    except OSError:
        return ""
    if disk.f_files and not disk.f_favail:
        return f"no room for another file (df -i {folder})"
    return f"{disk.f_bavail * disk.f_frsize / 2**20:.1f} MiB of its disk are free"


def partial_path(path: _Path) -> _Path:
    """Returns a unique temporary name beside `path`, which `remove_partial` finds."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def atomic_path(path: _Path) -> Iterator[_Path]:
    """Yields a temporary path beside `path`, which it replaces if no error is raised.

    A reader, or a kill at any moment, finds the old file or the new one. Two processes
    never write to the same file.

    Args:
        path: a pathlib.Path or an epath.Path; its folder must exist.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = partial_path(path)
    try:
        with writing(path, temporary):
            yield temporary
        if not is_url(temporary):
            with open(temporary, "rb") as file, writing(path):
                os.fsync(file.fileno())
        with writing(path, temporary):
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write(path: _Path, mode: str = "w") -> Iterator[IO]:
    """Yields an open file that replaces `path` if no error is raised.

    Args:
        path: see `atomic_path`.
        mode: "w" for UTF-8 text, "wb" for bytes.
    """
    encoding = None if "b" in mode else "utf-8"
    with (
        atomic_path(path) as temporary,
        temporary.open(mode, encoding=encoding) as file,
    ):
        yield file


def remove_partial(path: pathlib.Path) -> None:
    """Removes what killed processes have left of writing `path`."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
        partial.unlink(missing_ok=True)


def read_json(path: _Path) -> Any | None:
    """Returns the content of a JSON file; None if missing, cut off or not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def json_line(row: dict) -> str:
    """Returns a line of a .jsonl file; raises ValueError for NaN, which JSON lacks."""
    return json.dumps(row, allow_nan=False) + "\n"


def write_json(
    path: _Path, head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]
) -> None:
    """Writes a JSON object atomically: `head` with one field per line, then `lists`.

    These have one element per line, for grep.
    """
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, rows in lists.items():
        text = ",\n".join(map(json.dumps, rows))
        fields.append(f"{json.dumps(key)}: [\n{text}\n]")
    with atomic_write(path) as file:
        file.write("{" + ",\n".join(fields) + "}\n")


def write_json_lines(path: _Path, rows: Iterable[dict]) -> None:
    """Writes a .jsonl file atomically; removes it if there are no rows."""
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.writelines(map(json_line, rows))


class JsonLines:
    """A file that a run appends rows to, each with the step that it belongs to."""

    def __init__(self, path: pathlib.Path):
        """Names the file, which need not exist."""
        self.path = path

    def read(self, last_step: int) -> list[dict]:
        """Returns the rows up to a step, in their order."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                rows.append(json.loads(line))
        # Rows of bad videos had no step in the first version.
        return [row for row in rows if row.get("step", 0) <= last_step]

    def truncate(self, last_step: int) -> None:
        """Removes the rows after the checkpoint that a run resumes from."""
        remove_partial(self.path)
        if self.path.exists():
            rows = self.read(last_step)
            with atomic_write(self.path) as file:
                file.writelines(map(self._line, rows))

    def append(self, rows: Iterable[dict]) -> None:
        """Appends rows, creating the file if needed."""
        with writing(self.path), self.path.open("a") as file:
            file.write("".join(map(self._line, rows)))

    @staticmethod
    def _line(row: dict) -> str:
        # Unlike `json_line`: the metrics of a step that was not finite are NaN.
        return json.dumps(row) + "\n"
