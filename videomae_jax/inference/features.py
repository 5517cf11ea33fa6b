"""Extracts features of videos from sliding windows, as input of temporal detection.

Threads read windows while the devices compute. A batch holds windows of all videos that
are being read, so that short videos do not waste it and all share one compiled program.
The rows of a batch are independent.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videomae_jax.data import augmentation
from videomae_jax.data.threads import iterate_ahead
from videomae_jax.distributed import sharding
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import batching, checks, inputs
from videomae_jax.inference.windows import read_windows
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width
from videomae_jax.video.open import Source
from videomae_jax.video.source import FrameSource

# Windows of a batch on each device. A CPU is not faster with more than one, and each
# takes memory: about 0.5 GB for the 1,568 tokens of a ViT-B.
_CPU_BATCH, _ACCELERATOR_BATCH = 1, 8


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
        squash: scale the whole frame to the size (as the script of V2, which does not
            average over pixels where it shrinks), whatever the framing.
        framing: how frames are resized and cropped.

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

    def __post_init__(self):
        """Checks the numbers."""
        for name in ("num_frames", "frame_stride", "hop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        object.__setattr__(self, "size", height_and_width(self.size, "size"))

    @classmethod
    def of(
        cls,
        pretrained: Pretrained,
        *,
        num_frames: int | None = None,
        frame_stride: int | None = None,
        hop: int | None = None,
        squash: bool = False,
    ) -> "Windows":
        """Returns the windows that fit a model, unless fields are given.

        By default they have the length and the stride of the clips that the model was
        trained on, and follow each other without overlap.
        """
        preprocessing = pretrained.preprocessing
        num_frames = preprocessing.num_frames if num_frames is None else num_frames
        frame_stride = preprocessing.stride if frame_stride is None else frame_stride
        hop = num_frames * frame_stride if hop is None else hop
        size, framing = preprocessing.image_size, preprocessing.framing
        return cls(num_frames, frame_stride, hop, size, squash, framing)

    def indices(self, num_video_frames: int) -> np.ndarray:
        """Returns the frames of each window, int64 [W, num_frames], W at least 1.

        Example:
            >>> Windows(num_frames=16, frame_stride=1, hop=4).indices(23)[:, 0]
            array([0, 4])
            >>> Windows(num_frames=4, frame_stride=1, hop=4).indices(2)
            array([[0, 1, 1, 1]])
        """
        reach = (self.num_frames - 1) * self.frame_stride
        starts = np.arange(0, max(num_video_frames - reach, 1), self.hop)
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
        return fields

    def read(self, video: FrameSource) -> Iterator[np.ndarray]:
        """Yields the windows in order, [num_frames, height, width, C]."""
        indices = self.indices(video.num_frames)
        yield from read_windows(video, indices, size=self.size, crop=self._crop)

    def _crop(self, frames: np.ndarray) -> np.ndarray:
        """Resizes and crops frames, [n, H, W, C] -> [n, height, width, C]."""
        if self.squash:
            whole = (0, 0, *frames.shape[1:3])
            return augmentation.crop_and_resize(frames, whole, *self.size)
        return augmentation.spatial_crops(frames, self.size, 1, self.framing)[0]


def features(
    pretrained: Pretrained,
    video: inputs.Videos,
    *,
    windows: Windows | None = None,
    tokens: bool = False,
) -> Any:
    """Extracts the features of the windows of videos.

    Args:
        pretrained: a model with its weights; a head is not used.
        video: one or several videos, as in `predict`.
        windows: by default `Windows.of(pretrained)`.
        tokens: return the tokens before pooling instead of pooled features.

    Returns:
        np.ndarray: float32 [W, D]: the input of a classifier's head, pooled and
        normalised; for a VideoMAE, the mean of the encoder's tokens. With `tokens`,
        float32 [W, T', H', W', D] on the grid of patches, T' = num_frames /
        tubelet_size. For several videos, a list.

    Raises:
        PretrainedError: if the windows do not divide into the model's patches, or
            features are not finite.
        VideoError: if a video cannot be read.
        RecordError: if a folder, pattern or list names no video.
        InputError: if frames are not uint8 [T, H, W, C].

    Example, with `pretrained` as in `predict`:
        >>> features(pretrained, "a.mp4").shape  # doctest: +SKIP
        (5, 24)
    """
    checks.check_model(pretrained)
    found, several = inputs.resolve(pretrained, video)
    windows = windows or Windows.of(pretrained)
    extractor = Extractor(pretrained, windows, tokens=tokens)
    values: list[list[np.ndarray]] = [[] for _ in found]
    for chunk in extractor(found, num_threads=1):
        if isinstance(chunk, Unreadable):
            raise chunk.error
        values[chunk.video.index].append(chunk.values)
    results = [np.concatenate(parts) for parts in values]
    return results if several else results[0]


def without_normalization(pretrained: Pretrained) -> Pretrained:
    """Returns the model with pixels only divided by 255, as in the script of V2."""
    channels = pretrained.model.channels
    mean, std = (0.0,) * channels, (1.0,) * channels
    model = pretrained.model.clone(pixel_mean=mean, pixel_std=std)
    return dataclasses.replace(pretrained, model=model)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """A video whose windows are read."""

    index: int  # among the videos given to the extractor
    num_frames: int
    fps: float | None  # the average, None if unknown
    num_windows: int
    first_frame: int  # number of frame 0 in the file, if this is a part of it
    # Start and end of each window, [W, 2]: in frames, and in seconds if known.
    frames: np.ndarray = dataclasses.field(compare=False)
    seconds: np.ndarray | None = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class FeatureChunk:
    """Features of consecutive windows of a video."""

    video: VideoInfo
    first: int  # index of the first of these windows in the video
    values: np.ndarray  # as from `features`, of the dtype of the extractor


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A video that cannot be read, or not to its end."""

    index: int  # among the videos given to the extractor
    error: VideoError


class Extractor:
    """Extracts features of any number of videos of any length.

    All devices of this process share the work. The features of a video do not depend on
    the other videos.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        windows: Windows,
        *,
        tokens: bool = False,
        dtype: str = "float32",
        batch_size: int | None = None,
    ):
        """Puts the weights on the devices.

        Args:
            pretrained, windows, tokens: as in `features`.
            dtype: of the features, float32 or float16. The dtype of the computation is
                a field of the model.
            batch_size: windows of a batch on each device; by default 8, and 1 on a CPU.

        Raises:
            PretrainedError: if the windows do not divide into the model's patches.
        """
        model = pretrained.model
        shape = (windows.num_frames, *windows.size, model.channels)
        try:
            grid = vit.token_grid(shape, model.patch_size, model.tubelet_size)
        except ValueError as error:
            name = pretrained.source or "the model"
            raise PretrainedError(f"{name}: {error}") from error
        feature_shape = (*grid, model.width) if tokens else (model.width,)
        self._windows, self._dtype = windows, dtype
        self._open = functools.partial(inputs.open_for, pretrained)
        self._features = functools.partial(_features, model, feature_shape, dtype)
        self._mesh = mesh = sharding.make_mesh(devices=jax.local_devices())
        if batch_size is None:
            on_cpu = jax.default_backend() == "cpu"
            batch_size = _CPU_BATCH if on_cpu else _ACCELERATOR_BATCH
        self._batch_size = batch_size * mesh.size
        self._batch_sharding = sharding.batch_sharding(mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        self._variables = jax.device_put(pretrained.variables, replicated)

    def __call__(
        self, videos: Iterable[Source], *, num_threads: int = 2
    ) -> Iterator[FeatureChunk | Unreadable]:
        """Extracts the features of videos.

        Args:
            videos: paths of video files, their content, or records of a list.
            num_threads: threads that read, each a video of its own. Each takes memory:
                256 MiB of frames and the compressed file.

        Yields:
            The chunks of each video in order, mixed with those of other videos; and
            videos that cannot be read, after the chunks that could.

        Raises:
            PretrainedError: if features are not finite.
        """
        reads = (
            _read(i, functools.partial(self._open, video), self._windows)
            for i, video in enumerate(videos)
        )
        with iterate_ahead(
            reads, size=self._batch_size + num_threads, num_threads=num_threads
        ) as items:
            batches = _batches(items, self._batch_size)
            for batch, values in batching.fetch(map(self._compute, batches)):
                yield from self._chunks(batch, values)

    def _compute(self, batch: "_Batch") -> tuple["_Batch", jax.Array | None]:
        """Sends a batch to the devices."""
        if not batch.clips:
            return batch, None
        clips = np.stack(batching.pad(batch.clips, self._batch_size))
        batch.clips.clear()  # frees the memory before the result is there
        clips = jax.device_put(clips, self._batch_sharding)
        with jax.set_mesh(self._mesh):
            return batch, self._features(self._variables, clips)

    def _chunks(
        self, batch: "_Batch", values: np.ndarray | None
    ) -> Iterator[FeatureChunk | Unreadable]:
        """Splits the features of a batch by video."""
        if values is not None:
            values = values[: len(batch.windows)]
            if not np.isfinite(values).all():
                raise PretrainedError(
                    "features are not finite: either the weights are not, or "
                    f"{self._dtype} or the model's dtype cannot represent the features"
                )
            rows: dict[VideoInfo, list[int]] = {}
            for row, (video, _) in enumerate(batch.windows):
                rows.setdefault(video, []).append(row)
            for video, of_video in rows.items():
                _, first = batch.windows[of_video[0]]
                yield FeatureChunk(video, first, values[of_video])
        yield from batch.unreadable


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(model, shape: tuple[int, ...], dtype: str, variables, clips: jax.Array):
    """Returns features [B, *shape] of raw clips [B, T, H, W, C]."""

    def apply(method: str) -> Any:
        return model.apply(variables, clips, method=method)

    pretraining = isinstance(model, VideoMAE)
    if len(shape) == 1 and not pretraining:
        return apply("features").astype(dtype)
    tokens = apply("encode" if pretraining else "tokens")
    if len(shape) == 1:
        # In float32, because a sum over 1,568 tokens is too inexact in bfloat16.
        return tokens.mean(axis=1, dtype=jnp.float32).astype(dtype)
    return tokens.reshape(-1, *shape).astype(dtype)


@dataclasses.dataclass
class _Batch:
    """Windows (video, index in it), their clips, and videos found unreadable."""

    windows: list[tuple[VideoInfo, int]] = dataclasses.field(default_factory=list)
    clips: list[np.ndarray] = dataclasses.field(default_factory=list)
    unreadable: list[Unreadable] = dataclasses.field(default_factory=list)


# A video, the index of a window in it, and its frames, [T, H, W, C].
_Clip = tuple[VideoInfo, int, np.ndarray]


def _batches(items: Iterable[_Clip | Unreadable], size: int) -> Iterator[_Batch]:
    """Yields batches of `size` windows; the last may have fewer, but is not empty."""
    batch = _Batch()
    for item in items:
        if isinstance(item, Unreadable):
            batch.unreadable.append(item)
            continue
        video, index, clip = item
        batch.windows.append((video, index))
        batch.clips.append(clip)
        if len(batch.windows) == size:
            yield batch
            batch = _Batch()
    if batch.windows or batch.unreadable:
        yield batch


def _read(
    index: int, open_source: Callable[[], FrameSource], windows: Windows
) -> Iterator[_Clip | Unreadable]:
    """Yields the clips of a video; if it cannot be read, its error as the last item."""
    try:
        with open_source() as video:
            bounds, times = windows.bounds(video.num_frames), video.frame_times
            info = VideoInfo(
                index,
                video.num_frames,
                video.fps,
                len(bounds),
                video.first_frame,
                bounds,
                None if times is None else times[bounds],
            )
            for number, clip in enumerate(windows.read(video)):
                yield info, number, clip
    except VideoError as error:
        yield Unreadable(index, error)
