"""Resolves what the public functions take as videos; one rule for all of them.

What names one video gives one result:

    "clip.mp4", its content, a record of a list
    "frames/a1"                   a folder of images, one for each frame
    uint8 [T, H, W, C], or a sequence of frames [H, W, C]

What names several gives a list of results in order, however many there are:

    a sequence of any of these
    uint8 [B, T, H, W, C]         a batch of videos
    "videos/", "videos/*.mp4"     a folder, or a pattern, sorted
    "test.txt", "tfds:FOLDER/SPLIT", "digits:test"   a list or a data set

Frames in an array are a video: they are sampled, resized and cropped like those of a
file. Functions of clips, such as `classify`, take arrays as the model does.
"""

import dataclasses
import glob
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from videomae_jax.data import sources
from videomae_jax.errors import InputError, RecordError
from videomae_jax.files import absolute, is_url
from videomae_jax.inference import checks
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.video.frame_folder import DEFAULT_FRAME_NAME, is_image
from videomae_jax.video.open import Source, open_video, video_name
from videomae_jax.video.record import LabelKind, Record
from videomae_jax.video.source import FrameSource, PixelFormat

# Anything above; arrays of JAX and PyTorch and images of Pillow too.
Videos = Source | Sequence[Any]

# How the rules, if not by their last frame, fill a clip from too few frames.
_REPEATS = {
    "mmaction": "it starts again from the first one",
    "transformers": "each is taken several times",
    "uniform": "each is taken several times",
    "sparse": "each is taken several times",
}
_LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".tar")
_DATA_SETS = ("tfds:", "digits:", "wds:")


def find_videos(
    names: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    frame_name: str = DEFAULT_FRAME_NAME,
) -> list[Record]:
    """Returns the videos that names stand for, without opening them.

    Args:
        names: files, folders, patterns, lists or data sets, as in the module.
        frame_name: template of the image names in frame folders.

    Returns:
        Records, which all functions take as videos; `id` is the name of each. A missing
        file is included, and fails when it is opened.

    Raises:
        RecordError: a list, folder or pattern names no video.

    Example:
        >>> import tempfile
        >>> from videomae_jax.data import digits
        >>> folder = digits.make(tempfile.mkdtemp() + "/digits", {"test": 2})
        >>> [os.path.basename(video.id) for video in find_videos(folder / "test")]
        ['00000.mp4', '00001.mp4']
    """
    if isinstance(names, str | os.PathLike):
        names = [names]
    return [record for name in names for record in _named(name, frame_name)[0]]


def for_each(
    pretrained: Pretrained, videos: Videos, process: Callable[[Source], Any]
) -> Any:
    """Returns the result of one video, or a list of results if `videos` names several.

    Raises:
        RecordError: a list, folder or pattern names no video.
        InputError: `videos` is of another type, or an array does not fit the model.
    """
    found, several = resolve(pretrained, videos)
    results = [process(video) for video in found]
    return results if several else results[0]


def open_for(pretrained: Pretrained, video: Source) -> FrameSource:
    """Opens a video, whose frames are then the pixels that a model takes."""
    value_range = pretrained.preprocessing.value_range
    return open_video(video, PixelFormat(pretrained.model.channels, value_range))


def warn_of_repeats(pretrained: Pretrained, video: Source, num_frames: int) -> None:
    """Warns of a video that has fewer frames than a clip, and says which are repeated.

    Not for arrays that `checks.checked_frames` has warned of.
    """
    clip = pretrained.preprocessing
    whole = clip.frame_sampling in checks.WHOLE_VIDEO
    has_warned = isinstance(video, np.ndarray) and clip.stride > 1 and not whole
    if num_frames < clip.num_frames and not has_warned:
        how = _REPEATS.get(clip.frame_sampling, "the last one is repeated")
        warnings.warn(
            f"{video_name(video)}: {num_frames} frames are fewer than the "
            f"{clip.num_frames} of a clip, so {how}",
            stacklevel=5,
        )


def resolve(pretrained: Pretrained, videos: Videos) -> tuple[list[Source], bool]:
    """Returns the videos of `for_each`, and whether `videos` names several."""
    if isinstance(videos, Record | bytes):
        return [videos], False
    if isinstance(videos, str | os.PathLike):
        named, several = _named(videos, DEFAULT_FRAME_NAME)
        return list(named), several
    if _is_array(videos):
        return _split(checks.checked_frames(pretrained, videos))
    if not isinstance(videos, Iterable):
        raise InputError(
            f"a {type(videos).__name__} is not a video; expected a path, a folder, a "
            "pattern, the content of a file, frames uint8 [T, H, W, C], or a list of "
            "these"
        )
    items = list(videos)
    if not items:
        raise InputError("the list of videos is empty")
    if all(_is_array(item) and np.ndim(item) <= 3 for item in items):
        return _split(checks.checked_frames(pretrained, checks.stack(items)))
    found = [resolve(pretrained, item)[0] for item in items]
    return [video for group in found for video in group], True


def _named(name: str | os.PathLike, frame_name: str) -> tuple[list[Record], bool]:
    """Returns the videos of a name, and whether the name may stand for several."""
    name = os.fsdecode(name)
    if os.path.isdir(name):
        records = sources.load(name, frame_name=frame_name)
        if [record.path for record in records] == [absolute(name)]:
            return [dataclasses.replace(records[0], id=name)], False
        return [
            dataclasses.replace(record, id=os.path.join(name, record.id))
            for record in records
        ], True
    if name.startswith(_DATA_SETS) or name.endswith(_LISTS):
        kind = LabelKind.UNUSED
        return sources.load(name, label_kind=kind, frame_name=frame_name), True
    if glob.has_magic(name) and not is_url(name) and not os.path.exists(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise RecordError(f"no video matches {name!r}")
        return find_videos(matches, frame_name=frame_name), True
    # FFmpeg would read an image as a video of one frame.
    if is_image(name):
        raise RecordError(
            f"{name} is an image; for a video whose frames are images, pass their "
            "folder, or a list of arrays"
        )
    return [Record(absolute(name), name)], False


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _split(frames: np.ndarray) -> tuple[list[Source], bool]:
    """Returns a video, or the videos of a batch, and whether it is a batch."""
    return (list(frames), True) if frames.ndim == 5 else ([frames], False)
