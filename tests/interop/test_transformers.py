"""Round trips with Hugging Face's models; needs transformers."""

import dataclasses
import filecmp
import json
import pathlib

import jax
import numpy as np
import pytest

import videomae_jax as vmae
import videomae_jax.__main__
from tests.helpers.models import apply, random_variables
from tests.helpers.videos import moving_noise, video_bytes, write_video
from videomae_jax.data import sampling
from videomae_jax.inference.predict import center_clip, classify
from videomae_jax.interop import processor
from videomae_jax.models.sizes import Framing
from videomae_jax.video.decoder import Video

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers", minversion="5.18")

pytestmark = pytest.mark.slow

# Full widths and depths, few tokens: 4 frames of 32x32 pixels.
CLIP = {"num_frames": 4, "image_size": 32}
SIZES = {
    "small": dict(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        decoder_hidden_size=192,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=768,
    ),
    "base": {},
    # With few layers: those of "base" are enough to see their order.
    "large": dict(
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=2,
        intermediate_size=4096,
        decoder_hidden_size=512,
        decoder_num_attention_heads=8,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=2048,
    ),
}
KINDS = {
    "pretraining": (transformers.VideoMAEForPreTraining, {"use_mean_pooling": False}),
    "mean": (transformers.VideoMAEForVideoClassification, {}),
    "first_token": (
        transformers.VideoMAEForVideoClassification,
        {"use_mean_pooling": False},
    ),
}


def make(kind, folder, size="small", **settings):
    """Saves a transformers model with random weights, none of them 0 or 1."""
    cls, fields = KINDS[kind]
    if kind != "pretraining":
        settings = {"num_labels": 7} | settings
    config = transformers.VideoMAEConfig(**(SIZES[size] | CLIP | fields | settings))
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1 or "mask_token" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return model


def inputs():
    rng = np.random.default_rng(0)
    video = rng.normal(size=(2, 4, 32, 32, 3)).astype(np.float32)
    mask = np.zeros((2, 8), bool)
    mask[0, [0, 1, 3, 5, 7]] = True
    mask[1, [1, 2, 4, 5, 6]] = True
    return video, mask


def theirs(model):
    video, mask = inputs()
    arguments = {
        "pixel_values": torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy())
    }
    if isinstance(model, transformers.VideoMAEForPreTraining):
        arguments["bool_masked_pos"] = torch.from_numpy(mask)
    with torch.no_grad():
        return model(**arguments).logits.numpy()


def ours(loaded):
    video, mask = inputs()
    ids = ()
    if isinstance(loaded.model, vmae.VideoMAE):
        ids = vmae.masking.ids_from_mask(mask)
    return np.asarray(jax.jit(loaded.model.apply)(loaded.variables, video, *ids))


@pytest.mark.parametrize(
    "size, kind",
    [
        *(("small", kind) for kind in KINDS),
        ("base", "pretraining"),
        ("large", "pretraining"),
        ("large", "mean"),
    ],
)
def test_round_trip(tmp_path, size, kind):
    model = make(kind, tmp_path / "theirs", size)
    loaded = vmae.load_pretrained(tmp_path / "theirs")
    assert loaded.format == "huggingface" and not loaded.unused and not loaded.missing
    expected = theirs(model)
    np.testing.assert_allclose(ours(loaded), expected, atol=5e-5)

    vmae.save_pretrained(tmp_path / "ours", loaded, format="huggingface")
    back, report = KINDS[kind][0].from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    np.testing.assert_array_equal(theirs(back.eval()), expected)
    files = [tmp_path / whose / "model.safetensors" for whose in ("ours", "theirs")]
    assert filecmp.cmp(*files, shallow=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 3, "problem_type": "regression"},
        {"num_labels": 1},  # transformers trains it on values too
    ],
    ids=str,
)
def test_values_of_a_regression_are_the_logits(tmp_path, settings):
    model = make("mean", tmp_path / "theirs", num_hidden_layers=2, **settings)
    loaded = vmae.load_pretrained(tmp_path / "theirs")
    assert loaded.problem == vmae.Problem("regression")
    video, _ = inputs()
    np.testing.assert_allclose(classify(loaded, video), theirs(model), atol=5e-5)

    arguments = [str(tmp_path / "theirs"), str(tmp_path / "ours")]
    vmae.__main__.main(["convert", *arguments, "--format=huggingface", "--verify"])
    back = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "ours"
    )
    assert back.config.problem_type == "regression"
    assert back.config.num_labels == settings["num_labels"]
    np.testing.assert_array_equal(theirs(back.eval()), theirs(model))


def test_ours_to_theirs(tmp_path):
    model = vmae.VideoMAE.from_variant("small", depth=2, decoder_depth=1)
    params = random_variables(model)["params"]
    loaded = vmae.Pretrained(
        model, params, preprocessing=vmae.Preprocessing(num_frames=4, image_size=32)
    )
    vmae.save_pretrained(tmp_path, loaded, format="huggingface")
    back, report = transformers.VideoMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    # The config has our epsilon, 1e-6, but not that of the decoder's norm.
    np.testing.assert_allclose(theirs(back.eval()), ours(loaded), atol=1e-4)


