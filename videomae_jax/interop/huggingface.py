"""Names and configs of Hugging Face transformers' VideoMAE, of all releases."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from videomae_jax.errors import PretrainedError
from videomae_jax.files import open_regular
from videomae_jax.interop import official
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.interop.tensor_files import reading
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.problem import REGRESSION, SINGLE_LABEL, TYPES, Problem
from videomae_jax.models.sizes import height_and_width

_T = TypeVar("_T")

_MAX_JSON = 2**24  # bytes; names of 100,000 classes need half of them

# The config does not change the epsilon of the LayerNorm before a head.
EPSILONS = {"norm_epsilon": 1e-12, "head_norm_epsilon": 1e-5}
# Our names of the sizes in a config of transformers, and of VideoMAE V2.
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "tubelet_size": "tubelet_size",
    "num_channels": "channels",
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_depth",
}
_V2_SIZES = {"embed_dim": "width", "depth": "depth"}
_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
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


def tensor_names(name: str) -> tuple[str, ...]:
    """Returns the tensors that make up an official tensor, along the first axis."""
    name = name.removeprefix("encoder.")
    stem, _, leaf = name.rpartition(".")
    block = re.fullmatch(r"(decoder\.)?blocks\.(\d+)\.(.+)", name)
    if block:
        decoder, layer, inner = block.groups()
        folder = "decoder.decoder_layers" if decoder else "videomae.encoder.layer"
        if inner in _BLOCK:  # q_bias and v_bias
            return tuple(f"{folder}.{layer}.{tensor}" for tensor in _BLOCK[inner])
        stem, _, leaf = inner.rpartition(".")
        return tuple(f"{folder}.{layer}.{stem}.{leaf}" for stem in _BLOCK[stem])
    return (f"{_TOP.get(stem, stem)}.{leaf}" if leaf != name else name,)


def normalize_names(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Converts the three layouts of past releases to one (see docs/design.md).

    Releases 5.5.1 to 5.17 wrote a bias of the keys too. It is dropped: it adds the same
    number to all logits of a query, which does not change the softmax.
    """
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(".attention.attention.key.bias")
    }

    def new_name(name: str) -> str:
        if re.match(r"(embeddings|encoder|layernorm)\.", name):  # a bare VideoMAEModel
            name = f"videomae.{name}"
        bias = r"(?<=\.attention\.attention\.)(q|v)(uery|alue)\.bias$"
        return re.sub(bias, r"\1_bias", name)

    return official.rename(kept, new_name)


def read_config(file: pathlib.Path) -> dict[str, Any]:
    """Reads config.json into fields of `assemble.Source`.

    Raises:
        PretrainedError: if a file cannot be read or is of another architecture.
    """
    with opened_json(file) as config:
        if config.get("model_type") != "videomae":
            raise PretrainedError(
                f"{file}: model_type={config.get('model_type')!r} is not supported, "
                "only 'videomae'"
            )
        activation = config.get("hidden_act", "gelu")
        if activation != "gelu":
            raise PretrainedError(
                f"{file}: hidden_act={activation!r} is not supported, only 'gelu'"
            )
        architectures = config.get("architectures") or ()
        kinds = [
            kind
            for kind in ("PreTraining", "VideoClassification")
            if f"VideoMAEFor{kind}" in architectures
        ]
        epsilon = EPSILONS["norm_epsilon"]
        fields = {
            "heads": _field(config, "num_attention_heads", 12),
            "decoder_heads": _field(config, "decoder_num_attention_heads", 6),
            "norm_epsilon": _field(config, "layer_norm_eps", epsilon),
        }
        sizes = {ours: config[x] for x, ours in _SIZES.items() if x in config}
        return {
            "fields": fields,
            "sizes": sizes | {"patch_size": _patch_size(config.get("patch_size", 16))},
            "labels": _labels(config),
            "preprocessing": {
                "num_frames": _field(config, "num_frames", 16),
                "image_size": _sides(config.get("image_size", 224)),
            },
            "normalized_targets": _field(config, "norm_pix_loss", True),
            "problem": _problem(file, config),
            "biases": _field(config, "qkv_bias", _field(config, "qv_bias", True)),
            "kind": kinds[0] if kinds else None,
            "mean_pooling": _field(config, "use_mean_pooling", True)
            if "use_mean_pooling" in config
            else None,
        }


