"""Processor configs of transformers are followed, or refused by name."""

import json
import logging

import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import official
from videomae_jax.interop import edit_head, processor, saving
from videomae_jax.models.sizes import OFFICIAL, Framing

SQUARE = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
SQUASH = {"size": {"height": 64, "width": 64}, "do_center_crop": False}


def write(folder, settings, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "settings, framing",
    [
        (SQUARE, Framing(64, interpolation="bilinear")),
        (SQUARE | {"size": 64, "crop_size": 64}, Framing(64, interpolation="bilinear")),
        (SQUASH, Framing((64, 64), False, "bilinear")),
        (SQUASH | {"size": [64, 64]}, Framing((64, 64), False, "bilinear")),
        (SQUARE | {"size": {"shortest_edge": 80}}, Framing(80, True, "bilinear")),
        (
            SQUARE | {"size": {"height": 72, "width": 96}},
            Framing((72, 96), True, "bilinear"),
        ),
        (SQUARE | {"do_resize": False}, Framing(None, True, "bilinear")),
        (
            SQUARE | {"do_resize": False, "do_center_crop": False},
            Framing(None, False, "bilinear"),
        ),
        (SQUARE | {"do_center_crop": False}, Framing(64, False, "bilinear")),
        (SQUARE | {"resample": 0}, Framing(64, True, "nearest")),
        (SQUARE | {"resample": 1}, Framing(64, True, "lanczos")),
        (SQUARE | {"resample": 3}, Framing(64, True, "bicubic")),
        (SQUARE | {"resample": 5}, Framing(64, True, "hamming")),
        # null: not done, or transformers' default
        (
            SQUARE | {"do_resize": None, "resample": None},
            Framing(None, True, "bilinear"),
        ),
        (SQUARE | {"image_processor_type": None}, Framing(64, True, "bilinear")),
    ],
)
def test_framing_of_a_processor_makes_a_round_trip(tmp_path, settings, framing):
    write(tmp_path, settings)
    stats, read = processor.read(tmp_path, (64, 64), 3)
    assert read == framing
    model = official.classifier(**stats)
    pretrained = vmae.Pretrained(
        model, {}, preprocessing=vmae.Preprocessing(image_size=64, framing=read)
    )
    [(name, content)] = processor.config(pretrained).items()
    write(tmp_path, content, name)
    assert processor.read(tmp_path, (64, 64), 3) == (stats, framing)


def test_sizes_that_are_not_square(tmp_path):
    shape = {"height": 48, "width": 80}
    for settings, framing in (
        ({"size": shape, "do_center_crop": False}, Framing((48, 80), False)),
        ({"size": {"shortest_edge": 66}, "crop_size": shape}, Framing(66)),
    ):
        write(tmp_path, settings)
        _, read = processor.read(tmp_path, (48, 80), 3)
        assert (read.resize, read.crop) == (framing.resize, framing.crop)
        clips = vmae.Preprocessing(image_size=(48, 80), framing=read)
        pretrained = vmae.Pretrained(official.classifier(), {}, preprocessing=clips)
        write(tmp_path, *reversed(*processor.config(pretrained).items()))
        assert processor.read(tmp_path, (48, 80), 3)[1] == read
    # The shorter side alone does not tell how to cover such a size.
    clips = vmae.Preprocessing(image_size=(48, 80))
    pretrained = vmae.Pretrained(official.classifier(), {}, preprocessing=clips)
    with pytest.raises(vmae.PretrainedError, match="cannot resize frames to cover"):
        processor.config(pretrained)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({}, r"crop_size=\(224, 224\).*must be the image_size=\(64, 64\)"),
        (
            {"size": {"height": 32, "width": 64}, "do_center_crop": False},
            "size=.32, 64",
        ),
        (SQUARE | {"size": {"longest_edge": 64}}, "longest_edge.*is not supported"),
        (SQUARE | {"size": {"shortest_edge": 64, "longest_edge": 99}}, "not supported"),
        (SQUARE | {"size": 0}, "resize=0 must be a whole number"),
        (SQUARE | {"size": "large"}, "size='large' must be"),
        (SQUARE | {"crop_size": {"height": 64}}, "'width'"),
        (SQUARE | {"resample": 6}, "resample=6 must be one of"),
        (SQUARE | {"image_mean": [0.5, 0.5]}, "image_mean=.*each of 3 channels"),
        (SQUARE | {"image_std": [0.5, None, 0.5]}, "preprocessor_config.json"),
        (
            SQUARE | {"image_processor_type": "VivitImageProcessor"},
            "'VivitImageProcessor' is not supported",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, settings, match):
    write(tmp_path, settings)
    with pytest.raises(vmae.PretrainedError, match=match) as error:
        processor.read(tmp_path, (64, 64), 3)
    assert "remove it to use this library's preprocessing" in str(error.value)


