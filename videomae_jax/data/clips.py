"""Cuts clips out of a video: frames by a rule, then crops and augmentation.

Each class here is called with an opened video and randomness, and returns [clips, T, H,
W, C] from a single decode, with the dtype and channels of the video's frames: uint8
RGB, unless the video was opened for another format. Its objects are sent to the
workers.
Clips have `num_frames` frames, `stride` frames of the video apart, and crops of
`size`: (height, width) in pixels, or one number for both. `frame_sampling` is a key of
SAMPLERS; `framing` is how frames are resized and cropped.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from videomae_jax.data import augmentation, sampling
from videomae_jax.data.randaugment import RandAugment
from videomae_jax.errors import ConfigError
from videomae_jax.models.sizes import OFFICIAL, Framing, height_and_width
from videomae_jax.video.source import FrameSource, PixelFormat


def pixel_format(config: Any) -> PixelFormat:
    """Returns the pixels that the model of a config takes; see configs/common.py."""
    channels = config.model.get("channels")
    value_range = config.data.get("value_range")
    return PixelFormat(3 if channels is None else channels, value_range)


def clip_shape(config: Any) -> tuple[int, int, int, int]:
    """Returns the shape of a config's clips, [T, H, W, C]."""
    size = height_and_width(config.data.image_size, "config.data.image_size")
    return config.data.num_frames, *size, pixel_format(config).channels


def clip_bytes(config: Any) -> int:
    """Returns the size of a config's clips in bytes."""
    return math.prod(clip_shape(config)) * pixel_format(config).dtype.itemsize


@dataclasses.dataclass(frozen=True)
class PretrainingClips:
    """Cuts pretraining clips: several crops of the same frames (VideoMAE V2, 3.3)."""

    num_frames: int
    stride: int
    size: augmentation.Size
    scales: tuple[float, ...]  # crop sizes relative to the shorter side, in (0, 1]
    flip: float  # probability of a horizontal flip
    num_samples: int  # clips cut out of the same frames

    def __post_init__(self):
        """Raises ConfigError if a scale is out of range."""
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ConfigError(
                f"config.data.crop_scales={self.scales} must be scales in (0, 1]"
            )

    def __call__(self, video: FrameSource, rng: np.random.Generator) -> np.ndarray:
        """Returns [num_samples, T, height, width, C]."""
        indices = sampling.sample_pretrain(
            rng, video.num_frames, self.num_frames, self.stride
        )
        frames = video.decode(indices)
        boxes = [
            augmentation.multi_scale_box(
                rng, frames.height, frames.width, size=self.size, scales=self.scales
            )
            for _ in range(self.num_samples)
        ]
        # Only this part of the frames is converted to RGB.
        hull = augmentation.hull(boxes)
        images = frames.pixels(hull)
        size = height_and_width(self.size)
        shape = (self.num_samples, self.num_frames, *size, images.shape[-1])
        clips = np.empty(shape, images.dtype)
        for clip, (top, left, height, width) in zip(clips, boxes, strict=True):
            box = (top - hull[0], left - hull[1], height, width)
            augmentation.crop_and_resize(images, box, *size, out=clip)
            if self.flip:
                clip[:] = augmentation.horizontal_flip(rng, clip, self.flip)
        return clips


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A rule for the frames that a classifier sees: their indices, of N frames."""

    train: Callable[..., np.ndarray]  # (rng, N, frames, stride) -> a random clip
    validation: Callable[..., np.ndarray]  # (N, frames, stride) -> the middle clip
    test: Callable[..., np.ndarray]  # (N, frames, stride, segments) -> all clips


SAMPLERS = {
    # The official code's rule for Kinetics, UCF101 and HMDB51: a training clip of 16
    # frames at stride 4 spans 64 frames, so its frames are 64 / 15 apart.
    "dense": Sampler(
        sampling.sample_dense,
        sampling.dense_center_indices,
        sampling.dense_test_indices,
    ),
    # Frames exactly `stride` apart.
    "exact": Sampler(
        sampling.sample_pretrain,
        sampling.exact_center_indices,
        sampling.dense_test_indices,
    ),
    # One frame of each of `num_frames` equal parts of the video; Something-Something.
    "uniform": Sampler(
        lambda rng, n, frames, stride: sampling.sample_uniform(rng, n, frames),
        lambda n, frames, stride: sampling.uniform_center_indices(n, frames),
        lambda n, frames, stride, segments: sampling.uniform_test_indices(
            n, frames, segments
        ),
    ),
    # The same of V2's --sparse_sample, for videos of Kinetics.
    "sparse": Sampler(
        lambda rng, n, frames, stride: sampling.sample_sparse(rng, n, frames),
        lambda n, frames, stride: sampling.sparse_center_indices(n, frames),
        lambda n, frames, stride, segments: sampling.uniform_test_indices(
            n, frames, segments
        ),
    ),
    # "exact" in training, but with the test clips of MMAction2.
    "mmaction": Sampler(
        sampling.sample_pretrain,
        sampling.exact_center_indices,
        sampling.mmaction_test_indices,
    ),
    # The whole video, as transformers' pipeline for models with a video processor (5):
    # one test clip has frames i * N / num_frames, rounded down.
    "transformers": Sampler(
        lambda rng, n, frames, stride: sampling.sample_uniform(rng, n, frames),
        lambda n, frames, stride: sampling.uniform_test_indices(n, frames, 1)[0],
        lambda n, frames, stride, segments: sampling.uniform_test_indices(
            n, frames, segments
        ),
    ),
    # The first frames of the video, as that pipeline with an image processor.
    "transformers_first": Sampler(
        lambda rng, n, frames, stride: sampling.sample_pretrain(rng, n, frames, 1),
        lambda n, frames, stride: sampling.first_indices(n, frames, 1)[0],
        lambda n, frames, stride, segments: sampling.first_indices(n, frames, segments),
    ),
}


@dataclasses.dataclass(frozen=True)
class FinetuningClips:
    """Cuts fine-tuning clips: several augmentations of the same frames."""

    frame_sampling: str
    num_frames: int
    stride: int
    size: augmentation.Size
    rand_augment: RandAugment | None  # of whole frames, before the crop
    crop_area: tuple[float, float]  # smallest and largest share of the frame
    crop_aspect: tuple[float, float]  # smallest and largest width over height
    flip: float  # probability of a horizontal flip
    erase: float  # probability of erasing a box
    num_samples: int  # clips cut out of the same frames
    # Of each channel, for the noise in erased boxes; see `random_erasing`.
    pixel_mean: tuple[float, ...] = augmentation.IMAGENET_MEAN
    pixel_std: tuple[float, ...] = augmentation.IMAGENET_STD

    def __post_init__(self):
        """Raises ConfigError if a range or the probability of erasing is impossible."""
        for name, bounds, most, rule in (
            ("crop_area", self.crop_area, 1, "above 0 and at most 1"),
            ("crop_aspect", self.crop_aspect, sys.float_info.max, "above 0 and finite"),
        ):
            if not augmentation.is_range(bounds, most):
                raise ConfigError(
                    f"config.data.{name}={bounds} must be (smallest, largest), {rule}"
                )
        if not 0 <= self.erase <= 1:
            raise ConfigError(f"config.data.erase={self.erase} must be in [0, 1]")

    def __call__(self, video: FrameSource, rng: np.random.Generator) -> np.ndarray:
        """Returns [num_samples, T, height, width, C]."""
        indices = SAMPLERS[self.frame_sampling].train(
            rng, video.num_frames, self.num_frames, self.stride
        )
        frames = video.read(indices)
        size = height_and_width(self.size)
        shape = (self.num_samples, self.num_frames, *size, frames.shape[-1])
        clips = np.empty(shape, frames.dtype)
        for clip in clips:
            augmented = self.rand_augment(rng, frames) if self.rand_augment else frames
            crop = augmentation.random_resized_crop(
                rng, augmented, self.size, area=self.crop_area, aspect=self.crop_aspect
            )
            crop = augmentation.horizontal_flip(rng, crop, self.flip)
            clip[:] = augmentation.random_erasing(
                rng, crop, self.erase, mean=self.pixel_mean, std=self.pixel_std
            )
        return clips


@dataclasses.dataclass(frozen=True)
class CenterClips:
    """Cuts the clip in the middle of a video, without randomness."""

    views = 1  # clips per video

    num_frames: int
    stride: int
    size: augmentation.Size
    frame_sampling: str = "exact"
    framing: Framing = OFFICIAL

    def __call__(self, video: FrameSource, rng: np.random.Generator) -> np.ndarray:
        """Returns [1, T, height, width, C]."""
        indices = SAMPLERS[self.frame_sampling].validation(
            video.num_frames, self.num_frames, self.stride
        )
        frames = video.read(indices)
        return augmentation.spatial_crops(frames, self.size, 1, self.framing)


@dataclasses.dataclass(frozen=True)
class MultiViewClips:
    """Cuts all views of a video that a test averages, without randomness."""

    num_frames: int
    stride: int
    size: augmentation.Size
    frame_sampling: str
    segments: int  # clips in time
    crops: int  # of each clip, along the longer side; 1 is the centre
    framing: Framing = OFFICIAL

    def __call__(self, video: FrameSource, rng: np.random.Generator) -> np.ndarray:
        """Returns [segments * crops, T, height, width, C], crops adjacent."""
        indices = SAMPLERS[self.frame_sampling].test(
            video.num_frames, self.num_frames, self.stride, self.segments
        )
        distinct, inverse = np.unique(indices, return_inverse=True)
        # Overlapping clips share frames: each is decoded and resized once.
        frames = video.read(distinct)
        crops = augmentation.spatial_crops(frames, self.size, self.crops, self.framing)
        views = crops[:, inverse.reshape(indices.shape)].swapaxes(0, 1)
        return views.reshape(self.views, *views.shape[2:])

    @property
    def views(self) -> int:
        """The number of clips per video."""
        return self.segments * self.crops
