"""Reads the golden vectors; converts official parameter names and shapes to ours."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy

import videomae_jax as vmae
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CHECKPOINTS = GOLDEN / "checkpoints"
V2 = GOLDEN / "v2"


def model(**overrides):
    return _autoencoder(json.loads((GOLDEN / "model.json").read_text()), overrides)


def v2_model(name):
    return _autoencoder(json.loads((V2 / "model.json").read_text())[name], {})


def _autoencoder(sizes, overrides):
    encoder, decoder = sizes["encoder"], sizes["decoder"]
    return vmae.VideoMAE(
        width=encoder["dim"],
        depth=encoder["depth"],
        heads=encoder["heads"],
        decoder_width=decoder["dim"],
        decoder_depth=decoder["depth"],
        decoder_heads=decoder["heads"],
        patch_size=sizes["patch_size"],
        tubelet_size=sizes["tubelet_size"],
        mlp_ratio=sizes["mlp_ratio"],
        **overrides,
    )


def video(bcthw):
    return np.ascontiguousarray(bcthw.transpose(0, 2, 3, 4, 1))


def _linear(tensors, name):
    out = {"kernel": tensors[f"{name}.weight"].T}
    if f"{name}.bias" in tensors:
        out["bias"] = tensors[f"{name}.bias"]
    return out


def _norm(tensors, name):
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _block(tensors, name):
    return {
        "norm1": _norm(tensors, f"{name}.norm1"),
        "attention": {
            "qkv": _linear(tensors, f"{name}.attn.qkv"),
            "q_bias": tensors[f"{name}.attn.q_bias"],
            "v_bias": tensors[f"{name}.attn.v_bias"],
            "out": _linear(tensors, f"{name}.attn.proj"),
        },
        "norm2": _norm(tensors, f"{name}.norm2"),
        "mlp": {
            "fc1": _linear(tensors, f"{name}.mlp.fc1"),
            "fc2": _linear(tensors, f"{name}.mlp.fc2"),
        },
    }


def _stack(trees):
    if isinstance(trees[0], dict):
        return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)


def _tensors(arrays, prefix):
    return {
        key.removeprefix(prefix): arrays[key]
        for key in arrays
        if key.startswith(prefix)
    }


def _embedding(tensors, name):
    kernel = tensors[f"{name}.weight"]  # [D, C, frame, row, column]
    return {
        "kernel": kernel.transpose(2, 3, 4, 1, 0).reshape(-1, len(kernel)),
        "bias": tensors[f"{name}.bias"],
    }


def parameters(arrays, prefix="param/"):
    """Returns the autoencoder's parameters from `<prefix><official name>` arrays."""
    tensors = _tensors(arrays, prefix)
    return {
        "mask_token": tensors["mask_token"].reshape(-1),
        "encoder": {
            "embedding": _embedding(tensors, "encoder.patch_embed.proj"),
            "blocks": _stack(
                [_block(tensors, f"encoder.blocks.{i}") for i in range(2)]
            ),
            "norm": _norm(tensors, "encoder.norm"),
        },
        "encoder_to_decoder": _linear(tensors, "encoder_to_decoder"),
        "decoder": {
            "blocks": _stack(
                [_block(tensors, f"decoder.blocks.{i}") for i in range(2)]
            ),
            "norm": _norm(tensors, "decoder.norm"),
            "head": _linear(tensors, "decoder.head"),
        },
    }


def classifier(**overrides):
    sizes = json.loads((GOLDEN / "model.json").read_text())
    encoder = sizes["encoder"]
    fields = dict(
        width=encoder["dim"],
        depth=encoder["depth"],
        heads=encoder["heads"],
        num_classes=sizes["num_classes"],
        patch_size=sizes["patch_size"],
        tubelet_size=sizes["tubelet_size"],
        mlp_ratio=sizes["mlp_ratio"],
    )
    return VideoClassifier(**(fields | overrides))


def classifier_parameters(arrays, prefix="param/"):
    """Returns the classifier's parameters from `<prefix><official name>` arrays."""
    tensors = _tensors(arrays, prefix)
    return {
        "encoder": {
            "embedding": _embedding(tensors, "patch_embed.proj"),
            "blocks": _stack([_block(tensors, f"blocks.{i}") for i in range(2)]),
        },
        "norm": _norm(tensors, "fc_norm"),
        "head": _linear(tensors, "head"),
    }


def detector(**overrides):
    sizes = json.loads((GOLDEN / "ava/detector.json").read_text())
    fields = dict(width=sizes["dim"], depth=sizes["depth"], heads=sizes["heads"])
    fields |= dict(num_classes=sizes["num_classes"])
    return ActionDetector(**(fields | overrides))


def detector_parameters(arrays, prefix="param/"):
    """Returns the detector's parameters from `<prefix><official name>` arrays."""
    tensors = _tensors(arrays, prefix)
    tensors = {name: np.float32(x) for name, x in tensors.items()}
    return {
        "encoder": {
            "embedding": _embedding(tensors, "patch_embed.proj"),
            "blocks": _stack([_block(tensors, f"blocks.{i}") for i in range(2)]),
            "norm": _norm(tensors, "norm"),
        },
        "head": _linear(tensors, "head"),
    }


def small_with_16_heads(tmp_path):
    """Writes a ViT-S that says 16 heads; a conversion script of transformers did."""

    def widen(tensors):
        for name, x in tensors.items():
            shape = [{48: 384, 192: 64}.get(n, n) for n in x.shape]
            tensors[name] = np.zeros(shape, np.float32)

    sizes = {"hidden_size": 384, "intermediate_size": 64, "num_attention_heads": 16}
    return rewritten(tmp_path, widen, **sizes)


def rewritten(tmp_path, change=lambda tensors: None, **settings):
    """Copies the golden Hugging Face classifier and changes tensors and config."""
    folder = tmp_path / "hf_classifier"
    shutil.copytree(CHECKPOINTS / "hf_classifier", folder)
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder
