"""HDF5 files that lead elsewhere, run something, or keep the library busy."""

import shutil

import h5py
import numpy as np
import pytest

import videomae_jax as vmae
from tests.helpers import mutations
from tests.helpers.official import CHECKPOINTS
from tests.interop.test_loading import same
from videomae_jax.interop import keras

GOLDEN_H5 = CHECKPOINTS / "keras_finetune.h5"
WEIGHT = "norm/gamma:0"  # of layer "norm"


def write_h5(path, weights):
    """Writes the names of a Keras file; `weights` writes one weight of one layer."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["norm"]
        layer = file.create_group("norm")
        layer.attrs["weight_names"] = ["norm/gamma:0"]
        weights(layer.create_group("norm"), "gamma:0")


def outside(folder):
    """Writes what a hostile file may lead to; returns its path."""
    path = folder / "outside.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.ones(4, np.float32)
    (folder / "outside.bin").write_bytes(bytes(16))
    return str(path)


def external_link(group, name, folder):
    group[name] = h5py.ExternalLink(outside(folder), "/secret")


def soft_link(group, name, folder):
    group.file["kept"] = np.ones(4, np.float32)
    group[name] = h5py.SoftLink("/kept")


def raw_storage(group, name, folder):
    external = [(str(folder / "outside.bin"), 0, 16)]
    group.create_dataset(name, (4,), np.float32, external=external)


def virtual_dataset(group, name, folder):
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(outside(folder), "secret", (4,))
    group.create_virtual_dataset(name, layout)


def fill_value(group, name, folder):
    """A terabyte of ones in a file of some kilobytes."""
    group.create_dataset(name, (2**38,), np.float32, chunks=(2**20,), fillvalue=1)


def compressed(group, name, folder):
    group.create_dataset(name, data=np.zeros(2**22, np.float32), compression="gzip")


def other_filter(group, name, folder):
    group.create_dataset(name, data=np.zeros(2**10, np.float32), compression="lzf")


def bfloat16(group, name, folder):
    """h5py says that its type is float32."""
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(group.id, name.encode(), kind, space)
    group[name][:] = 1


def no_values(group, name, folder):
    group.create_dataset(name, (2**38,), np.float32)


@pytest.mark.parametrize(
    "weights, match",
    [
        (external_link, "is a ExternalLink, which can lead out of the file"),
        (soft_link, "is a SoftLink"),
        (raw_storage, "is stored in other files"),
        (virtual_dataset, "is stored as a virtual dataset"),
        (fill_value, "would be 1099511627776 bytes when decoded"),
        (compressed, "run `h5repack -f NONE"),
        (other_filter, "is stored with a filter other than gzip"),
        (no_values, "has no values"),
        (bfloat16, "has numbers of 2 bytes"),
    ],
)
def test_hdf5_is_self_contained(tmp_path, weights, match):
    path = tmp_path / "weights.h5"
    write_h5(path, lambda group, name: weights(group, name, tmp_path))
    with h5py.File(path) as file, pytest.raises(vmae.PretrainedError, match=match):
        keras._places(file)


def test_hdf5_is_looked_through_by_another_process(tmp_path):
    """Its answer names the file; weights that share values do not fill the memory."""
    path = tmp_path / "weights.h5"
    write_h5(path, lambda group, name: external_link(group, name, tmp_path))
    with pytest.raises(vmae.PretrainedError, match=f"{path}: .* is a ExternalLink"):
        vmae.load_pretrained(path)
    shutil.copy(GOLDEN_H5, path)
    with h5py.File(path, "r+") as file:
        layer = file["patch_embed"]
        layer.attrs["weight_names"] = ["proj/kernel:0"] * 1000
    with pytest.raises(
        vmae.PretrainedError, match="weights.h5: its weights are larger"
    ):
        vmae.load_pretrained(path)


def test_hdf5_runs_nothing_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("open('was_here', 'w')")
    monkeypatch.chdir(tmp_path)
    assert len(keras._find_values(GOLDEN_H5)[0]) > 9
    assert not (tmp_path / "was_here").exists()


def test_compressed_hdf5_is_decoded(tmp_path):
    """As by h5repack; damage ends the process that decodes it."""
    path = tmp_path / "weights.h5"
    settings = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    with h5py.File(GOLDEN_H5) as source, h5py.File(path, "w") as target:
        target.attrs.update(source.attrs)

        def copy(name, x):
            if isinstance(x, h5py.Dataset):
                target.create_dataset(name, data=x[...], **settings)
            else:
                target.require_group(name).attrs.update(x.attrs)

        source.visititems(copy)
    expected = keras.read_h5(GOLDEN_H5)
    same(keras.read_h5(path), expected)
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["head/head/kernel:0"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(vmae.PretrainedError, match="weights.h5 is damaged"):
        keras.read_h5(path)


@pytest.mark.slow
def test_hdf5_that_keeps_the_library_busy_for_ever_is_refused(tmp_path):
    outcome = mutations.Damaged("hdf5", tmp_path).outcome(49)
    assert outcome.kind == "refused" and "killed by SIGXCPU" in outcome.reason
