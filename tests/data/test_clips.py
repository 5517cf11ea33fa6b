"""Clips check the fields that come from the config before any video is read."""

import dataclasses
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from videomae_jax import config
from videomae_jax.data.clips import (
    CenterClips,
    FinetuningClips,
    MultiViewClips,
    PretrainingClips,
    clip_bytes,
    clip_shape,
    pixel_format,
)
from videomae_jax.errors import ConfigError
from videomae_jax.video.open import open_video
from videomae_jax.video.source import PixelFormat

FINETUNING = FinetuningClips(
    frame_sampling="dense",
    num_frames=4,
    stride=2,
    size=32,
    rand_augment=None,
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip=0.5,
    erase=1.0,
    num_samples=1,
)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("scales", [(), (0.0,), (1, -0.5), (1.2, 1), (NAN,)])
def test_crop_scales_must_be_within_the_frame(scales):
    message = f"config.data.crop_scales={scales} must be scales in (0, 1]"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        PretrainingClips(4, 2, 32, scales, 0.5, 1)


RULES = {"crop_area": "above 0 and at most 1", "crop_aspect": "above 0 and finite"}


@pytest.mark.parametrize(
    "field, bounds",
    [
        *(("crop_area", (0.0, 1.0)), ("crop_area", (0.5, 1.1)), ("crop_area", ())),
        *(("crop_area", (0.6, 0.5)), ("crop_area", (NAN, 1.0)), ("crop_area", (0.5,))),
        *(("crop_aspect", (0.0, 1.0)), ("crop_aspect", (2.0, 1.0))),
        *(("crop_aspect", (1.0, INF)), ("crop_aspect", (1.0, NAN))),
    ],
)
def test_crop_ranges_must_be_possible(field, bounds):
    message = f"config.data.{field}={bounds} must be (smallest, largest)"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}, {RULES[field]}$"):
        dataclasses.replace(FINETUNING, **{field: bounds})


@pytest.mark.parametrize("erase", [-0.1, 1.1, NAN])
def test_erase_must_be_a_probability(erase):
    message = f"config.data.erase={erase} must be in [0, 1]"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(FINETUNING, erase=erase)


FIELDS = [
    ([], (16, 224, 224, 3), np.uint8),
    (["image_size=128"], (16, 128, 128, 3), np.uint8),
    (["image_size=128,224"], (16, 128, 224, 3), np.uint8),
    (["image_size=(128, 224)"], (16, 128, 224, 3), np.uint8),
    (["image_size=[128,224]", "value_range=0,4095"], (16, 128, 224, 3), np.uint16),
]


@pytest.mark.parametrize("fields, shape, dtype", FIELDS)
def test_clips_of_a_config(fields, shape, dtype):
    flags = [f"--config.data.{field}" for field in fields]
    loaded = config.load("configs/k400_vitb_pretrain.py", flags)
    assert clip_shape(loaded) == shape and pixel_format(loaded).dtype == dtype
    loaded.model.channels = 1
    assert clip_shape(loaded) == (*shape[:3], 1)
    assert clip_bytes(loaded) == np.prod(shape[:3]) * np.dtype(dtype).itemsize
    # As it is saved with a checkpoint.
    saved = ConfigDict(json.loads(loaded.to_json()))
    assert clip_shape(saved) == clip_shape(loaded)
    assert pixel_format(saved) == pixel_format(loaded)


@pytest.mark.parametrize(
    "field",
    ["image_size=128x224", "image_size=1,2,3", "value_range=7", "value_range=2,1"],
)
def test_impossible_clips_of_a_config(field):
    name, _, value = field.partition("=")
    with pytest.raises(ConfigError, match=rf"config\.data\.{name}=.*must be"):
        config.load("configs/k400_vitb_pretrain.py", [f"--config.data.{field}"])


def test_debug_recipes_keep_sizes_that_are_not_square():
    recipe = common.finetune()
    recipe.data.image_size = (64, 128)
    assert common.debug(recipe).data.image_size == (64, 96)
    assert recipe.model.position_size == (64, 96)


def test_clips_have_the_pixels_of_the_video():
    """Crops, flips and noise of one 16-bit channel, at a non-square size."""
    frames = np.random.default_rng(0).integers(0, 65536, (9, 30, 50, 1))
    video = open_video(frames.astype(np.uint16), PixelFormat(1, (0, 65535)))
    rng = np.random.default_rng(0)
    fine = dataclasses.replace(
        FINETUNING, size=(16, 32), pixel_mean=(0.5,), pixel_std=(0.2,), num_samples=2
    )
    for read_clips, count in (
        (PretrainingClips(4, 2, (16, 32), (1.0, 0.5), 0.5, 2), 2),
        (fine, 2),
        (CenterClips(4, 2, (16, 32)), 1),
        (MultiViewClips(4, 2, (16, 32), "dense", segments=2, crops=3), 6),
    ):
        clips = read_clips(video, rng)
        assert clips.shape == (count, 4, 16, 32, 1) and clips.dtype == np.uint16
        assert clips.std() > 3000
