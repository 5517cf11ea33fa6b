"""An export is believed only as far as its config and its digests go."""

import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers.models import random_variables
from tests.interop.test_loading import same

MODEL = vmae.VideoClassifier(16, 1, 2, 3, patch_size=8)


@pytest.fixture(scope="module")
def params():
    return random_variables(MODEL)["params"]


@pytest.fixture
def folder(params, tmp_path):
    clips = vmae.Preprocessing(4, 2, 16, "uniform")
    saved = vmae.Pretrained(MODEL, params, tuple("abc"), clips)
    vmae.save_pretrained(tmp_path, saved, format="jax")
    return tmp_path


def rewrite(folder, section, **fields):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    (content[section] if section else content).update(fields)
    file.write_text(json.dumps(content))


def test_a_flipped_byte_is_refused_by_name(folder):
    file = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    name = "params/encoder/blocks/mlp/fc1/kernel"
    arrays[name].view(np.uint8)[0, 3, 5] ^= 0x40
    safetensors.numpy.save_file(arrays, file)
    message = f"is damaged: by the digests in config.json, {name} is not what was saved"
    with pytest.raises(vmae.PretrainedError, match=message):
        vmae.load_pretrained(folder)
    # As exports of earlier releases.
    content = json.loads((folder / "config.json").read_text())
    del content["crc32"]
    (folder / "config.json").write_text(json.dumps(content))
    vmae.load_pretrained(folder)


def test_parameters_of_64_bits_and_no_xxhash(params, tmp_path, monkeypatch):
    """Digests are of the file; what is loaded has the types that JAX allows."""
    monkeypatch.setitem(sys.modules, "xxhash", None)
    wide = jax.tree.map(np.float64, params)
    clips = vmae.Preprocessing(4, 2, 16)
    saved = vmae.Pretrained(MODEL, wide, preprocessing=clips)
    vmae.save_pretrained(tmp_path, saved, format="jax")
    same(vmae.load_pretrained(tmp_path).params, params)


def test_clips_that_do_not_divide_are_noticed_when_saving(
    folder, params, tmp_path, caplog
):
    odd = vmae.Preprocessing(4, 2, 20)
    saved = vmae.Pretrained(MODEL, params, preprocessing=odd)
    for format in ("jax", "huggingface", "official"):
        with pytest.raises(vmae.PretrainedError, match="do not divide into patches"):
            vmae.save_pretrained(tmp_path / "new", saved, format=format)
    # Earlier releases saved them.
    rewrite(folder, "preprocessing", image_size=20)
    assert vmae.load_pretrained(folder).preprocessing.image_size == (20, 20)
    assert "do not divide into patches" in caplog.text


def test_unknown_fields_are_no_damage(folder):
    with pytest.raises(
        vmae.PretrainedError, match=f"{folder}: VideoClassifier has no field colour$"
    ):
        vmae.load_pretrained(folder, colour="red")


@pytest.mark.parametrize(
    "section, fields, message",
    [
        ("fields", {"width": 0}, "config.json: width=0 must be a whole number"),
        ("fields", {"heads": 7}, "config.json: heads=7 must divide width=16"),
        ("fields", {"depth": 10**9}, "depth=1000000000 must be a whole number from"),
        ("fields", {"depth": 2}, "model.safetensors does not fit the model in its con"),
        (
            "fields",
            {"head_norm_epsilon": float("nan")},
            "head_norm_epsilon=nan must",
        ),
        (
            "fields",
            {"pixel_std": [0.2, 0.0, 0.2]},
            "pixel_std=.*numbers above 0",
        ),
        (
            "fields",
            {"position_size": 10**9},
            "position_size=10{9} must be a",
        ),
        ("preprocessing", {"image_size": 0}, "image_size=0 must be a whole number of"),
        (
            "preprocessing",
            {"image_size": 10**9},
            "image_size=10{9} must be a",
        ),
        ("preprocessing", {"num_frames": 10**9}, "num_frames=1000000000 must be a who"),
        ("preprocessing", {"value_range": [1, 1]}, "value_range=.*the lower one first"),
        (None, {"mask_ratio": 1.5}, "ratio=1.5 must be above 0 and below 1"),
    ],
)
def test_sizes_without_sense_are_refused(folder, section, fields, message):
    rewrite(folder, section, **fields)
    with pytest.raises(vmae.PretrainedError, match=message):
        vmae.load_pretrained(folder)
