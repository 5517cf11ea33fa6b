"""Refuses weights that are damaged, incomplete, contradictory or malicious."""

import dataclasses
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import official
from tests.helpers.models import random_variables
from tests.interop.test_loading import CHECKPOINTS, MODELS, same
from videomae_jax.interop import saving

LAYER = "videomae.encoder.layer.1"


@pytest.mark.parametrize(
    "name",
    [
        "fc_norm.weight",
        "classifier.bias",
        f"{LAYER}.attention.attention.key.weight",
        f"{LAYER}.attention.attention.v_bias",
        f"{LAYER}.layernorm_after.bias",
        f"{LAYER}.output.dense.weight",
        "videomae.embeddings.patch_embeddings.projection.bias",
    ],
)
def test_missing_tensor_is_listed(tmp_path, name):
    folder = official.rewritten(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(vmae.PretrainedError, match=f"missing: {name}"):
        vmae.load_pretrained(folder)
    loaded = vmae.load_pretrained(folder, strict=False)
    assert loaded.missing == (name,) and not loaded.unused
    whole = vmae.load_pretrained(CHECKPOINTS / "hf_classifier").params
    differing = jax.tree.map(lambda a, b: bool((a != b).any()), whole, loaded.params)
    assert sum(jax.tree.leaves(differing)) == 1


def test_unused_tensor_is_listed(tmp_path):
    def add(tensors):
        tensors["videomae.encoder.layer.2.extra"] = np.zeros(3, np.float32)
        tensors["videomae.embeddings.position_embeddings"] = np.ones(
            (1, 64, 48), np.float32
        )

    folder = official.rewritten(tmp_path, add)
    with pytest.raises(
        vmae.PretrainedError,
        match="unused: .*layer.2.extra(.|\n)*position table is learned",
    ):
        vmae.load_pretrained(folder)
    assert len(vmae.load_pretrained(folder, strict=False).unused) == 2


def test_wrong_shape_is_listed(tmp_path):
    name = f"{LAYER}.intermediate.dense.bias"
    folder = official.rewritten(tmp_path, lambda x: x.update({name: x[name][:-1]}))
    for strict in (True, False):
        with pytest.raises(
            vmae.PretrainedError, match=rf"wrong shape: {name}: \(191,\), not \(192,\)"
        ):
            vmae.load_pretrained(folder, strict=strict)


def test_truncated_file_is_refused(tmp_path):
    for name, file in (
        ("hf_classifier", "model.safetensors"),
        ("official_finetune.pth", "official_finetune.pth"),
        ("keras_finetune.h5", "keras_finetune.h5"),
    ):
        source = CHECKPOINTS / name
        source = source / file if source.is_dir() else source
        for share in (0.2, 0.7, 0.99):
            content = source.read_bytes()
            cut = tmp_path / file
            cut.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(vmae.PretrainedError, match=file):
                vmae.load_pretrained(cut, heads=3)


def test_flipped_bytes_of_a_pth_are_refused(tmp_path):
    content = bytearray((CHECKPOINTS / "official_finetune.pth").read_bytes())
    content[len(content) // 2] ^= 0xFF
    file = tmp_path / "damaged.pth"
    file.write_bytes(content)
    with pytest.raises(vmae.PretrainedError, match="damaged.pth is damaged"):
        vmae.load_pretrained(file, heads=3)


def test_unknown_architectures_are_refused(tmp_path):
    file = tmp_path / "resnet.safetensors"
    safetensors.numpy.save_file({"layer1.conv.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(vmae.PretrainedError, match="unknown architecture.*layer1.conv"):
        vmae.load_pretrained(file)
    folder = official.rewritten(tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    for change, match in (
        ({"model_type": "timesformer"}, "timesformer"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"num_channels": 4}, "channels is 3 by its tensors, and should be 4"),
        ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes, but its head has 10"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(vmae.PretrainedError, match=match):
            vmae.load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(vmae.PretrainedError, match="cannot be read as JSON"):
        vmae.load_pretrained(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/videomae_jax_was_here",)


def test_malicious_pickle_is_refused_without_running(tmp_path):
    good = CHECKPOINTS / "official_finetune.pth"
    for mode in ("replaced", "prepended"):
        file = tmp_path / "evil.pth"
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w") as target:
            for item in source.infolist():
                data = source.read(item)
                if item.filename.endswith("data.pkl"):
                    evil = pickle.dumps({"model": Evil()}, protocol=2)
                    # Prepended to the real content, as an object that is discarded.
                    data = evil if mode == "replaced" else evil[:-1] + b"0" + data[2:]
                target.writestr(item.filename, data)
        with pytest.raises(vmae.PretrainedError, match="(posix|nt).system.*refused"):
            vmae.load_pretrained(file, heads=3)
    assert not os.path.exists("/tmp/videomae_jax_was_here")


def test_other_files_and_names_are_refused(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello, this is no checkpoint")
    (tmp_path / "old.pth").write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    (tmp_path / "lfs.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as file:
        file.writestr("readme", "hello")
    (tmp_path / "folder").mkdir()
    for name, match in (
        ("empty.pth", "it is empty"),
        ("notes.txt", "neither safetensors"),
        ("old.pth", "before 1.6"),
        ("lfs.bin", "git lfs pull"),
        ("plain.zip", "not of PyTorch"),
        ("folder", "no weights in a known format"),
        ("nothing here", "file or folder .*nothing here' not found"),
    ):
        with pytest.raises(vmae.PretrainedError, match=match):
            vmae.load_pretrained(tmp_path / name)


def without_last_block(tensors):
    for name in list(tensors):
        if "layer.1." in name or "blocks.1." in name:
            del tensors[name]


def test_lost_blocks_are_detected(tmp_path):
    folder = official.rewritten(tmp_path, without_last_block)
    with pytest.raises(vmae.PretrainedError, match="depth is 1 by its.*should be 2"):
        vmae.load_pretrained(folder)
    # Without a config, the published depths are expected.
    model = vmae.VideoClassifier.from_variant("small", 3, depth=11)
    tensors = saving.official_tensors(
        vmae.Pretrained(model, random_variables(model)["params"])
    )
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(vmae.PretrainedError, match="should be 12.*pass depth=11"):
        vmae.load_pretrained(file)
    assert vmae.load_pretrained(file, depth=11).model.depth == 11


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"num_hidden_layers": 12}, "depth is 2.*should be 12"),
        ({"hidden_size": 1024}, "width is 48.*should be 1024"),
        ({"use_mean_pooling": False}, "missing: videomae.layernorm"),
        ({"architectures": ["VideoMAEForPreTraining"]}, "decoder_width is 0"),
        ({"num_attention_heads": 7}, "heads=7 must divide width=48"),
        ({"num_attention_heads": 0}, "heads=0 must be a whole number from 1 to"),
        ({"num_attention_heads": -3}, "heads=-3 must be a whole number from 1 to"),
        ({"hidden_size": 0}, "width is 48.*should be 0"),
        ({"num_hidden_layers": 10**9}, "depth is 2.*should be 1000000000"),
        ({"num_frames": 9}, "clips of 9 frames"),
        ({"num_frames": 0}, "num_frames=0 must be a whole number from 1 to"),
        ({"image_size": 0}, "image_size=0 must be a whole number of pixels"),
        ({"image_size": 10**9}, "image_size=10{9} must be a whole number of pixels"),
        ({"layer_norm_eps": float("nan")}, "norm_epsilon=nan must be above 0 and bel"),
        ({"layer_norm_eps": 0}, "norm_epsilon=0 must be above 0 and below 1"),
        ({"id2label": ["a"]}, "config.json is malformed"),
        ({"id2label": {str(i): str(i) for i in range(1, 11)}}, "malformed"),
        ({"image_size": None}, "malformed"),
        ({"layer_norm_eps": "small"}, "malformed"),
        ({"qkv_bias": False}, "unused: .*q_bias"),
    ],
)
def test_config_that_contradicts_the_tensors_is_refused(tmp_path, settings, match):
    with pytest.raises(vmae.PretrainedError, match=match):
        vmae.load_pretrained(official.rewritten(tmp_path, **settings))


@pytest.mark.parametrize(
    "name",
    [
        *("official_finetune.pth", "mmaction_finetune.pth", "keras_finetune.h5"),
        *("official_pretrain.pth", "hf_classifier"),
    ],
)
def test_sizes_without_sense_are_refused_in_every_layout(name):
    """Work directories and exports: test_workdir.py, test_export.py."""
    heads = {"heads": 3, "decoder_heads": 2}
    for fields, message in (
        ({"heads": 7}, "heads=7 must divide width=48"),
        ({"depth": 10**9}, "depth=1000000000 must be a whole number from 1 to 1000"),
        ({"width": 0}, "width=0 must be a whole number from 1 to 100000"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon=nan must be above 0 and below"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, r"pixel_std=\(1.0, 0.0, 1.0\) must be finite"),
    ):
        with pytest.raises(vmae.PretrainedError, match=f"{name}.*: {message}"):
            vmae.load_pretrained(CHECKPOINTS / name, **(heads | fields))


def test_arguments_of_official_scripts_are_checked():
    from videomae_jax.interop import assemble, loading

    source = loading._open_file(CHECKPOINTS / "official_finetune.pth")
    for name, size in (("image_size", 10**9), ("num_frames", 0), ("stride", -1)):
        preprocessing = source.preprocessing | {name: size}
        damaged = dataclasses.replace(source, preprocessing=preprocessing)
        with pytest.raises(vmae.PretrainedError, match=rf"pth: {name}={size} must be"):
            assemble.assemble(damaged, strict=True, fields={"heads": 3})


@pytest.mark.parametrize("std", [0, -0.5, float("nan"), [0.2, 0.0, 0.2]])
def test_pixel_deviations_without_sense_are_refused(tmp_path, std):
    folder = official.rewritten(tmp_path)
    size = {"height": 64, "width": 64}
    settings = {"image_std": std, "size": size, "crop_size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(vmae.PretrainedError, match="pixel_std=.* finite numbers above"):
        vmae.load_pretrained(folder)


def test_lost_head_is_detected(tmp_path):
    def behead(tensors):
        del tensors["classifier.weight"], tensors["classifier.bias"]

    with pytest.raises(vmae.PretrainedError, match="classifier.weight is missing"):
        vmae.load_pretrained(official.rewritten(tmp_path, behead))


def test_colliding_names_are_refused(tmp_path):
    model = MODELS["mean"]
    tensors = saving.official_tensors(
        vmae.Pretrained(model, random_variables(model)["params"])
    )
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    name = "blocks.0.attn.qkv.weight"
    tensors[f"encoder.{name}"] = np.zeros_like(tensors[name])
    file = tmp_path / "twice.safetensors"
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(vmae.PretrainedError, match=f"would be {name}"):
        vmae.load_pretrained(file, heads=3)


def test_stale_index_is_neither_used_nor_kept(tmp_path):
    folder = official.rewritten(tmp_path)
    loaded = vmae.load_pretrained(folder)
    zeros = {name: np.zeros(2, np.float32) for name in ("a", "b")}
    safetensors.numpy.save_file(zeros, folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(zeros, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(vmae.load_pretrained(folder).params, loaded.params)
    with pytest.raises(vmae.PretrainedError, match="already holds other weights"):
        vmae.save_pretrained(folder, loaded)
    with pytest.raises(vmae.PretrainedError, match="one file of 2"):
        vmae.load_pretrained(folder / "model-00001-of-00002.safetensors")
    index["weight_map"]["a"] = "../../etc/passwd"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(vmae.PretrainedError, match="malformed.*name files beside it"):
        vmae.load_pretrained(folder)


@pytest.mark.parametrize("format", ["huggingface", "jax"])
def test_killed_save_never_mixes_models(tmp_path, monkeypatch, format):
    loaded = vmae.load_pretrained(CHECKPOINTS / "hf_classifier")
    first = dataclasses.replace(loaded, labels=tuple("abcdefghij"))
    second = dataclasses.replace(
        loaded,
        labels=tuple("klmnopqrst"),
        params=jax.tree.map(lambda x: 2 * x, loaded.params),
    )
    replace, calls = os.replace, []

    class Killed(BaseException):
        pass

    def killed_after(count):
        def once(*arguments):
            calls.append(arguments)
            if len(calls) > count:
                raise Killed
            replace(*arguments)

        return once

    for count in range(3):
        folder = tmp_path / str(count)
        vmae.save_pretrained(folder, first, format=format)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed_after(count))
            try:
                vmae.save_pretrained(folder, second, format=format)
            except Killed:
                with pytest.raises(vmae.PretrainedError):
                    vmae.load_pretrained(folder)
                continue
        assert vmae.load_pretrained(folder).labels == second.labels


def pickled(tmp_path, content, name="made.pth"):
    file = tmp_path / name
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("made/data.pkl", content)
        archive.writestr("made/data/0", np.zeros(4, np.float32).tobytes())
    return file


def test_pickles_cannot_exhaust_memory_or_time(tmp_path):
    from videomae_jax.interop import torch_pickle

    put = pickle.LONG_BINPUT + (2**31 - 1).to_bytes(4, "little")
    torch_pickle.read(pickled(tmp_path, b"\x80\x02}" + put + b"."))
    # In place of a storage's name: 30 lists, each of which holds the next one 8 times.
    # Copying, comparing or printing them would take forever.
    nested = b"(" * 30 + b"]" + (b"2" * 7 + b"l") * 30
    storage = b"(X\x07\x00\x00\x00storage" + nested + b"X\x01\x00\x00\x000t"
    for reference in (b"]", nested, storage):
        with pytest.raises(vmae.PretrainedError, match="not a tensor storage"):
            torch_pickle.read(pickled(tmp_path, b"\x80\x02" + reference + b"Q."))
    huge = (
        b"\x80\x02}(X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x04tQK\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
        b"K\x00K\x00\x86\x89NtRu."
    )
    tensor = torch_pickle.read(pickled(tmp_path, huge))["t"]
    with pytest.raises(vmae.PretrainedError, match="beyond its data"):
        tensor.load()
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}." + bytes(10**6))
    with pytest.raises(vmae.PretrainedError, match="compresses nothing"):
        torch_pickle.read(file)


def test_objects_beside_the_weights_are_harmless(tmp_path):
    """Reads namespaces, dtypes, sets and methods of a logging buffer."""
    from videomae_jax.interop import torch_pickle

    content = (
        b"\x80\x02}(X\x04\x00\x00\x00argscargparse\nNamespace\n)\x81}"
        b"X\x0a\x00\x00\x00num_framesK\x08sb"
        b"X\x05\x00\x00\x00dtypectorch\nfloat16\n"
        b"X\x03\x00\x00\x00setc__builtin__\nset\n](K\x01K\x02e\x85R"
        b"X\x06\x00\x00\x00methodc__builtin__\ngetattr\n"
        b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
        b"X\x04\x00\x00\x00mean\x86Ru."
    )
    read = torch_pickle.read(pickled(tmp_path, content))
    assert read["args"].num_frames == 8 and read["set"] == {1, 2}
    assert isinstance(read["method"], torch_pickle.Inert)
