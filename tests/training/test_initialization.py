"""Sources of initial weights: their sizes, how far they got, and when they are gone."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from configs import common, custom_finetune
from tests.helpers import official
from tests.training import test_finetune
from tests.training.test_finetune import folder  # noqa: F401
from videomae_jax import checkpointing
from videomae_jax import config as config_lib
from videomae_jax.__main__ import main
from videomae_jax.errors import CheckpointError, ConfigError, RecordError
from videomae_jax.interop import saving
from videomae_jax.interop.assemble import param_shapes
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.interop.saving import save_pretrained
from videomae_jax.models import build
from videomae_jax.models.mae import VideoMAE
from videomae_jax.training import initialization, loop, train_step
from videomae_jax.training.tasks import finetune

CHECKPOINTS = official.GOLDEN / "checkpoints"


def of_source(folder, source, **overrides):
    """A config that gives no size."""
    none = dict.fromkeys(("width", "depth", "heads"))
    fields = {"model.variant": "source", "init.source": str(source)} | overrides
    config = test_finetune.tiny(folder)
    config.model.update(none, position_size=224)
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("name", ["hf_pretrain", "hf_classifier"])
def test_sizes_are_those_of_the_source(folder, name, tmp_path):
    source = CHECKPOINTS / name
    config = of_source(folder, source, **{"data.num_frames": 8, "data.image_size": 64})
    config = initialization.with_source_sizes(config, tmp_path)
    theirs = load_pretrained(source)
    model = build.classifier(config.model, 5)
    for field in (
        *("width", "depth", "heads", "patch_size", "tubelet_size", "mlp_ratio"),
        *("channels", "pixel_mean", "pixel_std", "norm_epsilon", "head_norm_epsilon"),
    ):
        assert getattr(model, field) == getattr(theirs.model, field), field
    assert config.model.position_size == theirs.preprocessing.image_size
    # What is saved with a checkpoint is read back as the same model.
    saved = json.loads(config.to_json())["model"]
    assert build.classifier(type(config)(saved), 5) == model


@pytest.mark.slow
def test_a_run_keeps_the_sizes_of_its_source(folder, tmp_path):
    """It resumes, and is tested, when the source is gone."""
    source = tmp_path / "source"
    save(test_finetune.tiny(folder), source, step=8)
    config = of_source(folder, source, **{"model.heads": 3})
    resolved = initialization.with_source_sizes(config, tmp_path / "run")
    assert (resolved.model.width, resolved.model.depth) == (24, 2)
    assert resolved.model.position_size == (32, 32)
    save(resolved, tmp_path / "run", step=3)
    shutil.rmtree(source)
    again = initialization.with_source_sizes(config, tmp_path / "run")
    assert json.loads(again.to_json()) == json.loads(resolved.to_json())
    model = load_pretrained(tmp_path / "run").model
    assert (model.width, model.position_size) == (24, (32, 32))


@pytest.mark.parametrize("heads", [None, 3])
def test_a_run_keeps_the_variant_of_its_recipe(folder, tmp_path, heads):
    """Recipes named a variant once where they say `source` now: `custom_finetune`."""
    old = test_finetune.tiny(folder, **{"model.variant": "tiny"})
    old.model.update(width=None, depth=None, heads=heads)
    saved = json.loads(old.to_json())
    for field in ("channels", "pixel_mean", "pixel_std", "norm_epsilon"):
        del saved["model"][field]
    checkpoints = checkpointing.Checkpoints(str(tmp_path))
    checkpoints.save(3, {"params": {"x": jnp.zeros(2)}}, {"config": saved})
    checkpoints.close()
    now = initialization.with_source_sizes(of_source(folder, "/gone"), tmp_path)
    assert json.loads(now.model.to_json()) == json.loads(old.model.to_json())
    assert build.classifier(now.model, 3) == build.classifier(old.model, 3)
    config_lib.check_same_model(str(tmp_path), saved, now)
    # Sizes of the command line are kept, and compared.
    other = of_source(folder, "/gone", **{"model.width": 48})
    other = initialization.with_source_sizes(other, tmp_path)
    with pytest.raises(CheckpointError, match="config.model.width=48, .* is None"):
        config_lib.check_same_model(str(tmp_path), saved, other)


@pytest.mark.parametrize("source", ["MCG-NJU/videomae-base", "/gone", ""])
def test_only_runs_are_tested(folder, source, tmp_path, monkeypatch):
    """A misspelt work directory is named: neither is the source read, nor the list."""
    monkeypatch.setattr(initialization.loading, "read", None)  # would download
    config = of_source(folder, source, mode="eval", **{"data.train": "/gone/list.txt"})
    message = f"--workdir={tmp_path / 'misspelt'}: no checkpoint found"
    with pytest.raises(CheckpointError, match=message):
        loop.run(config, str(tmp_path / "misspelt"))
    # Nor is a pretraining run.
    saved = json.loads(common.debug(common.pretrain()).to_json())
    checkpoints = checkpointing.Checkpoints(str(tmp_path / "pretrained"))
    checkpoints.save(3, {"params": {"x": jnp.zeros(2)}}, {"config": saved})
    checkpoints.close()
    with pytest.raises(CheckpointError, match="must be of a fine-tuning run"):
        loop.run(config, str(tmp_path / "pretrained"))


def save(config, workdir, *, step, **meta):
    """Saves a checkpoint of an untrained classifier; returns its state."""
    task = finetune.Finetuning(config)
    params, batch_stats = task.init(jax.random.key(0), train_step.dummy_clip(config))
    state = train_step.TrainState(step, params, (), batch_stats)
    items = {name: x for name, x in state.items().items() if name != "opt_state"}
    checkpoints = checkpointing.Checkpoints(str(workdir), keep_last=2)
    meta |= {"config": json.loads(config.to_json())} | task.meta
    checkpoints.save(step, items, meta)
    checkpoints.close()
    return task, state


@pytest.mark.parametrize(
    "meta, warned",
    [
        ({"total_steps": 9}, True),
        ({"total_steps": 9, "complete": True}, False),  # stopped early
        ({"total_steps": 3}, False),
        ({}, True),  # of an earlier release: config.steps=8
    ],
)
def test_a_source_that_is_not_complete_is_named(
    folder, tmp_path, meta, warned, caplog, monkeypatch
):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    config = test_finetune.tiny(folder)
    task, state = save(config, tmp_path / "source", step=3, **meta)
    config.init.source = str(tmp_path / "source")
    with caplog.at_level("WARNING", logger="videomae_jax"):
        task.load_source(state.params)
    total = meta.get("total_steps", 8)
    line = f"config.init.source={config.init.source} is not complete: step 3 of {total}"
    assert (line in caplog.messages) == warned


@pytest.mark.slow
def test_statistics_of_a_probe_are_read_back(folder, tmp_path):
    fields = {"freeze": "^encoder/", "model.head_norm": "batch"}
    config = test_finetune.tiny(folder, **fields)
    task, state = save(config, tmp_path, step=3)
    loaded = load_pretrained(tmp_path)
    assert loaded.batch_stats["norm"].keys() == {"mean", "var"}
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(
        loaded.model.apply(loaded.variables, video),
        task.model.apply(state.evaluated_variables, video),
    )


@pytest.mark.slow
def test_commands_choose_a_step(folder, tmp_path, capsys):
    for step in (3, 5):
        save(test_finetune.tiny(folder), tmp_path, step=step, best={"step": 3})
    for step in ("best", "3", "last"):
        assert main(["inspect", str(tmp_path), f"--step={step}"]) == 0
    assert main(["inspect", str(tmp_path), "--step=4"]) == 1
    assert "step=4 not found: " in capsys.readouterr().err
    file = CHECKPOINTS / "hf_pretrain"
    assert main(["inspect", str(file), "--step=best"]) == 1
    assert "step=best needs a work directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source", ["runs/k400_vitb_pretrain", "./weights", "/nowhere/model.pth", "nowhere"]
)
def test_a_source_that_is_gone_is_not_looked_up_elsewhere(
    folder, source, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(initialization.loading, "read", None)  # would download
    with pytest.raises(CheckpointError) as error:
        test_finetune.start(folder, source)
    message = str(error.value)
    assert message.startswith(f"config.init.source={source} not found; expected")
    assert "Empty (--config.init.source=) trains from scratch" in message


def test_the_default_source_is_one_that_everybody_has(folder, monkeypatch):
    """On a machine without network, one line says what to do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = custom_finetune.get_config()
    source = config.init.source
    with pytest.raises(RecordError, match="data/custom/train.txt"):  # that first
        initialization.with_source_sizes(config, folder / "no run")
    config.data.train = str(folder / "good.txt")
    assert source == "MCG-NJU/videomae-base"

    def unreachable(*_, **__):
        raise initialization.PretrainedError("the hub cannot be reached")

    monkeypatch.setattr(initialization.loading, "read", unreachable)
    with pytest.raises(CheckpointError) as error:
        initialization.with_source_sizes(config, folder / "no run")
    assert str(error.value) == (
        f"config.init.source={source}: the hub cannot be reached. Empty "
        "(--config.init.source=) trains from scratch"
    )
    config.init.source = ""
    with pytest.raises(ConfigError, match="variant=source needs config.init.source"):
        initialization.with_source_sizes(config, folder / "no run")
    with pytest.raises(ConfigError, match="name a variant here"):
        build.classifier(config.model, 2)
    assert not custom_finetune.get_config("debug").init.source


