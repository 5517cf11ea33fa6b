"""The content of a checkpoint of any format: model, weights, preprocessing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from videomae_jax import ranges
from videomae_jax.errors import ConfigError, PretrainedError, shape_differences
from videomae_jax.models.build import Model
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.problem import Problem
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width

_SHOWN = 3  # names of classes
MAX_NAMES = 8  # of tensors, in a message


def model_fields(model: Model) -> dict[str, Any]:
    """Returns the fields of a model by name."""
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How to cut clips for a model out of videos.

    Mean and standard deviation of the pixels are fields of the model, which takes raw
    pixels.

    Attributes:
        num_frames: frames of a clip.
        stride: distance between two frames of a clip, in frames of the video.
        image_size: (height, width) of the images in pixels, or one number for both.
        frame_sampling: how the frames are chosen, a key of `data.clips.SAMPLERS`.
        framing: how frames are resized and cropped.
        value_range: lowest and highest value of the videos' pixels, which become 0 and
            1; None for pixels of 8 bits.
    """

    num_frames: int = 16
    stride: int = 4
    # Given as one number, it becomes a pair.
    image_size: tuple[int, int] = (224, 224)
    frame_sampling: str = "dense"
    framing: Framing = OFFICIAL
    value_range: tuple[float, float] | None = None

    def __post_init__(self):
        """Raises ConfigError if a size has no sense, or frames would have another."""
        ranges.check({f"data.{name}": x for name, x in vars(self).items()})
        object.__setattr__(self, "image_size", height_and_width(self.image_size))
        if self.value_range is not None:  # a list, if from JSON
            object.__setattr__(self, "value_range", tuple(self.value_range))
        resize = self.framing.resize
        if (
            not self.framing.crop
            and isinstance(resize, tuple)
            and resize != self.image_size
        ):
            raise ConfigError(
                f"framing: resize={resize} with crop=False must be the image_size="
                f"{self.image_size}"
            )


def check_fields(kind: Any, given: Mapping[str, Any], name: str) -> None:
    """Raises PretrainedError if a kind of model lacks one of the given fields."""
    known = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    if invalid := sorted(given.keys() - known):
        raise PretrainedError(
            f"{name}: {kind.__name__} has no field {', '.join(invalid)}"
        )


def check_clips(clips: Preprocessing, model: Any, name: str) -> None:
    """Raises PretrainedError if a model's patches do not divide the clips."""
    frames, size = clips.num_frames, clips.image_size
    if frames % model.tubelet_size or any(side % model.patch_size for side in size):
        shown = " x ".join(map(str, size))
        raise PretrainedError(
            f"{name}: clips of {frames} frames of {shown} pixels do not divide into "
            f"patches of {model.tubelet_size} frames and {model.patch_size} pixels"
        )


def initialize(model: Model, seed: int = 0) -> dict[str, Any]:
    """Returns random parameters, which do not depend on clip length and image size."""
    # The video is zeros; the first token is visible, the second one masked.
    inputs = [np.full(x.shape, i == 2, x.dtype) for i, x in enumerate(_inputs(model))]
    return dict(jax.jit(model.init)(jax.random.key(seed), *inputs))["params"]


def _inputs(model: Model) -> list[jax.ShapeDtypeStruct]:
    """Returns the types of a video of two tokens, and of the ids of both or a box."""
    frame = (model.patch_size, 2 * model.patch_size, model.channels)
    # Floats: raw pixels would make constants as large as a patch.
    video = jax.ShapeDtypeStruct((1, model.tubelet_size, *frame), np.float32)
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    if isinstance(model, ActionDetector):
        return [video, jax.ShapeDtypeStruct((1, 1, 4), np.float32)]
    return [video, ids, ids] if isinstance(model, VideoMAE) else [video]


