"""Features of videos from sliding windows, as temporal detection takes them in.

Threads read windows while the devices compute. A batch is filled with windows of
whatever videos are being read, so that short videos do not waste it and one program
serves all; rows of a batch do not see each other.
"""

import collections
import contextlib
import dataclasses
import functools
import queue
import threading
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from videomae_jax.data import augmentation
from videomae_jax.distributed import sharding
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import vit
from videomae_jax.models.mae import VideoMAE
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import Source, open_video
from videomae_jax.video.windows import read_windows

# Windows that a device takes at once. A CPU gets no faster by more than one, and each
# takes memory: some 0.5 GB for 1,568 tokens of a ViT-B.
_CPU_BATCH, _ACCELERATOR_BATCH = 1, 8
# Batches that may be under way on the devices before the host waits for a result.
_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a video: which frames, and what of them.

    A window is `num_frames` frames, `frame_stride` apart. Of a video of N frames,
    windows start at

        range(0, N - (num_frames - 1) * frame_stride, hop)

    wherever all of their frames exist; with 16 consecutive frames that is VideoMAE
    V2's range(0, N - 15, hop) for temporal detection. Frames at the end that fill no
    window are not used. A video too short for one gives one nevertheless, with its
    last frame repeated.

    Attributes:
        num_frames: frames of a window.
        frame_stride: frames of the video from one of them to the next.
        hop: frames of the video from the start of a window to that of the next.
        size: height and width in pixels of what the model gets.
        squash: take the whole frame and make it a square (V2's script, which does not
            average over pixels where it shrinks); otherwise the shorter side is scaled
            to `size` and the centre cut out, as in testing.

    Raises:
        ValueError: if a number is below 1.
    """

    num_frames: int = 16
    frame_stride: int = 4
    hop: int = 64
    size: int = 224
    squash: bool = False

    def __post_init__(self):
        """Checks the numbers."""
        for name in ("num_frames", "frame_stride", "hop", "size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} of windows is {getattr(self, name)}: at least 1 is wanted"
                )

    @classmethod
    def of(
        cls,
        pretrained: Pretrained,
        num_frames: int | None = None,
        frame_stride: int | None = None,
        hop: int | None = None,
        squash: bool = False,
    ) -> "Windows":
        """The windows that suit a model, but for what is given.

        By default they have the length and the frame stride of the clips that the
        model was trained with, and follow each other without overlap.
        """
        feeding = pretrained.preprocessing
        num_frames = feeding.num_frames if num_frames is None else num_frames
        frame_stride = feeding.stride if frame_stride is None else frame_stride
        hop = num_frames * frame_stride if hop is None else hop
        return cls(num_frames, frame_stride, hop, feeding.image_size, squash)

    def indices(self, num_video_frames: int) -> np.ndarray:
        """Frames of each window, int64 [W, num_frames], W at least 1.

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

    def read(self, video: Video) -> Iterator[np.ndarray]:
        """Yields the windows in order, uint8 [num_frames, size, size, 3].

        Each frame is read once, in runs, and kept while windows need it: memory does
        not grow with the video.

        Raises:
            VideoError: if a frame cannot be decoded.
        """
        indices = self.indices(video.num_frames)
        yield from read_windows(video, indices, self.size, self._cut)

    def _cut(self, frames: np.ndarray) -> np.ndarray:
        """Makes frames uint8 [n, H, W, 3] ready: uint8 [n, size, size, 3]."""
        if self.squash:
            whole = (0, 0, *frames.shape[1:3])
            return augmentation.crop_and_resize(frames, whole, self.size, self.size)
        return augmentation.spatial_crops(frames, self.size, 1)[0]


def extract(
    pretrained: Pretrained,
    video: Source,
    windows: Windows | None = None,
    tokens: bool = False,
) -> np.ndarray:
    """Features of the windows of one video.

    Args:
        pretrained: a model with its weights; a head is not used.
        video: path of a video file, its content, or a record of a list.
        windows: what to cut out of it, `Windows.of(pretrained)` by default.
        tokens: the tokens, before pooling, in place of pooled features.

    Returns:
        float32 [W, D]: what the head of a classifier would get, pooled and normalised;
        of a VideoMAE, the mean of the encoder's tokens. With `tokens`, float32
        [W, T', H', W', D] on the grid of patches, T' = num_frames / tubelet_size.

    Raises:
        PretrainedError: if the windows do not divide into the model's patches, or
            features are not finite.
        VideoError: if the video cannot be read.

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
        >>> pretrained = Pretrained(model, params, preprocessing=feeding)
        >>> windows = Windows.of(pretrained, hop=8)
        >>> with Video(folder / "test/00000.mp4") as video:
        ...     starts = range(0, video.num_frames - 3, 8)
        >>> features = extract(pretrained, folder / "test/00000.mp4", windows)
        >>> features.shape == (len(starts), 24)
        True
    """
    extractor = Extractor(pretrained, windows or Windows.of(pretrained), tokens)
    values = []
    for part in extractor([video], num_threads=1):
        if isinstance(part, Unreadable):
            raise part.error
        values.append(part.values)
    return np.concatenate(values)


