"""Config files: overrides, unknown and renamed fields, configs of older runs."""

import json

import pytest

from configs import common
from videomae_jax import config as config_lib
from videomae_jax.errors import CheckpointError, ConfigError

RECIPE = "configs/k400_vitb_pretrain.py"


def test_overrides_are_applied():
    config = config_lib.load(
        f"{RECIPE}:debug", ["--config.batch_size=12", "--config.model.remat=blocks"]
    )
    assert (config.batch_size, config.model.remat) == (12, "blocks")
    assert config.model.width == 96  # of :debug


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.batchsize=1", "--config.batchsize: unknown field.*batch_size"),
        (
            "--config.model.widht=1",
            "unknown field; the nearest is --config.model.width",
        ),
        ("--config.batch_size=many", "batch_size"),
        ("--batch_size=1", "batch_size"),
        ("more", "unrecognized arguments: more"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(RECIPE, [override])


def test_unknown_option_and_file():
    with pytest.raises(ConfigError, match=f"{RECIPE}:fast: .*debug"):
        config_lib.load(f"{RECIPE}:fast")
    with pytest.raises(OSError, match="nowhere.py"):
        config_lib.load("nowhere.py")


@pytest.mark.parametrize("old", config_lib.RENAMED)
def test_renamed_fields_are_named(old):
    new = config_lib.RENAMED[old]
    recipe = "finetune" if new.startswith("data.frame") else "pretrain"
    with pytest.raises(ConfigError, match=f"{old} was renamed to --config.{new}$"):
        config_lib.load(f"configs/k400_vitb_{recipe}.py", [f"--config.{old}=1"])


def test_saved_configs_have_todays_names():
    saved = {
        "max_clips_per_device": 4,
        "data": {"frames": "dense", "stride": 4},
        "checkpoint": {"milestone_every": 10},
        "picture": {"statistics": "hidden"},
    }
    assert config_lib.upgrade(saved) == {
        "micro_batch_per_device": 4,
        "data": {"frame_sampling": "dense", "stride": 4},
        "checkpoint": {"keep_period": 10},
        "picture": {"unpatch_stats": "hidden"},
    }
    config = common.finetune()
    saved = json.loads(config.to_json())
    saved["data"]["frames"] = saved["data"].pop("frame_sampling")
    assert not config_lib.changes(saved, config)
    saved["data"]["frames"] = "uniform"
    change = ("data.frame_sampling", "uniform", "dense")
    assert config_lib.changes(saved, config) == [change]


def test_a_test_must_use_the_model_as_it_was_trained():
    config, saved = common.finetune(), json.loads(common.finetune().to_json())
    config.model.dtype = "float32"  # of training only
    config.data.stride = 2
    config_lib.check_same_model("runs/x", saved, config)
    config.model.heads = 3
    with pytest.raises(CheckpointError, match="config.model.heads=3, but .* None"):
        config_lib.check_same_model("runs/x", saved, config)


def test_choices():
    config = common.finetune()
    config_lib.check_choices(config, {"mix.mode": ("batch", "sample")})
    message = "config.mix.mode='batch' must be one of: a, b"
    with pytest.raises(ConfigError, match=message):
        config_lib.check_choices(config, {"mix.mode": ("a", "b")})
