"""Changes what a classifier tells apart, or the clips it takes, and keeps the rest."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from videomae_jax.errors import PretrainedError
from videomae_jax.interop.assemble import initialize
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier

_SHOWN = 8  # names in a message


def select_classes(
    pretrained: Pretrained,
    classes: Sequence[str],
    aliases: Mapping[str, str] | None = None,
) -> Pretrained:
    """Keeps some of a classifier's classes, by name, without any training.

    So a classifier of Kinetics-710, as the distilled VideoMAE V2 models are, becomes
    one of Kinetics-400, 600 or 700 (VideoMAE V2, section 4).

    Args:
        pretrained: a classifier whose classes have names; give them with
            `dataclasses.replace(pretrained, labels=...)` where the source has none.
        classes: the names of those to keep, in their new order. Case and the kind of
            blanks do not matter.
        aliases: what the classifier calls a class, by its name in `classes`, where they
            differ: Kinetics-710 has one name for classes that 400, 600 and 700 call
            differently.

    Raises:
        PretrainedError: if it is no classifier with names, or has no such class.

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
    labels = _classifier(pretrained).labels
    if labels is None:
        raise PretrainedError(
            f"{pretrained.source or 'the model'}: its classes have no names to select "
            "by; give a file of them, one a line, in the order of the head (--labels)"
        )
    aliases = aliases or {}
    places: dict[str, int] = {}
    for index, label in enumerate(labels):
        places.setdefault(_key(label), index)
    wanted = [_key(aliases.get(name, name)) for name in classes]
    absent = [
        name for name, key in zip(classes, wanted, strict=True) if key not in places
    ]
    if absent:
        lines = [f"  {name!r}{_nearest(name, labels)}" for name in absent[:_SHOWN]]
        raise PretrainedError(
            f"{len(absent)} of the {len(classes)} classes are none of the "
            f"{len(labels)} of {pretrained.source or 'the model'}:\n"
            + "\n".join(lines)
            + "\nGive aliases for those that it calls differently."
        )
    rows = np.array([places[key] for key in wanted])
    head = pretrained.params["head"]
    head = {"kernel": head["kernel"][:, rows], "bias": head["bias"][rows]}
    return dataclasses.replace(
        pretrained,
        model=pretrained.model.clone(num_classes=len(rows)),
        params={**pretrained.params, "head": head},
        labels=tuple(classes),
    )


def new_head(
    pretrained: Pretrained, classes: Sequence[str] | int, seed: int = 0
) -> Pretrained:
    """Gives a classifier, or an encoder alone, an untrained head.

    Args:
        pretrained: a VideoClassifier; one without a norm after pooling gets none.
        classes: their names, or how many.
        seed: of the head's random start.

    Raises:
        PretrainedError: if it is a pretraining model, or there are no classes.
    """
    count = classes if isinstance(classes, int) else len(classes)
    _check_kind(pretrained)
    if count < 1:
        raise PretrainedError("a head needs at least one class")
    model = pretrained.model.clone(num_classes=count)
    head = initialize(model, seed)["head"]
    return dataclasses.replace(
        pretrained,
        model=model,
        params={**pretrained.params, "head": jax.device_get(head)},
        labels=None if isinstance(classes, int) else tuple(classes),
    )


def resize_clips(
    pretrained: Pretrained,
    num_frames: int | None = None,
    image_size: int | None = None,
    stride: int | None = None,
) -> Pretrained:
    """Makes a classifier take other clips, without changing its weights.

    More or fewer frames lengthen or shorten its position table; for another image size
    the table is interpolated (see `models.positions`). Fine-tune afterwards: accuracy
    is best at the sizes of training.

    Args:
        pretrained: a VideoClassifier.
        num_frames, image_size, stride: as in `Preprocessing`; None as it is.

    Raises:
        PretrainedError: if it is a pretraining model, or the sizes do not divide into
            tubelets and patches.
    """
    _check_kind(pretrained)
    model, old = pretrained.model, pretrained.preprocessing
    changes = {"num_frames": num_frames, "image_size": image_size, "stride": stride}
    new = dataclasses.replace(
        old, **{name: value for name, value in changes.items() if value is not None}
    )
    if new.num_frames % model.tubelet_size or new.image_size % model.patch_size:
        raise PretrainedError(
            f"{new.num_frames} frames of {new.image_size} pixels do not divide into "
            f"tubelets of {model.tubelet_size} frames and patches of "
            f"{model.patch_size} pixels"
        )
    if new.image_size != old.image_size and model.position_size is None:
        model = model.clone(position_size=(old.image_size, old.image_size))
    return dataclasses.replace(pretrained, model=model, preprocessing=new)


def with_imagenet_pixels(pretrained: Pretrained) -> Pretrained:
    """The same function of raw pixels, in a model that normalises with ImageNet's.

    What the statistics of pixels do is linear, and so is the embedding that follows.
    """
    model = pretrained.model
    ours = np.float64(vit.IMAGENET_MEAN), np.float64(vit.IMAGENET_STD)
    theirs = np.float64(model.pixel_mean), np.float64(model.pixel_std)
    if all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        return pretrained
    embedding = pretrained.params["encoder"]["embedding"]
    kernel = np.asarray(embedding["kernel"], np.float64)
    # (p - m') / s' = (p - m) / s * (s / s') + (m - m') / s', channel by channel.
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    repeats = len(kernel) // 3  # the channel is fastest
    embedding = {
        "kernel": (kernel * np.tile(scale, repeats)[:, None]).astype(np.float32),
        "bias": np.float32(embedding["bias"] + np.tile(shift, repeats) @ kernel),
    }
    params = dict(pretrained.params)
    params["encoder"] = {**params["encoder"], "embedding": embedding}
    model = model.clone(pixel_mean=vit.IMAGENET_MEAN, pixel_std=vit.IMAGENET_STD)
    return dataclasses.replace(pretrained, model=model, params=params)


def _check_kind(pretrained: Pretrained) -> None:
    if not isinstance(pretrained.model, VideoClassifier):
        raise PretrainedError(
            f"{pretrained.source or 'the model'} is a pretraining model, which has no "
            "classes: fine-tune it first, with --config.init.source (main.py)"
        )


def _classifier(pretrained: Pretrained) -> Pretrained:
    _check_kind(pretrained)
    if not pretrained.model.num_classes:
        raise PretrainedError(
            f"{pretrained.source or 'the model'} is an encoder without a head"
        )
    return pretrained


def _key(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


def _nearest(name: str, labels: Sequence[str]) -> str:
    found = difflib.get_close_matches(_key(name), map(_key, labels), n=1)
    return f", perhaps {found[0]!r}" if found else ""
