"""Every recipe: its numbers, its `:debug` option, and the errors of its flags."""

import importlib
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from videomae_jax import config as config_lib
from videomae_jax.models import variants
from videomae_jax.training.loop import TASKS

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# Such as digits_pretrain and v2/hybrid_vitb_pretrain.
RECIPES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.py")
    if "def get_config" in path.read_text()
)


def recipe(name):
    """Returns the module of a recipe."""
    return importlib.import_module(f"configs.{name}".replace("/", "."))


def get(name, arg=""):
    return recipe(name).get_config(arg)


def test_recipes_exist():
    k400 = [f"k400_vit{size}_pretrain" for size in "sblh"]
    ssv2 = [f"ssv2_vit{size}_pretrain" for size in "sb"]
    pretraining = {*k400, *ssv2, "ucf101_vitb_pretrain", "digits_pretrain"}
    digits = {f"digits_{name}" for name in ("finetune", "scratch", "linear_probe")}
    finetuning = {name.replace("pretrain", "finetune") for name in pretraining}
    assert pretraining | finetuning | digits <= set(RECIPES)
    assert {"hmdb51_vitb_finetune", "custom_finetune"} <= set(RECIPES)


@pytest.fixture(scope="module")
def videos_list(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    path.write_text("a.mp4 0\nb.mp4 1\n")
    for name in ("a.mp4", "b.mp4"):
        path.with_name(name).touch()
    return str(path)


@pytest.mark.parametrize("option", ["", ":debug"])
@pytest.mark.parametrize("name", RECIPES)
def test_numbers_of_recipes_are_in_range(name, option):
    config_lib.load(f"{ROOT}/configs/{name}.py{option}")


def build(config, videos_list):
    """Returns the task of a recipe, with a list in place of the data set's."""
    config.data.update(train=videos_list, validation=videos_list)
    if config.model.variant == "source":  # which would be downloaded
        config.model.variant = "base"
    if config.task == "pretrain":
        return TASKS[config.task](config)
    config.data.update(test=videos_list, labels="")
    # Without the teacher of a distillation, which would have to be trained first.
    saved = {"class_names": ["0", "1"]} if config.task == "distill" else None
    return TASKS[config.task](config, saved)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_and_documents_its_command(name, videos_list):
    documentation = recipe(name).__doc__
    assert f"python main.py --config=configs/{name}.py" in documentation
    config = get(name)
    assert config.is_locked
    build(config, videos_list)


@pytest.mark.parametrize("name", RECIPES)
def test_debug_is_small_and_valid(name, videos_list):
    config = get(name, "debug")
    task = build(config, videos_list)
    size, frames = config.data.image_size, config.data.num_frames
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), "uint8")
    params, _ = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0), video)
    assert sum(x.size for x in jax.tree.leaves(params)) < 2e6
    assert config.steps <= 20


# Official scripts: global batch, base lr * batch / 256, epochs, stride, mask ratio.
@pytest.mark.parametrize(
    "name, batch, peak, epochs, stride, ratio, decoder_depth",
    [
        ("k400_vits_pretrain", 1024, 6e-4, 1600, 4, 0.9, 4),
        ("k400_vitb_pretrain", 2048, 1.2e-3, 800, 4, 0.9, 4),
        ("k400_vitl_pretrain", 512, 3e-4, 1600, 4, 0.9, 12),
        ("k400_vith_pretrain", 1024, 6e-4, 1600, 4, 0.9, 12),
        ("ssv2_vits_pretrain", 2048, 1.2e-3, 2400, 2, 0.9, 4),
        ("ssv2_vitb_pretrain", 2048, 1.2e-3, 2400, 2, 0.9, 4),
        ("ucf101_vitb_pretrain", 192, 2.25e-4, 3200, 4, 0.75, 4),
    ],
)
def test_recipe_equals_the_official_script(
    name, batch, peak, epochs, stride, ratio, decoder_depth
):
    config = get(name)
    assert config.batch_size == batch and config.epochs == epochs
    assert config.optimizer.base_lr * batch / 256 == pytest.approx(peak)
    assert config.optimizer.min_lr == 1e-5 and config.optimizer.warmup_epochs == 40
    assert (config.optimizer.b1, config.optimizer.b2) == (0.9, 0.95)
    assert config.optimizer.weight_decay == 0.05 and not config.optimizer.clip_norm
    assert (config.data.num_frames, config.data.stride) == (16, stride)
    assert (config.mask.kind, config.mask.ratio) == ("tube", ratio)
    assert not config.mask.decoder_kind
    assert tuple(config.data.crop_scales) == (1, 0.875, 0.75, 0.66)
    assert not config.data.flip
    assert variants.VARIANTS[config.model.variant].decoder_depth == decoder_depth


