"""Reads the tensors of a .pth file without PyTorch and without running its code.

Such a file is a zip archive with a pickle in it, and a pickle can call any function.
This reader builds only tensors and their containers. Other classes that checkpoints are
known to hold become inert objects, and everything else is refused. Whatever a file
says, the time and memory of reading it are bounded by its size.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.files import open_regular
from videomae_jax.interop.tensor_files import MAX_HEADER, reading

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
# functions such as getattr and types such as dict too: nothing is looked up or called.
_INERT = {
    "__builtin__": "bytearray dict frozenset getattr int list object",
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bytearray dict frozenset getattr int list object",
    "collections": "defaultdict deque",
    "copy_reg": "_reconstructor",
    "copyreg": "_reconstructor",
    "deepspeed.runtime.fp16.loss_scaler": "DynamicLossScaler LossScaler",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "bfloat16 bool device float16 float32 float64 int32 int64 uint8",
}


class _Storage(NamedTuple):
    archive: "_Archive"
    dtype: np.dtype
    key: str


class Tensor:
    """A tensor still in its file, whose shape is known."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        """Represents a view of a storage; offset and strides count elements.

        Raises:
            TypeError: the arguments are of other types, or no sizes.
        """
        if not (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides) <= _MOST_DIMENSIONS
            and all(type(x) is int and 0 <= x < 2**63 for x in shape + strides)
            and type(offset) is int
            and 0 <= offset < 2**63
        ):
            raise TypeError("a tensor must be a view of a storage")
        self._storage, self._offset, self._strides = storage, offset, strides
        self.shape = shape

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return math.prod(self.shape) * self._storage.dtype.itemsize

    def check(self) -> None:
        """Raises PretrainedError unless the file holds all values."""
        archive, dtype, key = self._storage
        length = archive.size(f"data/{key}") // dtype.itemsize
        reach = (n - 1 for n in self.shape)
        last = sum(n * s for n, s in zip(reach, self._strides, strict=True))
        count = math.prod(self.shape)
        # Zero strides could make a small file fill any memory.
        if count and (self._offset + last >= length or count > length):
            raise archive.error(
                "holds a tensor that cannot be read: it reaches beyond its data; copy "
                "or download the file again"
            )

    def load(self) -> np.ndarray:
        """Reads the values, in the dtype of the file."""
        self.check()
        archive, dtype, key = self._storage
        values = np.frombuffer(archive.content(f"data/{key}"), dtype)
        return np.lib.stride_tricks.as_strided(
            values[self._offset :],
            self.shape,
            [stride * values.itemsize for stride in self._strides],
            writeable=False,
        )


class Inert:
    """Replaces an object that is not a tensor; keeps its fields at most."""

    def __init__(self, *args, **kwargs):
        """Ignores all arguments."""

    def __setstate__(self, state):
        """Keeps the fields that an ordinary object pickles, and copies nothing."""
        if isinstance(state, dict):
            self.__dict__ = state

    def _ignore(self, *args):
        """Ignores what a list or dictionary would keep."""

    __setitem__ = append = extend = _ignore


_SAVE_WEIGHTS = (
    "open it with PyTorch and save its weights alone: "
    'torch.save({"model": weights}, "new.pth")'
)
# None of these copies a container: a file could ask for any number of copies.
_REBUILT = {
    "collections.OrderedDict": lambda: collections.OrderedDict(),
    "torch.Size": lambda sizes: sizes,
    "torch._utils._rebuild_tensor_v2": lambda *fields: Tensor(*fields[:4]),
    "torch._utils._rebuild_tensor": lambda *fields: Tensor(*fields[:4]),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}
_MOST_DIMENSIONS = 64  # of PyTorch's and NumPy's arrays
_MOST_ARGUMENTS = 256  # a path has one for each of its parts
# A checkpoint of ViT-L with its optimizer needs some 50,000; so many take seconds.
_MOST_STEPS = 2_000_000


def read(path: str | os.PathLike) -> Any:
    """Reads a file of `torch.save`: containers as they are, tensors as `Tensor`.

    Raises:
        PretrainedError: if the file is damaged or of PyTorch before 1.6, if loading it
            would run code, or take far longer than any model.
    """
    with reading(path):
        return _Archive(os.fspath(path)).load()


class _Archive:
    def __init__(self, path: str):
        self._path = path
        self._last: tuple[str, bytes] | None = None
        self._read: set[str] = set()
        self._shared: dict[str, bytes] = {}
        with open_regular(path) as file:
            end = zipfile._EndRecData(file)  # pyright: ignore
            if end and end[zipfile._ECD_SIZE] > MAX_HEADER:  # pyright: ignore
                raise self.error("is a zip archive of more files than any model has")
            self._size = file.seek(0, os.SEEK_END)
        self._zip = zipfile.ZipFile(path)
        entries = self._zip.infolist()
        if sum(entry.compress_size for entry in entries) > self._size:
            raise self._damaged("its parts would be larger together than the file")
        # torch.serialization.set_crc32_options(False) writes zeros.
        if not any(entry.CRC for entry in entries if entry.file_size):
            for entry in entries:
                del entry.CRC  # zipfile then compares nothing
        names = self._zip.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.error("is a zip archive, but not of PyTorch")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in names and self.content("byteorder") != b"little":
            raise self.error("has big-endian values, which are not supported")

    def error(self, problem: str) -> PretrainedError:
        return PretrainedError(f"{self._path} {problem}")

    def size(self, name: str) -> int:
        """Returns the size of a file in the archive in bytes."""
        return self._checked(name).file_size

    def content(self, name: str) -> bytes:
        """Returns a file in the archive, which many tensors may share.

        Keeps the last, and those that are read again, so each is read twice at most.
        zipfile compares its checksum.
        """
        if name in self._shared:
            return self._shared[name]
        if self._last is None or self._last[0] != name:
            entry = self._checked(name)
            try:
                self._last = name, self._zip.read(entry)
            except MemoryError:
                raise
            except Exception as error:  # a broken archive can raise anything
                raise self._damaged(error) from error
            if name in self._read:
                self._shared[name] = self._last[1]
            self._read.add(name)
        return self._last[1]

    def _checked(self, name: str) -> zipfile.ZipInfo:
        try:
            entry = self._zip.getinfo(self._root + name)
        except KeyError as error:
            raise self._damaged(error) from error
        if entry.compress_type != zipfile.ZIP_STORED:
            raise self._damaged("it is compressed, but PyTorch compresses nothing")
        if entry.file_size != entry.compress_size:
            raise self._damaged(f"{name} has two sizes")
        return entry

    def _damaged(self, reason: object) -> PretrainedError:
        return self.error(
            f"is damaged or cut off ({reason}); copy or download it again"
        )

    def load(self) -> Any:
        unpickler = _Unpickler(io.BytesIO(self.content("data.pkl")), self)
        try:
            return unpickler.load()
        except (PretrainedError, MemoryError):
            raise
        except Exception as error:  # a broken pickle can raise anything
            raise self.error(
                f"holds a pickle that cannot be read: {type(error).__name__}: {error}"
            ) from error


def _is_key(x: Any) -> bool:
    """Returns whether a dictionary or set may hold this; other items are left out.

    Weights have strings. Tuples that hold each other, and large numbers with the same
    hash, may take for ever to be looked up.
    """
    return isinstance(x, str) or isinstance(x, int | float) and abs(x) < 2**60


# In Python: the faster one in C allocates a table of any size that a file asks for.
_Base: Any = pickle._Unpickler  # of which type checkers know only some methods


class _Unpickler(_Base):
    def __init__(self, file, archive: _Archive):
        super().__init__(file, encoding="utf-8")
        self._archive = archive
        self._steps = 0

    def count(self, steps: int) -> None:
        """Raises PretrainedError after more steps than any model needs."""
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise self._archive.error(
                f"holds a pickle of more than {_MOST_STEPS} steps, which is refused. "
                f"If you trust the file, {_SAVE_WEIGHTS}"
            )

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if full in _REBUILT:
            return _REBUILT[full]
        if full in ("builtins.set", "__builtin__.set"):
            return self._set
        if module == "torch" and name in _DTYPES:
            return name
        if name in _INERT.get(module, "").split():
            return Inert
        raise self._archive.error(
            f"asks for {full} when loaded, which could run code, so it is refused. If "
            f"you trust the file, {_SAVE_WEIGHTS}"
        )

    def persistent_load(self, pid):
        if isinstance(pid, tuple) and 3 <= len(pid) <= _MOST_ARGUMENTS:
            kind, dtype, key = pid[:3]
            if isinstance(dtype, str) and dtype in _DTYPES and isinstance(key, str):
                if kind == "storage":
                    return _Storage(self._archive, np.dtype(_DTYPES[dtype]), key)
        raise self._archive.error("refers to an object that is not a tensor storage")

    def _set(self, items: list) -> set:
        self.count(len(items))
        return set(filter(_is_key, items))

    def _check_arguments(self) -> None:
        arguments = self.stack[-1]
        if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("arguments must be a short tuple")

    def load_setitem(self):
        if _is_key(self.stack[-2]):
            super().load_setitem()
        else:
            del self.stack[-2:]

    def load_setitems(self):
        items = zip(self.stack[::2], self.stack[1::2], strict=True)
        self.stack[:] = [x for item in items if _is_key(item[0]) for x in item]
        super().load_setitems()

    def load_additems(self):
        self.stack[:] = filter(_is_key, self.stack)
        super().load_additems()

    def load_frozenset(self):
        self.stack[:] = filter(_is_key, self.stack)
        super().load_frozenset()

    def load_bytearray8(self):
        # Unlike the inherited method, allocates no more than there is.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_reduce(self):
        self._check_arguments()
        super().load_reduce()

    def load_newobj(self):
        self._check_arguments()
        super().load_newobj()

    def load_build(self):
        # Attributes of dictionaries, such as _metadata, are not needed.
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)


class _Dispatch(dict):
    def __missing__(self, opcode: int):
        raise ValueError(f"torch.save does not write the opcode {bytes([opcode])!r}")


def _counted(load: Callable[[_Unpickler], None]) -> Callable[[_Unpickler], None]:
    def counted(unpickler: _Unpickler) -> None:
        unpickler.count(1)
        load(unpickler)

    return counted


# What torch.save writes by protocols 1 to 5, of which it chooses 2. Others are not
# needed, and some ask for memory of any size.
_OPCODES = """
    PROTO FRAME MARK POP POP_MARK DUP STOP NONE NEWTRUE NEWFALSE INT LONG BININT BININT1
    BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING
    SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD BINPERSID
    BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
"""
_CODES = [getattr(pickle, name)[0] for name in _OPCODES.split()]
_Unpickler.dispatch = _Dispatch(
    (code, _counted(getattr(_Unpickler, _Base.dispatch[code].__name__)))
    for code in _CODES
)
