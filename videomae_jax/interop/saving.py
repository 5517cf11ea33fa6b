"""Writes a model in the formats of other implementations, and in ours."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from videomae_jax import files
from videomae_jax.errors import PretrainedError
from videomae_jax.interop import edit_head, export, huggingface, official, processor
from videomae_jax.interop.pretrained import Pretrained, check_clips
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector

FORMATS = ("huggingface", "official", "jax")


def save_pretrained(
    folder: str | os.PathLike, pretrained: Pretrained, *, format: str = "huggingface"
) -> None:
    """Writes a model with its weights.

    Args:
        folder: created if needed; the same files of an earlier model are replaced.
        pretrained: the model. Position tables are computed and never written.
        format: "huggingface": config.json, preprocessor_config.json, model.safetensors,
            which transformers' `from_pretrained` reads (all releases but 5.5.1 to 5.17,
            which lose the biases). "official": checkpoint.pth for the scripts of
            VideoMAE and VideoMAE V2, or of the official action detector; needs PyTorch.
            This format has no class names, and ImageNet's pixel mean and deviation
            only, to which the weights are adapted; those of a detector must be the
            official ones.
            "jax": config.json and model.safetensors with our own names, for
            `load_pretrained`.

    Raises:
        PretrainedError: if the format cannot represent the model, its patches do not
            divide the clips, the folder holds other weights, or a package for writing
            is not installed.

    The example of `load_pretrained` saves a model first.
    """
    if format not in FORMATS:
        raise PretrainedError(f"format={format!r} must be one of: {', '.join(FORMATS)}")
    folder = pathlib.Path(os.path.expanduser(folder))
    check_clips(pretrained.preprocessing, pretrained.model, str(folder))
    _refuse_other_weights(folder, format)
    if format == "jax":
        config, arrays = export.content(pretrained)
        _write_folder(folder, {"config.json": config}, arrays, {})
    elif format == "official":
        _write_pth(folder, pretrained)
    else:
        _refuse_unrepresentable(pretrained, "transformers")
        arrays = {}
        for name, tensor in official_tensors(pretrained).items():
            names = huggingface.tensor_names(name)
            arrays |= zip(names, np.split(tensor, len(names)), strict=True)
        # transformers writes this metadata, and checks it.
        metadata = {"format": "pt"}
        configs = {"config.json": huggingface.config(pretrained)}
        configs |= processor.config(pretrained)
        _write_folder(folder, configs, arrays, metadata)


def _refuse_other_weights(folder: pathlib.Path, format: str) -> None:
    """Refuses a folder with weights that could be loaded in place of the new ones."""
    replaced = {"checkpoint.pth"} if format == "official" else {export.WEIGHTS}
    others = [
        file.name
        for pattern in ("*.safetensors", "*.bin", "*.index.json", "*.pth", "*.pt")
        for file in folder.glob(pattern)
        if file.name not in replaced
    ]
    if others or (folder / "checkpoints").is_dir():
        raise PretrainedError(
            f"{folder} already holds other weights "
            f"({', '.join(others[:4]) or 'checkpoints'}); use another folder"
        )


def official_tensors(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """Returns the weights, float32, by official name and in official shape.

    Raises:
        PretrainedError: if the model has parts that the official code lacks.
    """
    flat = flatten_dict(dict(pretrained.params), sep="/")
    arrays = {path: np.asarray(x, np.float32) for path, x in flat.items()}
    try:
        entries = list(official.entries({path: x.shape for path, x in arrays.items()}))
    except KeyError as error:
        raise PretrainedError(
            f"the parameter {error.args[0]} can only be saved with format='jax'"
        ) from error
    if pretrained.batch_stats:
        raise PretrainedError(
            "the running statistics of batch norm can only be saved with format='jax'"
        )
    model = pretrained.model
    patch = {"tubelet_size": model.tubelet_size, "channels": model.channels}
    return {
        entry.name: entry.from_ours(arrays[entry.path], **patch) for entry in entries
    }


def _refuse_unrepresentable(pretrained: Pretrained, library: str) -> None:
    """Refuses models whose tensors the library would load, but use differently."""
    model, preprocessing = pretrained.model, pretrained.preprocessing
    size, framing = preprocessing.image_size, preprocessing.framing
    reason = None
    if library != "transformers":
        if size[0] != size[1]:
            reason = f"image_size={size}, only squares"
        elif model.channels != 3:
            reason = f"channels={model.channels}"
        elif not framing.is_like_training(size):
            # Interpolation may differ: weights of the official code, which others
            # converted, have a processor that averages.
            reason = f"resize={framing.resize} with crop={framing.crop} of frames"
    if preprocessing.value_range is not None:
        reason = f"value_range={preprocessing.value_range} of pixels"
    if isinstance(model, ActionDetector):
        if library == "transformers":
            reason = "an action detector"
        elif unlike := _unlike_official_detectors(model):
            reason = f"an action detector with {unlike}"
    elif isinstance(model, VideoClassifier):
        if not model.num_classes and library == "transformers":
            reason = "an encoder without a head"
        elif pretrained.problem.heads:
            reason = "several heads"
        elif pretrained.problem.is_regression and library != "transformers":
            reason = "regression"
        elif model.final_norm and model.pooling == "mean" and model.num_classes:
            reason = "a final LayerNorm before mean pooling"
        elif model.head_norm != "layer" and model.num_classes:
            reason = f"head_norm={model.head_norm!r}"
        elif model.position_size not in (None, size):
            reason = "an interpolated position table"
        elif (
            library != "transformers"
            and model.pooling == "first_token"
            and model.num_classes == official.CLASSES_OF_AVA
        ):
            reason = "80 classes of a first token, which are read as a detector's"
    if reason:
        raise PretrainedError(
            f"{library} does not support {reason}; save the model with format='jax'"
        )


def _unlike_official_detectors(model: ActionDetector) -> str:
    """Returns the fields whose values the official detectors do not have."""
    sizes = model.width, model.depth, model.heads, official.CLASSES_OF_AVA
    stride = official.roi_stride(model.patch_size)
    theirs = ActionDetector(*sizes, patch_size=model.patch_size, roi_stride=stride)
    names = ("num_classes", "roi_bins", "roi_aligned", "roi_stride", "position_size")
    return ", ".join(
        f"{name}={value!r}"
        for name in (*names, "pixel_mean", "pixel_std")
        if (value := getattr(model, name)) != getattr(theirs, name)
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
    # safetensors writes memory as it lies, whatever the strides.
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    texts = {name: json.dumps(x, indent=2) + "\n" for name, x in configs.items()}
    with files.atomic_path(folder / export.WEIGHTS) as weights:
        safetensors.numpy.save_file(arrays, weights, dict(metadata))
        # safetensors makes the file readable for its owner only.
        os.chmod(weights, folder.stat().st_mode & 0o666)
        # A folder without config.json is refused. config.json is therefore removed
        # before the weights are replaced, and written last: a kill at any moment never
        # leaves the config of one model with the weights of another.
        (folder / "config.json").unlink(missing_ok=True)
    for name in sorted(texts, key="config.json".__eq__):
        with files.atomic_write(folder / name) as file:
            file.write(texts[name])


def _write_pth(folder: pathlib.Path, pretrained: Pretrained) -> None:
    _refuse_unrepresentable(pretrained, "the official code")
    if not isinstance(pretrained.model, ActionDetector):
        pretrained = edit_head.with_pixel_stats(pretrained)
    tensors = official_tensors(pretrained)
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(
            "format='official' needs PyTorch to write a .pth (pip install torch)"
        ) from error
    preprocessing = pretrained.preprocessing
    content = {
        "model": collections.OrderedDict(
            (name, torch.from_numpy(np.array(x, order="C")))
            for name, x in tensors.items()
        ),
        "epoch": 0,
        # Named as the options of the official scripts, which `load_pretrained` reads.
        "args": {
            "num_frames": preprocessing.num_frames,
            "input_size": preprocessing.image_size[0],
            "sampling_rate": preprocessing.stride,
            "normlize_target": pretrained.normalized_targets,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(folder / "checkpoint.pth", "wb") as file:
        torch.save(content, file)
