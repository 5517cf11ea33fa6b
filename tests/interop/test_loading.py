"""Reads and writes every format of the reference weights."""

import collections
import io
import json
import pathlib
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import apply, random_variables
from videomae_jax.interop import loading, saving
from videomae_jax.interop import official as official_names

CHECKPOINTS = official.GOLDEN / "checkpoints"
HEADS = {"heads": 3, "decoder_heads": 2}
MODELS = {
    "autoencoder": vmae.VideoMAE.from_variant(
        "tiny", depth=2, decoder_depth=1, decoder_mlp_ratio=2.0
    ),
    "giant_ratio": vmae.VideoMAE(88, 1, 8, 44, 1, 4, patch_size=14, mlp_ratio=48 / 11),
    "mean": vmae.VideoClassifier(48, 2, 3, 7),
    "first_token": vmae.VideoClassifier(48, 2, 3, 7, pooling="first_token"),
    "headless": vmae.VideoClassifier(48, 2, 3, 0, final_norm=True, head_norm="none"),
}


def golden(name):
    return np.load(official.GOLDEN / f"{name}.npz")


def logits(loaded, arrays, name="video_uint8_bcthw"):
    return apply(loaded.model, loaded.variables, official.video(arrays[name]))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "name", ["official_pretrain.pth", "official_v2_compiled_pretrain.pth"]
)
def test_official_autoencoders(name):
    loaded = vmae.load_pretrained(CHECKPOINTS / name, **HEADS)
    assert isinstance(loaded.model, vmae.VideoMAE) and loaded.format == "official"
    arrays = golden("pretrain_step")
    ids = vmae.masking.ids_from_mask(arrays["mask"])
    video = official.video(arrays["video_uint8_bcthw"])
    prediction = apply(loaded.model, loaded.variables, video, *ids)
    np.testing.assert_allclose(prediction, arrays["prediction"], atol=5e-5)


@pytest.mark.parametrize(
    "name, format, atol",
    [
        ("official_finetune.pth", "official", 5e-5),
        ("official_deepspeed_finetune.pt", "official", 2e-3),  # in half precision
        ("mmaction_finetune.pth", "mmaction", 5e-5),
        ("keras_finetune.h5", "keras", 5e-5),
    ],
)
def test_classifiers(name, format, atol):
    loaded = vmae.load_pretrained(CHECKPOINTS / name, heads=3)
    assert loaded.format == format and loaded.labels is None
    assert loaded.preprocessing.frame_sampling == (
        "mmaction" if format == "mmaction" else "dense"
    )
    arrays = golden("finetune_step")
    np.testing.assert_allclose(logits(loaded, arrays), arrays["logits"], atol=atol)
    assert {x.dtype for x in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}


def test_hugging_face_autoencoder():
    loaded = vmae.load_pretrained(CHECKPOINTS / "hf_pretrain")
    arrays = np.load(CHECKPOINTS / "hf_outputs.npz")
    video = official.video(arrays["video_bcthw_uint8"])
    ids = vmae.masking.ids_from_mask(arrays["mask"])
    prediction = apply(loaded.model, loaded.variables, video, *ids)
    np.testing.assert_allclose(prediction, arrays["pretrain_logits"], atol=5e-5)
    target = vmae.pixel_targets(video, ids[1], patch_size=16, tubelet_size=2)
    loss = vmae.reconstruction_loss(prediction, target)
    np.testing.assert_allclose(loss, arrays["pretrain_loss"], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["hf_classifier", "hf_classifier_transformers_5_5_to_5_17"]
)
def test_hugging_face_classifiers(name):
    loaded = vmae.load_pretrained(CHECKPOINTS / name)
    assert loaded.model.norm_epsilon == 1e-12
    assert loaded.model.head_norm_epsilon == 1e-5
    assert loaded.preprocessing == vmae.Preprocessing(num_frames=8, image_size=64)
    arrays = np.load(CHECKPOINTS / "hf_outputs.npz")
    np.testing.assert_allclose(
        logits(loaded, arrays, "video_bcthw_uint8"),
        arrays["classifier_logits"],
        atol=5e-5,
    )


def test_unequal_masks_are_refused():
    """Hugging Face's model would mix up the clips of a batch instead."""
    mask = golden("pretrain_step")["mask"].copy()
    mask[0, np.argmax(mask[0])] = False
    mask[1, np.argmin(mask[1])] = True
    assert mask.sum() % 2 == 0
    with pytest.raises(ValueError, match="must hide equally many tokens in every clip"):
        vmae.masking.ids_from_mask(mask)


def test_prefixes_of_wrappers_are_removed(tmp_path):
    """Removes prefixes of every kind; finds the heads of published widths."""
    model = vmae.VideoClassifier.from_variant("tiny", 5, depth=1)
    params = random_variables(model)["params"]
    tensors = saving.official_tensors(vmae.Pretrained(model, params))
    for prefix in ("", "module.", "model.", "encoder.", "backbone.", "_orig_mod."):
        file = tmp_path / "model.safetensors"
        renamed = {
            prefix + name: np.ascontiguousarray(x) for name, x in tensors.items()
        }
        safetensors.numpy.save_file(renamed, file)
        loaded = vmae.load_pretrained(file)
        assert loaded.model == model
        same(loaded.params, params)


# Layouts of the files of VideoMAE V2: model, classes, type of the values, key of the
# weights in the file ("" for none), prefix of the names. Sizes and types are those of
# the published files; of the keys, all that the scripts write.
PUBLISHED_V2 = {
    "mae-g/vit_g_hybrid_pt_1200e": ("giant", None, "float32", "model", ""),
    "the same, by torch.compile": ("giant", None, "float32", "model", "_orig_mod."),
    "mae-g/vit_g_hybrid_pt_1200e_k710_ft": ("giant", 710, "float16", "module", ""),
    "mae-g/vit_g_hybrid_pt_1200e_ssv2_ft": ("giant", 174, "float16", "module", ""),
    "distill/vit_s_k710_dl_from_giant": ("small", 710, "float16", "module", ""),
    "distill, weights alone": ("small", 710, "float16", "", ""),
    "distill, by torch.compile": ("small", 710, "float16", "model", "_orig_mod."),
    "an encoder alone": ("small", 0, "float32", "", "encoder."),
    "MMAction2, of 400 classes": ("small", 400, "float32", "state_dict", "backbone."),
}