def param_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by path a/b/c; allocates none of them."""
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), *_inputs(model))
    flat: dict[str, Any] = flatten_dict(variables["params"], sep="/")
    return {path: x.shape for path, x in flat.items()}


def check_shapes(model: Model, actual: Mapping[str, Any], name: str) -> None:
    """Checks that arrays are the parameters of a model.

    Args:
        model: by the config that was saved with the arrays.
        actual: the shapes of the arrays by path a/b/c.
        name: of the arrays, for the message.

    Raises:
        PretrainedError: a shape differs, or arrays are missing or left over.
    """
    if differences := shape_differences(actual, param_shapes(model)):
        raise PretrainedError(
            f"{name} does not fit the model in its config:\n{differences}"
        )


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights, as `load_pretrained` returns it.

    Attributes:
        model: a VideoMAE, a VideoClassifier or an ActionDetector. With num_classes=0 a
            classifier is an encoder without a head.
        params: parameters, float32, nested dicts of arrays.
        labels: the name of each class; None if there are no classes, or the source does
            not name them.
        preprocessing: how to cut clips out of videos.
        batch_stats: the model's collection "batch_stats"; empty without batch norm.
        normalized_targets: a VideoMAE predicts normalized patches.
        mask, mask_ratio: how its pretraining hid patches: a key of `masking.KINDS`, and
            the share that is hidden. VideoMAE's if the source does not say.
        problem: what the logits of a video, or of a box, mean: one class, several
            independent ones, one of each head, or values.
        source: path or name, for messages.
        format: huggingface, official, mmaction, keras, jax or workdir.
        unused: with strict=False, tensors of the source that the model does not use.
        missing: with strict=False, tensors that the source lacks; they are initialized
            randomly.
        stated: fields of the model by the source's own config, where the caller gave
            others.
    """

    model: Model
    params: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing = Preprocessing()
    batch_stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalized_targets: bool = True
    mask: str = "tube"
    mask_ratio: float = 0.9
    problem: Problem = Problem()
    source: str = ""
    format: str = ""
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises PretrainedError if the heads have not as many classes as the model.

        Raises ConfigError for a share of hidden patches that has no sense.
        """
        ranges.check({"mask.ratio": self.mask_ratio})
        sizes = [size for _, size in self.problem.heads]
        classes = getattr(self.model, "num_classes", 0)
        if sizes and sum(sizes) != classes:
            raise PretrainedError(
                f"heads of {sizes} classes do not fit a model of {classes}"
            )

    def __repr__(self) -> str:
        """Returns five lines without the weights."""
        model, clips = self.model, self.preprocessing
        names = ("width", "depth", "heads", "patch_size", "tubelet_size", "dtype")
        sizes = ", ".join(f"{name}={getattr(model, name)}" for name in names)
        count = sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(self.params))
        height, width = clips.image_size
        rest = {"range": clips.value_range, **dataclasses.asdict(clips.framing)}
        if clips.framing == OFFICIAL:
            rest = {"range": clips.value_range}
        shown = "".join(f", {k}={v}" for k, v in rest.items() if v is not None)
        return (
            f"{type(model).__name__}({sizes})\n"
            f"  parameters: {count:,}\n"
            f"  {self._purpose()}\n"
            f"  clips: {clips.num_frames} frames of {height}x{width} pixels, "
            f"{clips.frame_sampling} sampling with stride {clips.stride}{shown}\n"
            f"  source: {self.source or 'none'}"
            + (f" ({self.format})" if self.format else "")
        )

    def _purpose(self) -> str:
        """Returns what the model is for, in one line."""
        classes = getattr(self.model, "num_classes", None)
        if classes is None:
            return f"pretraining: {self.mask} mask, ratio {self.mask_ratio:g}"
        if not classes:
            return "classes: none, an encoder"
        kind = "values" if self.problem.is_regression else "classes"
        if isinstance(self.model, ActionDetector):
            kind = "actions of persons in boxes"
        heads = ", ".join(f"{name} {size}" for name, size in self.problem.heads)
        names = ", ".join((self.labels or ())[:_SHOWN]) or "without names"
        more = ", ..." if self.labels and classes > len(self.labels[:_SHOWN]) else ""
        return f"{kind}: {classes} ({heads or names + more})"

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `model.apply` takes."""
        batch_stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **batch_stats}
