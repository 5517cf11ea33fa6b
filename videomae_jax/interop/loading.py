"""Loads checkpoints of any format, which it recognizes by content, not by name."""

import contextlib
import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import ranges
from videomae_jax.errors import PretrainedError, nearest
from videomae_jax.files import open_regular
from videomae_jax.interop import (
    export,
    hub,
    huggingface,
    keras,
    official,
    processor,
    torch_pickle,
)
from videomae_jax.interop.assemble import MAX_NAMES, Source, assemble
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.interop.tensor_files import first_bytes, read_safetensors, reading
from videomae_jax.models.problem import MULTI_LABEL, Problem

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Files of weights, best first.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
_LONGEST_NAME = 1000  # characters of a tensor's; published ones have less than 100
# Names of tensors that only one format has.
_FORMATS = {
    "huggingface": r"(^|\.)encoder\.layer\.\d+\.attention\.attention\.",
    "mmaction": r"(^|\.)blocks\.\d+\.mlp\.layers\.",
    "official": r"(^|\.)blocks\.\d+\.attn\.qkv\.",
}
# Options of the official scripts by our names.
_ARGUMENTS = {
    "num_frames": "num_frames",
    "image_size": "input_size",
    "stride": "sampling_rate",
}


def load_pretrained(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    step: int | str = "last",
    strict: bool = True,
    **fields: Any,
) -> Pretrained:
    """Loads a model with its weights, labels and preprocessing.

    Args:
        source: a model of the Hugging Face Hub (owner/model, or owner/model/file), or
            a path: a folder or file of transformers; an official .pth of VideoMAE or
            VideoMAE V2, or of their action detectors, or DeepSpeed folder; a .pth of
            MMAction2; an .h5 or SavedModel of the Keras implementation; a work
            directory or an export of this library.
        revision: of a model on the hub: a commit, tag or branch.
        step: of a work directory: a checkpoint's number, "last", or "best", the one
            with the best validation.
        strict: refuse missing and unused tensors. With False they are listed in the
            result, and missing ones are initialized randomly.
        **fields: of the model, such as dtype="bfloat16". heads and decoder_heads are
            needed if the source does not specify them, and override it if it does.

    Returns:
        The model; its parameters are float32 arrays on the default device.

    Raises:
        PretrainedError: if the source cannot be read or downloaded, is of an unknown
            architecture, or its tensors do not fit.

    Example:
        >>> import tempfile, jax, videomae_jax as vmae
        >>> model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=3)
        >>> video = jax.numpy.zeros((1, 2, 16, 16, 3), "uint8")
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> trained = vmae.Pretrained(model, params, labels=("run", "jump", "fall"))
        >>> folder = tempfile.mkdtemp()
        >>> vmae.save_pretrained(folder, trained, format="huggingface")
        >>> loaded = vmae.load_pretrained(folder)
        >>> loaded.labels, loaded.model.apply(loaded.variables, video).shape
        (('run', 'jump', 'fall'), (1, 3))
    """
    loaded = read(source, revision=revision, step=step, strict=strict, **fields)
    return dataclasses.replace(loaded, params=jax.tree.map(jnp.asarray, loaded.params))


def read(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    step: int | str = "last",
    strict: bool = True,
    **fields: Any,
) -> Pretrained:
    """Loads a model as `load_pretrained`, with parameters on the host if possible."""
    name = os.fspath(source)
    with reading(name):
        path = _local(name, revision)
        if step != "last" and not _is_workdir(path):
            raise PretrainedError(
                f"step={step} needs a work directory of main.py; {name} is another kind"
            )
        loaded = _load(path, step, strict, fields)
        return dataclasses.replace(loaded, source=name)


def _local(name: str, revision: str | None) -> pathlib.Path:
    """Returns the path of a source, downloaded if it is a name on the hub."""
    path = pathlib.Path(os.path.expanduser(name))
    if not name or not path.exists():
        # runs/typo also has the form of a name on the hub.
        in_known_folder = "/" in name and path.parent.is_dir()
        if not hub.is_name(name) or in_known_folder:
            raise PretrainedError(_not_found(name, path, in_known_folder))
        return hub.download(name, revision)
    if revision is not None:
        raise PretrainedError(
            f"{name!r} is a local path, which has no revision {revision!r}; for a "
            "model of that name on the hub, run in another folder"
        )
    return path


