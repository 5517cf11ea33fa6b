"""Loads action detectors, official ones and MMAction2's, and writes them back."""

import argparse

import jax
import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import random_variables
from videomae_jax.errors import PretrainedError
from videomae_jax.interop import official as official_names
from videomae_jax.interop import saving
from videomae_jax.interop.edit_head import new_head, select_classes
from videomae_jax.models.vit import IMAGENET_MEAN, IMAGENET_STD

SIZES = {"depth": 2, "heads": 4}


def golden(prefix="param/"):
    arrays = np.load(official.GOLDEN / "ava/detector.npz")
    tensors = {x.removeprefix(prefix): arrays[x] for x in arrays if prefix in x}
    return arrays, tensors


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def write(path, tensors):
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Returns the golden detector, loaded from a file of its official names."""
    folder = tmp_path_factory.mktemp("detector")
    return vmae.load_pretrained(write(folder / "a.safetensors", golden()[1]), **SIZES)


def test_official_names(detector):
    assert detector.model == official.detector()
    same(detector.params, official.detector_parameters(golden()[0]))
    assert detector.problem.type == "multi_label_classification"
    assert "80 (without names)" in repr(detector) and "boxes" in repr(detector)


def test_published_file(detector, tmp_path):
    """The scripts save the optimizer and their arguments with the model."""
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    tensors = {x: torch.from_numpy(np.float32(t)) for x, t in golden()[1].items()}
    arguments = {"num_frames": 4, "input_size": 64, "sampling_rate": 2}
    content = {"model": tensors, "optimizer": {}, "epoch": 29, "scaler": {}}
    content["args"] = argparse.Namespace(**arguments, data_set="Kinetics-400")
    torch.save(content, tmp_path / "checkpoint.pth")
    loaded = vmae.load_pretrained(tmp_path / "checkpoint.pth", **SIZES)
    assert loaded.model == detector.model
    same(loaded.params, detector.params)
    clips = loaded.preprocessing
    assert (clips.num_frames, clips.image_size, clips.stride) == (4, (64, 64), 2)
    vmae.save_pretrained(tmp_path / "again", loaded, format="official")
    written = torch.load(tmp_path / "again/checkpoint.pth", weights_only=False)["model"]
    same({x: np.asarray(t) for x, t in written.items()}, {**tensors})


def test_file_of_videomae_v2(tmp_path):
    """Of its ViT-g, in float16, whose boxes are pooled as of patches of 16 pixels."""
    model = vmae.ActionDetector(88, 1, 8, 80, patch_size=14, roi_stride=16)
    params = random_variables(model)["params"]
    params = jax.tree.map(lambda x: np.float32(np.float16(x)), params)
    tensors = saving.official_tensors(vmae.Pretrained(model, params))
    tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    file = write(tmp_path / "vit_g_ps14_ak_ft_ckpt_7_clean.safetensors", tensors)
    # Of the encoders beside it on the hub.
    (tmp_path / "config.json").write_text('{"model_config": {"num_heads": 2}}')
    loaded = vmae.load_pretrained(file, heads=8)
    assert loaded.model == model
    same(loaded.params, params)


@pytest.fixture(scope="module")
def mmaction(tmp_path_factory):
    """Returns the golden detector's weights in MMAction2's layout, and the folder."""
    _, tensors = golden()
    names = {x: official_names.mmaction_tensor_names(x)[0] for x in tensors}
    for leaf in ("weight", "bias"):
        head = tensors[f"head.{leaf}"]
        names[f"head.{leaf}"] = f"roi_head.bbox_head.fc_cls.{leaf}"
        background = np.full_like(head[:1], 7)
        tensors[f"head.{leaf}"] = np.concatenate([background, head])
    tensors = {names[x]: tensors[x] for x in tensors}
    return write(tmp_path_factory.mktemp("mmaction") / "a.safetensors", tensors)


def test_mmaction(detector, mmaction):
    """Its first class is the background, which it does not use either."""
    loaded = vmae.load_pretrained(mmaction, **SIZES)
    assert loaded.format == "mmaction"
    assert loaded.model == detector.model.clone(
        roi_bins=8, roi_aligned=True, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD
    )
    same(loaded.params, detector.params)


def test_own_format(detector, mmaction, tmp_path):
    for loaded in (detector, vmae.load_pretrained(mmaction, **SIZES)):
        vmae.save_pretrained(tmp_path, loaded, format="jax")
        again = vmae.load_pretrained(tmp_path)
        assert again.model == loaded.model and again.problem == loaded.problem
        same(again.params, loaded.params)


def test_formats_that_cannot_hold_it_are_refused(detector, mmaction, tmp_path):
    refused = "{} does not support an action detector.*save the model with format='jax'"
    with pytest.raises(PretrainedError, match=refused.format("transformers")):
        vmae.save_pretrained(tmp_path, detector, format="huggingface")
    theirs = vmae.load_pretrained(mmaction, **SIZES)
    ten = new_head(detector, 10)
    for loaded, field in ((theirs, "roi_bins=8, roi_aligned"), (ten, "num_classes=10")):
        message = refused.format("the official code").replace(".*", f" with {field}.*")
        with pytest.raises(PretrainedError, match=message):
            vmae.save_pretrained(tmp_path, loaded, format="official")
    # It would be read as a detector.
    model = vmae.VideoClassifier(24, 1, 2, 80, pooling="first_token")
    classifier = vmae.Pretrained(model, random_variables(model)["params"])
    with pytest.raises(PretrainedError, match="80 classes of a first token"):
        vmae.save_pretrained(tmp_path, classifier, format="official")
    assert not any(tmp_path.iterdir())


def test_classifiers_of_videos_are_no_detectors(tmp_path):
    model = vmae.VideoClassifier(24, 1, 2, 79, pooling="first_token")
    params = random_variables(model)["params"]
    tensors = saving.official_tensors(vmae.Pretrained(model, params))
    file = write(tmp_path / "a.safetensors", tensors)
    assert vmae.load_pretrained(file, heads=2).model == model


def test_classes_are_selected(detector):
    names = tuple(f"action {i}" for i in range(80))
    named = vmae.Pretrained(detector.model, detector.params, labels=names)
    selected = select_classes(named, ["action 7", "action 3"])
    assert selected.model == detector.model.clone(num_classes=2)
    kernel = detector.params["head"]["kernel"]
    np.testing.assert_array_equal(selected.params["head"]["kernel"], kernel[:, [7, 3]])


def test_what_needs_a_classifier_of_videos_refuses_it(detector):
    video = np.zeros((4, 64, 64, 3), np.uint8)
    for function in (vmae.predict, vmae.timeline):
        with pytest.raises(PretrainedError, match="is a detector of actions in boxes"):
            function(detector, video)
    with pytest.raises(PretrainedError, match="has no classes: use a fine-tuned model"):
        vmae.class_activation(detector, video, class_index=0)
