"""The sizes in a checkpoint's meta are checked before anything is built of them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import videomae_jax as vmae
from configs import common
from tests.helpers.models import random_variables
from tests.interop.test_loading import same
from videomae_jax.checkpoint_files import DIGESTS
from videomae_jax.checkpointing import Checkpoints
from videomae_jax.errors import CheckpointError

MODEL = vmae.VideoClassifier(16, 1, 2, 3, patch_size=8, position_size=(16, 16))


@pytest.fixture(scope="module")
def params():
    return random_variables(MODEL)["params"]


@pytest.fixture(scope="module")
def whole(params, tmp_path_factory):
    """A work directory whose run predicts three values."""
    workdir = tmp_path_factory.mktemp("whole")
    config = common.debug(common.finetune())
    config.model.update(width=16, depth=1, heads=2, patch_size=8, position_size=16)
    config.data.update(image_size=16, num_frames=4)
    meta = {"config": json.loads(config.to_json()), "class_names": list("abc")}
    meta |= {"target_mean": [0.0] * 3, "target_std": [1.0] * 3}
    meta["problem"] = {"type": "regression", "heads": {}}
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(4, {"params": jax.tree.map(jnp.asarray, params)}, meta)
    checkpoints.close()
    return workdir


def rewritten(workdir, path, value):
    """Changes a value in meta, as if it had been saved so."""
    folder = workdir / "checkpoints" / "4" / "meta"
    content = json.loads((folder / "metadata").read_text())
    *sections, name = path.split(".")
    section = content
    for key in sections:
        section = section[key]
    section[name] = value
    (folder / "metadata").write_text(json.dumps(content))
    (folder / DIGESTS).unlink()


def test_what_was_saved_is_read(whole, params):
    loaded = vmae.load_pretrained(whole)
    same(loaded.params, params)
    assert loaded.model.clone(drop_path=0.0) == MODEL


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("config.model.width", 0, "config.model.width=0 must be a whole number"),
        (
            "config.model.heads",
            7,
            "config.model.heads=7 must divide config.model.w",
        ),
        ("config.model.depth", 10**9, "config.model.depth=1000000000 must be a whole"),
        ("config.model.depth", 2, "params does not fit the model in its config"),
        ("config.model.norm_epsilon", float("nan"), "norm_epsilon=nan must be above 0"),
        ("config.model.pixel_std", 0.0, "pixel_std=.*must be finite numbers above 0"),
        (
            "config.model.position_size",
            10**9,
            "position_size=10{9} must be a whole",
        ),
        (
            "config.data.image_size",
            10**9,
            "image_size=10{9} must be a whole number",
        ),
        ("config.data.image_size", 20, "do not divide into patches"),
        ("config.data.num_frames", "four", "num_frames='four' must be a whole number"),
        ("config.data.value_range", [5, 5], "value_range=.*the lower one first"),
        ("class_names", list("ab"), "must be of the values a, b"),
        ("target_std", [1.0, 0.0, 1.0], "target_std=.*must be finite numbers above 0"),
        ("target_mean", [1.0], "must be of the values a, b, c"),
    ],
)
def test_sizes_without_sense_are_refused(whole, tmp_path, path, value, message):
    workdir = shutil.copytree(whole, tmp_path / "run")
    rewritten(workdir, path, value)
    with pytest.raises(vmae.PretrainedError, match=f"checkpoint 4: .*{message}"):
        vmae.load_pretrained(workdir)


def test_a_flipped_byte_is_refused(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    files = [x for x in (workdir / "checkpoints").rglob("params/**/d/*") if x.is_file()]
    file = max(files, key=lambda x: x.stat().st_size)
    content = np.fromfile(file, np.uint8)
    content[len(content) // 2] ^= 1
    content.tofile(file)
    with pytest.raises(CheckpointError, match="params/.*: it is not what was saved"):
        vmae.load_pretrained(workdir)
