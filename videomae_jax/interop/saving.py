"""Writes a model in the forms that other implementations, and we, read."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop import edit_head, export, huggingface, official
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models.classifier import VideoClassifier

FORMATS = ("huggingface", "official", "jax")
_WEIGHTS = "model.safetensors"


def save_pretrained(
    folder: str | os.PathLike, pretrained: Pretrained, format: str = "huggingface"
) -> None:
    """Writes a model with its weights.

    Args:
        folder: made if needed; the same files of an earlier model are replaced.
        pretrained: the model. Its position tables are computed, and never written.
        format: "huggingface": config.json, preprocessor_config.json, model.safetensors,
            which transformers' `from_pretrained` reads (all releases but 5.5.1 to 5.17,
            which lose the biases). "official": checkpoint.pth for the scripts of
            VideoMAE and VideoMAE V2; needs PyTorch. They know no names of classes, and
            no pixel statistics but ImageNet's, which the weights are adapted to.
            "jax": config.json and model.safetensors with our own names, for
            `load_pretrained`.

    Raises:
        PretrainedError: if the format has no form for the model, the folder holds other
            weights, or a package that writes them is not installed.

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
    folder = pathlib.Path(os.path.expanduser(folder))
    _refuse_other_weights(folder, format)
    if format == "jax":
        config, arrays = export.files(pretrained)
        _write_folder(folder, {"config.json": config}, arrays, {})
        return
    if format == "official":
        _write_pth(folder, pretrained)
        return
    _refuse_strange_heads(pretrained, "transformers")
    arrays = {}
    for name, tensor in official_tensors(pretrained).items():
        parts = huggingface.pieces(name)
        arrays |= zip(parts, np.split(tensor, len(parts)), strict=True)
    configs = huggingface.configs(
        pretrained.model,
        pretrained.labels,
        pretrained.preprocessing,
        pretrained.normalized_targets,
        pretrained.multi_label,
    )
    # What transformers writes there, and checks.
    _write_folder(folder, configs, arrays, {"format": "pt"})


def _refuse_other_weights(folder: pathlib.Path, format: str) -> None:
    """Weights that a reader would find there, and take for these."""
    ours = {"checkpoint.pth"} if format == "official" else {"model.safetensors"}
    found = [
        file.name
        for pattern in ("*.safetensors", "*.bin", "*.index.json", "*.pth", "*.pt")
        for file in folder.glob(pattern)
        if file.name not in ours
    ]
    if found or (folder / "checkpoints").is_dir():
        raise PretrainedError(
            f"{folder} holds other weights ({', '.join(found[:4]) or 'checkpoints'}), "
            "which would stand beside the new ones; give another folder"
        )


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


def _refuse_strange_heads(pretrained: Pretrained, whose: str) -> None:
    """Models that have the other's tensors, but mean another thing by them."""
    model = pretrained.model
    reason = None
    if isinstance(model, VideoClassifier):
        if not model.num_classes and whose == "transformers":
            reason = "an encoder without a head"
        elif model.final_norm and model.pooling == "mean" and model.num_classes:
            reason = "a final LayerNorm before mean pooling"
        elif model.head_norm != "layer" and model.num_classes:
            reason = f"head_norm={model.head_norm!r}"
        elif model.position_size:
            size = pretrained.preprocessing.image_size
            if model.position_size != (size, size):
                reason = "an interpolated position table"
    if reason:
        raise PretrainedError(
            f"{whose} has no VideoMAE with {reason}; save it with format='jax'"
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
    new = {name: folder / f".{name}.new" for name in (_WEIGHTS, *configs)}
    safetensors.numpy.save_file(arrays, new[_WEIGHTS], dict(metadata))
    # The library leaves it to its owner alone; as readable as the folder is better.
    os.chmod(new[_WEIGHTS], folder.stat().st_mode & 0o666)
    for name, config in configs.items():
        new[name].write_text(json.dumps(config, indent=2) + "\n")
    # Without a config.json the folder is refused: killed anywhere, it never has the
    # config of one model and the weights of another.
    (folder / "config.json").unlink(missing_ok=True)
    for name in sorted(new, key="config.json".__eq__):
        os.replace(new[name], folder / name)


def _write_pth(folder: pathlib.Path, pretrained: Pretrained) -> None:
    _refuse_strange_heads(pretrained, "the official code")
    tensors = official_tensors(edit_head.with_imagenet_pixels(pretrained))
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(
            "format='official' needs PyTorch to write a .pth (pip install torch)"
        ) from error
    feeding = pretrained.preprocessing
    content = {
        "model": collections.OrderedDict(
            (name, torch.from_numpy(np.array(x, order="C")))
            for name, x in tensors.items()
        ),
        "epoch": 0,
        # By the names of the scripts' options, which `load_pretrained` knows.
        "args": {
            "num_frames": feeding.num_frames,
            "input_size": feeding.image_size,
            "sampling_rate": feeding.stride,
            "normlize_target": pretrained.normalized_targets,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".checkpoint.pth.new"
    torch.save(content, temporary)
    os.replace(temporary, folder / "checkpoint.pth")
