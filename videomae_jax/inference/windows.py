"""Clips that slide over a video of any length, decoding each frame once."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from videomae_jax.data import augmentation
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width
from videomae_jax.video.source import FrameSource

if TYPE_CHECKING:  # commands answer --help without JAX
    from videomae_jax.interop.pretrained import Pretrained

# Windows as of VideoMAE V2's script for temporal detection, extract_tad_feature.py:
# with its pixels, and with those of the model's training.
LIKE = ("videomaev2-tad", "videomaev2-tad-normalized")
# Bytes of decoded frames to hold at once. A run that begins between two keyframes
# decodes the frames since the first of them again: longer runs waste less.
RUN_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a video: which frames, and which part of each frame.

    A window is `num_frames` frames, `frame_stride` apart. In a video of N frames,
    windows start at

        range(0, N - (num_frames - 1) * frame_stride, hop)

    where all of their frames exist; with 16 consecutive frames this is the
    range(0, N - 15, hop) of VideoMAE V2 for temporal detection. Frames at the end that
    do not fill a window are not used. A video too short for one gives one window, with
    its last frame repeated.

    Attributes:
        frame_stride: frames of the video from one frame of a window to the next.
        hop: frames of the video from the start of a window to that of the next.
        size: (height, width) of the model's input in pixels, or one number for both.
        squash: scale the whole frame to the size, whatever the framing.
        framing: how frames are resized and cropped.
        raw: give the model the pixels of V2's script, which differ from those of its
            training: the whole frame, scaled to [0, 1] and not normalized, resized
            bilinearly in float32 without averaging over pixels where it shrinks.

    Raises:
        ValueError: if a number is below 1.
    """

    num_frames: int = 16
    frame_stride: int = 4
    hop: int = 64
    # Given as one number, it becomes a pair.
    size: tuple[int, int] = (224, 224)
    squash: bool = False
    framing: Framing = OFFICIAL
    raw: bool = False

    def __post_init__(self):
        """Checks the numbers."""
        for name in ("num_frames", "frame_stride", "hop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        object.__setattr__(self, "size", height_and_width(self.size, "size"))

    @classmethod
    def of(
        cls,
        pretrained: "Pretrained",
        *,
        num_frames: int | None = None,
        frame_stride: int | None = None,
        hop: int | None = None,
        squash: bool = False,
        like: str | None = None,
    ) -> "Windows":
        """Returns the windows that fit a model, unless fields are given.

        By default they have the length and the stride of the clips that the model was
        trained on, and follow each other without overlap.

        Args:
            pretrained: the model.
            num_frames, frame_stride, hop, squash: as in `Windows`.
            like: a name of LIKE: consecutive frames, squashed, with the pixels of V2's
                script or with those of training. The script's hop is 4 for THUMOS14 and
                16 for FineAction.

        Raises:
            ValueError: if a number is below 1, or `like` unknown.
        """
        if like not in (None, *LIKE):
            raise ValueError(f"like={like!r} must be one of: {', '.join(LIKE)}")
        preprocessing = pretrained.preprocessing
        stride = 1 if like else preprocessing.stride
        num_frames = preprocessing.num_frames if num_frames is None else num_frames
        frame_stride = stride if frame_stride is None else frame_stride
        return cls(
            num_frames,
            frame_stride,
            num_frames * frame_stride if hop is None else hop,
            preprocessing.image_size,
            squash or bool(like),
            preprocessing.framing,
            raw=like == LIKE[0],
        )

    @property
    def span(self) -> int:
        """Returns the number of frames from the first of a window to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1

    def indices(self, num_video_frames: int) -> np.ndarray:
        """Returns the frames of each window, int64 [W, num_frames], W at least 1.

        Example:
            >>> Windows(num_frames=16, frame_stride=1, hop=4).indices(23)[:, 0]
            array([0, 4])
            >>> Windows(num_frames=4, frame_stride=1, hop=4).indices(2)
            array([[0, 1, 1, 1]])
        """
        starts = np.arange(0, max(num_video_frames - self.span + 1, 1), self.hop)
        frames = starts[:, None] + self.frame_stride * np.arange(self.num_frames)
        return np.minimum(frames, num_video_frames - 1)

    def bounds(self, num_video_frames: int) -> np.ndarray:
        """Returns the first frame of each window and the one after it, int64 [W, 2].

        A window lasts until the frame that would be its next, or the end of the video.
        """
        starts = self.indices(num_video_frames)[:, :1]
        stops = starts + self.num_frames * self.frame_stride
        return np.concatenate([starts, np.minimum(stops, num_video_frames)], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, as feature folders store them.

        What was added later is null, which equals its absence, where it says nothing
        new, so that features of earlier versions remain valid.
        """
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        if self.size[0] == self.size[1]:
            fields["size"] = self.size[0]
        if self.framing == OFFICIAL:
            fields["framing"] = None
        if not self.raw:
            fields["raw"] = None
        return fields

    def read(self, video: FrameSource) -> Iterator[np.ndarray]:
        """Yields the windows in order, [num_frames, height, width, C].

        They are of the video's pixels, or with `raw` float32 from 0 to 1.
        """
        indices = self.indices(video.num_frames)
        yield from read_windows(video, indices, size=self.size, crop=self._crop)

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        """Resizes and crops frames, [n, H, W, C] -> [n, height, width, C]."""
        if self.raw:
            return _resize_raw(frames, *self.size)
        if self.squash:
            whole = (0, 0, *frames.shape[1:3])
            return augmentation.crop_and_resize(frames, whole, *self.size)
        return augmentation.spatial_crops(frames, self.size, 1, self.framing)[0]


def _resize_raw(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames of pixels as `Windows.raw`, to float32 [n, height, width, C]."""
    out = np.empty((len(frames), height, width, frames.shape[-1]), np.float32)
    for frame, result in zip(frames, out, strict=True):
        cv2.resize(frame.astype(np.float32), (width, height), dst=result)
    out /= np.iinfo(frames.dtype).max
    return out


def read_windows(
    video: FrameSource,
    indices: np.ndarray,
    *,
    size: int | tuple[int, int],
    crop: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Yields the windows of a video in order.

    Frames are read in runs and kept while windows need them, so that memory does not
    grow with the length of the video.

    Args:
        indices: frames of each window, int64 [W, T], increasing along both axes.
        size: (height, width) of a cropped frame in pixels, or one number for both.
        crop: scales and crops frames, [n, H, W, C] -> [n, height, width, C].

    Yields:
        [T, height, width, C], of the video's pixel format.
    """
    # Scaling makes a copy of a frame, which is then cropped.
    pixels = math.prod(height_and_width(size))
    pixel_bytes = video.format.channels * video.format.dtype.itemsize
    frame_bytes = pixel_bytes * (video.height * video.width + 4 * pixels)
    needed = np.unique(indices)
    run_length = max(RUN_BYTES // frame_bytes, 1)
    runs = iter(np.split(needed, range(run_length, len(needed), run_length)))
    frames: dict[int, np.ndarray] = {}
    for window in indices.tolist():
        while window[-1] not in frames:
            frames = {i: frame for i, frame in frames.items() if i >= window[0]}
            run = next(runs).tolist()
            frames |= zip(run, crop(video.read(run)), strict=True)
        yield np.stack([frames[i] for i in window])
