"""Which actions a single video shows.

Clips pass the model in batches of one shape, so each model compiles once, and the next
ones are decoded while it computes.
"""

import functools
import itertools
from collections.abc import Iterable

import jax
import numpy as np

from videomae_jax.data import clips
from videomae_jax.errors import PretrainedError
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.video.open import Source, open_video

# Clips of a batch on an accelerator. A CPU gets no faster by more than one, and each
# takes memory: some 0.3 GB for 1,568 tokens of a ViT-B.
_ACCELERATOR_BATCH = 4


def predict(
    pretrained: Pretrained,
    video: Source,
    segments: int = 5,
    crops: int = 3,
    top_k: int = 5,
) -> list[tuple[str, float]]:
    """The likeliest classes of a video, by the views that tests average.

    All views are cut from one decode; their class probabilities are averaged (softmax
    first, or sigmoid of a multi-label model, then the mean, as in `evaluation`).

    Args:
        pretrained: a classifier with its weights.
        video: path of a video file, its content, or a record of a list.
        segments: clips in time; with crops: crops of each, along the longer side. One
            of each is the fast mode: the central crop of the clip in the middle.
        top_k: classes wanted; all, if there are fewer.

    Returns:
        (label, probability) of the top_k classes, the likeliest first. Where the source
        of the weights names no classes, labels are "class 0", "class 1" ...

    Raises:
        PretrainedError: if the model is no classifier.
        VideoError: if the video cannot be read.
        ValueError: if segments, crops or top_k are below 1.

    Example:
        >>> import jax, tempfile
        >>> from videomae_jax import VideoClassifier
        >>> from videomae_jax.data import digits
        >>> from videomae_jax.interop.pretrained import Preprocessing, Pretrained
        >>> folder = digits.make(tempfile.mkdtemp() + "/digits", {"test": 1})
        >>> model = VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
        >>> clip = jax.numpy.zeros((1, 4, 32, 32, 3), "uint8")
        >>> params = model.init(jax.random.key(0), clip)["params"]
        >>> feeding = Preprocessing(num_frames=4, stride=1, image_size=32)
        >>> pretrained = Pretrained(model, params, ("left", "right", "up"), feeding)
        >>> top = predict(pretrained, folder / "test/00000.mp4", segments=2, crops=1)
        >>> sorted(label for label, probability in top)
        ['left', 'right', 'up']
    """
    classifier(pretrained)  # before anything is read
    feeding = pretrained.preprocessing
    if (segments, crops) == (1, 1):
        read_clips = center_clips(pretrained)
    else:
        read_clips = clips.MultiViewClips(
            feeding.num_frames,
            feeding.stride,
            feeding.image_size,
            feeding.frame_sampling,
            segments,
            crops,
        )
    with open_video(video) as opened:
        views = read_clips(opened, np.random.default_rng())  # draws nothing
    probabilities = classify(pretrained, views)
    return top_classes(probabilities.mean(axis=0), labels(pretrained), top_k)


def center_clips(pretrained: Pretrained) -> clips.CenterClips:
    """What reads the clip in the middle of a video, as the model was trained."""
    feeding = pretrained.preprocessing
    return clips.CenterClips(
        feeding.num_frames, feeding.stride, feeding.image_size, feeding.frame_sampling
    )


def top_classes(
    probabilities: np.ndarray, labels: tuple[str, ...], top_k: int
) -> list[tuple[str, float]]:
    """(label, probability) of the top_k classes, the likeliest first.

    Args:
        probabilities: float32 [C].
        labels: C names.
        top_k: classes wanted; all, if there are fewer.

    Raises:
        ValueError: if top_k is below 1.

    Example:
        >>> top_classes(np.array([0.25, 0.75]), ("running", "jumping"), 1)
        [('jumping', 0.75)]
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: at least 1 class is wanted")
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(labels[i], float(probabilities[i])) for i in order]


def classifier(pretrained: Pretrained) -> VideoClassifier:
    """The model; raises PretrainedError if it is no classifier."""
    model = pretrained.model
    if not isinstance(model, VideoClassifier) or not model.num_classes:
        is_encoder = isinstance(model, VideoClassifier)
        what = "an encoder without a head" if is_encoder else "a pretraining model"
        raise PretrainedError(
            f"{pretrained.source or 'the model'}: {what} tells no classes: load one "
            "that was fine-tuned for recognition, such as "
            "MCG-NJU/videomae-base-finetuned-kinetics, or fine-tune this one (main.py)"
        )
    return model


def labels(pretrained: Pretrained) -> tuple[str, ...]:
    """A name for each class."""
    if pretrained.labels is not None:
        return tuple(pretrained.labels)
    return tuple(f"class {i}" for i in range(pretrained.model.num_classes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _probabilities(
    model: VideoClassifier, multi_label: bool, variables, batch: jax.Array
) -> jax.Array:
    """Class probabilities, float32 [B, C], of clips uint8 [B, T, H, W, 3]."""
    logits = model.apply(variables, batch)
    return jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits)


def classify(pretrained: Pretrained, windows: Iterable[np.ndarray]) -> np.ndarray:
    """Class probabilities of any number of clips.

    Args:
        pretrained: a classifier with its weights.
        windows: n clips, uint8 [T, H, W, 3].

    Returns:
        float32 [n, C].

    Raises:
        PretrainedError: if the model is no classifier.
    """
    model = classifier(pretrained)
    size = 1 if jax.default_backend() == "cpu" else _ACCELERATOR_BATCH
    variables = jax.device_put(pretrained.variables)  # once, if they are on the host
    windows = iter(windows)
    results: list[jax.Array] = []
    count = 0
    while batch := list(itertools.islice(windows, size)):
        count += len(batch)
        # The last batch is filled up: another shape would be compiled again.
        padded = np.stack(batch + batch[-1:] * (size - len(batch)))
        results.append(_probabilities(model, pretrained.multi_label, variables, padded))
        # Reading is one batch ahead of the device, and not more, for memory's sake.
        if len(results) > 1:
            results[-2].block_until_ready()
    return np.concatenate(jax.device_get(results))[:count]
