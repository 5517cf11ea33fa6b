"""Heads for other classes and clips of other sizes."""

import dataclasses

import jax
import numpy as np
import pytest

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import apply
from videomae_jax.interop import edit_head

NAMES = ("riding a bike", "Making Tea", "run", "jump", "fall", "a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def loaded():
    pretrained = vmae.load_pretrained(official.CHECKPOINTS / "hf_classifier")
    return dataclasses.replace(pretrained, labels=NAMES)


def logits(pretrained):
    video = np.load(official.CHECKPOINTS / "hf_outputs.npz")["video_bcthw_uint8"]
    return apply(pretrained.model, pretrained.variables, official.video(video))


def test_selected_classes_keep_their_logits(loaded):
    adapted = edit_head.select_classes(
        loaded, ["making_tea", "the_plunge", "run"], aliases={"The plunge": "fall"}
    )
    assert adapted.labels == ("making_tea", "the_plunge", "run")
    np.testing.assert_allclose(logits(adapted), logits(loaded)[:, [1, 4, 2]], atol=1e-6)


def test_a_sliced_head_is_the_reference_s():
    """As V2 converts a head of Kinetics-710 to that of another data set."""
    golden = np.load(official.V2 / "head_slicing.npz")
    weight, index = golden["head.weight"], golden["index"]
    model = vmae.VideoClassifier(
        width=weight.shape[1], depth=0, heads=1, num_classes=len(weight)
    )
    head = {"kernel": weight.T, "bias": golden["head.bias"]}
    names = [f"class {i}" for i in range(len(weight))]
    whole = vmae.Pretrained(model, {"head": head}, labels=tuple(names))
    aliases = {"another": names[index[0]]}
    classes = ["another", *(names[i] for i in index[1:])]
    sliced = edit_head.select_classes(whole, classes, aliases=aliases)
    kernel, bias = (sliced.params["head"][name] for name in ("kernel", "bias"))
    np.testing.assert_array_equal(kernel, golden["sliced.weight"].T)
    np.testing.assert_array_equal(bias, golden["sliced.bias"])
    assert sliced.model.num_classes == len(index) and sliced.labels == tuple(classes)


def test_absent_classes_are_listed(loaded):
    with pytest.raises(
        vmae.PretrainedError,
        match="2 of the 3 classes(.|\n)*'runs', perhaps 'run'(.|\n)*'xyz'\n",
    ):
        edit_head.select_classes(loaded, ["runs", "xyz", "jump"])
    nameless = dataclasses.replace(loaded, labels=None)
    with pytest.raises(vmae.PretrainedError, match="have no names"):
        edit_head.select_classes(nameless, ["run"])


def test_new_head_keeps_the_encoder(loaded):
    adapted = edit_head.new_head(loaded, ["x", "y"])
    assert adapted.labels == ("x", "y") and logits(adapted).shape == (2, 2)
    jax.tree.map(
        np.testing.assert_array_equal,
        adapted.params["encoder"],
        loaded.params["encoder"],
    )
    assert edit_head.new_head(loaded, 5).labels is None
    with pytest.raises(vmae.PretrainedError, match="at least one class"):
        edit_head.new_head(loaded, [])


def test_resized_clips(loaded, tmp_path):
    rng = np.random.default_rng(0)
    adapted = edit_head.resize_clips(loaded, num_frames=4, image_size=96)
    assert adapted.preprocessing.num_frames == 4
    assert adapted.model.position_size == (64, 64)
    video = rng.integers(0, 256, (1, 4, 96, 96, 3), np.uint8)
    expected = apply(adapted.model, adapted.variables, video)
    # A round trip keeps the image size that the position table was trained for.
    with pytest.raises(vmae.PretrainedError, match="interpolated position table"):
        vmae.save_pretrained(tmp_path, adapted)
    vmae.save_pretrained(tmp_path, adapted, format="jax")
    again = vmae.load_pretrained(tmp_path)
    np.testing.assert_array_equal(apply(again.model, again.variables, video), expected)
    with pytest.raises(vmae.PretrainedError, match="do not divide"):
        edit_head.resize_clips(loaded, image_size=100)


def test_autoencoders_are_refused():
    loaded = vmae.load_pretrained(official.CHECKPOINTS / "hf_pretrain")
    for change in (
        lambda: edit_head.select_classes(loaded, ["a"]),
        lambda: edit_head.new_head(loaded, 3),
        lambda: edit_head.resize_clips(loaded, num_frames=4),
    ):
        with pytest.raises(vmae.PretrainedError, match="is a pretraining model"):
            change()


def test_imagenet_pixels_keep_the_logits_of_raw_pixels(loaded):
    model = loaded.model.clone(pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.2, 0.1))
    other = dataclasses.replace(loaded, model=model)
    adapted = edit_head.with_pixel_stats(other)
    assert adapted.model == loaded.model
    np.testing.assert_allclose(logits(adapted), logits(other), atol=2e-5)
    assert np.abs(logits(other) - logits(loaded)).max() > 0.01
    assert edit_head.with_pixel_stats(loaded) is loaded
