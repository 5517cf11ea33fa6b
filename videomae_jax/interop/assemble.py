"""Builds a model from the tensors of a checkpoint and accounts for every one of them.

Sizes come from the shapes of the tensors. The number of heads, which no shape shows,
comes from the config beside the weights, the published sizes, or the caller.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from videomae_jax.errors import ConfigError, PretrainedError
from videomae_jax.interop import huggingface, official
from videomae_jax.interop.pretrained import (
    MAX_NAMES,
    Preprocessing,
    Pretrained,
    check_clips,
    check_fields,
    initialize,
    param_shapes,
)
from videomae_jax.interop.torch_pickle import Tensor
from videomae_jax.models import build
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.positions import sincos_positions
from videomae_jax.models.problem import Problem
from videomae_jax.models.variants import VARIANTS

log = logging.getLogger(__name__)

# Per format: the names of the tensors that make up an official tensor, concatenated
# along the first axis.
TENSOR_NAMES: dict[str, Callable[[str], tuple[str, ...]]] = {
    "huggingface": huggingface.tensor_names,
    "mmaction": official.mmaction_tensor_names,
    "official": lambda name: (name,),
    "keras": lambda name: (name,),
}
# Something-Something V2 is sampled over the whole video (VideoMAE, section 4.1).
_CLASSES_OF_SSV2 = 174
# The number of heads and the encoder's depth, by the published widths.
_HEADS = {variant.width: variant.heads for variant in VARIANTS.values()}
_DECODER_HEADS = {v.decoder_width: v.decoder_heads for v in VARIANTS.values()}
_DEPTHS = {v.width: v.depth for name, v in VARIANTS.items() if name != "tiny"}
_MLP_RATIOS = sorted({variant.mlp_ratio for variant in VARIANTS.values()})
_MOST_RANDOM = 2**27  # values of a model, most of which a source lacks: a ViT-B
_PRETRAINING_TENSORS = (
    "mask_token",
    "encoder_to_decoder.weight",
    "decoder.norm.weight",
    "decoder.head.weight",
    "decoder.blocks.0.norm1.weight",
)


@dataclasses.dataclass
class Source:
    """The tensors of a checkpoint by their own names, and its metadata.

    Attributes that are not listed are as in `Pretrained`.

    Attributes:
        path: for messages.
        format: a key of TENSOR_NAMES.
        fields: of the model, as far as the source specifies them.
        preprocessing: fields of `Preprocessing`.
        biases: False if the source says that queries and values have no biases.
        sizes: fields of the model that must agree with the tensors.
        kind: PreTraining, VideoClassification or ActionDetection, if it is known.
        mean_pooling: pooling of a classifier, if the source specifies it.
    """

    path: str
    format: str
    tensors: Mapping[str, np.ndarray | Tensor]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    normalized_targets: bool = True
    problem: Problem = Problem()
    biases: bool = True
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: str | None = None
    mean_pooling: bool | None = None

    def error(self, problem: str) -> PretrainedError:
        """Returns an error that names the path."""
        return PretrainedError(f"{self.path}: {problem}")

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of an official tensor; None unless all of it is present."""
        names = TENSOR_NAMES[self.format](name)
        if any(name not in self.tensors for name in names):
            return None
        shapes = [tuple(self.tensors[name].shape) for name in names]
        if len(shapes) == 1 or not shapes[0]:
            return shapes[0]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def has(self, *names: str) -> bool:
        """Returns whether any part of any of these official tensors is present."""
        own_names = TENSOR_NAMES[self.format]
        return any(own in self.tensors for name in names for own in own_names(name))


def assemble(source: Source, *, strict: bool, fields: Mapping[str, Any]) -> Pretrained:
    """Builds the model of the tensors and loads them into its parameters.

    Arguments and errors are those of `load_pretrained`.
    """
    model = _model(source, fields)
    params, missing, unused = _params(source, model, strict)
    classes = getattr(model, "num_classes", 0)
    labels = source.labels if classes else None
    if labels is not None and len(labels) != classes:
        raise PretrainedError(
            f"{source.path} names {len(labels)} classes, but its head has {classes}"
        )
    try:
        preprocessing = Preprocessing(**source.preprocessing)
    except ConfigError as error:
        raise source.error(str(error)) from error
    if classes == _CLASSES_OF_SSV2:
        preprocessing = dataclasses.replace(preprocessing, frame_sampling="uniform")
    if source.preprocessing:
        check_clips(preprocessing, model, source.path)
    return Pretrained(
        model=model,
        params=params,
        labels=labels,
        preprocessing=preprocessing,
        normalized_targets=source.normalized_targets,
        problem=source.problem if classes else Problem(),
        source=source.path,
        format=source.format,
        unused=unused,
        missing=missing,
        stated={
            name: source.fields[name]
            for name in fields.keys() & source.fields.keys()
            if hasattr(model, name) and source.fields[name] != fields[name]
        },
    )


