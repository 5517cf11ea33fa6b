"""Writes a model in the forms that other implementations, and we, read."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from videomae_jax.interop import export, huggingface, official
from videomae_jax.interop.pretrained import Pretrained, PretrainedError
from videomae_jax.models.classifier import VideoClassifier

FORMATS = ("huggingface", "official", "jax")


def save_pretrained(
    folder: str | os.PathLike, pretrained: Pretrained, format: str = "huggingface"
) -> None:
    """Writes a model with its weights; what is in the folder under its names goes.

    Args:
        folder: made if needed.
        pretrained: the model. Its position tables are computed, and never written.
        format: "huggingface": config.json, preprocessor_config.json, model.safetensors,
            which transformers' `from_pretrained` reads (all releases but 5.5.1 to 5.17,
            which lose the biases). "official": checkpoint.pth for the scripts of
            VideoMAE and VideoMAE V2; needs PyTorch. "jax": config.json and
            model.safetensors with our own names, for `load_pretrained`.

    Raises:
        PretrainedError: if the format has no form for the model, or a package that
            writes it is not installed.

    Example:
        >>> import tempfile, jax, videomae_jax as vmae
        >>> model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=3)
        >>> video = jax.numpy.zeros((1, 2, 16, 16, 3), "uint8")
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> loaded = vmae.Pretrained(model, params, labels=("run", "jump", "fall"))
        >>> folder = tempfile.mkdtemp()
        >>> vmae.save_pretrained(folder, loaded, format="huggingface")
        >>> vmae.load_pretrained(folder).labels
        ('run', 'jump', 'fall')
    """
    if format not in FORMATS:
        raise PretrainedError(f"format is {format!r}; one of: {', '.join(FORMATS)}")
    folder = pathlib.Path(folder).expanduser()
    if format == "jax":
        config, arrays = export.files(pretrained)
        _write_folder(folder, {"config.json": config}, arrays, {})
        return
    tensors = official_tensors(pretrained)
    if format == "official":
        _write_pth(folder, tensors)
        return
    _check_huggingface(pretrained)
    arrays = {}
    for name, tensor in tensors.items():
        parts = huggingface.pieces(name)
        arrays |= zip(parts, np.split(tensor, len(parts)), strict=True)
    configs = huggingface.configs(
        pretrained.model,
        pretrained.labels,
        pretrained.preprocessing,
        pretrained.normalized_targets,
    )
    # What transformers writes there, and checks.
    _write_folder(folder, configs, arrays, {"format": "pt"})


def official_tensors(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """The weights, float32, by their official names and in the official shapes.

    Raises:
        PretrainedError: if the model has parts that the official code has not.
    """
    flat = flax.traverse_util.flatten_dict(pretrained.params, sep="/")
    flat = {path: np.asarray(x, np.float32) for path, x in flat.items()}
    try:
        entries = list(official.entries({path: x.shape for path, x in flat.items()}))
    except KeyError as error:
        raise PretrainedError(
            f"only format='jax' has a place for the parameter {error.args[0]}"
        ) from error
    if pretrained.statistics:
        raise PretrainedError(
            "only format='jax' has a place for the statistics of batch norm"
        )
    tubelet_size = pretrained.model.tubelet_size
    return {
        entry.name: entry.from_ours(flat[entry.path], tubelet_size) for entry in entries
    }


def _check_huggingface(pretrained: Pretrained) -> None:
    model = pretrained.model
    reason = None
    if isinstance(model, VideoClassifier):
        if not model.num_classes:
            reason = "an encoder without a head"
        elif model.final_norm and model.pooling == "mean":
            reason = "a final LayerNorm before mean pooling"
        elif model.head_norm != "layer":
            reason = f"head_norm={model.head_norm!r}"
        elif model.position_size:
            size = pretrained.preprocessing.image_size
            if model.position_size != (size, size):
                reason = "an interpolated position table"
    if reason:
        raise PretrainedError(
            f"transformers has no VideoMAE with {reason}; save it with format='jax'"
        )


def _write_folder(
    folder: pathlib.Path,
    configs: Mapping[str, Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise PretrainedError(
            "writing weights needs safetensors (pip install safetensors)"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    # The library writes memory as it lies, whatever the strides.
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    temporary = folder / ".model.safetensors.new"
    safetensors.numpy.save_file(arrays, temporary, dict(metadata))
    # The library leaves it to its owner alone; as readable as the folder is better.
    os.chmod(temporary, folder.stat().st_mode & 0o666)
    os.replace(temporary, folder / "model.safetensors")
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config, indent=2) + "\n")


def _write_pth(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(
            "format='official' needs PyTorch to write a .pth (pip install torch)"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    weights = collections.OrderedDict(
        (name, torch.from_numpy(np.array(x, order="C"))) for name, x in tensors.items()
    )
    temporary = folder / ".checkpoint.pth.new"
    torch.save({"model": weights, "epoch": 0}, temporary)
    os.replace(temporary, folder / "checkpoint.pth")
