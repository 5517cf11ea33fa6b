"""Saved models are read again as they were, in every format."""

import json

import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import apply, random_variables
from tests.interop.test_loading import CHECKPOINTS, MODELS, same


@pytest.mark.parametrize("name", ["hf_classifier", "hf_pretrain"])
def test_hugging_face_files_are_written_byte_for_byte(tmp_path, name):
    loaded = vmae.load_pretrained(CHECKPOINTS / name)
    vmae.save_pretrained(tmp_path, loaded, format="huggingface")
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == (CHECKPOINTS / name / "model.safetensors").read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((CHECKPOINTS / name / "config.json").read_text())
    if name == "hf_classifier":  # its config has fields of a decoder it lacks
        theirs = {k: v for k, v in theirs.items() if not k.startswith("decoder_")}
    else:
        theirs.pop("id2label"), theirs.pop("label2id")
    assert config == theirs | {"architectures": config["architectures"]}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_format(tmp_path, name):
    model, params = MODELS[name], random_variables(MODELS[name])["params"]
    saved = vmae.Pretrained(
        model,
        params,
        labels=tuple("abcdefg") if getattr(model, "num_classes", 0) else None,
        preprocessing=vmae.Preprocessing(8, 2, 2 * model.patch_size, "uniform"),
    )
    vmae.save_pretrained(tmp_path / "jax", saved, format="jax")
    loaded = vmae.load_pretrained(tmp_path / "jax")
    assert loaded.model == model and loaded.labels == saved.labels
    assert loaded.preprocessing == saved.preprocessing
    same(loaded.params, params)

    if name == "headless":
        with pytest.raises(vmae.PretrainedError, match="format='jax'"):
            vmae.save_pretrained(tmp_path / "theirs", saved)
        return
    vmae.save_pretrained(tmp_path / "theirs", saved)
    tensors = safetensors.numpy.load_file(tmp_path / "theirs/model.safetensors")
    assert not [tensor for tensor in tensors if "position" in tensor]
    loaded = vmae.load_pretrained(tmp_path / "theirs", head_norm_epsilon=1e-6)
    same(loaded.params, params)
    assert loaded.labels == saved.labels
    if isinstance(model, vmae.VideoMAE):
        loaded_model = loaded.model.clone(
            mlp_ratio=model.mlp_ratio, decoder_mlp_ratio=model.decoder_mlp_ratio
        )
        hidden = [int(88 * r) for r in (loaded.model.mlp_ratio, model.mlp_ratio)]
        assert hidden[0] == hidden[1]
    else:
        loaded_model = loaded.model
    assert loaded_model == model


def test_batch_stats_and_attentive_heads_are_exported(tmp_path):
    model = vmae.VideoClassifier(
        16, 1, 2, 3, pooling="attentive", head_norm="batch", patch_size=8
    )
    video = np.zeros((1, 2, 16, 16, 3), np.uint8)
    variables = random_variables(model)
    saved = vmae.Pretrained(
        model, variables["params"], batch_stats=variables["batch_stats"]
    )
    vmae.save_pretrained(tmp_path, saved, format="jax")
    loaded = vmae.load_pretrained(tmp_path)
    np.testing.assert_array_equal(
        apply(loaded.model, loaded.variables, video), apply(model, variables, video)
    )
    for format in ("huggingface", "official"):
        with pytest.raises(vmae.PretrainedError, match="format='jax'"):
            vmae.save_pretrained(tmp_path / format, saved, format=format)


def test_export_with_the_old_name_of_frame_sampling_loads(tmp_path):
    model = MODELS["mean"]
    preprocessing = vmae.Preprocessing(8, 2, 32, "uniform")
    saved = vmae.Pretrained(
        model, random_variables(model)["params"], preprocessing=preprocessing
    )
    vmae.save_pretrained(tmp_path, saved, format="jax")
    config = json.loads((tmp_path / "config.json").read_text())
    fields = config["preprocessing"]
    fields["frames"] = fields.pop("frame_sampling")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vmae.load_pretrained(tmp_path).preprocessing == preprocessing


def test_multi_label_survives_a_round_trip(tmp_path):
    folder = official.rewritten(tmp_path, problem_type="multi_label_classification")
    loaded = vmae.load_pretrained(folder)
    assert loaded.problem == vmae.Problem("multi_label_classification")
    vmae.save_pretrained(tmp_path / "again", loaded)
    assert vmae.load_pretrained(tmp_path / "again").problem == loaded.problem

    vmae.save_pretrained(tmp_path / "old", loaded, format="jax")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    del config["problem"]
    config["multi_label"] = True  # as earlier releases wrote it
    file.write_text(json.dumps(config))
    assert vmae.load_pretrained(tmp_path / "old").problem == loaded.problem


@pytest.mark.parametrize("format", ["huggingface", "jax"])
def test_a_single_class_stays_a_class(tmp_path, format):
    """transformers takes one output without a `problem_type` for a value."""
    model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=1)
    saved = vmae.Pretrained(model, random_variables(model)["params"], labels=("fall",))
    vmae.save_pretrained(tmp_path, saved, format=format)
    loaded = vmae.load_pretrained(tmp_path)
    assert loaded.problem == vmae.Problem() and loaded.labels == ("fall",)


def test_heads_that_the_caller_changes_are_told(tmp_path):
    model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=1)
    saved = vmae.Pretrained(model, random_variables(model)["params"])
    vmae.save_pretrained(tmp_path, saved, format="jax")
    loaded = vmae.load_pretrained(tmp_path, heads=4, decoder_heads=2)
    assert (loaded.model.heads, loaded.stated) == (4, {"heads": 2})
