"""Config files: overrides, unknown and renamed fields, configs of older runs."""

import json

import pytest

from configs import common
from videomae_jax import config as config_lib
from videomae_jax import ranges
from videomae_jax.errors import CheckpointError, CompleteRunError, ConfigError

RECIPE = "configs/k400_vitb_pretrain.py"


def test_overrides_are_applied():
    config = config_lib.load(
        f"{RECIPE}:debug", ["--config.batch_size=12", "--config.model.remat=blocks"]
    )
    assert (config.batch_size, config.model.remat) == (12, "blocks")
    assert config.model.width == 96  # of :debug


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    "field, text, value",
    [
        ("data.train", "videos/a b.txt", "videos/a b.txt"),
        ("data.train", "digits:train", "digits:train"),
        ("data.train", "('a', {'list': 'b'})", ("a", {"list": "b"})),
        ("data.image_size", "160", 160),
        ("data.image_size", "(96, 160)", (96, 160)),
        ("data.root", "/videos", "/videos"),
        ("batch_size", "8", 8),
    ],
)
def test_a_value_may_be_an_argument_of_its_own(field, text, value, separate):
    flag = f"--config.{field}"
    config = config_lib.load(RECIPE, [flag, text] if separate else [f"{flag}={text}"])
    assert config_lib.flatten(config.to_dict())[field] == value


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
        ("--config.mask=tube", "must be one of its fields: .*mask.kind, mask.ratio"),
        ("more", "unrecognized arguments: more"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(RECIPE, [override])


def test_unknown_option_and_file():
    with pytest.raises(ConfigError, match=f"{RECIPE}:fast: .*debug"):
        config_lib.load(f"{RECIPE}:fast")


@pytest.mark.parametrize(
    "file, message",
    [
        ("configs/k400_vitb_pretrian.py", "not found; the nearest is .*vitb_pretrain"),
        ("digits_finetune", "the nearest is configs/digits_finetune.py"),
        ("configs/hybrid_vitb_pretrain.py", "is configs/v2/hybrid_vitb_pretrain.py"),
        ("configs/v2/k400_vitb_finetun.py", "is configs/v2/k400_vitb_finetune.py"),
        ("k400_vitb_finetun.py", "is configs/k400_vitb_finetune.py"),
        ("configs", "--config=configs: must be a file"),
        ("nowhere.py", "--config=nowhere.py: file not found$"),
    ],
)
def test_a_misspelt_file(file, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(file)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    return sizes", ":2: NameError: .*'sizes'"),
        ("import os\n\ndef get_config(:", ":3: SyntaxError: invalid syntax"),
        ("import nothing_of_this_name", ":1: ModuleNotFoundError: No module"),
        (
            "from configs import common\n"
            "def get_config():\n"
            "    config = common.pretrain()\n"
            "    config.data.trian = 'x'\n",
            r':4: AttributeError: .{,100}Did you mean "train"',
        ),
        ("def get_config():\n    pass", r"get_config\(\) must return a ConfigDict"),
        ("config = 3", r"must define get_config\(\)"),
    ],
)
def test_a_file_with_a_mistake_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=f"mine.py.*{message}") as caught:
        config_lib.load(str(tmp_path / "mine.py"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_may_have_no_options(tmp_path):
    text = "from configs import common\ndef get_config():\n    return common.pretrain()"
    (tmp_path / "mine.py").write_text(text)
    config = config_lib.load(str(tmp_path / "mine.py"), ["--config.steps", "7"])
    assert config.steps == 7 and config.is_locked


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.flip=1.5", r"config.data.flip=1.5 must be in \[0, 1\]"),
        ("mask.ratio=nan", "config.mask.ratio=nan must be above 0 and below 1"),
        ("checkpoint.every=0", "config.checkpoint.every=0 must be at least 1"),
        (
            "model.heads=-6",
            "config.model.heads=-6 must be a whole number from 1 to 100000",
        ),
        ("epochs=0", "config.epochs=0 must be above 0"),
        ("optimizer.b2=1", r"config.optimizer.b2=1.0 must be in \[0, 1\)"),
        ("mask.decoder_ratio=1", "config.mask.decoder_ratio=1.0 must be above 0 and.*"),
    ],
)
def test_numbers_out_of_range_are_refused(override, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        config_lib.load(RECIPE, [f"--config.{override}"])


def test_numbers_out_of_range_are_refused_in_fine_tuning():
    message = "config.evaluation.patience=-1 must be at least 0"
    override = "--config.evaluation.patience=-1"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        config_lib.load("configs/custom_finetune.py", [override])


@pytest.fixture(scope="module")
def known():
    """The fields of all runs."""
    configs = (common.pretrain(), common.finetune(), common.distill())
    return {name for x in configs for name in config_lib.flatten(x.to_dict())}


def test_ranges_are_of_fields_that_exist(known):
    fields = " ".join(fields for _, _, fields in ranges.RANGES).split()
    of_others = {"model.num_classes", "target_mean", "target_std", "weight"}
    of_others |= {"model.roi_bins", "model.roi_stride"}
    assert set(fields) <= known | of_others and len(set(fields)) == len(fields)


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


def of_an_old_release():
    """A saved config without the fields that came later."""
    saved = json.loads(common.finetune().to_json())
    for name in config_lib._BEFORE_THE_FIELD:
        group, field = name.split(".")
        saved.get(group, {}).pop(field, None)
    return saved


def test_fields_that_a_run_was_saved_without(known):
    assert config_lib._BEFORE_THE_FIELD.keys() <= known
    saved, config = of_an_old_release(), common.finetune()
    # The only defaults that are not what earlier releases did.
    assert config_lib.changes(saved, config) == [
        ("checkpoint.digests", False, True),
        ("checkpoint.keep_best", False, True),
    ]
    config_lib.check_same_run("runs/x", saved, config)
    config_lib.check_same_model("runs/x", saved, config)


@pytest.mark.parametrize(
    "name, before, value, of_model",
    [
        ("model.pixel_mean", None, (0.5, 0.5, 0.5), True),
        ("model.channels", None, 1, True),
        ("model.norm_epsilon", None, 1e-12, True),
        ("loss.kind", "softmax", "sigmoid", True),
        ("data.value_range", None, (0, 65535), False),
        ("evaluation.step", "last", "best", False),
        ("evaluation.patience", 0, 3, False),
    ],
)
def test_later_fields_of_an_old_run_are_compared(name, before, value, of_model):
    saved, config = of_an_old_release(), common.finetune()
    config.update_from_flattened_dict({name: value})
    message = rf"config.{name}=.*, was {before!r}\)"
    with pytest.raises(CompleteRunError, match=message):
        config_lib.check_same_run("runs/x", saved, config)
    if of_model:
        with pytest.raises(CheckpointError, match=f"config.{name}=.* is {before!r}"):
            config_lib.check_same_model("runs/x", saved, config)
    else:
        config_lib.check_same_model("runs/x", saved, config)


def test_a_test_must_use_the_model_as_it_was_trained():
    config, saved = common.finetune(), json.loads(common.finetune().to_json())
    config.model.dtype = "float32"  # of training only
    config.data.stride = 2
    config_lib.check_same_model("runs/x", saved, config)
    config.model.heads = 3
    with pytest.raises(CheckpointError, match="config.model.heads=3, but .* None"):
        config_lib.check_same_model("runs/x", saved, config)


def test_defaults_that_fail_are_named():
    """So that nobody looks for a file that they never named."""
    recipe = "configs/custom_finetune.py"
    config = config_lib.load(recipe, ["--config.data.test=mine.txt"])
    message = "file or folder not found: 'data/custom/train.txt'"
    assert config_lib.name_defaults(message, config, recipe) == (
        f"{message}\n  This is the default of config.data.train of {recipe}, which "
        "--config.data.train=... replaces."
    )
    # Validation and test often are one list.
    both = config_lib.load(recipe)
    named = config_lib.name_defaults("data/custom/val.txt:3: bad", both, recipe)
    assert "config.data.validation and config.data.test of" in named
    message = "file or folder not found: 'mine.txt'"
    assert config_lib.name_defaults(message, config, recipe) == message


def test_settings_of_a_complete_run():
    config = common.finetune()
    saved = json.loads(config.to_json())
    del saved["wandb"]  # of a release before the field
    config.log_every, config.data.num_workers, config.model.remat = 7, 3, "dots"
    config_lib.check_same_run("runs/x", saved, config)
    config.steps, config.optimizer.base_lr = 9, 0.1
    with pytest.raises(CompleteRunError) as error:
        config_lib.check_same_run("runs/x", saved, config)
    assert str(error.value) == (
        "nothing was trained: the run in runs/x is complete with other settings "
        "(config.optimizer.base_lr=0.1, was 0.0005; config.steps=9, was 0); give a new "
        "--workdir, or test the run with --config.mode=eval"
    )


def test_choices():
    config = common.finetune()
    config_lib.check_choices(config, {"mix.mode": ("batch", "sample")})
    message = "config.mix.mode='batch' must be one of: a, b"
    with pytest.raises(ConfigError, match=message):
        config_lib.check_choices(config, {"mix.mode": ("a", "b")})