def _params(
    source: Source, model: build.Model, strict: bool
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Returns the parameters, and the names of missing and unused tensors."""
    try:
        shapes = param_shapes(model)
    except (TypeError, ValueError) as error:
        raise source.error(str(error)) from error
    unused = dict(source.tensors)
    patch = {"tubelet_size": model.tubelet_size, "channels": model.channels}
    missing, wrong = [], []
    arrays: dict[str, list[np.ndarray | None]] = {path: [] for path in shapes}
    for entry in official.entries(shapes):
        shape = entry.shape(shapes[entry.path], **patch)
        if not source.biases and entry.name.endswith((".q_bias", ".v_bias")):
            # If the source has such biases nevertheless, they stay unused.
            arrays[entry.path].append(np.zeros(shape, np.float32))
            continue
        names = TENSOR_NAMES[source.format](entry.name)
        expected = (shape[0] // len(names), *shape[1:])
        tensors = {name: unused.pop(name) for name in names if name in unused}
        misshaped = [
            f"{name}: {tuple(x.shape)}, not {expected}"
            for name, x in tensors.items()
            if tuple(x.shape) != expected
        ]
        array = None
        if len(tensors) < len(names):
            missing += [name for name in names if name not in tensors]
        elif misshaped:
            wrong += misshaped
        else:
            loaded = [_array(source, name, x) for name, x in tensors.items()]
            array = entry.to_ours(np.concatenate(loaded) if loaded[1:] else loaded[0])
        arrays[entry.path].append(array)
    _drop_computed_positions(source, unused)
    if wrong or strict and (missing or unused):
        raise PretrainedError(_mismatch(source, model, missing, list(unused), wrong))
    if missing:
        _check_missing(source, arrays, shapes)
    initial = jax.device_get(initialize(model)) if missing else {}
    random: dict[str, Any] = flatten_dict(initial, sep="/")
    params = {
        path: _stack(arrays[path], shape, random.get(path))
        for path, shape in shapes.items()
    }
    return unflatten_dict(params, sep="/"), tuple(missing), tuple(unused)


def _check_missing(
    source: Source,
    arrays: Mapping[str, Sequence[np.ndarray | None]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises PretrainedError if a small file asks for a large random model."""
    present = sum(x.size for parts in arrays.values() for x in parts if x is not None)
    total = sum(map(math.prod, shapes.values()))
    if total > max(_MOST_RANDOM, 10 * present):
        raise source.error(
            f"holds {present} of {total} values of the model that its shapes indicate; "
            "expected at least a tenth"
        )


def _model(source: Source, given: Mapping[str, Any]) -> build.Model:
    pretraining = source.kind == "PreTraining" or source.has(*_PRETRAINING_TENSORS)
    prefix = "encoder." if pretraining else ""
    embedding = source.shape(f"{prefix}patch_embed.proj.weight")
    if embedding is None or len(embedding) != 5:
        name = TENSOR_NAMES[source.format](f"{prefix}patch_embed.proj.weight")[0]
        problem = "is missing" if embedding is None else f"has the shape {embedding}"
        raise source.error(
            f"{name} {problem}; expected [width, channels, frames, rows, columns]"
        )
    width, channels, tubelet_size, patch_size, columns = embedding
    if patch_size != columns:
        raise source.error(f"patches must be square, got {patch_size}x{columns} pixels")
    specified = source.fields | dict(given)
    fields = {
        "width": width,
        "depth": _count_blocks(source, prefix),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "channels": channels,
        "mlp_ratio": _mlp_ratio(source, prefix, width),
    }
    heads = {"heads": _HEADS.get(width)}
    if pretraining:
        bridge = source.shape("encoder_to_decoder.weight")
        mask_token = source.shape("mask_token")
        decoder_width = bridge[0] if bridge else mask_token[-1] if mask_token else 0
        fields |= {
            "decoder_width": decoder_width,
            "decoder_depth": _count_blocks(source, "decoder."),
            "decoder_mlp_ratio": _mlp_ratio(source, "decoder.", decoder_width),
        }
        heads["decoder_heads"] = _DECODER_HEADS.get(decoder_width)
    else:
        fields |= _head_fields(source)
        if source.kind == "VideoClassification" and not fields["num_classes"]:
            name = TENSOR_NAMES[source.format]("head.weight")[0]
            raise source.error(f"the config is of a classifier, but {name} is missing")
        for name in [name for name in specified if name.startswith("decoder_")]:
            del specified[name]
    unknown = [name for name, x in heads.items() if x is None and name not in specified]
    if unknown:
        raise source.error(
            "the number of attention heads is unknown, because no published model has "
            "this width; pass "
            + " and ".join(f"{name}=<number>" for name in unknown)
            + " (in training, "
            + " ".join(f"--config.model.{name}=<number>" for name in unknown)
            + ")"
        )
    _check_sizes(source, fields, given)
    kind = ActionDetector if source.kind == "ActionDetection" else VideoClassifier
    kind = VideoMAE if pretraining else kind
    # The decoder's heads may be given for any source.
    check_fields(
        kind, {x: given[x] for x in given if x != "decoder_heads"}, source.path
    )
    _warn_of_heads(source, heads, given)
    fields |= heads | specified
    model = kind(**fields)
    try:
        build.check(model)
    except ConfigError as error:
        raise source.error(str(error)) from error
    return model


def _warn_of_heads(
    source: Source, published: Mapping[str, int | None], given: Mapping[str, Any]
) -> None:
    """Warns of heads that differ from the published model of the same width.

    transformers' conversion script wrote 16 heads for a ViT-S, which has 6: the same
    weights then give other outputs.
    """
    for name, count in published.items():
        stated = source.fields.get(name, count)
        if name not in given and count is not None and stated != count:
            log.warning(
                "%s: %s=%s by its config, but the published model of this width has %s;"
                " if its outputs are wrong, pass %s=%s (in training, "
                "--config.model.%s=%s)",
                source.path,
                name,
                stated,
                count,
                *(name, count) * 2,
            )


def _check_sizes(
    source: Source, fields: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Compares the sizes of the tensors with the specified or published ones.

    Without this check, blocks lost from the end would go unnoticed.
    """
    expected = source.sizes
    if not expected and source.format != "huggingface":
        expected = {"depth": _DEPTHS.get(fields["width"], fields["depth"])}
    differing = {
        name: value
        for name, value in expected.items()
        if name in fields and name not in given and fields[name] != value
    }
    if differing:
        raise source.error(
            "; ".join(
                f"{name} is {fields[name]} by its tensors, and should be {value}"
                for name, value in differing.items()
            )
            + ". Tensors are missing or of another model; if this is intended, pass "
            + ", ".join(f"{name}={fields[name]}" for name in differing)
        )


def _count_blocks(source: Source, prefix: str) -> int:
    depth = 0
    while source.has(
        *(f"{prefix}blocks.{depth}.{name}" for name in official.BLOCK_TENSORS)
    ):
        depth += 1
    return depth


def _mlp_ratio(source: Source, prefix: str, width: int) -> float:
    """Returns a ratio that the model rounds down to exactly this hidden width.

    Preferred is a published one, with which configs and variants are compared: 48/11
    for the 2,234 of 512 in the decoder of a ViT-g.
    """
    hidden = source.shape(f"{prefix}blocks.0.mlp.fc1.weight")
    if hidden is None or not width:
        return 4.0
    for ratio in _MLP_RATIOS:
        if int(width * ratio) == hidden[0]:
            return ratio
    ratio = hidden[0] / width
    return ratio if int(width * ratio) == hidden[0] else float(np.nextafter(ratio, 1e9))


def _head_fields(source: Source) -> dict[str, Any]:
    """Returns the fields of a classifier, or of an encoder alone, after the blocks."""
    head = source.shape("head.weight") or source.shape("head.bias") or (0,)
    if source.kind == "ActionDetection":
        return {"num_classes": head[0]}
    pooled_norm = source.has("fc_norm.weight", "fc_norm.bias")
    final_norm = source.has("norm.weight", "norm.bias")
    mean_pooling = source.mean_pooling if head[0] else None
    if mean_pooling is None:
        mean_pooling = pooled_norm or not final_norm or not head[0]
    if not mean_pooling:
        return {"num_classes": head[0], "pooling": "first_token"}
    return {
        "num_classes": head[0],
        # The norm after pooling replaces it (official code); of both, one is unused.
        "final_norm": final_norm and not pooled_norm and not head[0],
        # Every VideoMAE has a norm before its head; if absent, it is reported missing.
        "head_norm": "layer" if pooled_norm or head[0] else "none",
    }


def _array(source: Source, name: str, tensor: np.ndarray | Tensor) -> np.ndarray:
    array = np.asarray(tensor.load() if isinstance(tensor, Tensor) else tensor)
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        raise source.error(f"{name} must be floating point, got {array.dtype}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise source.error(
            f"{name} holds values that are not finite; its training diverged, or the "
            "file is damaged"
        )
    return array


def _drop_computed_positions(
    source: Source, unused: dict[str, np.ndarray | Tensor]
) -> None:
    """Removes position tables that equal the one that the models compute."""
    for name, tensor in list(unused.items()):
        is_table = re.search(r"(^|\.)(pos_embed|position_embeddings)$", name)
        if not is_table or len(tensor.shape) not in (2, 3):
            continue
        table = _array(source, name, tensor).reshape(-1, tensor.shape[-1])
        if np.allclose(table, sincos_positions(*table.shape), atol=1e-4):
            del unused[name]


def _mismatch(
    source: Source,
    model: build.Model,
    missing: Sequence[str],
    unused: Sequence[str],
    wrong: Sequence[str],
) -> str:
    """Returns the message that lists the tensors, with the likely reasons."""
    lines = [
        f"{source.path} ({source.format}) does not fit the {type(model).__name__} that "
        f"its shapes indicate (width {model.width}, {model.depth} blocks):"
    ]
    problems = {"missing": missing, "unused": unused, "wrong shape": wrong}
    for problem, names in problems.items():
        shown = ", ".join(names[:MAX_NAMES])
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        lines += [f"  {problem}: {shown}{more}"] if names else []
    if any(name.endswith(("q_bias", "v_bias")) for name in missing):
        lines.append(
            "Without the biases of queries and values the model would run, but compute "
            "wrong results; the conversion of the file lost them."
        )
    if any("pos_embed" in name or "position_embeddings" in name for name in unused):
        lines.append("Its position table is learned, which is not supported.")
    if any("gamma_" in name for name in unused):
        lines.append("It has layer scale, which is not supported.")
    if source.has("decoder.norm.weight") and not source.has(
        "norm.weight", "encoder.norm.weight"
    ):
        lines.append("Pretraining without the encoder's final norm is not supported.")
    elif not wrong:
        lines.append("strict=False loads it nevertheless, and lists these names.")
    return "\n".join(lines)


def _stack(
    arrays: Sequence[np.ndarray | None], shape: tuple[int, ...], random: Any
) -> np.ndarray:
    """Returns a parameter, stacked over blocks if there are; `random` replaces None."""
    if len(arrays) == 1 and (arrays[0] is None or arrays[0].shape == shape):
        return random if arrays[0] is None else np.ascontiguousarray(arrays[0])
    return np.stack(
        [random[i] if array is None else array for i, array in enumerate(arrays)]
    )