def autoencoder_config(source, **overrides):
    """A config of pretraining that gives no size."""
    config = common.pretrain()
    config.data.update(num_frames=8, image_size=64)
    config.model.variant = "source"
    config.init.source = str(source)
    config.update_from_flattened_dict(overrides)
    return config


def initialized(config, workdir):
    """Loads the source of a config into its model; returns the module."""
    config = initialization.with_source_sizes(config, workdir)
    is_autoencoder = "decoder_heads" in config.model
    model = (
        build.autoencoder(config.model)
        if is_autoencoder
        else build.classifier(config.model, 2)
    )
    shapes = param_shapes(model)
    params = unflatten_dict({x: jnp.zeros(shapes[x]) for x in shapes}, sep="/")
    options = {} if is_autoencoder else {"load_head": False}
    loaded, _ = initialization.load(
        config.init.source, params, config=config.model, **options
    )
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    return model


@pytest.fixture
def train_list(monkeypatch):
    """Lists are read before a source; here only the source counts."""
    monkeypatch.setattr(initialization.mixture, "load", lambda *_, **__: [])


@pytest.mark.parametrize("name", ["hf_pretrain", "official_pretrain.pth"])
@pytest.mark.parametrize("variant", ["source", "base"])
def test_pretraining_starts_from_every_autoencoder(train_list, tmp_path, name, variant):
    """Their decoder's ratio is a number, that of the config the encoder's."""
    heads = {"model.heads": 3, "model.decoder_heads": 2}
    sizes = {"model.width": 48, "model.depth": 2}
    sizes |= {"model.decoder_width": 32, "model.decoder_depth": 2}
    overrides = heads | (sizes if variant == "base" else {})
    config = autoencoder_config(CHECKPOINTS / name, **overrides)
    config.model.variant = variant
    model = initialized(config, tmp_path)
    assert (model.heads, model.decoder_heads) == (3, 2)


