"""Weights of the Keras implementation (Keras 2), told apart by order and shape.

The names in its files count the layers of the process that wrote them, so they say
nothing; the order in which a model lists its weights is fixed.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from videomae_jax.errors import PretrainedError

# A block's weights in their order; qkv stands third, at the first matrix.
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
    """Reads a file that `save_weights` wrote: official names and shapes.

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
            groups = [file[name] for name in _names(file, "layer_names")]
            if "top_level_model_weights" in file:  # the mask token
                groups.append(file["top_level_model_weights"])
            weights = [
                np.asarray(group[name])
                for group in groups
                for name in _names(group, "weight_names")
            ]
    except PretrainedError:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise PretrainedError(
            f"{path} is damaged or cut off: {error}; copy or download it again"
        ) from error
    return name_weights(weights, os.fspath(path))


def _names(group, attribute: str) -> list[str]:
    """A list of names, which Keras cuts into pieces when it is long."""
    if attribute in group.attrs:
        names = list(group.attrs[attribute])
    else:
        pieces = sorted(
            (name for name in group.attrs if re.fullmatch(rf"{attribute}\d+", name)),
            key=lambda name: int(name.removeprefix(attribute)),
        )
        names = [name for piece in pieces for name in group.attrs[piece]]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def read_saved_model(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the variables of a SavedModel: official names and shapes.

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
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    except (ValueError, tf.errors.OpError) as error:
        raise PretrainedError(f"{folder} is damaged: {error}") from error
    found = {}
    for name in reader.get_variable_to_shape_map():
        match = re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE", name)
        if match:
            found[int(match[1])] = name
    weights = [reader.get_tensor(found[index]) for index in sorted(found)]
    return name_weights(weights, os.fspath(folder))


def name_weights(weights: Sequence[np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Tells what each weight of a model is by its place and shape.

    Args:
        weights: in the model's order, in Keras's shapes.
        source: named in errors.

    Returns:
        Arrays in PyTorch's shapes by their official names.

    Raises:
        PretrainedError: if the sequence is not that of a VideoMAE.
    """
    pretraining = any(x.ndim == 3 for x in weights)
    part = "encoder." if pretraining else ""
    block, found, place = 0, {}, 0

    def take(*names: str) -> None:
        nonlocal place
        for name in names:
            found[name] = _official(weights[place])
            place += 1

    while place < len(weights):
        shapes = [x.shape for x in weights[place : place + len(_BLOCK)]]
        dims = "".join(str(len(shape)) for shape in shapes)
        if dims.startswith("51"):
            take(f"{part}patch_embed.proj.weight", f"{part}patch_embed.proj.bias")
        elif dims == "1122111112121" and shapes[2][1] == 3 * shapes[2][0]:
            take(*(f"{part}blocks.{block}.{name}" for name in _BLOCK))
            block += 1
        elif dims.startswith("11"):
            # After the blocks of a tower its norm; a classifier's is after pooling.
            norm = f"{part}norm" if pretraining else "fc_norm"
            take(f"{norm}.weight", f"{norm}.bias")
            if part == "encoder.":
                part, block = "decoder.", 0
        elif dims.startswith("21"):
            head = "decoder.head" if pretraining else "head"
            take(f"{head}.weight", f"{head}.bias")
        elif dims.startswith("2"):
            take("encoder_to_decoder.weight")
        elif dims.startswith("3"):
            take("mask_token")
        else:
            raise PretrainedError(
                f"{source}: weight {place} of {len(weights)}, of shape {shapes[0]}, is "
                "none that a VideoMAE of the Keras implementation has there"
            )
    return found


def _official(x: np.ndarray) -> np.ndarray:
    if x.ndim == 5:  # time, row, column, in, out
        return x.transpose(4, 3, 0, 1, 2)
    return x.T if x.ndim == 2 else x
