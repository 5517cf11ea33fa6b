"""Weights of the Keras implementation (Keras 2), identified by order and shape.

The names in its files count the layers of the process that wrote them and mean nothing;
the order of a model's weights is fixed.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from videomae_jax.errors import PretrainedError

# A block's weights in their order; qkv is third, the first matrix.
_BLOCK = (
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.proj.weight",
    "attn.proj.bias",
    "attn.q_bias",
    "attn.v_bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)


def read_h5(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of `save_weights` into official names and shapes.

    Raises:
        PretrainedError: if it is damaged, or not of a VideoMAE.
    """
    try:
        import h5py
    except ImportError as error:
        raise PretrainedError(
            f"{path} is an HDF5 file: reading it needs h5py (pip install h5py)"
        ) from error
    try:
        with h5py.File(path) as file:
            groups: list[Any] = [file[name] for name in _names(file, "layer_names")]
            if not groups:
                raise PretrainedError(f"{path} holds no weights of a Keras 2 model")
            if "top_level_model_weights" in file:  # the mask token
                groups.append(file["top_level_model_weights"])
            weights = [
                np.asarray(group[name])
                for group in groups
                for name in _names(group, "weight_names")
            ]
    except PretrainedError:
        raise
    except Exception as error:  # a broken file can raise anything
        raise PretrainedError(
            f"{path} is damaged or cut off: {error}; copy or download it again"
        ) from error
    return name_weights(weights, os.fspath(path))


def _names(group, attribute: str) -> list[str]:
    """Returns a list of names, which Keras splits over numbered attributes if long."""
    attributes = [attribute, *(f"{attribute}{i}" for i in range(len(group.attrs)))]
    names = [name for key in attributes for name in group.attrs.get(key, ())]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def read_saved_model(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the variables of a SavedModel as `read_h5`; needs TensorFlow."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise PretrainedError(
            f"{folder} is a TensorFlow SavedModel: reading it needs TensorFlow (pip "
            "install tensorflow-cpu); the .h5 file of the same model does not"
        ) from error
    try:
        checkpoint = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    except (ValueError, tf.errors.OpError) as error:
        raise PretrainedError(f"{folder} is damaged: {error}") from error
    pattern = r"variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE"
    names = checkpoint.get_variable_to_shape_map()
    matches = [match for name in names if (match := re.fullmatch(pattern, name))]
    matches.sort(key=lambda match: int(match[1]))
    weights = [checkpoint.get_tensor(match[0]) for match in matches]
    return name_weights(weights, os.fspath(folder))


def name_weights(weights: Sequence[np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Returns the arrays in PyTorch's shapes, by their official names.

    Args:
        weights: in the model's order, in Keras's shapes.
        source: for messages.

    Raises:
        PretrainedError: if the sequence is not that of a VideoMAE.
    """
    pretraining = any(x.ndim == 3 for x in weights)
    prefix = "encoder." if pretraining else ""
    block, named, position = 0, {}, 0
    while position < len(weights):
        shapes = [x.shape for x in weights[position : position + len(_BLOCK)]]
        dims = "".join(str(len(shape)) for shape in shapes)
        if dims.startswith("51"):
            names = _with_bias(f"{prefix}patch_embed.proj")
        elif dims == "1122111112121" and shapes[2][1] == 3 * shapes[2][0]:
            names = [f"{prefix}blocks.{block}.{name}" for name in _BLOCK]
            block += 1
        elif dims.startswith("11"):
            # The norm after the blocks; a classifier has it after pooling.
            names = _with_bias(f"{prefix}norm" if pretraining else "fc_norm")
            if prefix == "encoder.":
                prefix, block = "decoder.", 0
        elif dims.startswith("21"):
            names = _with_bias("decoder.head" if pretraining else "head")
        elif dims.startswith("2"):
            names = ["encoder_to_decoder.weight"]
        elif dims.startswith("3"):
            names = ["mask_token"]
        else:
            raise PretrainedError(
                f"{source}: weight {position} of {len(weights)} has the shape "
                f"{shapes[0]}, unlike a VideoMAE of the Keras implementation"
            )
        for name in names:
            named[name] = _official(weights[position])
            position += 1
    return named


def _with_bias(part: str) -> list[str]:
    return [f"{part}.weight", f"{part}.bias"]


def _official(x: np.ndarray) -> np.ndarray:
    if x.ndim == 5:  # time, row, column, in, out
        return x.transpose(4, 3, 0, 1, 2)
    return x.T if x.ndim == 2 else x