def without_normalization(pretrained: Pretrained) -> Pretrained:
    """The model, but with pixels only divided by 255, as V2's script feeds it."""
    model = pretrained.model.clone(pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0,) * 3)
    return dataclasses.replace(pretrained, model=model)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A video whose windows are read.

    Attributes:
        index: which of the videos.
        num_frames: frames of it.
        fps: average frames per second, None if the file does not tell.
        num_windows: windows of it.
    """

    index: int
    num_frames: int
    fps: float | None
    num_windows: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Features of windows of a video that follow each other.

    Attributes:
        video: which.
        first: number of the first of these windows, from 0.
        values: features as from `extract`, of the extractor's dtype.
    """

    video: Opened
    first: int
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A video that cannot be read, or not to its end.

    Attributes:
        index: which of the videos.
        error: why.
    """

    index: int
    error: VideoError


class Extractor:
    """Features of any number of videos of any length.

    All devices of this process share the work. What a video gets does not depend on
    the others.

    Attributes:
        feature_shape: shape of the features of one window, [D] or [T', H', W', D].
    """

    def __init__(
        self,
        pretrained: Pretrained,
        windows: Windows,
        tokens: bool = False,
        dtype: str = "float32",
        batch_size: int | None = None,
    ):
        """Puts the weights on the devices.

        Args:
            pretrained: a model with its weights; a head is not used.
            windows: what to cut out of the videos.
            tokens: the tokens, before pooling, in place of pooled features.
            dtype: of the features, float32 or float16; what the model computes in is a
                field of the model.
            batch_size: windows that each device takes at once; by default 8, and 1 if
                it is a CPU.

        Raises:
            PretrainedError: if the windows do not divide into the model's patches.
        """
        model = pretrained.model
        shape = (windows.num_frames, windows.size, windows.size, 3)
        try:
            grid = vit.token_grid(shape, model.patch_size, model.tubelet_size)
        except ValueError as error:
            name = pretrained.source or "the model"
            raise PretrainedError(f"{name}: {error}") from error
        self.feature_shape = (*grid, model.width) if tokens else (model.width,)
        self._windows, self._dtype = windows, dtype
        self._compute = functools.partial(_features, model, self.feature_shape, dtype)
        self._mesh = mesh = sharding.make_mesh(devices=jax.local_devices())
        if batch_size is None:
            on_cpu = jax.default_backend() == "cpu"
            batch_size = _CPU_BATCH if on_cpu else _ACCELERATOR_BATCH
        self._batch_size = batch_size * mesh.size
        self._rows = sharding.batch_sharding(mesh)
        self._variables = jax.device_put(
            pretrained.variables, NamedSharding(mesh, PartitionSpec())
        )

    def __call__(
        self, videos: Iterable[Source], num_threads: int = 2
    ) -> Iterator[Part | Unreadable]:
        """Extracts the features of videos.

        Args:
            videos: paths of video files, their content, or records of a list.
            num_threads: threads that read, each a video of its own. Memory grows with
                them (256 MiB of frames each) and the sizes of their files.

        Yields:
            The parts of each video in order, mixed with those of other videos; and
            videos that cannot be read, after any parts that could.

        Raises:
            PretrainedError: if features are not finite.
        """
        pending = collections.deque()
        with _reading(videos, self._windows, num_threads, self._batch_size) as items:
            for batch in _batches(items, self._batch_size):
                values = self._start(batch) if batch.rows else ()
                pending.append((batch, values))
                if len(pending) > _BATCHES_AHEAD:
                    yield from self._finish(*pending.popleft())
            while pending:
                yield from self._finish(*pending.popleft())

    def _start(self, batch: "_Batch") -> jax.Array:
        """Sends a batch to the devices."""
        clips = [row.clip for row in batch.rows]
        # The last batch is filled up: another shape would be compiled again.
        clips += clips[-1:] * (self._batch_size - len(clips))
        for row in batch.rows:
            row.clip = None  # Not to be held until the result is there.
        clips = jax.device_put(np.stack(clips), self._rows)
        with jax.set_mesh(self._mesh):
            return self._compute(self._variables, clips)

    def _finish(self, batch: "_Batch", values) -> Iterator[Part | Unreadable]:
        """Waits for the features of a batch and tells whose they are."""
        values = np.asarray(values)[: len(batch.rows)]
        if not np.isfinite(values).all():
            raise PretrainedError(
                "features are not finite: the weights are not, or the features are "
                f"beyond what {self._dtype} or the model's dtype can hold"
            )
        places: dict[Opened, list[int]] = {}
        for place, row in enumerate(batch.rows):
            places.setdefault(row.video, []).append(place)
        for video, chosen in places.items():
            yield Part(video, batch.rows[chosen[0]].number, values[chosen])
        yield from batch.unreadable


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(model, shape: tuple[int, ...], dtype: str, variables, clips: jax.Array):
    """Features [B, *shape] of clips uint8 [B, T, H, W, 3]."""
    pretraining = isinstance(model, VideoMAE)
    if len(shape) == 1 and not pretraining:
        return model.apply(variables, clips, method="features").astype(dtype)
    method = "encode" if pretraining else "tokens"
    tokens = model.apply(variables, clips, method=method)
    if len(shape) == 1:
        # In float32: a sum over 1,568 tokens is too much for bfloat16.
        return tokens.mean(axis=1, dtype=jnp.float32).astype(dtype)
    return tokens.reshape(-1, *shape).astype(dtype)


@dataclasses.dataclass
class _Row:
    """A window that was read: its number in its video, and uint8 [T, H, W, 3]."""

    video: Opened
    number: int
    clip: np.ndarray | None


@dataclasses.dataclass
class _Batch:
    """Rows for the devices, and videos found bad while these were read."""

    rows: list[_Row] = dataclasses.field(default_factory=list)
    unreadable: list[Unreadable] = dataclasses.field(default_factory=list)


def _batches(items: Iterable[_Row | Unreadable], size: int) -> Iterator[_Batch]:
    """Yields batches of `size` rows, the last one perhaps of fewer, but not of none."""
    batch = _Batch()
    for item in items:
        if isinstance(item, Unreadable):
            batch.unreadable.append(item)
            continue
        batch.rows.append(item)
        if len(batch.rows) == size:
            yield batch
            batch = _Batch()
    if batch.rows or batch.unreadable:
        yield batch


@contextlib.contextmanager
def _reading(
    videos: Iterable, windows: Windows, num_threads: int, capacity: int
) -> Iterator[Iterator[_Row | Unreadable]]:
    """Starts the threads that read videos ahead, up to `capacity` rows, and stops them.

    Yields:
        An iterator over the rows; those of one video are in order.
    """
    ready = queue.Queue(capacity)
    numbered, lock = enumerate(videos), threading.Lock()
    stopped = threading.Event()

    def work():
        try:
            while True:
                with lock:
                    index, video = next(numbered, (None, None))
                if index is None:
                    break
                for row in _read(index, video, windows):
                    ready.put(row)
                    if stopped.is_set():
                        return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def items():
        running = num_threads
        while running:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield items()
    finally:
        stopped.set()
        while any(thread.is_alive() for thread in threads):
            # A thread may wait for room.
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)


def _read(index: int, source: Source, windows: Windows) -> Iterator[_Row | Unreadable]:
    try:
        with open_video(source) as video:
            count = len(windows.indices(video.num_frames))
            opened = Opened(index, video.num_frames, video.fps, count)
            for number, clip in enumerate(windows.read(video)):
                yield _Row(opened, number, clip)
    except VideoError as error:
        yield Unreadable(index, error)
