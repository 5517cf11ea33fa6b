"""The content of a checkpoint of any format: model, weights, preprocessing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from videomae_jax.errors import ConfigError, PretrainedError
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.problem import Problem
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width


def model_fields(model: VideoMAE | VideoClassifier) -> dict[str, Any]:
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
        """Raises ConfigError if a size is none, or frames would have another one."""
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


def check_clips(clips: Preprocessing, model: Any, name: str) -> None:
    """Raises PretrainedError if a model's patches do not divide the clips."""
    frames, size = clips.num_frames, clips.image_size
    if frames % model.tubelet_size or any(side % model.patch_size for side in size):
        shown = " x ".join(map(str, size))
        raise PretrainedError(
            f"{name}: clips of {frames} frames of {shown} pixels do not divide into "
            f"patches of {model.tubelet_size} frames and {model.patch_size} pixels"
        )


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights, as `load_pretrained` returns it.

    Attributes:
        model: a VideoMAE or a VideoClassifier. With num_classes=0 the latter is an
            encoder without a head.
        params: parameters, float32, nested dicts of arrays.
        labels: the name of each class; None if there are no classes, or the source does
            not name them.
        preprocessing: how to cut clips out of videos.
        batch_stats: the model's collection "batch_stats"; empty without batch norm.
        normalized_targets: a VideoMAE predicts normalized patches.
        mask, mask_ratio: how its pretraining hid patches: a key of `masking.KINDS`, and
            the share that is hidden. VideoMAE's if the source does not say.
        problem: what the logits of a VideoClassifier mean: one class per video, several
            independent ones, one of each head, or values.
        source: path or name, for messages.
        format: huggingface, official, mmaction, keras, jax or workdir.
        unused: with strict=False, tensors of the source that the model does not use.
        missing: with strict=False, tensors that the source lacks; they are initialized
            randomly.
    """

    model: VideoMAE | VideoClassifier
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

    def __post_init__(self):
        """Raises PretrainedError if the heads have not as many classes as the model."""
        sizes = [size for _, size in self.problem.heads]
        classes = getattr(self.model, "num_classes", 0)
        if sizes and sum(sizes) != classes:
            raise PretrainedError(
                f"heads of {sizes} classes do not fit a model of {classes}"
            )

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `model.apply` takes."""
        batch_stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **batch_stats}
