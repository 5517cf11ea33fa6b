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
            if "layer_names" not in file.attrs and "layer_names0" not in file.attrs:
                raise PretrainedError(f"{path} holds no weights of a Keras 2 model")
            groups: list[Any] = [file[name] for name in _names(file, "layer_names")]
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
    """Returns a list of names, which Keras splits over several attributes if long."""
    if attribute in group.attrs:
        names = list(group.attrs[attribute])
    else:
        attributes = sorted(
            (name for name in group.attrs if re.fullmatch(rf"{attribute}\d+", name)),
            key=lambda name: int(name.removeprefix(attribute)),
        )
        names = [name for key in attributes for name in group.attrs[key]]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def read_saved_model(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the variables of a SavedModel into official names and shapes.

    Raises:
        PretrainedError: if TensorFlow is not installed, or the variables are not those
            of a VideoMAE.
    """
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
    variables = {}
    for name in checkpoint.get_variable_to_shape_map():
        match = re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE", name)
        if match:
            variables[int(match[1])] = name
    weights = [checkpoint.get_tensor(variables[index]) for index in sorted(variables)]
    return name_weights(weights, os.fspath(folder))


def name_weights(weights: Sequence[np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Names each weight of a model by its position and shape.

    Args:
        weights: in the model's order, in Keras's shapes.
        source: for messages.

    Returns:
        Arrays in PyTorch's shapes by their official names.

    Raises:
        PretrainedError: if the sequence is not that of a VideoMAE.
    """
    pretraining = any(x.ndim == 3 for x in weights)
    prefix = "encoder." if pretraining else ""
    block, named, position = 0, {}, 0

    def take(*names: str) -> None:
        nonlocal position
        for name in names:
            named[name] = _official(weights[position])
            position += 1

    while position < len(weights):
        shapes = [x.shape for x in weights[position : position + len(_BLOCK)]]
        dims = "".join(str(len(shape)) for shape in shapes)
        if dims.startswith("51"):
            take(f"{prefix}patch_embed.proj.weight", f"{prefix}patch_embed.proj.bias")
        elif dims == "1122111112121" and shapes[2][1] == 3 * shapes[2][0]:
            take(*(f"{prefix}blocks.{block}.{name}" for name in _BLOCK))
            block += 1
        elif dims.startswith("11"):
            # The norm after the blocks; a classifier has it after pooling.
            norm = f"{prefix}norm" if pretraining else "fc_norm"
            take(f"{norm}.weight", f"{norm}.bias")
            if prefix == "encoder.":
                prefix, block = "decoder.", 0
        elif dims.startswith("21"):
            head = "decoder.head" if pretraining else "head"
            take(f"{head}.weight", f"{head}.bias")
        elif dims.startswith("2"):
            take("encoder_to_decoder.weight")
        elif dims.startswith("3"):
            take("mask_token")
        else:
            raise PretrainedError(
                f"{source}: weight {position} of {len(weights)} has the shape "
                f"{shapes[0]}, unlike a VideoMAE of the Keras implementation"
            )
    return named


def _official(x: np.ndarray) -> np.ndarray:
    if x.ndim == 5:  # time, row, column, in, out
        return x.transpose(4, 3, 0, 1, 2)
    return x.T if x.ndim == 2 else x
