"""What a checkpoint holds, whoever wrote it: a model, its weights, how to feed it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE


def model_fields(model: VideoMAE | VideoClassifier) -> dict[str, Any]:
    """What a model is made of, by the names of its fields."""
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How clips for a model are cut out of videos.

    The statistics that pixels are normalised with are fields of the model, which takes
    raw uint8 pixels.

    Attributes:
        num_frames: frames of a clip.
        stride: frames of the video between two of them.
        image_size: height and width of the crops in pixels; the shorter side of a
            video is resized to it.
        frame_sampling: which frames a clip has, a key of `data.clips.SAMPLERS`.
    """

    num_frames: int = 16
    stride: int = 4
    image_size: int = 224
    frame_sampling: str = "dense"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights, as `load_pretrained` returns it.

    Attributes:
        model: a VideoMAE or a VideoClassifier. One with num_classes 0 is an encoder
            without a head.
        params: its parameters, float32, nested dicts of arrays.
        labels: the name of each class; None where there are no classes, or the source
            does not name them.
        preprocessing: how clips are cut out of videos.
        statistics: the model's collection "batch_stats", mostly empty.
        normalized_targets: of a VideoMAE, whether it predicts normalised patches.
        multi_label: of a VideoClassifier, whether each class is asked for by itself, so
            that its probability is the sigmoid of its logit.
        source: where it comes from, to be shown.
        format: who wrote it: huggingface, official, mmaction, keras, jax, workdir.
        unused: with strict=False, tensors of the source that the model has no use for.
        missing: with strict=False, tensors that the source lacks, which were
            initialised randomly.
    """

    model: VideoMAE | VideoClassifier
    params: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing = Preprocessing()
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalized_targets: bool = True
    multi_label: bool = False
    source: str = ""
    format: str = ""
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        statistics = {"batch_stats": self.statistics} if self.statistics else {}
        return {"params": self.params, **statistics}
