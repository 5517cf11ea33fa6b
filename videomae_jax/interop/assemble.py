"""Makes a model of a checkpoint's tensors and accounts for every one of them.

Sizes come from the tensors' shapes. What these do not show, the number of heads above
all, is told by the config beside them, by the published sizes, or by the caller.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop import huggingface, mmaction, official
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.interop.torch_pickle import Tensor
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.positions import sincos_positions
from videomae_jax.models.vit import VARIANTS

# What a format calls an official tensor: one name, or several of which it is made up.
PIECES: dict[str, Callable[[str], tuple[str, ...]]] = {
    "huggingface": huggingface.pieces,
    "mmaction": mmaction.pieces,
    "official": official.pieces,
    "keras": official.pieces,
}
_SHOWN = 8  # names in a message
# Something-Something V2 is sampled over the whole video (VideoMAE, section 4.1).
_CLASSES_OF_SSV2 = 174
# Published widths have one number of heads each; V2's huge decoder is large's.
_HEADS = {variant.width: variant.heads for variant in VARIANTS.values()}
# Of those of the official code, the depth of the encoder.
_DEPTHS = {v.width: v.depth for name, v in VARIANTS.items() if name != "tiny"}
_DECODER_HEADS = {v.decoder_width: v.decoder_heads for v in VARIANTS.values()}
_PARTS_OF_PRETRAINING = (
    "mask_token",
    "encoder_to_decoder.weight",
    "decoder.norm.weight",
    "decoder.head.weight",
    "decoder.blocks.0.norm1.weight",
)


@dataclasses.dataclass
class Source:
    """The tensors of a checkpoint by their own names, and what else it tells.

    Attributes:
        path: to be shown.
        format: who wrote it, a key of PIECES.
        tensors: arrays, or tensors still in their file.
        fields: of the model, as far as the source tells them.
        labels, normalized_targets, multi_label: as in `Pretrained`.
        preprocessing: fields of `Preprocessing`.
        biases: False if the source says that queries and values have none.
        sizes: fields of the model that its tensors have to agree with.
        kind: PreTraining or VideoClassification, if the source says which it is.
        mean_pooling: how a classifier pools, if the source says.
    """

    path: str
    format: str
    tensors: dict[str, np.ndarray | Tensor]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    normalized_targets: bool = True
    multi_label: bool = False
    biases: bool = True
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    kind: str | None = None
    mean_pooling: bool | None = None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of an official tensor; None if it is not there, or not whole."""
        parts = [self.tensors.get(part) for part in PIECES[self.format](name)]
        if any(part is None for part in parts):
            return None
        first = tuple(parts[0].shape)
        if len(parts) == 1 or not first:
            return first
        return (sum(part.shape[0] for part in parts), *first[1:])

    def has(self, *names: str) -> bool:
        """Whether any piece of any of these official tensors is there."""
        pieces = PIECES[self.format]
        return any(part in self.tensors for name in names for part in pieces(name))


