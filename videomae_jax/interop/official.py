"""Official PyTorch names and shapes of every parameter, and ours.

The other formats are described by their names for the official tensors.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.models import vit

_T = TypeVar("_T")

# Official names by ours: within a block, and of the other parts.
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
# Official names within a block, without the prefix blocks.<i>.
BLOCK_TENSORS = tuple(
    name if name.endswith("_bias") else f"{name}.{leaf}"
    for name in _BLOCK.values()
    for leaf in ("weight", "bias")
)
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# MMAction2's names (version 1.2, VideoMAE and VideoMAE V2). A detector's head has
# another: _MMACTION_HEAD.
_MMACTION = (
    (r"^", "backbone."),
    (r"\.mlp\.fc1\.", ".mlp.layers.0.0."),
    (r"\.mlp\.fc2\.", ".mlp.layers.1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^backbone\.head\.", "cls_head.fc_cls."),
)
_MMACTION_HEAD = "roi_head.bbox_head.fc_cls."
# Classes of AVA, which official detectors have and no data set of whole videos.
CLASSES_OF_AVA = 80


class Entry(NamedTuple):
    """A tensor by both names.

    Attributes:
        name: official, such as blocks.3.attn.qkv.weight.
        path: ours, such as encoder/blocks/attention/qkv/kernel.
        layer: index into the stacked blocks; None outside of blocks.
    """

    name: str
    path: str
    layer: int | None

    def shape(self, ours: tuple[int, ...], **patch: int) -> tuple[int, ...]:
        """Returns the official shape, given that of our parameter (of all blocks)."""
        return self.from_ours(np.broadcast_to(np.float32(0), ours), **patch).shape

    def from_ours(
        self, array: np.ndarray, *, tubelet_size: int, channels: int
    ) -> np.ndarray:
        """Returns our parameter (of all blocks) in the official shape.

        Args:
            tubelet_size, channels: of the model's patches.
        """
        if self.layer is not None:
            array = array[self.layer]
        if self.path == "mask_token":
            return array.reshape(1, 1, -1)
        if self.path == "encoder/embedding/kernel":
            side = round((len(array) / tubelet_size / channels) ** 0.5)
            kernel = array.reshape(tubelet_size, side, side, channels, -1)
            return kernel.transpose(4, 3, 0, 1, 2)
        return array.T if self.path.endswith("/kernel") else array

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Inverts `from_ours`, for one block."""
        if self.path == "mask_token":
            return array.reshape(-1)
        if self.path == "encoder/embedding/kernel":
            return array.transpose(2, 3, 4, 1, 0).reshape(-1, len(array))
        return array.T if self.path.endswith("/kernel") else array


def entries(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Entry]:
    """Yields the official tensors of our parameters, given their shapes by path a/b/c.

    Raises:
        KeyError: for a parameter without an official counterpart; its path is the key.
    """
    # The official classifier is an encoder; the official autoencoder contains one.
    encoder = "encoder." if "mask_token" in shapes else ""
    for path, shape in shapes.items():
        part, _, inner = path.partition("/blocks/")
        stem, _, leaf = path.rpartition("/")
        if inner:
            stem, _, leaf = inner.rpartition("/")
            # q_bias and v_bias are leaves themselves.
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


def unwrap(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Removes the prefixes that compiled and parallel models add to all names."""
    unwrapped = dict(tensors)
    prefixes = ("_orig_mod.", "module.", "model.")
    while prefix := next(
        (p for p in prefixes if unwrapped and all(x.startswith(p) for x in unwrapped)),
        None,
    ):
        unwrapped = {name.removeprefix(prefix): x for name, x in unwrapped.items()}
    return unwrapped


def normalize_names(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Removes the prefix that an encoder without a decoder may have."""
    if any(name.startswith("decoder.") for name in tensors):
        return dict(tensors)
    return rename(tensors, lambda name: re.sub(r"^(encoder|backbone)\.", "", name))


def rename(tensors: Mapping[str, _T], new_name: Callable[[str], str]) -> dict[str, _T]:
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


def detector_fields(format: str, tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns fields of the ActionDetector that tensors are of; None if they are not.

    An official one, of VideoMAE or VideoMAE V2, differs from a classifier by the norm
    before pooling and the classes of AVA; one of MMAction2 by the name of its head.
    """
    if format == "mmaction" and any(x.startswith(_MMACTION_HEAD) for x in tensors):
        return {
            "roi_bins": 8,
            "roi_aligned": True,
            "pixel_mean": vit.IMAGENET_MEAN,
            "pixel_std": vit.IMAGENET_STD,
        }
    head, patches = tensors.get("head.weight"), tensors.get("patch_embed.proj.weight")
    norms = {"norm.weight", "fc_norm.weight"} & tensors.keys()
    if format != "official" or head is None or patches is None:
        return None
    if (
        norms != {"norm.weight"}
        or len(head.shape) != 2
        or head.shape[0] != CLASSES_OF_AVA
    ):
        return None
    return {"roi_stride": roi_stride(patches.shape[-1])}


def roi_stride(patch_size: int) -> int | None:
    """Returns that of an official ActionDetector: always 16 pixels.

    Boxes of VideoMAE V2's ViT-g are pooled as if its patches had 16 pixels, not 14.
    """
    return None if patch_size == 16 else 16


def without_background(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of MMAction2's detector, the head without its unused class.

    The class is the first one, the background. The head is named as a classifier's.
    """

    def rows(name: str, tensor: Any) -> Any:
        if not name.startswith(_MMACTION_HEAD):
            return tensor
        return np.asarray(tensor.load() if hasattr(tensor, "load") else tensor)[1:]

    heads = {name: rows(name, x) for name, x in tensors.items()}
    return rename(heads, lambda x: x.replace(_MMACTION_HEAD, "cls_head.fc_cls."))


def mmaction_tensor_names(name: str) -> tuple[str, ...]:
    """Returns MMAction2's name of an official tensor."""
    for pattern, replacement in _MMACTION:
        name = re.sub(pattern, replacement, name)
    return (name,)
