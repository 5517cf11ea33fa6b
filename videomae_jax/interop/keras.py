"""Weights of the Keras implementation (Keras 2), identified by order and shape.

The names in its files count the layers of the process that wrote them and mean nothing;
the order of a model's weights is fixed.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.files import open_regular
from videomae_jax.interop.tensor_files import (
    MAX_HEADER,
    MAX_REASON,
    first_bytes,
    reading,
)

# Of looking through an HDF5 file, which takes a hundredth of them.
_MOST_SECONDS = 3  # of a core
_MOST_MEMORY = 2**30  # bytes
# Of decoding: weights hardly become smaller by compression.
_MOST_GROWTH = 16  # times the size of the file
_MOST_DECODED = 2**33  # bytes, twice those of the largest model
_LEAST_SPEED = 2**24  # bytes per second of a core; usual are ten times as many
_LOOK_THROUGH = "from videomae_jax.interop import keras; keras.look_through()"

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


class _Values(NamedTuple):
    """The place of an array in its file.

    Attributes:
        name: for messages.
        shape, dtype: of the array.
        offset: of its first byte; the others follow.
        decoded: they are not in the file but follow the answer of the other process.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    decoded: bool


def read_h5(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of `save_weights` into official names and shapes.

    Raises:
        PretrainedError: if it is damaged, not of a VideoMAE, or takes far more time or
            memory to be looked through than any model.
    """
    with reading(path), open_regular(path) as file:
        found, decoded = _find_values(path)
        places, stored = [_Values(*x) for x in found], 0
        end = file.seek(0, os.SEEK_END)
        for place in places:
            size = math.prod(place.shape) * np.dtype(place.dtype).itemsize
            stored += 0 if place.decoded else size
            if place.offset + size > (len(decoded) if place.decoded else end):
                raise PretrainedError(
                    f"{path}: {place.name} of shape {tuple(place.shape)} is larger "
                    "than the file; copy or download it again"
                )
        # Weights that share their values could make a small file fill any memory.
        if stored > end:
            raise PretrainedError(f"{path}: its weights are larger than the file")
        weights = []
        for place in places:
            count = math.prod(place.shape)
            if place.decoded:
                values = np.frombuffer(decoded, place.dtype, count, place.offset)
            else:
                file.seek(place.offset)
                values = np.fromfile(file, place.dtype, count)
            weights.append(values.reshape(place.shape))
        return name_weights(weights, os.fspath(path))


def _find_values(path: str | os.PathLike) -> tuple[list[Any], memoryview]:
    """Returns the places of the weights in an HDF5 file, in their order.

    And the values of those that must be decoded, as compressed ones.

    Another process looks for them: a damaged file can make the HDF5 library work for
    ever, fill the memory or crash, and nothing in this process could stop that.
    """
    package = pathlib.Path(__file__).parents[2]
    folders = [*filter(None, sys.path), str(package)]
    process = subprocess.run(
        # -P: an h5py.py in the current folder is not imported.
        [sys.executable, "-P", "-c", _LOOK_THROUGH, os.fspath(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if process.returncode:
        # Imported here: the other process needs none of its imports.
        from videomae_jax.processes import describe_exit

        raise PretrainedError(
            f"{path} is damaged: the process that looked through it "
            f"{describe_exit(process.returncode)}, with at most {_MOST_SECONDS} s and "
            f"{_MOST_MEMORY >> 20} MB; copy or download it again"
        )
    end = process.stdout.index(b"\n") + 1
    answer = json.loads(process.stdout[:end])
    if isinstance(answer, str):
        raise PretrainedError(f"{path}: {answer}")
    return answer, memoryview(process.stdout)[end:]


def look_through() -> None:
    """Prints the answer to `_find_values`, or what is wrong, as JSON.

    Values that must be decoded follow; an error there ends the process.
    """
    content, places = None, []
    try:
        import h5py

        _limit_resources()
        content = h5py.File(sys.argv[1], "r")
        places = _places(content)
        answer = json.dumps(places)
        if len(answer) > MAX_HEADER:
            places = []
            raise PretrainedError("it has more weights than any model")
    except ImportError:
        answer = json.dumps("reading HDF5 needs h5py (pip install h5py)")
    except PretrainedError as error:
        answer = json.dumps(str(error))
    except Exception as error:  # a broken file can raise anything
        reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
        answer = json.dumps(
            f"it is damaged or cut off ({reason}); copy or download it again"
        )
    print(answer, flush=True)
    for place in places:
        if place.decoded:
            dataset: Any = content[place.name]  # pyright: ignore
            _allow_seconds(_MOST_SECONDS + dataset.nbytes / _LEAST_SPEED)
            sys.stdout.buffer.write(dataset[...].tobytes())


def _limit_resources() -> None:
    """Limits what this process may use from now on; exceeding the time ends it."""
    import resource

    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
        limit = used + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _allow_seconds(_MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_seconds(seconds: float) -> None:
    """Lets this process work for so many seconds from now on."""
    import resource

    limit = math.ceil(time.process_time() + seconds)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def _places(content: Any) -> list[_Values]:
    groups = [_child(content, name) for name in _names(content, "layer_names")]
    if not groups:
        raise PretrainedError("it holds no weights of a Keras 2 model")
    top = "top_level_model_weights"  # the mask token
    if content.get(top, getlink=True):
        groups.append(_child(content, top))
    places, decoded = [], 0
    budget = min(_MOST_GROWTH * content.id.get_filesize(), _MOST_DECODED)
    for group in groups:
        for name in _names(group, "weight_names"):
            dataset = _child(group, name)
            places.append(_place(dataset, decoded))
            decoded += dataset.nbytes if places[-1].decoded else 0
            if decoded > budget:
                raise PretrainedError(
                    f"{dataset.name} and those before would be {decoded} bytes when "
                    f"decoded; expected at most {_MOST_GROWTH} times the file and "
                    f"{_MOST_DECODED} bytes. If you trust the file, run "
                    "`h5repack -f NONE -l CONTI IN OUT`"
                )
    return places


def _child(group: Any, path: str) -> Any:
    """Returns what a path names; unlike h5py, follows no link to elsewhere."""
    import h5py

    for name in path.split("/"):
        link = group.get(name, getlink=True)
        if link is None:
            raise PretrainedError(f"{path} is missing; copy or download the file again")
        if not isinstance(link, h5py.HardLink):
            raise PretrainedError(
                f"{path} is a {type(link).__name__}, which can lead out of the file "
                "and is not followed; save the weights of the model again"
            )
        group = group[name]
    return group


def _place(dataset: Any, decoded: int) -> _Values:
    """Returns the place of a dataset.

    Args:
        dataset: with values in the file itself.
        decoded: size of what is decoded before it, in bytes.
    """
    import h5py

    h5d: Any = h5py.h5d
    h5z: Any = h5py.h5z
    settings = dataset.id.get_create_plist()
    layout = settings.get_layout()
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    kind = None
    if layout == h5d.VIRTUAL:
        kind = "as a virtual dataset"
    elif settings.get_external_count():
        kind = "in other files"
    elif filters - {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}:
        kind = "with a filter other than gzip, shuffle and Fletcher32"
    if kind:
        raise PretrainedError(
            f"{dataset.name} is stored {kind}, which Keras does not do and is not "
            "supported; save the weights of the model again"
        )
    if dataset.dtype.kind != "f":
        raise PretrainedError(
            f"{dataset.name} must be floating point, got {dataset.dtype}"
        )
    if (size := dataset.id.get_type().get_size()) != dataset.dtype.itemsize:
        raise PretrainedError(
            f"{dataset.name} has numbers of {size} bytes, which NumPy lacks (bfloat16?)"
            "; save the weights of the model as float32"
        )
    offset = dataset.id.get_offset() if layout == h5d.CONTIGUOUS else decoded
    if offset is None:
        raise PretrainedError(f"{dataset.name} has no values")
    is_decoded = layout != h5d.CONTIGUOUS
    return _Values(dataset.name, dataset.shape, dataset.dtype.str, offset, is_decoded)


def _names(group: Any, attribute: str) -> list[str]:
    """Returns a list of names, which Keras splits over numbered attributes if long."""
    numbered = (f"{attribute}{i}" for i in itertools.count())
    numbered = itertools.takewhile(group.attrs.__contains__, numbered)
    keys = [attribute] if attribute in group.attrs else []
    names = [name for key in [*keys, *numbered] for name in group.attrs[key]]
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
    variables = folder / "variables"
    with reading(folder):
        parts = [variables / "variables.index", *variables.glob("variables.data-*")]
        for part in parts:
            first_bytes(part)
        checkpoint = tf.train.load_checkpoint(str(variables / "variables"))
        pattern = r"variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE"
        shapes = checkpoint.get_variable_to_shape_map()
        types = checkpoint.get_variable_to_dtype_map()
        matches = [match for name in shapes if (match := re.fullmatch(pattern, name))]
        matches.sort(key=lambda match: int(match[1]))
        names = [match[0] for match in matches]
        size = sum(math.prod(shapes[name]) * types[name].size for name in names)
        if size > sum(part.stat().st_size for part in parts):
            raise PretrainedError(f"{folder}: its weights are larger than its files")
        weights = [checkpoint.get_tensor(name) for name in names]
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