def _field(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns a field; raises TypeError if it has another type than the default."""
    value, kind = config.get(name, default), type(default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{name}={value!r} must be of type {kind.__name__}")
    return value


@contextlib.contextmanager
def opened_json(file: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields a JSON object; unexpected content inside raises PretrainedError."""
    content = read_json(file)
    with reading(file):
        yield content


def is_v2_config(file: pathlib.Path) -> bool:
    """Returns whether this is of VideoMAE V2 on the hub, which has its own names."""
    try:
        return isinstance(read_json(file).get("model_config"), dict)
    except PretrainedError:  # missing, or not a config
        return False


def read_v2_config(file: pathlib.Path) -> dict[str, Any]:
    """Reads the config of VideoMAE V2 on the hub; returns the same as `read_config`."""
    with opened_json(file) as content:
        config = content["model_config"]
        if config.get("cos_attn"):
            raise PretrainedError(f"{file}: cosine attention is not supported")
        epsilon = _field(config, "layer_norm_eps", 1e-6)
        fields = {"norm_epsilon": epsilon, "head_norm_epsilon": epsilon}
        if "num_heads" in config:
            fields["heads"] = _field(config, "num_heads", 12)
        sizes = {ours: config[x] for x, ours in _V2_SIZES.items() if x in config}
        preprocessing = {
            "num_frames": _field(config, "num_frames", 16),
            "image_size": _sides(config.get("img_size", 224)),
        }
        return {"fields": fields, "sizes": sizes, "preprocessing": preprocessing}


def _sides(size) -> tuple[int, int]:
    """Returns (height, width) of a size as transformers' configs spell it."""
    if isinstance(size, list) and len(size) == 1:
        size = size[0]
    return height_and_width(size)


def _patch_size(size) -> int:
    height, width = _sides(size)
    if height != width:
        raise PretrainedError(
            f"patch_size={size} is not supported: patches must be square"
        )
    return height


def _problem(file: pathlib.Path, config: Mapping[str, Any]) -> Problem:
    """Returns what the logits mean; transformers trains one without a type on values.

    (`ForSequenceClassificationLoss` in loss/loss_utils.py.)
    """
    default = REGRESSION if len(config.get("id2label") or ()) == 1 else SINGLE_LABEL
    problem_type = config.get("problem_type") or default
    if problem_type not in TYPES:
        raise PretrainedError(
            f"{file}: problem_type={problem_type!r} must be one of: {', '.join(TYPES)}"
        )
    return Problem(problem_type)


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = {int(i): name for i, name in config.get("id2label", {}).items()}
    if not all(isinstance(name, str | int) for name in names.values()):
        raise TypeError("id2label must name classes")
    labels = tuple(str(names[index]) for index in range(len(names)))
    return labels if labels and labels != _placeholders(len(labels)) else None


def _placeholders(count: int) -> tuple[str, ...]:
    """Returns what transformers fills in where classes have no names."""
    return tuple(f"LABEL_{index}" for index in range(count))


def config(pretrained: Pretrained) -> dict[str, Any]:
    """Returns the content of config.json."""
    model, (height, width) = pretrained.model, pretrained.preprocessing.image_size
    size = height if height == width else (height, width)
    kind = "PreTraining" if isinstance(model, VideoMAE) else "VideoClassification"
    content = {
        "architectures": [f"VideoMAEFor{kind}"],
        "model_type": "videomae",
        "image_size": size,
        "patch_size": model.patch_size,
        "num_channels": model.channels,
        "num_frames": pretrained.preprocessing.num_frames,
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
        # The name before 5.18, which all releases accept.
        "qkv_bias": True,
        "use_mean_pooling": getattr(model, "pooling", None) == "mean",
        "norm_pix_loss": pretrained.normalized_targets,
    }
    if isinstance(model, VideoMAE):
        ratio = model.decoder_mlp_ratio or model.mlp_ratio
        content |= {
            "decoder_num_attention_heads": model.decoder_heads,
            "decoder_hidden_size": model.decoder_width,
            "decoder_num_hidden_layers": model.decoder_depth,
            "decoder_intermediate_size": int(model.decoder_width * ratio),
        }
    else:
        names = pretrained.labels or _placeholders(model.num_classes)
        content["id2label"] = {str(index): name for index, name in enumerate(names)}
        content["label2id"] = {name: index for index, name in enumerate(names)}
        # The type is left out as the library does, unless it would be read otherwise:
        # one class without a type is a value, see `_problem`.
        if pretrained.problem != Problem() or model.num_classes == 1:
            content["problem_type"] = pretrained.problem.type
    return content


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; raises PretrainedError if the file holds no such object."""
    with reading(path), open_regular(path) as file:
        text = file.read(_MAX_JSON + 1)
        if len(text) > _MAX_JSON:
            raise PretrainedError(
                f"{path} has more than the {_MAX_JSON} bytes that a config may have"
            )
        try:
            value = json.loads(text.decode())
        except (RecursionError, ValueError) as error:
            raise PretrainedError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(value, dict):
            raise PretrainedError(f"{path} must hold a JSON object")
        return value