def test_labels_and_preprocessing(tmp_path):
    names = {index: f"class {index}" for index in range(7)}
    model = make("mean", tmp_path, id2label=names, label2id={})
    transformers.VideoMAEImageProcessor(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32},
        crop_size=CLIP["image_size"],
    ).save_pretrained(tmp_path)
    loaded = vmae.load_pretrained(tmp_path)
    assert loaded.labels == tuple(names.values())
    assert loaded.preprocessing.num_frames == 4
    assert loaded.preprocessing.image_size == (32, 32)
    # Raw pixels are normalized with the source's mean and deviation, not ImageNet's.
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    floats = (video.astype(np.float32) / 255 - 0.5) / 0.5
    with torch.no_grad():
        tensor = torch.from_numpy(floats.transpose(0, 1, 4, 2, 3).copy())
        expected = model(pixel_values=tensor).logits.numpy()
    logits = apply(loaded.model, loaded.variables, video)
    np.testing.assert_allclose(logits, expected, atol=5e-5)

    vmae.save_pretrained(tmp_path / "ours", loaded, format="huggingface")
    config = transformers.VideoMAEConfig.from_pretrained(tmp_path / "ours")
    assert config.id2label == names
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_mean) == [0.5] * 3
    assert processor.size["shortest_edge"] == 32


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
WIDE = {"height": 32, "width": 64}
PROCESSORS = {
    "crop": CROP | IMAGENET,
    "squash": {"size": {"height": 32, "width": 32}, "do_center_crop": False} | IMAGENET,
    "larger edge": CROP | {"size": {"shortest_edge": 41}} | IMAGENET,
    "half": CROP | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "wide": {"size": WIDE, "do_center_crop": False} | IMAGENET,
    # Partly black. By an odd number of pixels, transformers' two kinds of processor
    # differ about where the last one is.
    "wide crop": {"size": {"shortest_edge": 46}, "crop_size": WIDE} | IMAGENET,
    "no resize": CROP | {"do_resize": False} | IMAGENET,
    "larger than the frame": {"do_resize": False, "crop_size": WIDE | {"height": 80}},
    "bicubic": CROP | {"resample": 3} | IMAGENET,
    "no rescale": CROP
    | {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_predict_sees_what_the_processor_makes(tmp_path, name):
    settings = PROCESSORS[name]
    size = settings.get("crop_size", settings.get("size"))
    image_size = [size["height"], size["width"]]
    model = make("mean", tmp_path, num_hidden_layers=2, image_size=image_size)
    with torch.no_grad():  # otherwise, all classes would be nearly as likely
        model.classifier.weight.mul_(10)
    model.save_pretrained(tmp_path)
    process = transformers.VideoMAEImageProcessor(**settings)
    process.save_pretrained(tmp_path)
    loaded = vmae.load_pretrained(tmp_path)
    for frame_size in ((60, 90), (90, 60), (64, 64)):
        video = video_bytes(moving_noise(40, *frame_size))
        with Video(video) as opened:
            frames = opened.read(sampling.dense_center_indices(40, 4, 4))
        pixels = process([list(frames)], return_tensors="pt").pixel_values
        mean, std = loaded.model.pixel_mean, loaded.model.pixel_std
        clip = (center_clip(loaded, video) / 255 - mean) / std
        difference = np.abs(clip - pixels[0].numpy().transpose(0, 2, 3, 1))
        # With torchvision, transformers rounds some resized pixels otherwise.
        assert (255 * difference * std).max() < 1.01
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits.softmax(-1)[0].numpy()
        top = dict(vmae.predict(loaded, video, segments=1, crops=1, top_k=7))
        result = np.array([top[f"class {i}"] for i in range(7)])
        assert result.argmax() == expected.argmax()
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-3)


def test_verify_compares_with_the_source(tmp_path, capsys, monkeypatch):
    clip = tmp_path / "clip.mp4"
    write_video(clip, moving_noise(8, 48, 64))

    def convert(kind, *arguments):
        source, target = tmp_path / kind, tmp_path / f"{kind}{len(arguments)}"
        make(kind, source, num_hidden_layers=1, decoder_num_hidden_layers=1)
        process = transformers.VideoMAEImageProcessor(**PROCESSORS["larger edge"])
        process.save_pretrained(source)
        arguments = ["convert", str(source), str(target), "--verify", *arguments]
        status = vmae.__main__.main([*arguments, "--format=jax"])
        return status, "".join(capsys.readouterr())

    status, printed = convert("pretraining")
    assert status == 0 and "verified with the source in transformers" in printed
    assert "the source's processor on a video: pixels agree to" in printed
    # A fault of ours in following the processor.
    monkeypatch.setattr(processor, "_framing", lambda settings: Framing(32))
    status, printed = convert("mean", f"--clip={clip}")
    assert status == 1 and f"pixels of {clip} differ by" in printed


def test_encoder_alone_returns_the_same_tokens(tmp_path):
    make("pretraining", tmp_path / "whole")
    for name in ("whole", "alone"):  # in an autoencoder, and by itself
        encoder = transformers.VideoMAEModel.from_pretrained(tmp_path / "whole")
        encoder.save_pretrained(tmp_path / "alone")
        loaded = vmae.load_pretrained(tmp_path / name)
        video, _ = inputs()
        method = "encode" if name == "whole" else "tokens"
        tokens = apply(loaded.model, loaded.variables, video, method=method)
        pixels = torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy())
        with torch.no_grad():
            expected = encoder.eval()(pixels).last_hidden_state.numpy()
        np.testing.assert_allclose(tokens, expected, atol=5e-5)