def assemble(source: Source, strict: bool, fields: Mapping[str, Any]) -> Pretrained:
    """Makes the model that the tensors are of, and puts them into its parameters.

    Args:
        source: the checkpoint.
        strict: see `load_pretrained`.
        fields: of the model, instead of what the source tells.

    Raises:
        PretrainedError: if the model's sizes cannot be told, a tensor has another
            shape, or with `strict` one is missing or has no use.
    """
    model = _model(source, fields)
    try:
        abstract = jax.eval_shape(lambda: initialize(model))
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"{source.path}: {error}") from error
    ours = flax.traverse_util.flatten_dict(abstract, sep="/")
    pieces = PIECES[source.format]
    unused = dict(source.tensors)
    missing, wrong = [], []
    found: dict[str, list[np.ndarray | None]] = {path: [] for path in ours}
    for entry in official.entries({path: x.shape for path, x in ours.items()}):
        shape = entry.shape(ours[entry.path].shape, model.tubelet_size)
        parts = pieces(entry.name)
        wanted = (shape[0] // len(parts), *shape[1:])
        if not source.biases and entry.name.endswith((".q_bias", ".v_bias")):
            # Biases that are there nevertheless are left over.
            found[entry.path].append(np.zeros(shape, np.float32))
            continue
        tensors = {part: unused.pop(part, None) for part in parts}
        array = None
        if any(x is None for x in tensors.values()):
            missing += [part for part, x in tensors.items() if x is None]
        elif any(tuple(x.shape) != wanted for x in tensors.values()):
            wrong += [
                f"{part}: {tuple(x.shape)}, not {wanted}"
                for part, x in tensors.items()
                if tuple(x.shape) != wanted
            ]
        else:
            arrays = [_array(source, part, x) for part, x in tensors.items()]
            array = entry.to_ours(np.concatenate(arrays) if arrays[1:] else arrays[0])
        found[entry.path].append(array)
    _drop_positions(source, unused)
    if wrong or strict and (missing or unused):
        raise PretrainedError(_refusal(source, model, missing, list(unused), wrong))
    fresh = None
    if missing:
        fresh = jax.device_get(initialize(model))
        fresh = flax.traverse_util.flatten_dict(fresh, sep="/")
    params = {
        path: _join(arrays, ours[path].shape, fresh and fresh[path])
        for path, arrays in found.items()
    }
    classes = getattr(model, "num_classes", 0)
    labels = source.labels if classes else None
    if labels is not None and len(labels) != classes:
        raise PretrainedError(
            f"{source.path} names {len(labels)} classes, but its head has {classes}"
        )
    preprocessing = Preprocessing(**source.preprocessing)
    if classes == _CLASSES_OF_SSV2:
        preprocessing = dataclasses.replace(preprocessing, frame_sampling="uniform")
    clip = preprocessing.num_frames, preprocessing.image_size
    if source.preprocessing and (
        clip[0] % model.tubelet_size or clip[1] % model.patch_size
    ):
        raise PretrainedError(
            f"{source.path}: its clips of {clip[0]} frames of {clip[1]} pixels do not "
            f"divide into its patches of {model.tubelet_size} frames and "
            f"{model.patch_size} pixels"
        )
    return Pretrained(
        model=model,
        params=flax.traverse_util.unflatten_dict(params, sep="/"),
        labels=labels,
        preprocessing=preprocessing,
        normalized_targets=source.normalized_targets,
        multi_label=source.multi_label and bool(classes),
        source=source.path,
        format=source.format,
        unused=tuple(unused),
        missing=tuple(missing),
    )


def initialize(model: VideoMAE | VideoClassifier, seed: int = 0) -> dict[str, Any]:
    """Random parameters; they do not depend on clip length and image size."""
    # Two tokens: one visible, one masked.
    shape = (1, model.tubelet_size, model.patch_size, 2 * model.patch_size, 3)
    video = np.zeros(shape, np.uint8)
    ids = (np.zeros((1, 1), np.int32), np.ones((1, 1), np.int32))
    inputs = (video, *ids) if isinstance(model, VideoMAE) else (video,)
    return model.init(jax.random.key(seed), *inputs)["params"]


def _model(source: Source, given: Mapping[str, Any]) -> VideoMAE | VideoClassifier:
    pretraining = source.kind == "PreTraining" or source.has(*_PARTS_OF_PRETRAINING)
    part = "encoder." if pretraining else ""
    embedding = source.shape(f"{part}patch_embed.proj.weight")
    if embedding is None or len(embedding) != 5 or embedding[1] != 3:
        name = PIECES[source.format](f"{part}patch_embed.proj.weight")[0]
        raise PretrainedError(
            f"{source.path}: {name} is "
            + ("missing" if embedding is None else f"of shape {embedding}")
            + "; [width, 3, frames, rows, columns] is wanted, of RGB videos"
        )
    width, _, tubelet_size, patch_size, columns = embedding
    if patch_size != columns:
        raise PretrainedError(f"{source.path}: its patches are not square")
    told = source.fields | dict(given)
    fields = {
        "width": width,
        "depth": _count_blocks(source, part),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "mlp_ratio": _mlp_ratio(source, part, width),
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
            raise PretrainedError(
                f"{source.path} should be a classifier, but has no head: "
                f"{PIECES[source.format]('head.weight')[0]} is missing"
            )
        told = {k: v for k, v in told.items() if not k.startswith("decoder_")}
    unknown = [name for name, x in heads.items() if x is None and name not in told]
    if unknown:
        raise PretrainedError(
            f"{source.path}: its tensors do not tell the number of attention heads, "
            "and its width is none of the published; give "
            + " and ".join(f"{name}=<number>" for name in unknown)
        )
    _check_sizes(source, fields, given)
    kind = VideoMAE if pretraining else VideoClassifier
    known = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    strange = sorted(given.keys() - known - {"decoder_heads"})
    if strange:
        raise PretrainedError(
            f"{source.path}: a {kind.__name__} has no field {', '.join(strange)}"
        )
    fields |= heads | told
    for size, name in (("width", "heads"), ("decoder_width", "decoder_heads")):
        count = fields.get(name, 1)
        if not isinstance(count, int) or count < 1 or fields.get(size, 0) % count:
            raise PretrainedError(
                f"{source.path}: {name} is {count!r}, which does not divide its width "
                f"of {fields.get(size)}"
            )
    return kind(**fields)


def _check_sizes(
    source: Source, fields: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Compares what the tensors show with what is said or known of the model.

    So that blocks that were lost at the end are noticed.
    """
    wanted = dict(source.sizes)
    if not wanted and source.format != "huggingface":
        wanted = {"depth": _DEPTHS.get(fields["width"], fields["depth"])}
    differing = [
        f"{name} is {fields[name]} by its tensors, and should be {value}"
        for name, value in wanted.items()
        if name in fields and name not in given and fields[name] != value
    ]
    if differing:
        raise PretrainedError(
            f"{source.path}: {'; '.join(differing)}. Tensors are missing or of another "
            "model; if it is meant to be so, give "
            + ", ".join(
                f"{name}={fields[name]}"
                for name in wanted
                if name in fields and fields[name] != wanted[name]
            )
        )


def _count_blocks(source: Source, part: str) -> int:
    depth = 0
    while source.has(
        *(f"{part}blocks.{depth}.{name}" for name in official.BLOCK_TENSORS)
    ):
        depth += 1
    return depth


def _mlp_ratio(source: Source, part: str, width: int) -> float:
    """A ratio that the model rounds down to just this hidden width."""
    hidden = source.shape(f"{part}blocks.0.mlp.fc1.weight")
    if hidden is None or not width:
        return 4.0
    ratio = hidden[0] / width
    return ratio if int(width * ratio) == hidden[0] else float(np.nextafter(ratio, 1e9))


def _head_fields(source: Source) -> dict[str, Any]:
    """What follows the blocks of a classifier, or of an encoder alone."""
    head = source.shape("head.weight") or source.shape("head.bias") or (0,)
    pooled_norm = source.has("fc_norm.weight", "fc_norm.bias")
    final_norm = source.has("norm.weight", "norm.bias")
    mean_pooling = source.mean_pooling if head[0] else None
    if mean_pooling is None:
        mean_pooling = pooled_norm or not final_norm or not head[0]
    if not mean_pooling:
        return {"num_classes": head[0], "pooling": "first_token"}
    return {
        "num_classes": head[0],
        # Mean pooling has a norm of its own instead (official code); both would be
        # another model's, and one of them is then told as without a use.
        "final_norm": final_norm and not pooled_norm and not head[0],
        # A head without any norm is none of VideoMAE's: its absence is then told.
        "head_norm": "layer" if pooled_norm or head[0] else "none",
    }


def _array(source: Source, name: str, tensor: np.ndarray | Tensor) -> np.ndarray:
    array = np.asarray(tensor.load() if isinstance(tensor, Tensor) else tensor)
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        raise PretrainedError(f"{source.path}: {name} is {array.dtype}, not floating")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise PretrainedError(
            f"{source.path}: {name} holds values that are not finite; the training "
            "that made it went wrong, or the file is damaged"
        )
    return array


def _drop_positions(source: Source, unused: dict[str, np.ndarray | Tensor]) -> None:
    """Takes out position tables that are the one which the models compute anyway."""
    for name in list(unused):
        if not re.search(r"(^|\.)(pos_embed|position_embeddings)$", name):
            continue
        if len(unused[name].shape) not in (2, 3):
            continue
        table = _array(source, name, unused[name])
        table = table.reshape(-1, table.shape[-1])
        if np.allclose(table, sincos_positions(*table.shape), atol=1e-4):
            del unused[name]


def _refusal(
    source: Source,
    model: VideoMAE | VideoClassifier,
    missing: list[str],
    unused: list[str],
    wrong: list[str],
) -> str:
    lines = [
        f"{source.path} ({source.format}) does not fit the {type(model).__name__} that "
        f"its shapes tell of (width {model.width}, {model.depth} blocks):"
    ]
    for what, names in (
        ("missing", missing),
        ("without a use", unused),
        ("of another shape", wrong),
    ):
        shown = ", ".join(names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines += [f"  {what}: {shown}{more}"] if names else []
    if any(name.endswith(("q_bias", "v_bias")) for name in missing):
        lines.append(
            "Without the biases of queries and values the model would run, and be "
            "wrong; the file was converted by something that lost them."
        )
    if any("pos_embed" in name or "position_embeddings" in name for name in unused):
        lines.append("Its position table is learned, which these models do not have.")
    if any("gamma_" in name for name in unused):
        lines.append("It has layer scale, which these models do not have.")
    if source.has("decoder.norm.weight") and not source.has(
        "norm.weight", "encoder.norm.weight"
    ):
        lines.append("Pretraining without the encoder's final norm is not supported.")
    elif not wrong:
        lines.append("strict=False loads it nevertheless, and lists these names.")
    return "\n".join(lines)


def _join(
    arrays: list[np.ndarray | None], shape: tuple[int, ...], fresh: np.ndarray | None
) -> np.ndarray:
    """The parameter of all blocks, or of the one place it has."""
    if len(arrays) == 1 and (arrays[0] is None or arrays[0].shape == shape):
        return fresh if arrays[0] is None else np.ascontiguousarray(arrays[0])
    return np.stack(
        [fresh[i] if array is None else array for i, array in enumerate(arrays)]
    )
