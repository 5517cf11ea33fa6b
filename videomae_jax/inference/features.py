"""Extracts features of videos from sliding windows, as input of temporal detection.

Threads read windows while the devices compute. A batch holds windows of all videos that
are being read, so that short videos do not waste it and all share one compiled program.
The rows of a batch are independent.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videomae_jax.data.threads import iterate_ahead
from videomae_jax.distributed import sharding
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import batching, checks, inputs
from videomae_jax.inference.windows import Windows
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE
from videomae_jax.video.open import Source, video_name
from videomae_jax.video.source import FrameSource

log = logging.getLogger(__name__)

# Windows of a batch on each device. A CPU is not faster with more than one, and each
# takes memory: about 0.5 GB for the 1,568 tokens of a ViT-B.
_CPU_BATCH, _ACCELERATOR_BATCH = 1, 8


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
        normalised; for a VideoMAE or an ActionDetector, the mean of the encoder's
        tokens. With `tokens`, float32 [W, T', H', W', D] on the grid of patches, T' =
        num_frames / tubelet_size. For several videos, a list.

    Raises:
        PretrainedError: if the windows do not divide into the model's patches, or
            features are not finite.
        VideoError: if a video cannot be read.
        RecordError: if a folder, pattern or list names no video.
        InputError: if frames are not uint8 [T, H, W, C].

    Example:
        >>> from videomae_jax.interop.pretrained import Preprocessing
        >>> from videomae_jax.models.classifier import VideoClassifier
        >>> model = VideoClassifier(width=24, depth=1, heads=2, num_classes=3)
        >>> key, video = jax.random.key(0), np.zeros((20, 40, 60, 3), np.uint8)
        >>> params = model.init(key, video[None, :4, :32, :32])["params"]
        >>> clips = Preprocessing(num_frames=4, stride=1, image_size=32)
        >>> features(Pretrained(model, params, preprocessing=clips), video).shape
        (5, 24)
    """
    checks.check_model(pretrained)
    windows = windows or Windows.of(pretrained)
    clips = dataclasses.replace(
        pretrained.preprocessing,
        num_frames=windows.num_frames,
        stride=windows.frame_stride,
    )
    of_clips = dataclasses.replace(pretrained, preprocessing=clips)
    found, several = inputs.resolve(of_clips, video)
    extractor = Extractor(pretrained, windows, tokens=tokens)
    values: list[list[np.ndarray]] = [[] for _ in found]
    for chunk in extractor(found, num_threads=1):
        if isinstance(chunk, Unreadable):
            raise chunk.error
        values[chunk.video.index].append(chunk.values)
    results = [np.concatenate(parts) for parts in values]
    return results if several else results[0]


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
            _read(i, video, self._open, self._windows) for i, video in enumerate(videos)
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

    if len(shape) == 1 and isinstance(model, VideoClassifier):
        return apply("features").astype(dtype)
    tokens = apply("encode" if isinstance(model, VideoMAE) else "tokens")
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
    index: int,
    source: Source,
    open_source: Callable[[Source], FrameSource],
    windows: Windows,
) -> Iterator[_Clip | Unreadable]:
    """Yields the clips of a video; if it cannot be read, its error as the last item."""
    try:
        with open_source(source) as video:
            if video.num_frames < windows.span:
                log.warning(
                    "%s: %d frames are fewer than the %d that a window spans, so the "
                    "last one is repeated",
                    video_name(source),
                    video.num_frames,
                    windows.span,
                )
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
