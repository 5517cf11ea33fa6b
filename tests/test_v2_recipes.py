"""The recipes of VideoMAE V2 build what the official scripts do, number by number."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import main
from tests.helpers import official
from tests.helpers.videos import write_folder
from tests.test_configs import RECIPES, ROOT, get
from videomae_jax import config as config_lib
from videomae_jax.interop.official import entries
from videomae_jax.interop.pretrained import param_shapes
from videomae_jax.models import build, vit
from videomae_jax.training import loop, optimizer, progress, train_step

GOLDEN = json.loads((official.GOLDEN / "v2/schedules.json").read_text())
FINETUNING, PRETRAINING = GOLDEN["finetune"], GOLDEN["pretrain"]
SCRIPTS = PRETRAINING | FINETUNING


def name_of(script):
    """Returns the recipe of a script, such as vit_g_k710_it_ucf101_ft."""
    _, size, *data, task = script.replace("_it_", "_").split("_")
    task = {"ft": "finetune", "pt": "pretrain"}[task]
    return f"v2/{'_'.join(data)}_vit{size}_{task}"


# One GPU with 4 videos is a leftover in a script: the recipe has the batch of its twin.
LEFTOVER, TWIN = "vit_h_k600_ft", "vit_h_k400_ft"


def of_scripts(rows):
    return pytest.mark.parametrize(
        "config, row", [pytest.param(get(name_of(x)), rows[x], id=x) for x in rows]
    )


def test_every_script_has_a_recipe_and_every_recipe_a_script():
    named = {name_of(script) for script in SCRIPTS}
    recipes = {name for name in RECIPES if name.startswith("v2/")}
    # No scripts of the distillation were released, nor of its small student.
    others = {name for name in recipes if name.endswith("_distill")}
    assert named == recipes - others - {"v2/k710_vits_finetune"}
    assert len(named) == 20


def test_each_run_starts_from_that_of_another_recipe():
    for script in SCRIPTS:
        name = name_of(script)
        source = get(name).init.source
        if script in PRETRAINING:
            assert not source
        elif "_it_" in script:
            assert source == "runs/v2/k710_vitg_finetune"
        else:
            assert source == f"runs/v2/hybrid_{name.split('_')[1]}_pretrain"
        assert main.default_name(f"configs/{name}.py") == name
        if source:
            recipe = source.removeprefix("runs/")
            debug = main.default_name(f"configs/{recipe}.py:debug")
            assert get(name, "debug").init.source == f"runs/{debug}"


@of_scripts({x: SCRIPTS[x] for x in SCRIPTS if x != LEFTOVER})
def test_steps_and_learning_rates(config, row):
    assert config.batch_size == row["global_batch"]
    total, warmup = progress.count_steps(config, row["videos"])
    assert total == row["steps"] == row["epochs"] * row["steps_per_epoch"]
    assert warmup == row["warmup_epochs"] * row["steps_per_epoch"]
    _, schedule = train_step._optimizer(config, warmup, total)
    steps, rates = zip(*row["lr_at_step"].items(), strict=True)
    with jax.enable_x64(True):
        ours = schedule(np.array(steps, int))
    np.testing.assert_allclose(ours, rates, rtol=1e-9)
    # Training computes in float32, which rounds as the peak rate is rounded.
    ours = schedule(np.array(steps, int))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, rates, rtol=0, atol=2e-7 * row["peak_lr"])


def test_leftover_has_the_settings_of_its_twin():
    ours, twin = (get(name_of(x)).to_dict() for x in (LEFTOVER, TWIN))
    for field in ("train", "validation", "test", "labels"):
        assert "kinetics600" in ours["data"].pop(field)
        assert "kinetics400" in twin["data"].pop(field)
    assert ours == twin
    same = FINETUNING[LEFTOVER].keys() - {
        *("data", "videos", "gpus", "global_batch", "peak_lr", "min_lr"),
        *("steps", "steps_per_epoch", "lr_at_step"),
    }
    assert all(FINETUNING[LEFTOVER][x] == FINETUNING[TWIN][x] for x in same)


@of_scripts(PRETRAINING)
def test_pretraining(config, row):
    assert config.data.num_samples == row["num_sample"]
    assert config.batch_size * config.data.num_samples == row["clips_per_step"]
    assert config.epochs * config.data.num_samples == row["effective_epochs"]
    assert config.optimizer.clip_norm == (row["clip_grad"] or 0)
    assert (config.optimizer.b1, config.optimizer.b2) == (0.9, 0.95)
    assert config.mask.to_dict() == {
        "kind": "tube",
        "ratio": 0.9,
        "decoder_kind": "running_cell",
        "decoder_ratio": 0.5,
    }
    strides = [
        x.get("stride", 4) if isinstance(x, dict) else 4 for x in config.data.train
    ]
    assert config.data.stride == 4 and strides == [4, 2, 4, 4, 4]
    assert "ssv2" in config.data.train[1]["list"]
    assert not config.data.flip


# By the sizes of published files and of the registered models.
@pytest.mark.parametrize(
    "size, count",
    [("b", 94_210_944), ("l", 317_782_016), ("h", 645_659_392), ("g", 1_026_306_560)],
)
def test_pretrained_model_has_the_parameters_of_the_official_one(size, count):
    model = build.autoencoder(get(f"v2/hybrid_vit{size}_pretrain").model)
    assert sum(math.prod(x) for x in param_shapes(model).values()) == count


@of_scripts(FINETUNING)
def test_fine_tuning(config, row):
    assert config.optimizer.clip_norm == (row["clip_grad"] or 0)
    assert (config.optimizer.b1, config.optimizer.b2) == (0.9, 0.999)
    assert config.optimizer.weight_decay == row["weight_decay"]
    assert config.model.dropout == row["head_dropout"]
    assert config.data.num_samples == 2
    if row["data"] == "SSV2":
        assert (config.data.frame_sampling, config.data.flip) == ("uniform", 0.0)
    else:
        assert (config.data.frame_sampling, config.data.flip) == ("dense", 0.5)
        assert config.data.stride == row["sampling_rate"]
    segments = 2 if row["data"] == "SSV2" else 5
    assert (config.evaluation.segments, config.evaluation.crops) == (segments, 3)


@of_scripts(FINETUNING)
def test_layers(config, row):
    model = build.classifier(config.model, num_classes=1)
    assert model.depth == row["depth"]
    blocks = {"norm1": {"scale": np.zeros((model.depth, 1))}}
    params = {"encoder": {"embedding": np.zeros(1), "blocks": blocks}, "head": 0.0}
    scales = optimizer.layer_scales(params, config.optimizer.layer_decay)
    inner = scales["encoder"]
    ours = [inner["embedding"], *inner["blocks"]["norm1"]["scale"].ravel()]
    expected = np.array(row["layer_scale"])
    np.testing.assert_array_equal([*ours, scales["head"]], expected.astype(np.float32))

    # Of many clips, one keeps its branch, which is scaled by 1 / (1 - rate).
    keys = jax.random.split(jax.random.key(0), 64)
    kept = vit.drop_path_scales(keys, model.drop_path, model.depth).max((1, 2))
    rates = row["drop_path_per_block"]
    np.testing.assert_allclose(kept, 1 / (1 - np.array(rates)), rtol=2e-7)


def rates_by_name(config, model):
    """Returns (lr scale, weight decay) of parameters, by their official names.

    The optimizer itself is asked: without a gradient only the decay is left, and the
    first update of Adam is the sign of the gradient.
    """
    shapes = param_shapes(model)
    tx, _ = train_step._optimizer(config, warmup_steps=1, total_steps=2)

    @jax.jit
    def updates(grad, value):
        grads, params = (
            traverse_util.unflatten_dict(
                {path: jnp.full(shapes[path], x) for path in shapes}, sep="/"
            )
            for x in (grad, value)
        )
        tree, _ = tx.update(grads, tx.init(params), params)
        return traverse_util.flatten_dict(tree, sep="/")

    with jax.enable_x64(True):
        scales, decays = updates(1.0, 0.0), updates(0.0, 1.0)

    def value(tree, entry):
        array = np.asarray(tree[entry.path])
        array = array if entry.layer is None else array[entry.layer]
        assert array.min() == array.max()
        return array.max()

    return {
        entry.name: (value(scales, entry), value(decays, entry))
        for entry in entries(shapes)
    }


def test_rates_of_each_parameter_in_fine_tuning():
    golden = GOLDEN["finetune_parameter_groups_of_a_3_block_model"]
    config = get("v2/k710_k400_vitg_finetune")
    assert config.optimizer.layer_decay == golden["layer_decay"]
    assert config.optimizer.weight_decay == golden["weight_decay"]
    config.model.update(width=16, depth=3, heads=2)
    ours = rates_by_name(config, build.classifier(config.model, num_classes=2))
    groups = golden["groups"]
    assert ours.keys() == groups.keys()
    for name, (scale, decay) in ours.items():
        # Scales are float32; Adam's eps of 1e-8 is beside the gradient of 1.
        np.testing.assert_allclose(scale, groups[name]["lr_scale"], rtol=1e-7)
        expected = groups[name]["weight_decay"] * groups[name]["lr_scale"]
        np.testing.assert_allclose(decay, expected, rtol=1e-7)


def test_weight_decay_of_each_parameter_in_pretraining():
    config = get("v2/hybrid_vitb_pretrain")
    config.model.update(width=16, depth=1, heads=2)
    config.model.update(decoder_width=16, decoder_depth=1, decoder_heads=2)
    ours = rates_by_name(config, build.autoencoder(config.model))
    golden = GOLDEN["pretrain_weight_decay"]["groups"]
    # Of cosine attention, which no script switches on.
    expected = {x: golden[x] for x in golden if not x.endswith("attn.scale")}
    assert ours.keys() == expected.keys()
    for name, (scale, decay) in ours.items():
        np.testing.assert_allclose(scale, 1, rtol=2e-8)
        np.testing.assert_allclose(decay, expected[name], rtol=1e-9)


# Half a minute of a core for each of the four runs.
@pytest.mark.slow
def test_debug_runs_follow_each_other(tmp_path, monkeypatch, caplog):
    """From the mixture to Kinetics-400, by the recipes' own paths and no flags."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    names = {
        "k710": ["run", "sit down", "jump"],
        "kinetics400": ["fall", "jump", "Run"],
    }
    for data in ("k710", "ssv2", "ava", "webvid", "own", "kinetics400"):
        folder = tmp_path / "data" / data
        folder.mkdir(parents=True)
        write_folder(folder, 8)
        lines = "".join(f"{i}.mp4 {i % 3}\n" for i in range(8))
        for split in ("train", "val"):
            (folder / f"{split}.txt").write_text(lines)
        (folder / "labels.txt").write_text("\n".join(names.get(data, "abc")))
    for recipe in (
        "hybrid_vitg_pretrain",
        "k710_vitg_finetune",
        "k710_k400_vitg_finetune",
    ):
        file = f"{ROOT}/configs/v2/{recipe}.py:debug"
        workdir = f"runs/{main.default_name(file)}"
        with caplog.at_level("INFO", logger="videomae_jax"):
            loop.train_and_evaluate(config_lib.load(file), workdir)
        assert (tmp_path / workdir / "checkpoints" / "20").is_dir()
    assert "weights from runs/v2/hybrid_vitg_pretrain_debug (step 20" in caplog.text
    assert "weights from runs/v2/k710_vitg_finetune_debug (step 20" in caplog.text
    assert "classes: 2 of 3 by name, from 3 in the source; newly " in caplog.text
