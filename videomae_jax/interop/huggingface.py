"""Hugging Face's names, configs and hub (transformers' VideoMAE, all releases)."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from videomae_jax.interop.pretrained import Preprocessing, PretrainedError
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE

# That before a head is so whatever the config says.
EPSILONS = {"norm_epsilon": 1e-12, "head_norm_epsilon": 1e-5}
_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": tuple(
        f"attention.attention.{part}" for part in ("query", "key", "value")
    ),
    "attn.q_bias": ("attention.attention.q_bias",),
    "attn.v_bias": ("attention.attention.v_bias",),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
_TOP = {
    "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "norm": "videomae.layernorm",
    "head": "classifier",
}


def pieces(name: str) -> tuple[str, ...]:
    """What makes up an official tensor, put together along its first axis."""
    name = name.removeprefix("encoder.")
    stem, _, leaf = name.rpartition(".")
    block = re.fullmatch(r"(decoder\.)?blocks\.(\d+)\.(.+)", name)
    if block:
        decoder, layer, inner = block.groups()
        folder = "decoder.decoder_layers" if decoder else "videomae.encoder.layer"
        if inner in _BLOCK:  # q_bias and v_bias
            return tuple(f"{folder}.{layer}.{part}" for part in _BLOCK[inner])
        stem, _, leaf = inner.rpartition(".")
        return tuple(f"{folder}.{layer}.{part}.{leaf}" for part in _BLOCK[stem])
    return (f"{_TOP.get(stem, stem)}.{leaf}" if leaf != name else name,)


def normalize_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """One layout of the three that releases have written (facts in docs/design.md).

    5.5.1 to 5.17 wrote a bias of the keys too. It adds the same to all logits of a
    query, which the softmax does not see, so it is left out.
    """
    found = {}
    for name, tensor in tensors.items():
        if re.match(r"(embeddings|encoder|layernorm)\.", name):  # a bare VideoMAEModel
            name = f"videomae.{name}"
        if name.endswith(".attention.attention.key.bias"):
            continue
        name = re.sub(r"(?<=\.attention\.attention\.)query\.bias$", "q_bias", name)
        name = re.sub(r"(?<=\.attention\.attention\.)value\.bias$", "v_bias", name)
        found[name] = tensor
    return found


def read_config(file: pathlib.Path) -> dict[str, Any]:
    """What config.json, and preprocessor_config.json beside it, tell of a model.

    Returns:
        `fields` of the model, `labels`, `preprocessing`, `normalized_targets`, and
        `biases`, whether queries and values have any.

    Raises:
        PretrainedError: if a file cannot be read or is of another architecture.
    """
    config = read_json(file)
    kind = config.get("model_type")
    if kind != "videomae":
        raise PretrainedError(
            f"{file} is of a model of type {kind!r}; only 'videomae' can be read"
        )
    for name, wanted in (("hidden_act", "gelu"), ("num_channels", 3)):
        if config.get(name, wanted) != wanted:
            raise PretrainedError(
                f"{file}: {name} is {config[name]!r}; only {wanted!r} can be read"
            )
    fields = {
        "heads": config.get("num_attention_heads", 12),
        "decoder_heads": config.get("decoder_num_attention_heads", 6),
        "norm_epsilon": config.get("layer_norm_eps", EPSILONS["norm_epsilon"]),
    }
    preprocessing = {
        "num_frames": config.get("num_frames", 16),
        "image_size": _side(config.get("image_size", 224)),
    }
    processor = file.parent / "preprocessor_config.json"
    if processor.exists():
        fields |= _pixel_statistics(read_json(processor))
    return {
        "fields": fields,
        "labels": _labels(config),
        "preprocessing": preprocessing,
        "normalized_targets": config.get("norm_pix_loss", True),
        "biases": config.get("qkv_bias", config.get("qv_bias", True)),
    }


def is_v2_config(file: pathlib.Path) -> bool:
    """Whether this is of VideoMAE V2 on the hub, which has its own code and names."""
    return file.exists() and "model_config" in read_json(file)


def read_v2_config(file: pathlib.Path) -> dict[str, Any]:
    """As `read_config`, of VideoMAE V2 on the hub."""
    config = read_json(file)["model_config"]
    if config.get("cos_attn"):
        raise PretrainedError(f"{file}: cosine attention cannot be read")
    epsilon = config.get("layer_norm_eps", 1e-6)
    fields = {"norm_epsilon": epsilon, "head_norm_epsilon": epsilon}
    if "num_heads" in config:
        fields["heads"] = config["num_heads"]
    preprocessing = {
        "num_frames": config.get("num_frames", 16),
        "image_size": _side(config.get("img_size", 224)),
    }
    return {"fields": fields, "preprocessing": preprocessing}


def _side(size) -> int:
    return size if isinstance(size, int) else size[0]


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = {int(index): name for index, name in config.get("id2label", {}).items()}
    labels = tuple(names[index] for index in sorted(names))
    # What transformers fills in where nobody gave names.
    placeholders = tuple(f"LABEL_{index}" for index in range(len(labels)))
    return None if labels == placeholders else labels


def _pixel_statistics(processor: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    scale = 1.0 if processor.get("do_rescale", True) else 1 / 255
    if not processor.get("do_normalize", True):
        return {"pixel_mean": (0.0,) * 3, "pixel_std": (scale,) * 3}
    mean = processor.get("image_mean", vit.IMAGENET_MEAN)
    std = processor.get("image_std", vit.IMAGENET_STD)
    return {
        "pixel_mean": tuple(scale * value for value in mean),
        "pixel_std": tuple(scale * value for value in std),
    }


def configs(
    model: VideoMAE | VideoClassifier,
    labels: Sequence[str] | None,
    preprocessing: Preprocessing,
    normalized_targets: bool,
) -> dict[str, dict[str, Any]]:
    """The JSON files that go with a model's weights, by file name."""
    pretraining = isinstance(model, VideoMAE)
    purpose = "PreTraining" if pretraining else "VideoClassification"
    size = preprocessing.image_size
    config = {
        "architectures": [f"VideoMAEFor{purpose}"],
        "model_type": "videomae",
        "image_size": size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "num_frames": preprocessing.num_frames,
        "tubelet_size": model.tubelet_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": model.norm_epsilon,
        # The name before 5.18, which all releases take.
        "qkv_bias": True,
        "use_mean_pooling": not pretraining and model.pooling == "mean",
        "norm_pix_loss": normalized_targets,
    }
    if pretraining:
        ratio = model.decoder_mlp_ratio or model.mlp_ratio
        config |= {
            "decoder_num_attention_heads": model.decoder_heads,
            "decoder_hidden_size": model.decoder_width,
            "decoder_num_hidden_layers": model.decoder_depth,
            "decoder_intermediate_size": int(model.decoder_width * ratio),
        }
    else:
        names = labels or [f"LABEL_{index}" for index in range(model.num_classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.pixel_mean),
        "image_std": list(model.pixel_std),
    }
    return {"config.json": config, "preprocessor_config.json": processor}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; raises PretrainedError if it is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path} holds no JSON object")
    return value
