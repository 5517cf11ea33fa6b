"""Opens files of weights, which are not trusted: their size bounds all that is read."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from videomae_jax.errors import CheckpointError, PretrainedError, UserError
from videomae_jax.files import open_regular

# What describes the tensors of a file may have this many bytes: some ten times as many
# as for thousands of tensors, and few enough to be read within seconds.
MAX_HEADER = 2**22
MAX_REASON = 300  # characters of it in a message


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Makes a PretrainedError, which names the file, of every error inside.

    A damaged or hostile file can make any code fail in any way, and no list of types
    of errors would be complete. The original error is the cause of the new one.
    """
    try:
        yield
    except (PretrainedError, CheckpointError) as error:
        if os.fspath(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except MemoryError as error:
        raise PretrainedError(f"not enough memory to read {path}") from error
    except UserError as error:
        raise PretrainedError(f"{path} is malformed: {error}") from error
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # of JAX
            raise PretrainedError(f"not enough memory to read {path}") from error
        if isinstance(error, OSError) and error.errno:
            reason = error.strerror
            raise PretrainedError(f"{path} cannot be opened: {reason}") from error
        reason = f"{type(error).__name__}: {str(error)[:MAX_REASON]}"
        raise PretrainedError(
            f"{path} is malformed, damaged or cut off ({reason}); copy or download it "
            "again"
        ) from error


def first_bytes(path: pathlib.Path) -> bytes:
    """Returns the first 16 bytes; raises PretrainedError if it cannot be opened."""
    with reading(path), open_regular(path) as file:
        return file.read(16)


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file; raises PretrainedError if damaged.

    The library compares the sizes of all tensors with that of the file.
    """
    import jax

    try:
        import safetensors.flax
    except ImportError as error:
        raise PretrainedError(
            f"reading {path} needs safetensors (pip install safetensors)"
        ) from error
    header = int.from_bytes(first_bytes(path)[:8], "little")
    if MAX_HEADER < header <= os.path.getsize(path):
        raise PretrainedError(
            f"{path}: a header of {header} bytes; expected at most {MAX_HEADER}"
        )
    # As JAX arrays, which support bfloat16; on the host, unless JAX_PLATFORMS excludes
    # it; in the types of the file.
    cpu = None
    with contextlib.suppress(RuntimeError):
        cpu = jax.local_devices(backend="cpu")[0]
    with reading(path), jax.default_device(cpu), jax.enable_x64(True):
        tensors = safetensors.flax.load_file(path)
        return {name: np.asarray(x) for name, x in tensors.items()}
