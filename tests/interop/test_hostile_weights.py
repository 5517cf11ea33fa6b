"""Files of weights that lead elsewhere, declare any size, or keep readers busy.

Each is refused with an error that names it, in time and memory bounded by its size.
"""

import argparse
import collections
import json
import os
import pathlib
import pickle
import shutil
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import videomae_jax as vmae
from tests.helpers import mutations, official
from tests.helpers.official import CHECKPOINTS
from tests.interop.test_loading import same
from tests.interop.test_refused_weights import pickled
from videomae_jax.interop import (
    assemble,
    loading,
    pretrained,
    tensor_files,
    torch_pickle,
)


@pytest.fixture(scope="module")
def remembered_shapes():
    """Computes the parameters' shapes of a model once."""
    compute = pretrained.param_shapes
    mutations.remember_shapes()
    yield
    pretrained.param_shapes = assemble.param_shapes = compute


@pytest.mark.parametrize("tag", ["../elsewhere", "/etc", "..", "a/b", ""])
def test_deepspeed_latest_stays_in_its_folder(tmp_path, tag):
    name = "mp_rank_00_model_states.pt"
    for folder in ("elsewhere", "run/global_step1", "run/a/b"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(
            CHECKPOINTS / "official_deepspeed_finetune.pt", tmp_path / folder / name
        )
    (tmp_path / "run" / "latest").write_text(tag)
    with pytest.raises(
        vmae.PretrainedError, match="latest .*must name a folder beside"
    ):
        vmae.load_pretrained(tmp_path / "run", heads=3)


def test_a_tensor_of_two_shards_is_refused(tmp_path):
    mutations._hugging_face(tmp_path)
    file, other = sorted(tmp_path.glob("*.safetensors"))
    tensors = safetensors.numpy.load_file(file)
    name, _ = next(iter(safetensors.numpy.load_file(other).items()))
    tensors[name] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(vmae.PretrainedError, match=f"{name} is in another file too"):
        vmae.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "preprocessor_config.json", "latest"]
)
def test_only_regular_files_are_opened(tmp_path, name):
    """Nobody writes to the pipe: a reader would wait for ever."""
    folder = official.rewritten(tmp_path)
    if name == "latest":
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(vmae.PretrainedError, match=f"{name} .*not a regular file"):
        vmae.load_pretrained(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")  # which never ends
    with pytest.raises(vmae.PretrainedError, match=f"{name} .*not a regular file"):
        vmae.load_pretrained(folder)


def test_work_directories_have_only_regular_files(tmp_path):
    folder = tmp_path / "checkpoints" / "3"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "_CHECKPOINT_METADATA")
    with pytest.raises(vmae.PretrainedError, match="METADATA is not a regular file"):
        vmae.load_pretrained(tmp_path)


def nested_tuple(depth):
    """Tuples, each of which holds the next one twice: a hash takes 2**depth steps."""
    return b"N" + b"2\x86" * depth


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
STORAGE += text("cpu") + b"K\x04tQ"


def tensor(shape, strides=b"K\x01\x85", storage=STORAGE):
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00"
        + shape
        + strides
        + b"\x89NtR"
    )


@pytest.mark.parametrize(
    "content, match",
    [
        (
            b"(" + text("storage") + nested_tuple(200) + text("0") + b"tQ",
            "not a tensor storage",
        ),
        (b"}p99999999999999999999\n", "does not write the opcode b'p'"),
        (b"\x96" + (2**40).to_bytes(8, "little"), "cannot be read"),  # a bytearray
        (b"cargparse\nNamespace\n(" + b"N" * 999 + b"tR", "must be a short tuple"),
        (tensor(text("abc") + b"\x85"), "must be a view of a storage"),
        (tensor(b"K\x04\x85", storage=b"N"), "must be a view of a storage"),
        (tensor(b"K\x04" * 70 + b"t"), "cannot be read"),
    ],
)
def test_pickles_hold_names_and_numbers(tmp_path, content, match):
    with pytest.raises(vmae.PretrainedError, match=f"made.pth .*{match}"):
        torch_pickle.read(pickled(tmp_path, b"\x80\x02" + content + b"."))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"}" + nested_tuple(200) + b"Ns", {}),
        (b"}(" + nested_tuple(200) + b"Nu", {}),
        (b"\x8f(" + nested_tuple(200) + b"\x90", set()),
        (b"(" + nested_tuple(200) + b"\x91", frozenset()),
        (b"c__builtin__\nset\n](" + nested_tuple(200) + b"e\x85R", set()),
        # Multiples of 2**61 - 1 have the same hash.
        (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns", {}),
    ],
)
def test_keys_that_take_for_ever_to_be_looked_up_are_left_out(
    tmp_path, content, expected
):
    file = pickled(tmp_path, b"\x80\x04" + content + b".")
    assert torch_pickle.read(file) == expected


