"""Predicts the actions of videos.

Batches of clips have one shape, so that each model compiles once. The next clips are
decoded while the model computes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from videomae_jax.data import clips
from videomae_jax.errors import PretrainedError
from videomae_jax.inference import batching, checks, inputs
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.problem import Problem
from videomae_jax.video.open import Source

# Clips of a batch on an accelerator. A CPU is not faster with more than one, and each
# takes memory: about 0.3 GB for the 1,568 tokens of a ViT-B.
_ACCELERATOR_BATCH = 4


def predict(
    pretrained: Pretrained,
    video: inputs.Videos,
    *,
    segments: int = 5,
    crops: int | None = None,
    top_k: int = 5,
    stride: int | None = None,
) -> Any:
    """Returns the most probable classes of a video, averaged over views as in tests.

    All views are cut from one decode. Their class probabilities are averaged after the
    softmax (the sigmoid of a multi-label model), as in `evaluation`.

    Args:
        pretrained: a classifier with its weights.
        video: a file, a folder of images, or frames uint8 [T, H, W, C]; or several
            videos: a list or batch of these, a folder, pattern or list file; see
            `inference.inputs`.
        segments: clips in time.
        crops: crops of each clip, along the longer side; by default 3, or 1 if the
            model's preprocessing resizes whole frames and cuts nothing. With segments=1
            and crops=1, the only view is the central crop of the clip in the middle.
        top_k: number of classes; all, if there are fewer.
        stride: frames of the video from one frame of a clip to the next; by default
            that of `pretrained.preprocessing`. 1 for frames that were sampled already.

    Returns:
        list[tuple[str, float]]: (label, probability), the most probable first. Labels
        are "class 0", "class 1" ... if the source of the weights does not name the
        classes. Of several heads, such a list for each, by name, as {"verb": [...],
        "noun": [...]}. Of a regression, (name, value) of all values in their order. For
        several videos, a list of such results.

    Raises:
        PretrainedError: if the model is not a classifier, or crops is above 1 for a
            model whose preprocessing cuts nothing.
        VideoError: if the video cannot be read.
        RecordError: if a folder, pattern or list names no video.
        InputError: if frames are not uint8 [T, H, W, C].
        ValueError: if segments, crops, top_k or stride are below 1.

    Example:
        >>> import jax, tempfile
        >>> from videomae_jax import VideoClassifier
        >>> from videomae_jax.data import digits
        >>> from videomae_jax.interop.pretrained import Preprocessing, Pretrained
        >>> folder = digits.make(tempfile.mkdtemp() + "/digits", {"test": 1})
        >>> model = VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
        >>> clip = jax.numpy.zeros((1, 4, 32, 32, 3), "uint8")
        >>> params = model.init(jax.random.key(0), clip)["params"]
        >>> preprocessing = Preprocessing(num_frames=4, stride=1, image_size=32)
        >>> names = ("left", "right", "up")
        >>> pretrained = Pretrained(model, params, names, preprocessing)
        >>> top = predict(pretrained, folder / "test/00000.mp4", segments=2, crops=1)
        >>> sorted(label for label, probability in top)
        ['left', 'right', 'up']
    """
    classifier(pretrained)  # before anything is read
    checks.check_model(pretrained)
    pretrained = with_stride(pretrained, stride)
    read_clips = center_clips(pretrained)
    crops = _crops(pretrained, crops)
    if (segments, crops) != (1, 1):
        read_clips = clips.MultiViewClips(
            **vars(read_clips), segments=segments, crops=crops
        )

    def one(video: Source) -> Any:
        with inputs.open_for(pretrained, video) as opened:
            inputs.warn_of_repeats(pretrained, video, opened.num_frames)
            views = read_clips(opened, np.random.default_rng())  # draws nothing
        outputs = classify(pretrained, views)
        return interpret(pretrained, outputs.mean(axis=0), top_k)

    return inputs.for_each(pretrained, video, one)


def _crops(pretrained: Pretrained, crops: int | None) -> int:
    """Returns the number of crops of a clip, which is 1 if all would be the same."""
    preprocessing = pretrained.preprocessing
    if preprocessing.framing.leaves_room(preprocessing.image_size):
        return 3 if crops is None else crops
    if crops is not None and crops > 1:
        raise PretrainedError(
            f"crops={crops} must be 1 for {pretrained.source or 'this model'}: its "
            f"preprocessing resizes whole frames to {preprocessing.image_size} and "
            "cuts nothing"
        )
    return 1


def center_clip(
    pretrained: Pretrained, video: inputs.Videos, *, stride: int | None = None
) -> Any:
    """Returns the clip in the middle of a video, as the model takes it.

    Args:
        pretrained: a model of any kind.
        video, stride: as in `predict`.

    Returns:
        np.ndarray: uint8 [T, height, width, C]; for several videos, a list.
    """
    checks.check_model(pretrained)
    pretrained = with_stride(pretrained, stride)
    read_clip = center_clips(pretrained)

    def one(video: Source) -> np.ndarray:
        with inputs.open_for(pretrained, video) as opened:
            return read_clip(opened, np.random.default_rng())[0]  # draws nothing

    return inputs.for_each(pretrained, video, one)


def with_stride(pretrained: Pretrained, stride: int | None) -> Pretrained:
    """Returns the model with clips of another stride, unless it is None."""
    if stride is None:
        return pretrained
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1")
    preprocessing = dataclasses.replace(pretrained.preprocessing, stride=stride)
    return dataclasses.replace(pretrained, preprocessing=preprocessing)


def center_clips(pretrained: Pretrained) -> clips.CenterClips:
    """Returns the reader of the clip in the middle of a video, as in training."""
    preprocessing = pretrained.preprocessing
    return clips.CenterClips(
        preprocessing.num_frames,
        preprocessing.stride,
        preprocessing.image_size,
        preprocessing.frame_sampling,
        preprocessing.framing,
    )


def top_classes(
    probabilities: np.ndarray, labels: tuple[str, ...], top_k: int
) -> list[tuple[str, float]]:
    """Returns (label, probability) of the top_k classes, the most probable first.

    The probabilities are float32 [C]. All classes are returned if C is below top_k.

    Example:
        >>> top_classes(np.array([0.25, 0.75]), ("running", "jumping"), 1)
        [('jumping', 0.75)]
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(labels[i], float(probabilities[i])) for i in order]


def classifier(pretrained: Pretrained) -> VideoClassifier:
    """Returns the model, or raises PretrainedError if it is not a classifier."""
    checks.check_model(pretrained)
    model = pretrained.model
    if not isinstance(model, VideoClassifier) or not model.num_classes:
        is_encoder = isinstance(model, VideoClassifier)
        kind = "an encoder without a head" if is_encoder else "a pretraining model"
        if isinstance(model, ActionDetector):
            kind = "a detector of actions in boxes"
        raise PretrainedError(
            f"{pretrained.source or 'the model'} is {kind} and predicts no classes. "
            "Load one that was fine-tuned for recognition, such as "
            "MCG-NJU/videomae-base-finetuned-kinetics, or fine-tune this one (main.py)"
        )
    return model


def labels(pretrained: Pretrained) -> tuple[str, ...]:
    """Returns a name for each class or value."""
    if pretrained.labels is not None:
        return tuple(pretrained.labels)
    count = classifier(pretrained).num_classes
    if not pretrained.problem.is_regression:
        return tuple(f"class {i}" for i in range(count))
    return ("value",) if count == 1 else tuple(f"value {i}" for i in range(count))


def interpret(
    pretrained: Pretrained, outputs: np.ndarray, top_k: int
) -> list[tuple[str, float]] | dict[str, list[tuple[str, float]]]:
    """Returns what `predict` does for outputs [C] of a video or clip."""
    problem, names = pretrained.problem, labels(pretrained)
    if problem.is_regression:
        return list(zip(names, outputs.tolist(), strict=True))
    if not problem.heads:
        return top_classes(outputs, names, top_k)
    names, parts = problem.split(names), problem.split(outputs)
    return {head: top_classes(parts[head], names[head], top_k) for head in parts}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model, problem: Problem, variables, batch: jax.Array) -> jax.Array:
    """Returns probabilities or values, float32 [B, C], of clips [B, T, H, W, C]."""
    return problem.outputs(model.apply(variables, batch))


def classify(
    pretrained: Pretrained, windows: np.ndarray | Iterable[np.ndarray]
) -> np.ndarray:
    """Returns the class probabilities of clips, or values; float32 [B, C].

    The classes of several heads follow each other, see `Problem.split`.

    Args:
        pretrained: a classifier with its weights.
        windows: clips as the model takes them, [B, T, H, W, C], or an iterable of
            [T, H, W, C]: uint8, or floating point (normalized).

    Raises:
        PretrainedError: if the model is not a classifier.
        InputError: if shape, dtype or range do not fit the model.
    """
    model = classifier(pretrained)
    is_array = hasattr(windows, "ndim")
    if is_array:
        windows = np.asarray(checks.checked_clips(pretrained, windows))
    size = 1 if jax.default_backend() == "cpu" else _ACCELERATOR_BATCH
    variables = jax.device_put(pretrained.variables)  # once, if they are on the host
    rows = iter(windows)

    def compute() -> Iterator[tuple[int, jax.Array]]:
        while batch := list(itertools.islice(rows, size)):
            padded = np.stack(batching.pad(batch, size))
            if not is_array:
                checks.checked_clips(pretrained, padded)
            results = _outputs(model, pretrained.problem, variables, padded)
            yield len(batch), results

    # Reading is only one batch ahead of the device, to save memory.
    fetched = batching.fetch(compute(), in_flight=1)
    return np.concatenate([values[:count] for count, values in fetched])