# Official scripts: global batch, peak lr, epochs, layer decay, drop-path, dropout,
# floor of the lr for a batch of 256, segments.
@pytest.mark.parametrize(
    "name, batch, peak, epochs, decay, drop_path, dropout, floor, segments",
    [
        ("k400_vits_finetune", 384, 7.5e-4, 150, 0.75, 0.1, 0.0, 1e-6, 5),
        ("k400_vitb_finetune", 384, 7.5e-4, 75, 0.75, 0.1, 0.0, 1e-6, 5),
        ("k400_vitl_finetune", 128, 1e-3, 35, 0.75, 0.1, 0.0, 1e-6, 5),
        ("k400_vith_finetune", 512, 2e-3, 50, 0.75, 0.2, 0.5, 1e-5, 5),
        ("ssv2_vits_finetune", 384, 1.5e-3, 40, 0.7, 0.1, 0.0, 1e-6, 2),
        ("ssv2_vitb_finetune", 384, 7.5e-4, 30, 0.75, 0.1, 0.0, 1e-6, 2),
        ("ucf101_vitb_finetune", 128, 2.5e-4, 100, 0.7, 0.2, 0.5, 1e-5, 5),
    ],
)
def test_finetuning_recipe_equals_the_official_script(
    name, batch, peak, epochs, decay, drop_path, dropout, floor, segments
):
    config = get(name)
    assert config.batch_size == batch and config.epochs == epochs
    assert config.optimizer.base_lr * batch / 256 == pytest.approx(peak)
    assert config.optimizer.min_lr == floor and config.optimizer.warmup_epochs == 5
    assert (config.optimizer.b1, config.optimizer.b2) == (0.9, 0.999)
    assert config.optimizer.layer_decay == decay
    assert config.optimizer.weight_decay == 0.05 and not config.optimizer.clip_norm
    assert (config.model.drop_path, config.model.dropout) == (drop_path, dropout)
    assert (config.data.num_frames, config.data.stride) == (16, 4)
    assert config.data.rand_augment == "rand-m7-n4-mstd0.5-inc1"
    assert (config.data.num_samples, config.data.erase) == (2, 0.25)
    assert (config.mix.mixup, config.mix.cutmix) == (0.8, 1)
    assert config_lib.smoothing("softmax", config.loss.smoothing) == 0.1
    something = name.startswith("ssv2")
    assert config.data.frame_sampling == ("uniform" if something else "dense")
    assert config.data.flip == (0.0 if something else 0.5)
    assert (config.evaluation.segments, config.evaluation.crops) == (segments, 3)


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match="'debgu'.*':debug'"):
        get("digits_pretrain", "debgu")


@pytest.mark.parametrize(
    "config, flag, message",
    [
        ("--config={}", "--config.data.trian=x", r"\.trian: .*\.data\.train"),
        ("--config {}", "--config.data.trian=x", r"\.trian: .*\.data\.train"),
        ("--config={}", "--config.batch_size=many", "many"),
    ],
)
def test_misspelt_field_is_refused(config, flag, message):
    file = config.format("configs/digits_pretrain.py:debug").split()
    result = subprocess.run(
        [sys.executable, "main.py", *file, flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr
