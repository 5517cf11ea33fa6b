"""Finds out what a checkpoint is, by its content and not its name, and loads it."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.interop import (
    export,
    hub,
    huggingface,
    keras,
    official,
    torch_files,
)
from videomae_jax.interop.assembly import Source, assemble
from videomae_jax.interop.pretrained import Pretrained, PretrainedError

_SHOWN = 8  # names in a message
_HDF5 = b"\x89HDF\r\n\x1a\n"
# A name that only one of them has.
_SIGNS = {
    "huggingface": r"(^|\.)encoder\.layer\.\d+\.attention\.attention\.",
    "mmaction": r"(^|\.)blocks\.\d+\.mlp\.layers\.",
    "official": r"(^|\.)blocks\.\d+\.attn\.qkv\.",
}


def load_pretrained(
    source: str | os.PathLike,
    revision: str | None = None,
    strict: bool = True,
    **fields: Any,
) -> Pretrained:
    """Loads a model with its weights, labels and preprocessing.

    Args:
        source: a model of the Hugging Face hub (owner/model, or owner/model/file), or
            a path: a folder or file of transformers; an official .pth of VideoMAE or
            VideoMAE V2, or DeepSpeed folder; a .pth of MMAction2; an .h5 or SavedModel
            of the Keras implementation; a work directory or an export of this library.
        revision: of a model on the hub: a commit, tag or branch.
        strict: tensors that are missing or have no use are an error. With False they
            are listed in the result; what is missing is initialised randomly.
        **fields: of the model, such as dtype="bfloat16", or heads=3 and
            decoder_heads=2 where the source does not tell them.

    Returns:
        The model, whose parameters are float32 arrays on the default device.

    Raises:
        PretrainedError: if the source cannot be read or had, is of an unknown
            architecture, or its tensors do not fit.

    Example:
        >>> import tempfile, jax, videomae_jax as vmae
        >>> model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=3)
        >>> video = jax.numpy.zeros((1, 2, 16, 16, 3), "uint8")
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> folder = tempfile.mkdtemp()
        >>> vmae.save_pretrained(folder, vmae.Pretrained(model, params), format="jax")
        >>> loaded = vmae.load_pretrained(folder)
        >>> loaded.model.apply(loaded.variables, video).shape
        (1, 3)
    """
    loaded = read(source, revision, strict, **fields)
    return dataclasses.replace(loaded, params=jax.tree.map(jnp.asarray, loaded.params))


def read(
    source: str | os.PathLike,
    revision: str | None = None,
    strict: bool = True,
    **fields: Any,
) -> Pretrained:
    """As `load_pretrained`, with parameters on the host where they can be."""
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        if not hub.is_name(os.fspath(source)):
            raise PretrainedError(f"there is no file or folder {os.fspath(source)!r}")
        path = hub.download(os.fspath(source), revision)
    loaded = _load(path, strict, fields)
    return dataclasses.replace(loaded, source=os.fspath(source))


def _load(path: pathlib.Path, strict: bool, fields: Mapping[str, Any]) -> Pretrained:
    if path.is_dir():
        if (path / "checkpoints").is_dir():
            # It brings in the training stack.
            from videomae_jax.interop import workdir

            return workdir.read(path, fields)
        if export.is_export(path):
            return export.read(path, _safetensors(path / export.WEIGHTS), fields)
        return assemble(_open_folder(path), strict, fields)
    return assemble(_open_file(path), strict, fields)


def _open_folder(folder: pathlib.Path) -> Source:
    if (folder / "saved_model.pb").exists():
        return Source(str(folder), "keras", keras.read_saved_model(folder))
    states = sorted(folder.glob("*mp_rank_*_model_states.pt"))
    if (folder / "latest").exists() and not states:  # DeepSpeed's outer folder
        tag = (folder / "latest").read_text().strip()
        states = sorted((folder / tag).glob("*mp_rank_*_model_states.pt"))
    if len(states) > 1:
        raise PretrainedError(
            f"{folder}: the model is split over {len(states)} files, as "
            f"{states[0].name}; join them with DeepSpeed's zero_to_fp32.py first"
        )
    if states:
        return _open_file(states[0])
    indices = sorted(folder.glob("*.index.json"))
    files = sorted(folder.glob("*.safetensors")) or sorted(
        folder.glob("pytorch_model*.bin")
    )
    if indices:
        files = _shards(folder, indices)
    elif (folder / "model.safetensors") in files:
        files = [folder / "model.safetensors"]
    if len(files) > 1 and not indices:
        raise PretrainedError(
            f"{folder} holds several weight files ({', '.join(f.name for f in files)}) "
            "and no index that says which belong together; give one file"
        )
    if not files:
        names = sorted(file.name for file in folder.iterdir())[:_SHOWN]
        raise PretrainedError(
            f"{folder} holds no weights that can be read: looked for safetensors, "
            "pytorch_model.bin, saved_model.pb, DeepSpeed's model states and "
            f"checkpoints of this library; there are: {', '.join(names) or 'no files'}"
        )
    tensors = {}
    for file in files:
        tensors |= _read_tensors(file)[0]
    return _configured(_named(str(folder), tensors), folder)


def _shards(folder: pathlib.Path, indices: list[pathlib.Path]) -> list[pathlib.Path]:
    best = min(indices, key=lambda file: ".safetensors." not in file.name)
    shards = huggingface.read_json(best).get("weight_map", {})
    files = [folder / name for name in sorted(set(shards.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise PretrainedError(
            f"{best} names files that are not there: {', '.join(absent[:_SHOWN])}; "
            "copy or download them too"
        )
    return files


def _open_file(path: pathlib.Path) -> Source:
    if _first_bytes(path).startswith(_HDF5):
        return Source(str(path), "keras", keras.read_h5(path))
    tensors, arguments = _read_tensors(path)
    source = _named(str(path), tensors)
    if source.format == "official":
        _use_arguments(source, arguments)
    return _configured(source, path.parent)


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The tensors of a file, and the arguments of the script that wrote it."""
    head = _first_bytes(path)
    if head.startswith(b"PK"):
        return _torch_tensors(path)
    if head[8:9] == b"{":
        return _safetensors(path), {}
    hint = ""
    if not head:
        hint = ": it is empty"
    elif head[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        hint = (
            ". It is a pickle that is no archive, as PyTorch before 1.6 wrote; open it "
            "with PyTorch and save it again with torch.save"
        )
    elif head.startswith(b"version https://"):
        hint = ". It is a pointer of Git LFS: run `git lfs pull` for the file itself"
    raise PretrainedError(
        f"{path} is neither safetensors, nor a .pth of PyTorch, nor HDF5{hint}"
    )


def _first_bytes(path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be opened: {error.strerror}") from error


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors.flax
    except ImportError as error:
        raise PretrainedError(
            f"reading {path} needs safetensors (pip install safetensors)"
        ) from error
    try:
        # As JAX's arrays, for bfloat16; on the host.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            tensors = safetensors.flax.load_file(path)
    except safetensors.SafetensorError as error:
        raise PretrainedError(
            f"{path} is damaged or cut off ({error}); copy or download it again"
        ) from error
    return {name: np.asarray(x) for name, x in tensors.items()}


def _torch_tensors(
    path: pathlib.Path,
) -> tuple[dict[str, torch_files.Tensor], Mapping[str, Any]]:
    content = torch_files.read(path)
    tensors, arguments = content, {}
    if isinstance(content, dict):
        for key in ("model", "module", "state_dict"):
            if isinstance(content.get(key), dict):
                tensors = content[key]
                break
        arguments = content.get("args")
        if isinstance(arguments, torch_files.Inert):
            arguments = vars(arguments)
    tensors = {
        name: x
        for name, x in (tensors.items() if isinstance(tensors, dict) else ())
        if isinstance(x, torch_files.Tensor)
    }
    if not tensors:
        raise PretrainedError(
            f"{path} holds no weights: looked under 'model', 'module', 'state_dict' "
            "and at the top"
        )
    return tensors, arguments if isinstance(arguments, dict) else {}


def _use_arguments(source: Source, arguments: Mapping[str, Any]) -> None:
    """What the official scripts' command line tells."""
    for ours, theirs in (
        ("num_frames", "num_frames"),
        ("image_size", "input_size"),
        ("stride", "sampling_rate"),
    ):
        if isinstance(arguments.get(theirs), int):
            source.preprocessing[ours] = arguments[theirs]
    # The two versions spell it differently.
    for name in ("normlize_target", "normalize_target"):
        if isinstance(arguments.get(name), bool):
            source.normalized_targets = arguments[name]


def _named(path: str, tensors: dict[str, Any]) -> Source:
    """Finds out whose names these are."""
    formats = [
        format
        for format, sign in _SIGNS.items()
        if any(re.search(sign, name) for name in tensors)
    ]
    if not formats:
        raise PretrainedError(
            f"{path} is of an unknown architecture. Its tensors have names such as "
            f"{', '.join(list(tensors)[:4])}; the names of VideoMAE in the official "
            "code, transformers and MMAction2 are known"
        )
    format = formats[0]
    if format == "huggingface":
        tensors = huggingface.normalize_names(tensors)
    elif format == "official":
        tensors = official.normalize_names(tensors)
    source = Source(path, format, tensors)
    if format == "mmaction":
        source.preprocessing["frames"] = "mmaction"
    return source


def _configured(source: Source, folder: pathlib.Path) -> Source:
    """Adds what a config.json beside the weights tells, if it is theirs."""
    file = folder / "config.json"
    if source.format == "huggingface":
        source.fields |= huggingface.EPSILONS
        told = huggingface.read_config(file) if file.exists() else {}
    elif source.format == "official" and huggingface.is_v2_config(file):
        told = huggingface.read_v2_config(file)
    else:
        told = {}
    source.fields |= told.pop("fields", {})
    for name, value in told.items():
        setattr(source, name, value)
    return source
