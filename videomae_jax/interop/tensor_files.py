"""Reads the tensors of a single file, whose first bytes show its kind."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop import torch_pickle


def read_tensors(path: pathlib.Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Returns the tensors of a file, and the arguments of the script that wrote it.

    Raises:
        PretrainedError: if it cannot be opened, is damaged, or of another kind.
    """
    head = first_bytes(path)
    if head.startswith(b"PK"):
        return _torch_tensors(path)
    if head[8:9] == b"{":
        return read_safetensors(path), {}
    hint = ""
    if not head:
        hint = ": it is empty"
    elif head[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        hint = (
            ". It is a pickle without an archive, as written by PyTorch before 1.6; "
            "open it with PyTorch and save it again with torch.save"
        )
    elif head.startswith(b"version https://"):
        hint = ". It is a Git LFS pointer; run `git lfs pull` to fetch the file"
    raise PretrainedError(
        f"{path} is neither safetensors nor a PyTorch .pth nor HDF5{hint}"
    )


def first_bytes(path: pathlib.Path) -> bytes:
    """Returns the first 16 bytes; raises PretrainedError if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be opened: {error.strerror}") from error


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file; raises PretrainedError if damaged."""
    try:
        import safetensors.flax
    except ImportError as error:
        raise PretrainedError(
            f"reading {path} needs safetensors (pip install safetensors)"
        ) from error
    try:
        # As JAX arrays, which support bfloat16; on the host.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            tensors = safetensors.flax.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(
            f"{path} is damaged or cut off ({error}); copy or download it again"
        ) from error
    return {name: np.asarray(x) for name, x in tensors.items()}


def _torch_tensors(
    path: pathlib.Path,
) -> tuple[dict[str, torch_pickle.Tensor], Mapping[str, Any]]:
    content = torch_pickle.read(path)
    content = content if isinstance(content, dict) else {}
    candidates = [content.get(key) for key in ("model", "module", "state_dict")]
    weights = next((x for x in candidates if isinstance(x, dict)), content)
    tensors = {
        name: x
        for name, x in weights.items()
        if isinstance(x, torch_pickle.Tensor) and isinstance(name, str)
    }
    arguments = content.get("args")
    if isinstance(arguments, torch_pickle.Inert):
        arguments = vars(arguments)
    if not tensors:
        raise PretrainedError(
            f"{path} holds no weights; looked under 'model', 'module', 'state_dict' "
            "and at the top level"
        )
    return tensors, arguments if isinstance(arguments, dict) else {}