@pytest.mark.parametrize("protocol", range(1, 6))
def test_what_scripts_save_beside_weights_is_no_obstacle(tmp_path, protocol):
    beside = {
        "path": pathlib.PurePosixPath("/", *"abcdefghijklmnopqrstuvwxyz"),
        "args": argparse.Namespace(flag=True),
        "counts": collections.defaultdict(dict, a=1),
        "names": frozenset([1, (2, 3)]),
        "buffer": bytearray(b"abc"),
        "array": np.arange(4.0),
        "long": 2**40,
        None: 1,
        (1, 2): 3,
        "last": 4,
    }
    file = pickled(tmp_path, pickle.dumps(beside, protocol))
    read = torch_pickle.read(file)
    assert list(read) == [name for name in beside if isinstance(name, str)]
    assert (read["long"], read["last"]) == (2**40, 4)
    assert vars(read["args"]) == {"flag": True}


def test_storages_are_read_twice_at_most(tmp_path, monkeypatch):
    """Tensors that alternate between two large storages would read each again."""
    file, reads = tmp_path / "weights.pth", []
    other = STORAGE.replace(text("0"), text("1"))
    with zipfile.ZipFile(file, "w") as archive:
        items = b"".join(
            text(f"{i}") + tensor(b"K\x04\x85", storage=[STORAGE, other][i % 2])
            for i in range(20)
        )
        archive.writestr("made/data.pkl", b"\x80\x02}(" + items + b"u.")
        for i in range(2):
            archive.writestr(f"made/data/{i}", np.full(100, i, np.float32).tobytes())
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda *args: reads.append(args[1]) or read(*args)
    )
    for i, value in enumerate(loading._read_tensors(file)[0].values()):
        np.testing.assert_array_equal(value.load(), np.full(4, i % 2))
    assert len(reads) <= 5


def test_archives_without_checksums_are_read(tmp_path):
    """As torch.serialization.set_crc32_options(False) writes them: all are zero."""
    original = CHECKPOINTS / "official_finetune.pth"
    content = bytearray(original.read_bytes())
    with zipfile.ZipFile(original) as archive:
        at = archive.start_dir
        for _ in archive.infolist():
            at = content.index(b"PK\1\2", at) + 20
            content[at - 4 : at] = bytes(4)
    file = tmp_path / original.name
    file.write_bytes(content)
    read = loading.read(file, heads=3)
    same(read.params, loading.read(original, heads=3).params)


def test_long_names_of_tensors_are_refused(tmp_path):
    """Prefixes are removed one after the other, each in the time of the whole name."""
    file = tmp_path / "model.safetensors"
    name = "module." * 1000
    safetensors.numpy.save_file({name: np.zeros(2, np.float32)}, file)
    with pytest.raises(vmae.PretrainedError, match="has 7000 characters; expected at"):
        vmae.load_pretrained(file)