def test_the_ratio_of_a_decoder_is_taken_and_compared(train_list, tmp_path):
    sizes = {"width": 24, "depth": 1, "heads": 3}
    sizes |= {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 3}
    model = VideoMAE(**sizes, decoder_mlp_ratio=2.0)
    clips = Preprocessing(8, 2, 32)
    shapes = param_shapes(model)
    params = unflatten_dict({x: np.zeros(shapes[x], "f") for x in shapes}, sep="/")
    trained = Pretrained(model, params, preprocessing=clips)
    save_pretrained(tmp_path / "source", trained, format="jax")
    config = autoencoder_config(tmp_path / "source")
    assert initialized(config, tmp_path / "run").decoder_mlp_ratio == 2
    config.model.decoder_mlp_ratio = 4.0
    message = "config.model.decoder_mlp_ratio=4.0 must be 2.0, as in the source"
    with pytest.raises(CheckpointError, match=message):
        initialized(config, tmp_path / "run")


def test_pretraining_of_v2s_giant_goes_on(train_list, tmp_path):
    """Its decoder's MLPs have int(512 * 48 / 11) = 2234 values, here 170 of 39."""
    sizes = {"width": 22, "depth": 1, "heads": 2}
    sizes |= {"decoder_width": 39, "decoder_depth": 1, "decoder_heads": 3}
    model = VideoMAE(**sizes, patch_size=14, mlp_ratio=48 / 11)
    shapes = param_shapes(model)
    params = unflatten_dict({x: np.zeros(shapes[x], "f") for x in shapes}, sep="/")
    tensors = saving.official_tensors(Pretrained(model, params))
    tensors = {x: np.ascontiguousarray(tensors[x]) for x in tensors}
    safetensors.numpy.save_file(tensors, tmp_path / "giant.safetensors")
    overrides = {f"model.{name}": x for name, x in sizes.items()}
    config = autoencoder_config(tmp_path / "giant.safetensors", **overrides)
    config.data.image_size = 28
    config.model.variant = "giant"
    assert initialized(config, tmp_path / "run").mlp_ratio == 48 / 11


