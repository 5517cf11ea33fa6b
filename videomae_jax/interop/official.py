"""The official PyTorch names and shapes of every parameter, and ours.

All other formats are told by what they call the tensors named here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from videomae_jax.errors import PretrainedError

# Ours within a block, or wherever the part is, to the official ones.
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/qkv": "attn.qkv",
    "attention/q_bias": "attn.q_bias",
    "attention/v_bias": "attn.v_bias",
    "attention/out": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_TOP = {
    "encoder/embedding": "patch_embed.proj",
    "encoder/norm": "norm",
    "norm": "fc_norm",
    "head": "head",
    "encoder_to_decoder": "encoder_to_decoder",
    "decoder/norm": "decoder.norm",
    "decoder/head": "decoder.head",
    "mask_token": "mask_token",
}
# Of a block, without blocks.<i>. before.
BLOCK_TENSORS = tuple(
    name if name.endswith("_bias") else f"{name}.{leaf}"
    for name in _BLOCK.values()
    for leaf in ("weight", "bias")
)
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


class Entry(NamedTuple):
    """A tensor by both names.

    Attributes:
        name: official, such as blocks.3.attn.qkv.weight.
        path: ours, such as encoder/blocks/attention/qkv/kernel.
        layer: which of the stacked blocks; None where nothing is stacked.
    """

    name: str
    path: str
    layer: int | None

    def shape(self, ours: tuple[int, ...], tubelet_size: int) -> tuple[int, ...]:
        """The official shape, given that of our parameter (of all blocks)."""
        return self.from_ours(np.broadcast_to(np.float32(0), ours), tubelet_size).shape

    def from_ours(self, array: np.ndarray, tubelet_size: int) -> np.ndarray:
        """Our parameter (of all blocks) in the official shape."""
        if self.layer is not None:
            array = array[self.layer]
        if self.path == "mask_token":
            return array.reshape(1, 1, -1)
        if self.path == "encoder/embedding/kernel":
            side = round((len(array) / tubelet_size / 3) ** 0.5)
            kernel = array.reshape(tubelet_size, side, side, 3, -1)
            return kernel.transpose(4, 3, 0, 1, 2)
        return array.T if self.path.endswith("/kernel") else array

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_ours`, of one block."""
        if self.path == "mask_token":
            return array.reshape(-1)
        if self.path == "encoder/embedding/kernel":
            return array.transpose(2, 3, 4, 1, 0).reshape(-1, len(array))
        return array.T if self.path.endswith("/kernel") else array


def entries(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
    """The official tensors of a model of ours.

    Args:
        shapes: of our parameters, by path a/b/c.

    Yields:
        Entries in the order of the official state dict's parts, block by block.

    Raises:
        KeyError: for a parameter that the official code has no counterpart of; its
            path is the key.
    """
    # Official classifiers are encoders; in pretraining it is a part.
    encoder = "encoder." if "mask_token" in shapes else ""
    for path, shape in shapes.items():
        part, _, inner = path.partition("/blocks/")
        stem, _, leaf = path.rpartition("/")
        if inner:
            stem, _, leaf = inner.rpartition("/")
            # q_bias and v_bias are leaves by themselves.
            name = _BLOCK.get(inner) or f"{_BLOCK[stem]}.{_LEAVES[leaf]}"
            prefix = "decoder." if part == "decoder" else encoder
            for layer in range(shape[0]):
                yield Entry(f"{prefix}blocks.{layer}.{name}", path, layer)
            continue
        name = _TOP.get(path)
        if name is None:
            if stem not in _TOP or leaf not in _LEAVES:
                raise KeyError(path)
            name = f"{_TOP[stem]}.{_LEAVES[leaf]}"
        if path.startswith("encoder/"):
            name = encoder + name
        yield Entry(name, path, None)


def unwrap(tensors: Mapping[str, object]) -> dict[str, object]:
    """Takes off what compiled and parallel models have before all of their names."""
    found = dict(tensors)
    prefixes = ("_orig_mod.", "module.", "model.")
    while prefix := next(
        (p for p in prefixes if found and all(name.startswith(p) for name in found)),
        None,
    ):
        found = {name.removeprefix(prefix): x for name, x in found.items()}
    return found


def normalize_names(tensors: Mapping[str, object]) -> dict[str, object]:
    """Takes off what may stand before the names of an encoder by itself."""
    if any(name.startswith("decoder.") for name in tensors):
        return dict(tensors)
    return rename(tensors, lambda name: re.sub(r"^(encoder|backbone)\.", "", name))


def rename(
    tensors: Mapping[str, object], new_name: Callable[[str], str]
) -> dict[str, object]:
    """Renames tensors; raises PretrainedError if two would have the same name."""
    renamed = {}
    for name, tensor in tensors.items():
        new = new_name(name)
        if new in renamed:
            raise PretrainedError(
                f"two of the tensors would be {new}: one of them is {name}"
            )
        renamed[new] = tensor
    return renamed


def pieces(name: str) -> tuple[str, ...]:
    """What the official code calls the official tensor: its own name."""
    return (name,)
