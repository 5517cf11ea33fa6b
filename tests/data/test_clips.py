"""Clips check the fields that come from the config before any video is read."""

import dataclasses
import re

import pytest

from videomae_jax.data.clips import FinetuningClips, PretrainingClips
from videomae_jax.errors import ConfigError

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
