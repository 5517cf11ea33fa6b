"""Changes the classes of a classifier or the clips it takes, and keeps the rest."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.assemble import initialize
from videomae_jax.interop.pretrained import Preprocessing, Pretrained, check_clips
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.problem import class_key
from videomae_jax.models.sizes import Framing, height_and_width


def select_classes(
    pretrained: Pretrained,
    classes: Sequence[str],
    *,
    aliases: Mapping[str, str] | None = None,
) -> Pretrained:
    """Keeps some of a classifier's classes, by name, without training.

    A classifier of Kinetics-710, such as the distilled VideoMAE V2 models, becomes one
    of Kinetics-400, 600 or 700 (VideoMAE V2, section 4).

    Args:
        pretrained: a classifier whose classes have names; set them with
            `dataclasses.replace(pretrained, labels=...)` if the source has none.
        classes: names of the classes to keep, in their new order. Case, underscores and
            repeated blanks do not matter.
        aliases: the classifier's name of a class, by its name in `classes`, where they
            differ, as some of Kinetics-710 do from those of 400, 600 and 700.

    Raises:
        PretrainedError: if it lacks a class, has no class names, or several heads.

    Example:
        >>> import jax, videomae_jax as vmae
        >>> from videomae_jax.interop.edit_head import select_classes
        >>> model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=3)
        >>> video = jax.numpy.zeros((1, 2, 16, 16, 3), "uint8")
        >>> params = model.init(jax.random.key(0), video)["params"]
        >>> loaded = vmae.Pretrained(model, params, labels=("run", "jump", "fall"))
        >>> adapted = select_classes(loaded, ["fall", "run"])
        >>> adapted.labels, adapted.params["head"]["kernel"].shape
        (('fall', 'run'), (8, 2))
    """
    if not _check_classifier(pretrained).num_classes:
        raise PretrainedError(f"{_name(pretrained)} is an encoder without a head")
    if pretrained.problem.heads:
        raise PretrainedError(
            f"{_name(pretrained)} has several heads, of which no classes can be "
            "selected"
        )
    labels = pretrained.labels
    if labels is None:
        raise PretrainedError(
            f"{_name(pretrained)}: its classes have no names to select by; pass a file "
            "of names, one per line, in the order of the head (--labels)"
        )
    theirs = {class_key(name): other for name, other in (aliases or {}).items()}
    columns = find_classes([theirs.get(class_key(x), x) for x in classes], labels)
    absent = [name for name, x in zip(classes, columns, strict=True) if x < 0]
    if absent:
        known = [class_key(label) for label in labels]
        raise PretrainedError(
            f"{len(absent)} of the {len(classes)} classes are not among the "
            f"{len(labels)} of {_name(pretrained)}:\n"
            + "".join(f"  {x!r}{_suggestion(x, known)}\n" for x in absent)
            + "Pass aliases for classes that it names differently."
        )
    head = pretrained.params["head"]
    head = {"kernel": head["kernel"][:, columns], "bias": head["bias"][columns]}
    return dataclasses.replace(
        pretrained,
        model=pretrained.model.clone(num_classes=len(columns)),
        params={**pretrained.params, "head": head},
        labels=tuple(classes),
    )


def find_classes(classes: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Returns the index of each class among the labels, by name; -1 if it has none.

    Case, underscores and repeated blanks do not matter. Of equal labels, the first
    counts.
    """
    indices = {class_key(label): i for i, label in reversed(list(enumerate(labels)))}
    return np.array([indices.get(class_key(name), -1) for name in classes])


def new_head(
    pretrained: Pretrained, classes: Sequence[str] | int, *, seed: int = 0
) -> Pretrained:
    """Gives a classifier, or an encoder alone, an untrained head.

    Args:
        pretrained: a VideoClassifier, to which no norm after pooling is added, or an
            ActionDetector.
        classes: their names or their number.
        seed: of the random initial weights.

    Raises:
        PretrainedError: if the model is an autoencoder, or there are no classes.
    """
    count = classes if isinstance(classes, int) else len(classes)
    if count < 1:
        raise PretrainedError("a head needs at least one class")
    model = _check_classifier(pretrained).clone(num_classes=count)
    # As one program, of which the compiler keeps what makes the head.
    head = jax.jit(lambda: initialize(model, seed)["head"])()
    return dataclasses.replace(
        pretrained,
        model=model,
        params={**pretrained.params, "head": jax.device_get(head)},
        problem=dataclasses.replace(pretrained.problem, heads=()),
        labels=None if isinstance(classes, int) else tuple(classes),
    )


