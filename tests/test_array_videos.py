"""Gray 16-bit arrays of non-square size, from lists to predictions."""

import json

import numpy as np
import pytest

from tests.training import test_finetune, test_loop
from videomae_jax import load_pretrained, predict, reconstruct
from videomae_jax.data import pipeline
from videomae_jax.data.clips import clip_shape, pixel_format
from videomae_jax.errors import ConfigError
from videomae_jax.models import flops
from videomae_jax.training import loop
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.tasks.pretrain import Pretraining

one_device = test_loop.one_device
COUNT = 4
FIELDS = {
    "data.image_size": (32, 48),
    "data.value_range": (0, 4095),
    "model.channels": 1,
    "model.pixel_mean": 0.5,
    "model.pixel_std": (0.25,),
    "steps": 2,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 12 bits that move to the left or to the right, and a list of them."""
    folder = tmp_path_factory.mktemp("arrays")
    x, time = np.mgrid[:70], np.arange(12)[:, None, None]
    for i in range(COUNT):
        wave = np.sin((x + 3 * time * (-1) ** i) / 5 + i) + np.zeros((40, 1))
        np.save(folder / f"{i}.npy", np.uint16(2047 * (1 + wave))[..., None])
    lines = [f"{i}.npy {i % 2}\n" for i in range(COUNT)]
    (folder / "list.txt").write_text("".join(lines))
    (folder / "names.txt").write_text("right\nleft\n")
    return folder


def pretraining(folder):
    return test_loop.tiny(folder / "list.txt", **FIELDS)


def finetuning(folder, **overrides):
    lists = dict.fromkeys(("train", "validation", "test"), str(folder / "list.txt"))
    overrides |= {f"data.{name}": value for name, value in lists.items()}
    overrides |= {"data.rand_augment": "", "model.position_size": (32, 48)}
    return test_finetune.tiny(folder, **FIELDS, **overrides)


def test_batches_and_models_have_the_shape_of_the_config(folder):
    for config, make in (
        (pretraining(folder), Pretraining),
        (finetuning(folder), Finetuning),
    ):
        assert clip_shape(config) == (4, 32, 48, 1)
        task = make(config)
        assert task.model.channels == 1 and task.model.pixel_mean == (0.5,)
        with pipeline.batches(
            task.training_lists,
            task.training_clips,
            patch_shape=task.patch_shape,
            batch_size=2,
            seed=0,
            steps=range(1),
            pixels=pixel_format(config),
        ) as batches:
            patches = next(batches).arrays["patches"]
        clips = 2 * config.data.num_samples
        assert patches.shape == (clips, 2 * 2 * 3, 2 * 16 * 16)
        assert patches.dtype == np.uint16 and 10000 < patches.std() < 30000
    tokens = 2 * 2 * 3
    assert task.flops_per_clip == 3 * flops.classification(task.model, tokens)


def test_operations_on_colours_are_refused(folder):
    config = finetuning(folder)
    config.data.rand_augment = "rand-m7-n4-mstd0.5-inc1"
    with pytest.raises(ConfigError, match=r"config\.data\.rand_augment=.* 8 bits: set"):
        Finetuning(config)


@pytest.mark.slow
def test_pretraining_then_finetuning(folder, tmp_path):
    pretrained, finetuned = str(tmp_path / "pre"), str(tmp_path / "fine")
    config = pretraining(folder)
    config.data.validation = config.data.train
    config.data.num_workers = 1
    config.picture.every = 2
    loop.train_and_evaluate(config, pretrained)
    assert np.isfinite([row["loss"] for row in test_loop.metrics(pretrained)]).all()
    assert (tmp_path / "pre/pictures/00000002.png").exists()
    result = reconstruct(load_pretrained(pretrained), str(folder / "0.npy"))
    assert result.reconstruction.shape == (4, 32, 48, 1)
    assert result.reconstruction.dtype == np.uint16

    # At yet another size, whose position table is interpolated.
    config = finetuning(folder)
    config.model.update(width=24, depth=1)
    config.update_from_flattened_dict(
        {"init.source": pretrained, "data.image_size": (48, 32), "log_every": 1}
    )
    loop.train_and_evaluate(config, finetuned)
    metrics = json.loads((tmp_path / "fine/test/metrics.json").read_text())
    assert metrics["videos"] == COUNT and metrics["unreadable"] == 0
    loaded = load_pretrained(finetuned)
    assert loaded.preprocessing.image_size == (48, 32)
    # Files and arrays are the same videos.
    of_file = predict(loaded, str(folder / "1.npy"))
    assert of_file == predict(loaded, np.load(folder / "1.npy"))
    assert {name for name, _ in of_file} == {"right", "left"}
