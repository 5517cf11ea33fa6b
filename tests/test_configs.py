"""Every recipe: its numbers, its debug form, and what it refuses."""

import importlib
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from videomae_jax.models import vit
from videomae_jax.training.loop import TASKS

ROOT = pathlib.Path(__file__).parent.parent
FILES = (ROOT / "configs").glob("*.py")
RECIPES = sorted(path.stem for path in FILES if "get_config" in path.read_text())


def get(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def test_recipes_are_there():
    k400 = [f"k400_vit{size}_pretrain" for size in "sblh"]
    ssv2 = [f"ssv2_vit{size}_pretrain" for size in "sb"]
    wanted = {*k400, *ssv2, "ucf101_vitb_pretrain", "digits_pretrain"}
    assert wanted <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_and_documents_itself(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"python main.py --config=configs/{name}.py" in module.__doc__
    config = get(name)
    assert config.is_locked
    TASKS[config.task](config)


@pytest.mark.parametrize("name", RECIPES)
def test_debug_is_small_and_still_fits(name):
    config = get(name, "debug")
    task = TASKS[config.task](config)
    size, frames = config.data.image_size, config.data.num_frames
    video = jax.ShapeDtypeStruct((1, frames, size, size, 3), "uint8")
    params = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0), video)
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
    assert config.mask.to_dict() == {"kind": "tube", "ratio": ratio}
    assert tuple(config.data.crop_scales) == (1, 0.875, 0.75, 0.66)
    assert not config.data.flip
    assert vit.VARIANTS[config.model.variant].decoder_depth == decoder_depth


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match="'debgu'.*':debug'"):
        get("digits_pretrain", "debgu")


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.data.trian=x", r"no --config\.data\.trian; .*--config\.data\.train"),
        ("--config.optimizer.lr=1", r"nearest is --config\.optimizer\.\w+_lr"),
        ("--config.batch_size=many", "many"),
    ],
)
def test_misspelt_field_is_refused(flag, message):
    result = subprocess.run(
        [sys.executable, "main.py", "--config=configs/digits_pretrain.py:debug", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr
