"""The repr of a loaded model, and the settings it keeps."""

import dataclasses

import numpy as np
import pytest

import videomae_jax as vmae
from tests.helpers.models import random_variables
from videomae_jax.models.sizes import Framing

SIZES = {"width": 8, "depth": 1, "heads": 2, "patch_size": 8}
CLIPS = vmae.Preprocessing(num_frames=4, stride=2, image_size=(16, 24))
LABELS = ("run", "jump", "fall", "swim")


@pytest.fixture(scope="module")
def classifier():
    model = vmae.VideoClassifier(**SIZES, num_classes=4)
    params = {"a": np.zeros((1000, 2)), "b": {"c": np.zeros(3)}}
    return vmae.Pretrained(
        model, params, LABELS, CLIPS, source="a/b", format="huggingface"
    )


def test_repr_is_five_lines_without_weights(classifier):
    assert repr(classifier).splitlines() == [
        "VideoClassifier(width=8, depth=1, heads=2, patch_size=8, tubelet_size=2, "
        "dtype=float32)",
        "  parameters: 2,003",
        "  classes: 4 (run, jump, fall, ...)",
        "  clips: 4 frames of 16x24 pixels, dense sampling with stride 2",
        "  source: a/b (huggingface)",
    ]


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"labels": None}, "  classes: 4 (without names)"),
        ({"labels": LABELS[:2]}, "  classes: 4 (run, jump, ...)"),
        ({"problem": vmae.Problem("regression")}, "  values: 4 (run, jump, fall, ...)"),
        (
            {"problem": vmae.Problem(heads=(("verb", 3), ("noun", 1)))},
            "  classes: 4 (verb 3, noun 1)",
        ),
        (
            {"preprocessing": vmae.Preprocessing(4, 2, 16, "exact", Framing(32))},
            "  clips: 4 frames of 16x16 pixels, exact sampling with stride 2, "
            "resize=32, crop=True, interpolation=opencv",
        ),
        ({"source": "", "format": ""}, "  source: none"),
    ],
)
def test_repr_tells_what_differs(classifier, fields, line):
    lines = repr(dataclasses.replace(classifier, **fields)).splitlines()
    assert len(lines) == 5 and line in lines


def test_repr_of_a_masked_autoencoder(classifier):
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    model = vmae.VideoMAE(**SIZES, **decoder)
    trained = dataclasses.replace(classifier, model=model, mask_ratio=0.5)
    assert repr(trained).splitlines()[2] == "  pretraining: tube mask, ratio 0.5"
    encoder = dataclasses.replace(
        classifier, model=classifier.model.clone(num_classes=0)
    )
    assert repr(encoder).splitlines()[2] == "  classes: none, an encoder"


def test_our_format_keeps_mask_and_ratio(tmp_path):
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    model = vmae.VideoMAE(**SIZES, **decoder)
    params = random_variables(model)["params"]
    made = vmae.Pretrained(model, params, mask="random", mask_ratio=0.6)
    vmae.save_pretrained(tmp_path, made, format="jax")
    loaded = vmae.load_pretrained(tmp_path)
    assert (loaded.mask, loaded.mask_ratio) == ("random", 0.6)