def test_pretraining_needs_a_decoder(train_list, tmp_path):
    config = autoencoder_config(CHECKPOINTS / "hf_classifier")
    with pytest.raises(ConfigError, match="source .*hf_classifier.* has no decoder"):
        initialization.with_source_sizes(config, tmp_path)


def test_heads_of_the_config_correct_those_of_the_source(folder, tmp_path, caplog):
    source = official.small_with_16_heads(tmp_path)
    fields = {"data.num_frames": 8, "data.image_size": 64}
    config = of_source(folder, source, **fields)
    initialization.log.propagate = True
    with caplog.at_level("WARNING"):
        assert initialized(config, tmp_path / "run").heads == 16
        # The source is read once, and its warning shown once.
        [message] = [x for x in caplog.messages if "by its config" in x]
        assert "--config.model.heads=6" in message
        caplog.clear()
        config.model.heads = 6
        assert initialized(config, tmp_path / "run").heads == 6
        [message] = [x for x in caplog.messages if "heads" in x]
    assert "config.model.heads=6 is used" in message and "says 16" in message
    config.model.update(variant="small", depth=2, mlp_ratio=64 / 384, heads=None)
    config.model.position_size = 64
    with pytest.raises(CheckpointError, match="heads=6 must be 16"):
        initialized(config, tmp_path / "run")
    config.model.heads = 6
    assert initialized(config, tmp_path / "run").heads == 6
    config.model.heads = 4
    with pytest.raises(CheckpointError, match="heads=4 must be 16"):
        initialized(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["official_pretrain.pth", "official_finetune.pth"])
def test_a_source_that_states_no_heads_takes_the_configs(folder, tmp_path, name):
    fields = {"data.num_frames": 8, "data.image_size": 64}
    config = of_source(folder, CHECKPOINTS / name, **fields)
    with pytest.raises(CheckpointError, match=r"--config.model.heads=<number>\)"):
        initialized(config, tmp_path)
    config.model.heads = 3
    assert initialized(config, tmp_path).heads == 3


def test_a_source_is_read_once(folder, tmp_path, monkeypatch):
    reads, original = [], initialization.loading.read

    def read(*arguments, **fields):
        reads.append(arguments)
        return original(*arguments, **fields)

    monkeypatch.setattr(initialization.loading, "read", read)
    fields = {"data.num_frames": 8, "data.image_size": 64}
    config = of_source(folder, CHECKPOINTS / "hf_classifier", **fields)
    initialized(config, tmp_path)
    assert len(reads) == 1
    initialized(config, tmp_path)  # of another run: the file may have changed
    assert len(reads) == 2
