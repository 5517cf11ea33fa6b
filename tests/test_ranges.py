"""The rules of numbers take what has sense, and nothing else of any type."""

import numpy as np
import pytest

from videomae_jax import ranges
from videomae_jax.errors import ConfigError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "field, valid, invalid",
    [
        ("model.width", (1, 768, np.int64(48)), (0, -1, 10**9, 48.0, "48", True, [48])),
        ("model.depth", (1, 40, 1000), (0, 1001, 10**9, NAN, {})),
        ("model.num_classes", (0, 400), (-1, 10**9, 2.5)),
        ("model.norm_epsilon", (1e-12, 1e-5), (0, 1, -1e-6, NAN, INF, "small")),
        ("model.mlp_ratio", (4, 48 / 11), (0, -4, 10**9, NAN, INF)),
        ("model.pixel_std", (0.5, (0.2, 0.3), [1]), (0, [1, NAN], "1", 1e39, 1e-39)),
        ("model.pixel_mean", (0, (0.2, -0.3)), (INF, (1, "0"), {})),
        ("target_std", ([2.0],), ([0.0], [1.0, -1.0])),
        ("data.image_size", (224, (128, 224), [64, 64]), (0, 10**9, (64,), 64.0, "64")),
        ("data.num_frames", (16,), (0, 10**9, 16.0)),
        ("data.value_range", ((0, 4095), [-1, 1]), (7, (2, 1), (0, NAN), (0, 1, 2))),
        ("mask.ratio", (0.9,), (0, 1, 1.5, NAN)),
        ("batch_size", (1,), (0, NAN, INF)),
    ],
)
def test_rules(field, valid, invalid):
    for value in valid:
        ranges.check({field: value})
    for value in invalid:
        if value is not None:
            name = field.rpartition(".")[2]
            with pytest.raises(ConfigError, match=f"^{name}=.* must be "):
                ranges.check({field: value})
            with pytest.raises(ConfigError, match=f"^config.{field}=.* must be "):
                ranges.check({field: value}, "config.")


def test_what_is_none_or_unknown_is_left_out():
    ranges.check({"model.width": None, "model.dtype": "float32", "other": -1})


def test_heads_divide_the_width():
    ranges.check({"model.width": 48, "model.heads": 3, "model.decoder_heads": 7})
    with pytest.raises(ConfigError, match="^heads=7 must divide width=48$"):
        ranges.check({"model.width": 48, "model.heads": 7})
    values = {"model.decoder_width": 24, "model.decoder_heads": 5}
    message = "^config.model.decoder_heads=5 must divide config.model.decoder_width=24$"
    with pytest.raises(ConfigError, match=message):
        ranges.check(values, "config.")