@pytest.mark.parametrize("name", PUBLISHED_V2)
def test_published_files_of_v2(name, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    size, classes, dtype, key, prefix = PUBLISHED_V2[name]
    sizes: dict = {"width": 40, "depth": 2, "heads": 4}
    if size == "giant":
        sizes = {"width": 88, "depth": 1, "heads": 8} | {"patch_size": 14}
        sizes["mlp_ratio"] = 48 / 11
    model = vmae.VideoClassifier(num_classes=classes or 0, **sizes)
    if classes is None:
        # Its MLPs have 2234 for the 512 of the decoder, rounded down as here.
        decoder = {"decoder_width": 39, "decoder_depth": 4, "decoder_heads": 3}
        model = vmae.VideoMAE(**sizes, **decoder, decoder_mlp_ratio=48 / 11)
    if classes == 0:
        model = model.clone(final_norm=True, head_norm="none")
    params = jax.tree.map(
        lambda x: x.astype(dtype).astype(np.float32), random_variables(model)["params"]
    )
    tensors = saving.official_tensors(vmae.Pretrained(model, params))
    if prefix == "backbone.":
        prefix = ""
        tensors = {
            mmaction: x
            for name, x in tensors.items()
            for mmaction in official_names.mmaction_tensor_names(name)
        }
    content = collections.OrderedDict(
        (prefix + name, torch.from_numpy(np.array(x, dtype, order="C")))
        for name, x in tensors.items()
    )
    torch.save({key: content} if key else content, tmp_path / "weights.pth")
    heads = {"heads": sizes["heads"], "decoder_heads": 3}
    loaded = vmae.load_pretrained(tmp_path / "weights.pth", **heads)
    assert loaded.model == model
    same(loaded.params, params)
    assert loaded.labels is None
    assert loaded.preprocessing.num_frames == 16
    sampling = {174: "uniform", 400: "mmaction"}.get(classes or 0, "dense")
    assert loaded.preprocessing.frame_sampling == sampling


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_encoders_of_v2_on_the_hub(mean_pooling, tmp_path):
    """Takes the norm after pooling, or that of the tokens, by what the weights hold."""
    norms = {} if mean_pooling else {"final_norm": True, "head_norm": "none"}
    model = vmae.VideoClassifier(40, 2, 4, 0, **norms)
    params = random_variables(model)["params"]
    tensors = saving.official_tensors(vmae.Pretrained(model, params))
    assert ("fc_norm.weight" in tensors) == mean_pooling
    named = {f"model.{x}": np.ascontiguousarray(tensors[x]) for x in tensors}
    safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
    sizes = {"img_size": 224, "patch_size": 16, "embed_dim": 40, "depth": 2}
    sizes |= {"num_heads": 4, "mlp_ratio": 4, "num_classes": 0, "tubelet_size": 2}
    sizes |= {"num_frames": 16, "layer_norm_eps": 1e-6, "cos_attn": False}
    config = {
        "model_type": "VideoMAEv2_Base",
        "architectures": ["VideoMAEv2_Base"],
        "auto_map": {"AutoModel": "modeling_videomaev2.VideoMAEv2"},
        "model_config": sizes | {"use_mean_pooling": mean_pooling},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_videomaev2.py").write_text("raise RuntimeError('executed')")
    loaded = vmae.load_pretrained(tmp_path)
    assert loaded.model == model
    same(loaded.params, params)


def test_a_misspelt_run_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        loading.hub, "download", lambda *_: pytest.fail("asked the hub")
    )
    (tmp_path / "runs" / "k400_vitb_finetune").mkdir(parents=True)
    with pytest.raises(vmae.PretrainedError) as caught:
        vmae.load_pretrained("runs/k400_vitb_finetnue")
    message = str(caught.value)
    assert "not found; the nearest is runs/k400_vitb_finetune. For a model" in message
    with pytest.raises(vmae.PretrainedError, match="runs/other' not found. For"):
        vmae.load_pretrained("runs/other")


def test_folders_near_models_name_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/checkpoints/10", "runs/b/checkpoints", "runs/empty"):
        pathlib.Path(name).mkdir(parents=True)
    pathlib.Path("runs/weights").mkdir()
    pathlib.Path("runs/weights/x.pth").touch()
    models = "runs/a, runs/b, runs/weights"
    with pytest.raises(
        vmae.PretrainedError, match=f"runs is not a model; .*: {models}$"
    ):
        vmae.load_pretrained("runs")
    for inside in ("runs/a/checkpoints", "runs/a/checkpoints/10"):
        with pytest.raises(
            vmae.PretrainedError, match=f"pass one of: {tmp_path}/runs/a$"
        ):
            vmae.load_pretrained(inside)
    with pytest.raises(vmae.PretrainedError, match="runs/empty holds no weights"):
        vmae.load_pretrained("runs/empty")


def test_offline_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(vmae.PretrainedError, match="hub cannot be reached, or HF_"):
        vmae.load_pretrained("nobody/has-this-model-0", revision="main")


def test_downloaded_model_is_read_from_the_cache(tmp_path, monkeypatch):
    """Reads the cache layout of the hub as a download leaves it."""
    from huggingface_hub import constants

    cache = tmp_path / "models--someone--videomae"
    snapshot = cache / "snapshots" / ("0" * 40)
    shutil.copytree(CHECKPOINTS / "hf_classifier", snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = vmae.load_pretrained("someone/videomae")
    assert loaded.source == "someone/videomae" and loaded.model.num_classes == 10
    same(loaded.params, vmae.load_pretrained(CHECKPOINTS / "hf_classifier").params)


def test_deepspeed_folders(tmp_path):
    inner = tmp_path / "checkpoint-3"
    inner.mkdir()
    shutil.copy(
        CHECKPOINTS / "official_deepspeed_finetune.pt",
        inner / "mp_rank_00_model_states.pt",
    )
    (tmp_path / "latest").write_text("checkpoint-3")
    arrays = golden("finetune_step")
    for folder in (tmp_path, inner):
        loaded = vmae.load_pretrained(folder, heads=3)
        np.testing.assert_allclose(logits(loaded, arrays), arrays["logits"], atol=2e-3)
    shutil.copy(
        inner / "mp_rank_00_model_states.pt", inner / "mp_rank_01_model_states.pt"
    )
    with pytest.raises(vmae.PretrainedError, match="split over 2 files"):
        vmae.load_pretrained(tmp_path, heads=3)


def test_fields_override_the_source(tmp_path):
    loaded = vmae.load_pretrained(CHECKPOINTS / "hf_classifier", dtype="bfloat16")
    assert loaded.model.dtype == "bfloat16"
    assert jax.tree.leaves(loaded.params)[0].dtype == np.float32
    with pytest.raises(vmae.PretrainedError, match="no field colour"):
        vmae.load_pretrained(CHECKPOINTS / "hf_classifier", colour="red")
    with pytest.raises(vmae.PretrainedError, match="pass heads=<number>"):
        vmae.load_pretrained(CHECKPOINTS / "official_finetune.pth")


def test_keras_autoencoder_by_order():
    """Names the weights of an autoencoder by their order and shapes."""
    from videomae_jax.interop import keras

    model = MODELS["autoencoder"]
    tensors = saving.official_tensors(
        vmae.Pretrained(model, random_variables(model)["params"])
    )

    def keras_weight(name):
        x = tensors[name]
        return x.transpose(2, 3, 4, 1, 0) if x.ndim == 5 else x.T if x.ndim == 2 else x

    blocks = [
        f"{prefix}blocks.{i}.{name}"
        for prefix, depth in (("encoder.", 2), ("decoder.", 1))
        for i in range(depth)
        for name in keras._BLOCK
    ]
    encoder, decoder = blocks[:26], blocks[26:]
    patch, norm = "encoder.patch_embed.proj", "encoder.norm"
    order = [f"{patch}.weight", f"{patch}.bias", *encoder]
    order += [f"{norm}.weight", f"{norm}.bias", *decoder]
    order += ["decoder.norm.weight", "decoder.norm.bias"]
    order += ["decoder.head.weight", "decoder.head.bias", "encoder_to_decoder.weight"]
    for mask_first in (False, True):
        names = ["mask_token", *order] if mask_first else [*order, "mask_token"]
        named = keras.name_weights([keras_weight(name) for name in names], "a test")
        assert set(named) == set(tensors)
        for name, x in named.items():
            np.testing.assert_array_equal(x, tensors[name])
    with pytest.raises(vmae.PretrainedError, match="weight 2 of"):
        keras.name_weights(
            [keras_weight(n) for n in order[:2]] + [np.zeros(())], "a test"
        )


def test_bfloat16_file(tmp_path):
    import ml_dtypes

    def narrow(tensors):
        for name, x in tensors.items():
            tensors[name] = x.astype(ml_dtypes.bfloat16)

    loaded = vmae.load_pretrained(official.rewritten(tmp_path, narrow))
    whole = vmae.load_pretrained(CHECKPOINTS / "hf_classifier")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2),
        loaded.params,
        whole.params,
    )