def test_files_that_are_not_configs_are_refused(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(vmae.PretrainedError, match="JSON"):
            processor.read(tmp_path, (64, 64), 3)


def test_without_a_processor(tmp_path):
    assert processor.read(tmp_path, (64, 64), 3) == ({}, OFFICIAL)
    half = {"pixel_mean": (0.5,) * 2, "pixel_std": (0.5,) * 2}
    assert processor.read(tmp_path, (64, 64), 2) == (half, OFFICIAL)


def test_the_processor_that_transformers_takes_wins(tmp_path, caplog):
    """In the order of `BaseVideoProcessor.get_video_processor_dict` (5.24)."""
    nested = {"image_processor": SQUARE | {"image_mean": 0.1}, "tokenizer": {}}
    files = [
        ("processor_config.json", nested, 0.1, "image_processor"),
        ("preprocessor_config.json", SQUARE | {"image_mean": 0.2}, 0.2, None),
        ("video_preprocessor_config.json", SQUARE | {"image_mean": 0.3}, 0.3, None),
        (
            "processor_config.json",
            nested | {"video_processor": SQUARE | {"image_mean": 0.4}},
            0.4,
            "video_processor",
        ),
    ]
    for count, (name, content, mean, section) in enumerate(files):
        write(tmp_path, content, name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            stats, _ = processor.read(tmp_path, (64, 64), 3)
        assert stats["pixel_mean"] == (mean,) * 3
        assert len(caplog.messages) == count
        for message in caplog.messages:
            assert "differ in image_mean; using " + name in message
            assert section is None or section in message
    # Files that agree are no reason to warn.
    write(tmp_path, SQUARE | {"image_mean": 0.4})
    write(tmp_path, SQUARE | {"image_mean": 0.4}, "video_preprocessor_config.json")
    write(tmp_path, {"video_processor": SQUARE | {"image_mean": 0.4}}, files[0][0])
    caplog.clear()
    processor.read(tmp_path, (64, 64), 3)
    assert not caplog.messages


def test_loading_and_every_format_keep_the_framing(tmp_path):
    folder = official.rewritten(tmp_path)
    write(folder, SQUASH | {"resample": 3})
    loaded = vmae.load_pretrained(folder)
    assert loaded.preprocessing.framing == Framing((64, 64), False, "bicubic")
    for format in ("huggingface", "jax"):
        vmae.save_pretrained(tmp_path / format, loaded, format=format)
        again = vmae.load_pretrained(tmp_path / format)
        assert again.preprocessing == loaded.preprocessing
    with pytest.raises(vmae.PretrainedError, match="resize=.64, 64. with crop=False"):
        vmae.save_pretrained(tmp_path / "official", loaded, format="official")
    larger = edit_head.resize_clips(loaded, image_size=96)
    assert larger.preprocessing.framing == Framing((96, 96), False, "bicubic")
    with pytest.raises(ValueError, match="crop=False must be the image_size"):
        vmae.Preprocessing(image_size=96, framing=loaded.preprocessing.framing)


def test_encoders_of_v2_on_the_hub_have_a_processor_too(tmp_path):
    file = official.CHECKPOINTS / "official_finetune.pth"
    loaded = vmae.load_pretrained(file, heads=3)
    tensors = saving.official_tensors(loaded)
    tensors = {f"model.{name}": x.copy() for name, x in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    sizes = {"num_heads": 3, "img_size": 64, "num_frames": 8, "layer_norm_eps": 1e-6}
    write(tmp_path, {"model_config": sizes}, "config.json")
    write(tmp_path, SQUASH | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    again = vmae.load_pretrained(tmp_path)
    assert again.format == "official" and again.model.heads == 3
    assert again.preprocessing.framing == Framing((64, 64), False, "bilinear")
    assert again.model.pixel_std == (0.25,) * 3


def test_unusual_heads_are_loaded_with_a_warning(tmp_path, caplog):
    folder = official.small_with_16_heads(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert vmae.load_pretrained(folder).model.heads == 16
    [message] = caplog.messages
    assert "heads=16 by its config, but the published" in message
    assert message.endswith(
        "has 6; if its outputs are wrong, pass heads=6 (in training, "
        "--config.model.heads=6)"
    )
    caplog.clear()
    assert vmae.load_pretrained(folder, heads=6).model.heads == 6
    assert not caplog.messages