def resize_clips(
    pretrained: Pretrained,
    *,
    num_frames: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    stride: int | None = None,
) -> Pretrained:
    """Adapts a classifier to other clips, without changing its weights.

    The number of frames changes the length of the position table; for another image
    size the table is interpolated (see `models.positions`). Accuracy is best at the
    sizes of training, so fine-tune afterwards.

    Arguments are fields of `Preprocessing`; None keeps the value.

    Raises:
        PretrainedError: if the model is an autoencoder, or its patches do not divide
            the clips.
    """
    model, old = _check_classifier(pretrained), pretrained.preprocessing
    given = {"num_frames": num_frames, "image_size": image_size, "stride": stride}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if image_size is not None:
        changes["framing"] = _scaled(old, height_and_width(image_size))
    new = dataclasses.replace(old, **changes)
    check_clips(new, model, _name(pretrained))
    if new.image_size != old.image_size and model.position_size is None:
        model = model.clone(position_size=old.image_size)
    return dataclasses.replace(pretrained, model=model, preprocessing=new)


def _scaled(old: Preprocessing, size: tuple[int, int]) -> Framing:
    """Returns the framing for images of another size that show the same."""
    resize = old.framing.resize
    if isinstance(resize, int):
        resize = round(resize * min(size) / min(old.image_size))
    elif isinstance(resize, tuple):
        height, width = (
            round(side * new / before)
            for side, new, before in zip(resize, size, old.image_size, strict=True)
        )
        resize = height, width
    return dataclasses.replace(old.framing, resize=resize)


def with_pixel_stats(
    pretrained: Pretrained,
    mean: Sequence[float] = vit.IMAGENET_MEAN,
    std: Sequence[float] = vit.IMAGENET_STD,
) -> Pretrained:
    """Converts a model to another pixel mean and deviation, by default ImageNet's.

    The new model computes the same function of raw pixels: normalization is linear, and
    so is the embedding that follows.

    Args:
        pretrained: the model.
        mean, std: of each channel, of values scaled to [0, 1].
    """
    model = pretrained.model
    ours = np.array([mean, std], np.float64)
    theirs = np.array([model.pixel_mean, model.pixel_std], np.float64)
    if np.array_equal(ours, theirs):
        return pretrained
    if ours.shape != theirs.shape:
        raise PretrainedError(
            f"{_name(pretrained)} takes {model.channels} channels; mean={tuple(mean)} "
            f"and std={tuple(std)} must have a value for each"
        )
    embedding = pretrained.params["encoder"]["embedding"]
    kernel = np.asarray(embedding["kernel"], np.float64)
    # (p - m') / s' = (p - m) / s * (s / s') + (m - m') / s', channel by channel.
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    repeats = len(kernel) // model.channels  # channel fastest
    embedding = {
        "kernel": (kernel * np.tile(scale, repeats)[:, None]).astype(np.float32),
        "bias": np.float32(embedding["bias"] + np.tile(shift, repeats) @ kernel),
    }
    params = dict(pretrained.params)
    params["encoder"] = {**params["encoder"], "embedding": embedding}
    model = model.clone(pixel_mean=tuple(mean), pixel_std=tuple(std))
    return dataclasses.replace(pretrained, model=model, params=params)


def _check_classifier(pretrained: Pretrained) -> VideoClassifier | ActionDetector:
    if not isinstance(pretrained.model, VideoClassifier | ActionDetector):
        raise PretrainedError(
            f"{_name(pretrained)} is a pretraining model, which has no classes; "
            "fine-tune it first, with --config.init.source (main.py)"
        )
    return pretrained.model


def _name(pretrained: Pretrained) -> str:
    return pretrained.source or "the model"


def _suggestion(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(class_key(name), known, n=1)
    return f", perhaps {matches[0]!r}" if matches else ""