def test_channels_are_checked_before_their_statistics(tmp_path):
    folder = official.rewritten(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_channels": 10**6}))
    with pytest.raises(vmae.PretrainedError, match="channels=1000000 must be a whole"):
        vmae.load_pretrained(folder)


def test_shapes_of_parameters_need_no_memory():
    sizes = {"width": 8, "depth": 1, "heads": 2, "patch_size": 500, "tubelet_size": 100}
    tracemalloc.start()
    shapes = pretrained.param_shapes(vmae.VideoClassifier(**sizes, num_classes=3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shapes["encoder/embedding/kernel"] == (100 * 500 * 500 * 3, 8)
    assert peak < 2**25


def test_small_files_do_not_ask_for_large_random_models(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "_MOST_RANDOM", 10_000)
    file = tmp_path / "model.safetensors"
    tensors = {
        "patch_embed.proj.weight": np.zeros((60, 3, 1, 1, 1), np.float32),
        "blocks.0.attn.qkv.weight": np.zeros((180, 60), np.float32),
    }
    for block in range(1, 12):
        tensors[f"blocks.{block}.attn.q_bias"] = np.zeros(60, np.float32)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(vmae.PretrainedError, match="expected at least a tenth"):
        vmae.load_pretrained(file, heads=3, strict=False)


def test_the_links_of_a_cache_of_the_hub_are_followed(tmp_path):
    folder = official.rewritten(tmp_path)
    (folder / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(folder / "blobs" / name)
        (folder / name).symlink_to(f"blobs/{name}")
    loading.read(folder)


def test_a_folder_named_latest_is_not_of_deepspeed(tmp_path):
    shutil.copy(CHECKPOINTS / "official_finetune.pth", tmp_path)
    (tmp_path / "latest").mkdir()
    vmae.load_pretrained(tmp_path, heads=3)


def test_safetensors_need_no_cpu_of_jax(monkeypatch):
    """As with JAX_PLATFORMS=cuda."""

    def no_cpu(*args, **kwargs):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    loading.read(CHECKPOINTS / "hf_classifier")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_a_lack_of_memory_is_no_damage(error):
    with pytest.raises(vmae.PretrainedError, match="^not enough memory to read a.pth$"):
        with tensor_files.reading("a.pth"):
            raise error


def test_pickles_have_a_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 1000)
    monkeypatch.setattr(torch_pickle, "MAX_HEADER", 1000)
    torch_pickle.read(pickled(tmp_path, b"\x80\x02](" + b"N" * 900 + b"e."))
    for content in (b"](" + b"N" * 1000 + b"e", b"N" + b"2" * 1000):
        file = pickled(tmp_path, b"\x80\x02" + content + b".")
        with pytest.raises(
            vmae.PretrainedError, match="pickle of more than 1000 steps"
        ):
            torch_pickle.read(file)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(40):
            archive.writestr(f"made/data/{i}", b"")
    with pytest.raises(vmae.PretrainedError, match="archive of more files than any"):
        torch_pickle.read(file)


def test_tensors_fit_into_their_file(tmp_path):
    """Before anything is made of their shapes."""
    for content, match in (
        # Patches of 2 million pixels, by a file of 300 bytes.
        (tensor(b"J\xff\xff\xff\x7f\x85"), "reaches beyond its data"),
        (tensor(b"K\x04\x85").replace(text("0"), text("1")), "no item named"),
    ):
        named = b"}(" + text("patch_embed.proj.weight") + content + b"u"
        file = pickled(tmp_path, b"\x80\x02" + named + b".")
        with pytest.raises(vmae.PretrainedError, match=match):
            loading._read_tensors(file)
    # Many names of the same values; two names, as of tied weights, are read.
    for count in (2, 200):
        items = b"".join(text(f"{i}") + tensor(b"K\x04\x85") for i in range(count))
        file = pickled(tmp_path, b"\x80\x02}(" + items + b"u.")
        if count == 2:
            assert len(loading._read_tensors(file)[0]) == 2
    values = np.zeros(10**5, np.float32).tobytes()
    with zipfile.ZipFile(file, "w") as archive:
        content = items.replace(b"K\x04\x85", b"M\xff\x7f\x85")
        archive.writestr("made/data.pkl", b"\x80\x02}(" + content + b"u.")
        archive.writestr("made/data/0", values)
    with pytest.raises(vmae.PretrainedError, match="larger together than the file"):
        loading._read_tensors(file)


def test_sizes_in_a_zip_archive_are_compared_with_the_file(tmp_path):
    file = tmp_path / "weights.pth"
    content = bytearray((CHECKPOINTS / "official_finetune.pth").read_bytes())
    with zipfile.ZipFile(CHECKPOINTS / "official_finetune.pth") as archive:
        entry = archive.getinfo("official_finetune/data/0")
        at = content.rindex(entry.filename.encode()) - 46  # its central header
    for offset in (20, 24):
        content[at + offset : at + offset + 4] = (2**31).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(
        vmae.PretrainedError, match="would be larger together than the file"
    ):
        vmae.load_pretrained(file, heads=3)


def test_headers_are_bounded(tmp_path):
    folder = official.rewritten(tmp_path)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    metadata = {"format": "pt", "notes": " " * 2**22}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata)
    with pytest.raises(vmae.PretrainedError, match="model.safetensors: a header of"):
        vmae.load_pretrained(folder)
    shutil.copy(CHECKPOINTS / "hf_classifier/model.safetensors", folder)
    (folder / "config.json").write_text(" " * 2**24 + "{}")
    with pytest.raises(vmae.PretrainedError, match="config.json has more than the"):
        vmae.load_pretrained(folder)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"model_type": ' + "[" * 10**5 + "]" * 10**5 + "}"),
        ("config.json", '{"model_type": "videomae", "num_frames": Infinity}'),
        ("config.json", '{"model_type": "videomae", "num_frames": 8.5}'),
        ("config.json", '{"model_type": "videomae", "norm_pix_loss": "false"}'),
        ("config.json", '{"model_type": "videomae", "id2label": {"0": null}}'),
        ("config.json", b'{"model_type": "\xff"}'),
        ("preprocessor_config.json", '{"rescale_factor": 0}'),
        ("preprocessor_config.json", '{"do_normalize": "no"}'),
        ("preprocessor_config.json", '{"image_mean": 1e999}'),
        ("preprocessor_config.json", '{"resample": {}}'),
        ("preprocessor_config.json", '{"size": {"shortest_edge": [[]]}}'),
    ],
)
def test_values_of_any_type_in_json_are_refused(tmp_path, name, content):
    folder = official.rewritten(tmp_path)
    if name == "preprocessor_config.json":
        content = json.dumps({"crop_size": 64, "size": 64})[:-1] + ", " + content[1:]
    (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(vmae.PretrainedError, match=str(folder)):
        vmae.load_pretrained(folder)


def test_defects_keep_their_cause(monkeypatch):
    def defect(*args, **kwargs):
        return 1 // 0

    monkeypatch.setattr(loading, "assemble", defect)
    path = CHECKPOINTS / "hf_classifier"
    with pytest.raises(vmae.PretrainedError, match=f"{path} .*ZeroDivision") as caught:
        vmae.load_pretrained(path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def refused_or_right(layout, folder, seeds):
    """Damages a file with each seed; returns the kinds of the outcomes."""
    damaged = mutations.Damaged(layout, folder)
    has_checksums = mutations.LAYOUTS[layout].has_checksums
    kinds = set()
    for seed in seeds:
        outcome = damaged.outcome(seed)
        assert outcome.kind != "exception", (seed, outcome)
        assert outcome.kind != "wrong" or not has_checksums, (seed, outcome)
        assert outcome.seconds < 20, (seed, outcome)
        if layout.endswith("json"):  # which does not hold the arrays
            assert "['params']" not in outcome.reason, (seed, outcome)
        kinds.add(outcome.kind)
    return kinds


@pytest.mark.parametrize(
    "layout", ["pth", "pth, pickle", "safetensors", "huggingface, json"]
)
def test_damaged_files_are_refused_or_right(remembered_shapes, tmp_path, layout):
    assert "refused" in refused_or_right(layout, tmp_path / "model", range(12))


@pytest.mark.slow
@pytest.mark.parametrize("layout", mutations.LAYOUTS)
def test_many_damaged_files_are_refused_or_right(remembered_shapes, tmp_path, layout):
    """More of them by benchmarks/mutated_weights.py."""
    # The others take a hundredth of a second each.
    count = {"hdf5": 30, "workdir, json": 30}.get(layout, 100)
    seeds = range(10_000, 10_000 + count)
    assert "refused" in refused_or_right(layout, tmp_path / "model", seeds)
