"""Reads the tensors of a .pth file without PyTorch and without running its code.

Such a file is a zip archive with a pickle in it, and a pickle can call any function.
This reader builds only tensors and their containers. Other classes that checkpoints are
known to hold become inert objects, and everything else is refused.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from videomae_jax.errors import PretrainedError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What training scripts save beside the weights, by module: all become inert objects,
# functions such as getattr too, so that nothing is looked up or called.
_INERT = {
    "__builtin__": "getattr int list",
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "getattr int list",
    "collections": "defaultdict deque",
    "deepspeed.runtime.fp16.loss_scaler": "DynamicLossScaler LossScaler",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePosixPath WindowsPath",
    "pathlib._local": "PosixPath WindowsPath",
    "torch": "bfloat16 bool device float16 float32 float64 int32 int64 uint8",
}


class Tensor:
    """A tensor still in its file, whose shape is known."""

    def __init__(self, storage, offset: int, shape: tuple, strides: tuple):
        """Represents a view of a storage; offset and strides count elements."""
        self._storage, self._offset, self._strides = storage, offset, tuple(strides)
        self.shape = tuple(shape)

    def load(self) -> np.ndarray:
        """Reads the values, in the dtype of the file."""
        archive, dtype, key = self._storage
        try:
            values = np.frombuffer(archive.storage(key), dtype)
            reach = (n - 1 for n in self.shape)
            last = sum(n * s for n, s in zip(reach, self._strides, strict=True))
            count = math.prod(self.shape)
            if count and not (
                min(self.shape + self._strides, default=0) >= 0
                and 0 <= self._offset <= self._offset + last < len(values)
                # Zero strides could make a small file fill any memory.
                and count <= len(values)
            ):
                raise ValueError("it reaches beyond its data")
            return np.lib.stride_tricks.as_strided(
                values[self._offset :],
                self.shape,
                [stride * values.itemsize for stride in self._strides],
                writeable=False,
            )
        except (ValueError, TypeError) as error:
            raise archive.error(
                f"holds a tensor that cannot be read: {error}; copy or download the "
                "file again"
            ) from error


class Inert:
    """Replaces an object that is not a tensor; keeps its fields at most."""

    def __init__(self, *args, **kwargs):
        """Ignores all arguments."""

    def __setstate__(self, state):
        """Keeps the fields that an ordinary object pickles."""
        if isinstance(state, dict):
            self.__dict__.update(state)

    def _ignore(self, *args):
        """Ignores what a list or dictionary would keep."""

    __setitem__ = append = extend = _ignore


_REBUILT = {
    "collections.OrderedDict": collections.OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": lambda *fields: Tensor(*fields[:4]),
    "torch._utils._rebuild_tensor": lambda *fields: Tensor(*fields[:4]),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}


def read(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`: containers as they are, tensors as `Tensor`.

    Raises:
        PretrainedError: if the file is damaged or of PyTorch before 1.6, or if loading
            it would run code.
    """
    return _Archive(os.fspath(path)).load()


class _Archive:
    def __init__(self, path: str):
        self._path = path
        self._last: tuple[str, bytes] | None = None
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # a broken archive can raise anything
            raise self.error(f"cannot be opened: {error}") from error
        names = self._zip.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.error("is a zip archive, but not of PyTorch")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in names and self.content("byteorder") != b"little":
            raise self.error("has big-endian values, which are not supported")

    def error(self, problem: str) -> PretrainedError:
        return PretrainedError(f"{self._path} {problem}")

    def content(self, name: str) -> bytes:
        try:
            entry = self._zip.getinfo(self._root + name)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, but PyTorch compresses nothing")
            return self._zip.read(entry)
        except Exception as error:  # a broken archive can raise anything
            raise self.error(
                f"is damaged or cut off ({error}); copy or download it again"
            ) from error

    def storage(self, key: str) -> bytes:
        """Returns a storage; keeps the last one, which many tensors may share."""
        if self._last is None or self._last[0] != key:
            self._last = key, self.content(f"data/{key}")
        return self._last[1]

    def load(self) -> Any:
        unpickler = _Unpickler(io.BytesIO(self.content("data.pkl")), self)
        try:
            return unpickler.load()
        except PretrainedError:
            raise
        except Exception as error:  # a broken pickle can raise anything
            raise self.error(f"holds a pickle that cannot be read: {error}") from error


# In Python: the faster one in C allocates a table of any size that a file asks for.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file, archive: _Archive):
        super().__init__(file, encoding="utf-8")
        self._archive = archive

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in _REBUILT:
            return _REBUILT[full]
        if module == "torch" and name in _DTYPES:
            return name
        if name in _INERT.get(module, "").split():
            return Inert
        raise self._archive.error(
            f"asks for {full} when loaded, which could run code, so it is refused. If "
            "you trust the file, open it with PyTorch and save its weights alone: "
            'torch.save({"model": weights}, "new.pth")'
        )

    def persistent_load(self, pid):
        try:
            kind, dtype, key, *_ = pid
            if kind == "storage" and isinstance(key, str):
                return self._archive, np.dtype(_DTYPES[dtype]), key
        except (TypeError, ValueError, KeyError):
            pass
        raise self._archive.error("refers to an object that is not a tensor storage")