def test_sharded_and_older_files(tmp_path):
    model = make("pretraining", tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole = vmae.load_pretrained(tmp_path / "one")
    jax.tree.map(
        np.testing.assert_array_equal,
        vmae.load_pretrained(tmp_path / "shards").params,
        whole.params,
    )
    first = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(vmae.PretrainedError, match=first.name):
        vmae.load_pretrained(tmp_path / "shards")

    older = tmp_path / "older"
    older.mkdir()
    (older / "config.json").write_bytes((tmp_path / "one/config.json").read_bytes())
    torch.save(model.state_dict(), older / "pytorch_model.bin")
    jax.tree.map(
        np.testing.assert_array_equal,
        vmae.load_pretrained(older).params,
        whole.params,
    )


def test_lost_biases_are_refused(tmp_path):
    """Releases 5.5.1 to 5.17 load hub files without the biases, silently."""
    import safetensors.numpy

    make("mean", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    kept = {name: x for name, x in tensors.items() if not name.endswith("_bias")}
    assert len(kept) < len(tensors)
    safetensors.numpy.save_file(kept, file)
    with pytest.raises(vmae.PretrainedError, match="q_bias.*\n.*biases of queries"):
        vmae.load_pretrained(tmp_path)
    # A model that never had biases loads.
    config = json.loads((tmp_path / "config.json").read_text())
    config = {k: v for k, v in config.items() if k != "qv_bias"} | {"qkv_bias": False}
    pathlib.Path(tmp_path / "config.json").write_text(json.dumps(config))
    loaded = vmae.load_pretrained(tmp_path)
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path)
    np.testing.assert_allclose(ours(loaded), theirs(model.eval()), atol=5e-5)


def test_official_scripts_can_load_our_files(tmp_path):
    make("pretraining", tmp_path / "theirs")
    loaded = vmae.load_pretrained(tmp_path / "theirs")
    vmae.save_pretrained(tmp_path / "official", loaded, format="official")
    content = torch.load(tmp_path / "official/checkpoint.pth", weights_only=True)
    weights = content["model"]
    assert weights["encoder.patch_embed.proj.weight"].shape == (384, 3, 2, 16, 16)
    assert weights["mask_token"].shape == (1, 1, 192)
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in weights.values())
    again = vmae.load_pretrained(tmp_path / "official/checkpoint.pth")
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


TINY = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    decoder_hidden_size=24,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=48,
    patch_size=8,
)


@pytest.mark.parametrize("kind", ["pretraining", "mean"])
@pytest.mark.parametrize(
    "channels, size, frames, tubelet",
    [
        (1, (32, 32), 4, 2),
        (1, (24, 40), 4, 2),
        (2, (16, 32), 10, 5),
        (4, (40, 16), 4, 2),
    ],
)
def test_other_channels_and_sizes(tmp_path, kind, channels, size, frames, tubelet):
    settings = TINY | dict(
        num_channels=channels,
        image_size=list(size),
        num_frames=frames,
        tubelet_size=tubelet,
    )
    model = make(kind, tmp_path / "theirs", **settings)
    loaded = vmae.load_pretrained(tmp_path / "theirs")
    assert loaded.model.channels == channels == len(loaded.model.pixel_mean)
    assert loaded.preprocessing.image_size == size
    video = np.random.default_rng(0).normal(size=(2, frames, *size, channels))
    video = video.astype(np.float32)
    pixels = torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy())
    ids, arguments = (), {"pixel_values": pixels}
    if kind == "pretraining":
        mask = np.arange(frames // tubelet * np.prod(size) // 64) % 3 > 0
        mask = np.stack([mask, mask])
        ids = vmae.masking.ids_from_mask(mask)
        arguments["bool_masked_pos"] = torch.from_numpy(mask)
    output = jax.jit(loaded.model.apply)(loaded.variables, video, *ids)
    with torch.no_grad():
        expected = model.eval()(**arguments).logits.numpy()
    np.testing.assert_allclose(output, expected, atol=2e-5)
    # Written back as it was read, with a framing that transformers knows.
    framing = Framing(resize=size, crop=False)
    clips = dataclasses.replace(loaded.preprocessing, framing=framing)
    vmae.save_pretrained(
        tmp_path / "ours", dataclasses.replace(loaded, preprocessing=clips)
    )
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert written["num_channels"] == channels
    assert tuple(np.broadcast_to(written["image_size"], 2)) == size
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        logits = again(**arguments).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-5)
