"""Configs of transformers' VideoMAE processors: how frames become pixels."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from videomae_jax.errors import ConfigError, PretrainedError
from videomae_jax.interop.huggingface import opened_json
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models.sizes import FILTERS, OFFICIAL, Framing, height_and_width

log = logging.getLogger(__name__)

# Files, and the section inside them, in the order in which transformers looks for a
# model's video processor; the last is of an image processor alone (5.24).
_PLACES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)
_FILE = "preprocessor_config.json"  # which all releases read
_TYPES = (
    "VideoMAEImageProcessor",
    "VideoMAEImageProcessorFast",
    "VideoMAEImageProcessorPil",
    "VideoMAEFeatureExtractor",
    "VideoMAEVideoProcessor",
)
# transformers' values of missing fields. The published files have ImageNet's mean and
# deviation.
_DEFAULTS = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": FILTERS.index("bilinear"),
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": 0.5,
    "image_std": 0.5,
}


def read(
    folder: pathlib.Path, image_size: tuple[int, int], channels: int
) -> tuple[dict[str, Any], Framing]:
    """Returns the model's pixel_mean and pixel_std, and how frames are framed.

    Without a processor's config, frames are framed as in the official code, and pixels
    are normalized with the model's defaults; other channels than RGB, as transformers
    does by default.

    Args:
        folder: holds config.json.
        image_size: (height, width) of the images that the model takes, by config.json.
        channels: of these images.

    Raises:
        PretrainedError: a config is malformed, or says what cannot be followed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, section in _PLACES:
        if not (folder / name).exists():
            continue
        with opened_json(folder / name) as content:
            if section is None:
                found[name] = content
            elif section in content:
                found[f"{name} ({section})"] = dict(content[section])
    if not found:
        return ({} if channels == 3 else _pixel_stats(_DEFAULTS, channels)), OFFICIAL
    (name, chosen), *others = found.items()
    settings = _settings(chosen)
    for other, content in others:
        values = _settings(content)
        differing = [x for x, value in settings.items() if value != values[x]]
        if differing:
            log.warning(
                "%s: %s and %s differ in %s; using %s, as transformers does",
                folder,
                name,
                other,
                ", ".join(differing),
                name,
            )
    kind = chosen.get("video_processor_type") or chosen.get("image_processor_type")
    kind = kind or chosen.get("feature_extractor_type")
    try:
        if kind is not None and kind not in _TYPES:
            raise ConfigError(f"type {kind!r} is not supported, only VideoMAE's")
        for field, value in settings.items():
            if field.startswith("do_") and value not in (True, False, None):
                raise ConfigError(f"{field}={value!r} must be true or false")
        framing = _framing(settings)
        _check_size(framing, settings, image_size)
        return _pixel_stats(settings, channels), framing
    except Exception as error:  # any value of any type can stand there
        raise PretrainedError(
            f"{folder}: {name}: {error}. Edit the file, or remove it to use this "
            "library's preprocessing"
        ) from error


def config(pretrained: Pretrained) -> dict[str, dict[str, Any]]:
    """Returns the content of the processor's config, by file name.

    Raises:
        PretrainedError: transformers cannot frame frames as the model expects them.
    """
    size, framing = (
        pretrained.preprocessing.image_size,
        pretrained.preprocessing.framing,
    )
    height, width = size
    resize = framing.resize
    if resize == "cover":
        if height != width:
            raise PretrainedError(
                "transformers cannot resize frames to cover images that are not "
                f"square, image_size={size}. Save the model with format='jax', or "
                f"decide to disregard the shape of frames: framing=Framing(resize="
                f"{size}) of its preprocessing"
            )
        resize = height
    filter = "bilinear" if framing.interpolation == "opencv" else framing.interpolation
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": resize is not None,
        "size": _size_dict(resize if resize is not None else size),
        "resample": FILTERS.index(filter),
        "do_center_crop": framing.crop,
        "crop_size": _size_dict(size),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pretrained.model.pixel_mean),
        "image_std": list(pretrained.model.pixel_std),
    }
    return {_FILE: processor}


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that decide about pixels, with transformers' defaults."""
    given = {
        name: value
        for name, value in content.items()
        # What is not to be done may be null; other fields then have their defaults (4).
        if value is not None or name.startswith("do_")
    }
    return {name: given.get(name, default) for name, default in _DEFAULTS.items()}


def _framing(settings: Mapping[str, Any]) -> Framing:
    resize = _resize(settings["size"]) if settings["do_resize"] else None
    resample = settings["resample"]
    filters = dict(enumerate(FILTERS)) | {name: name for name in FILTERS}
    if resample not in filters:
        raise ConfigError(f"resample={resample!r} must be one of: 0 to 5, as in Pillow")
    return Framing(resize, bool(settings["do_center_crop"]), filters[resample])


def _resize(size: Any) -> int | tuple[int, int]:
    if not isinstance(size, Mapping):  # of older files
        return size if isinstance(size, int) else height_and_width(size, "size")
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    if size.keys() == {"height", "width"}:
        return height_and_width((size["height"], size["width"]), "size")
    raise ConfigError(
        f"size={dict(size)} is not supported; expected shortest_edge, or height and "
        "width"
    )


def _check_size(
    framing: Framing, settings: Mapping[str, Any], image_size: tuple[int, int]
) -> None:
    """Raises ConfigError if the images are not those that the model takes."""
    name, size = "size", framing.resize
    if framing.crop:
        name, crop = "crop_size", settings["crop_size"]
        if isinstance(crop, Mapping):
            crop = (crop["height"], crop["width"])
        size = height_and_width(crop, name)
    if isinstance(size, tuple) and size != image_size:
        raise ConfigError(
            f"{name}={size} (height, width) must be the image_size={image_size} of "
            "config.json"
        )


def _pixel_stats(
    settings: Mapping[str, Any], channels: int
) -> dict[str, tuple[float, ...]]:
    # transformers multiplies values from 0 to 255 by this factor, we by 1 / 255.
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    scale = 1 / (255 * factor)
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    stats: dict[str, Any] = {"pixel_mean": 0.0, "pixel_std": 1.0}
    if settings["do_normalize"]:
        stats = {f"pixel_{x}": settings[f"image_{x}"] for x in ("mean", "std")}
    for name, values in stats.items():
        values = [values] * channels if isinstance(values, int | float) else values
        if len(values) != channels:
            raise ConfigError(
                f"image_{name.removeprefix('pixel_')}={values} must have a value for "
                f"each of {channels} channels"
            )
        stats[name] = tuple(scale * float(x) for x in values)
    return stats


def _size_dict(size: int | tuple[int, int]) -> dict[str, int]:
    if isinstance(size, int):
        return {"shortest_edge": size}
    return {"height": size[0], "width": size[1]}