def test_tensors_with_strides(tmp_path):
    """Reads views of one storage, as of tied or sliced weights."""
    from videomae_jax.interop import torch_pickle

    values = np.arange(12, dtype=np.float32)
    file = tmp_path / "views.pth"
    with zipfile.ZipFile(file, "w") as archive:
        buffer = io.BytesIO()
        buffer.write(b"\x80\x02}(")
        buffer.write(b"X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n((")
        buffer.write(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n")
        buffer.write(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ctQ")
        buffer.write(b"K\x01K\x02K\x03\x86K\x01K\x04\x86\x89NtRu.")
        archive.writestr("views/data.pkl", buffer.getvalue())
        archive.writestr("views/data/0", values.tobytes())
    tensor = torch_pickle.read(file)["t"]
    np.testing.assert_array_equal(tensor.load(), [[1, 5, 9], [2, 6, 10]])


def test_keras_saved_model(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import h5py

    with h5py.File(CHECKPOINTS / "keras_finetune.h5") as file:
        variables = [
            tf.Variable(np.asarray(file[group][name]))
            for group in file.attrs["layer_names"]
            for name in file[group].attrs["weight_names"]
        ]
    # Keras 2 saves a list of the model's variables in their order.
    checkpoint = tf.train.Checkpoint(variables=variables)
    checkpoint.write(str(tmp_path / "variables" / "variables"))
    (tmp_path / "saved_model.pb").write_bytes(b"")
    same(
        vmae.load_pretrained(tmp_path, heads=3).params,
        vmae.load_pretrained(CHECKPOINTS / "keras_finetune.h5", heads=3).params,
    )


def test_saved_model_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(vmae.PretrainedError, match="needs TensorFlow.*the .h5 file"):
        vmae.load_pretrained(tmp_path)


def test_pixel_stats_of_the_processor(tmp_path):
    folder = official.rewritten(tmp_path)
    file = folder / "preprocessor_config.json"
    for settings, mean, std in (
        ({}, 0.5, 0.5),  # transformers' defaults
        ({"image_mean": [0.1] * 3, "image_std": 0.2}, 0.1, 0.2),
        ({"do_normalize": False}, 0, 1),
        ({"rescale_factor": 2 / 255, "image_mean": 1, "image_std": 1}, 0.5, 0.5),
    ):
        size = {"size": 64, "crop_size": 64}
        file.write_text(json.dumps(size | settings))
        model = vmae.load_pretrained(folder).model
        np.testing.assert_allclose(model.pixel_mean, [mean] * 3)
        np.testing.assert_allclose(model.pixel_std, [std] * 3)


def test_an_unknown_problem_is_refused(tmp_path):
    folder = official.rewritten(tmp_path, problem_type="ranking")
    with pytest.raises(vmae.PretrainedError, match="problem_type='ranking' must be"):
        vmae.load_pretrained(folder)


def test_heads_must_fit_the_model():
    model = vmae.VideoClassifier(width=8, depth=1, heads=2, num_classes=4)
    problem = vmae.Problem(heads=(("verb", 3), ("noun", 2)))
    with pytest.raises(vmae.PretrainedError, match=r"\[3, 2\] classes do not fit"):
        vmae.Pretrained(model, {}, problem=problem)


def test_local_path_has_no_revision(tmp_path):
    with pytest.raises(vmae.PretrainedError, match="has no revision 'v1'"):
        vmae.load_pretrained(CHECKPOINTS / "hf_classifier", revision="v1")
    with pytest.raises(vmae.PretrainedError, match="file or folder '' not found"):
        vmae.load_pretrained("")