def _not_found(name: str, path: pathlib.Path, in_known_folder: bool) -> str:
    """Returns the message about a path that does not exist."""
    message = f"file or folder {name!r} not found"
    if not in_known_folder:
        return message
    siblings = [str(x) for x in path.parent.iterdir()]
    message += nearest(str(path), siblings, cutoff=0.8)
    if hub.is_name(name):
        message += f". For a model on the hub, run where no folder {path.parent} is"
    return message


def _load(
    path: pathlib.Path, step: int | str, strict: bool, fields: Mapping[str, Any]
) -> Pretrained:
    if path.name == export.WEIGHTS and export.is_export(path.parent):
        path = path.parent
    if not path.is_dir():
        return assemble(_open_file(path), strict=strict, fields=fields)
    if export.is_export(path):
        return export.read(path, fields)
    if _is_workdir(path):
        # Imported here because it imports Orbax.
        from videomae_jax.interop import workdir

        _refuse_special_files(path / "checkpoints")
        return workdir.read(path, step, fields)
    return assemble(_open_folder(path), strict=strict, fields=fields)


def _refuse_special_files(folder: pathlib.Path) -> None:
    """Raises PretrainedError for pipes, devices and sockets, which Orbax would open."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(FileNotFoundError):  # a run removes checkpoints
                if not stat.S_ISREG(os.stat(path).st_mode):
                    raise PretrainedError(f"{path} is not a regular file")


def _is_workdir(path: pathlib.Path) -> bool:
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    return (path / "checkpoints").is_dir() and not weights


def _open_folder(folder: pathlib.Path) -> Source:
    if (folder / "saved_model.pb").exists():
        return Source(str(folder), "keras", keras.read_saved_model(folder))
    states = sorted(folder.glob("*mp_rank_*_model_states.pt"))
    latest = folder / "latest"
    if latest.exists() and not (latest.is_dir() or states):  # DeepSpeed's outer folder
        inner = folder / _deepspeed_tag(latest)
        states = sorted(inner.glob("*mp_rank_*_model_states.pt"))
    if len(states) > 1:
        raise PretrainedError(
            f"{folder}: the model is split over {len(states)} files, as "
            f"{states[0].name}; merge them with DeepSpeed's zero_to_fp32.py first"
        )
    if states:
        return _open_file(states[0])
    files = _weights(folder)
    if len(files) == 1:
        source = _open_file(files[0])
    else:
        tensors = {}
        for file in files:
            shard = _read_tensors(file)[0]
            if twice := tensors.keys() & shard.keys():
                raise PretrainedError(f"{file}: {min(twice)} is in another file too")
            tensors |= shard
        source = _with_config(_recognize(str(folder), tensors), folder)
    if source.format == "huggingface" and not (folder / "config.json").exists():
        raise PretrainedError(
            f"{folder} has no config.json, which specifies heads, classes and clips; "
            "copy or download it too, or pass the file of weights"
        )
    return source


def _deepspeed_tag(file: pathlib.Path) -> str:
    """Returns the name of the folder of the latest checkpoint."""
    with reading(file), open_regular(file) as opened:
        tag = opened.read(256).decode().strip()
        if tag in ("", ".", "..") or pathlib.PurePath(tag).name != tag:
            raise ValueError("it must name a folder beside it")
        return tag


def _weights(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the weights in a folder, as transformers finds them."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
        if (folder / f"{name}.index.json").exists():
            return _shards(folder / f"{name}.index.json")
    for pattern in _WEIGHTS:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files
        if files:
            raise PretrainedError(
                f"{folder} holds several weight files "
                f"({', '.join(file.name for file in files[:MAX_NAMES])}) without an "
                "index; pass one file"
            )
    # The folder of all runs, or one inside a run, such as `checkpoints`.
    near = [x for x in sorted(folder.iterdir()) if x.is_dir() and _holds_model(x)]
    near += filter(_is_workdir, folder.absolute().parents[:2])
    if models := [str(x) for x in near]:
        raise PretrainedError(
            f"{folder} is not a model; pass one of: {', '.join(models[:MAX_NAMES])}"
            + (", ..." if len(models) > MAX_NAMES else "")
        )
    names = sorted(file.name for file in folder.iterdir())[:MAX_NAMES]
    raise PretrainedError(
        f"{folder} holds no weights in a known format; expected safetensors, "
        "pytorch_model.bin, .pth, saved_model.pb, DeepSpeed's model states or "
        f"checkpoints of this library, found {', '.join(names) or 'no files'}"
    )


def _holds_model(folder: pathlib.Path) -> bool:
    """Returns whether a folder seems to hold a model; reads no file."""
    is_weights = any(next(folder.glob(x), None) for x in _WEIGHTS)
    return is_weights or _is_workdir(folder) or (folder / "saved_model.pb").exists()


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    with huggingface.opened_json(index) as content:
        names = sorted(set(content["weight_map"].values()))
        files = [index.parent / name for name in names]
        if not files or any(file.parent != index.parent for file in files):
            raise ValueError("it must name files beside it")
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise PretrainedError(
            f"{index} names missing files: {', '.join(absent[:MAX_NAMES])}; copy or "
            "download them too"
        )
    return files


def _open_file(path: pathlib.Path) -> Source:
    if first_bytes(path).startswith(_HDF5):
        return Source(str(path), "keras", keras.read_h5(path))
    shard = re.search(r"-(\d{5})-of-(\d{5})\.", path.name)
    if shard and int(shard[2]) > 1:
        raise PretrainedError(
            f"{path} is one file of {int(shard[2])}; pass the folder that holds all of "
            "them and their index"
        )
    tensors, arguments = _read_tensors(path)
    source = _recognize(str(path), tensors)
    if source.format == "official":
        for ours, theirs in _ARGUMENTS.items():
            if isinstance(arguments.get(theirs), int):
                source.preprocessing[ours] = arguments[theirs]
        # The two versions spell it differently.
        for name in ("normlize_target", "normalize_target"):
            if isinstance(arguments.get(name), bool):
                source.normalized_targets = arguments[name]
    return _with_config(source, path.parent)


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
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
    for tensor in tensors.values():
        tensor.check()
    # A tensor may have two names. If all were views of the same values, a small file
    # could fill any memory.
    if sum(x.nbytes for x in tensors.values()) > 2 * path.stat().st_size:
        raise PretrainedError(f"{path}: its tensors are larger together than the file")
    return tensors, arguments if isinstance(arguments, dict) else {}


def _recognize(path: str, tensors: Mapping[str, Any]) -> Source:
    """Recognizes the format by the names of the tensors, and normalizes them."""
    if long := next((name for name in tensors if len(name) > _LONGEST_NAME), None):
        raise PretrainedError(
            f"{path}: the name of a tensor, {long[:40]}..., has {len(long)} characters;"
            f" expected at most {_LONGEST_NAME}"
        )
    tensors = official.unwrap(tensors)
    names = "\n".join(tensors)
    formats = [x for x, pattern in _FORMATS.items() if re.search(pattern, names, re.M)]
    if not formats:
        raise PretrainedError(
            f"{path} is of an unknown architecture, with tensors such as "
            f"{', '.join(list(tensors)[:4])}; expected VideoMAE by the official code, "
            "transformers or MMAction2"
        )
    format, preprocessing = formats[0], {}
    if format == "mmaction":
        preprocessing = {"frame_sampling": format}
    else:
        implementation = huggingface if format == "huggingface" else official
        tensors = implementation.normalize_names(tensors)
    fields = official.detector_fields(format, tensors)
    if fields is None:
        return Source(path, format, tensors, preprocessing=preprocessing)
    return Source(
        path,
        format,
        official.without_background(tensors),
        fields,
        preprocessing=preprocessing,
        problem=Problem(MULTI_LABEL),
        kind="ActionDetection",
    )


def _with_config(source: Source, folder: pathlib.Path) -> Source:
    """Adds the content of a config.json beside the weights, if it is theirs."""
    file = folder / "config.json"
    config = {}
    if source.format == "huggingface":
        source.fields |= huggingface.EPSILONS
        if file.exists():
            config = huggingface.read_config(file)
    elif (
        source.format == "official"
        and source.kind is None  # it is of the encoders
        and huggingface.is_v2_config(file)
    ):
        config = huggingface.read_v2_config(file)
    if config:
        clips = config["preprocessing"]
        channels = config["sizes"].get("channels", 3)
        with reading(file):
            ranges.check({"model.channels": channels})
        stats, framing = processor.read(folder, clips["image_size"], channels)
        config["fields"] |= stats
        clips["framing"] = framing
    fields = source.fields | config.pop("fields", {})
    return dataclasses.replace(source, fields=fields, **config)
