"""A checkpoint is what was given to be saved, whatever happens while it is written."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint._src.path.deleter import PathDeleter

from videomae_jax import checkpointing
from videomae_jax.checkpoint_files import find_damage
from videomae_jax.errors import CheckpointError


def cut(path, size=10):
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = checkpointing.Checkpoints(str(tmp_path), keep_last=2)
    yield checkpoints
    checkpoints.close()


def test_rows_that_come_while_it_is_written(checkpoints, monkeypatch):
    go_on = threading.Event()
    dumps = json.dumps

    def late(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        return dumps(*args, **kwargs)

    monkeypatch.setattr(json, "dumps", late)
    rows = [{"loss": 1.0}]
    checkpoints.save(7, {"params": {"x": jnp.zeros(2)}}, {"rows": rows})
    rows[0]["loss"] = 2.0
    rows.append({"loss": 3.0})
    go_on.set()
    checkpoints.wait()
    assert checkpoints.meta(7) == {"rows": [{"loss": 1.0}]}


def test_arrays_that_are_donated_while_it_is_written(checkpoints):
    params = {"x": jnp.arange(2**22, dtype=jnp.float32)}  # takes a while to write
    add = jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)
    checkpoints.save(7, {"params": params}, {})
    for _ in range(20):
        params = add(params)
    checkpoints.wait()
    shapes = jax.eval_shape(lambda: params)
    saved = checkpoints.restore(7, {"params": shapes})["params"]["x"]
    np.testing.assert_array_equal(saved, np.arange(2**22))


def test_items_of_older_checkpoints_are_found(checkpoints, tmp_path):
    """Batch statistics were the item `statistics` once."""
    statistics = {"norm": {"mean": jnp.arange(3.0)}}
    checkpoints.save(7, {"params": {"x": jnp.ones(2)}, "statistics": statistics}, {})
    checkpoints.wait()
    assert checkpoints.shapes(7)["batch_stats"] == {"norm/mean": (3,)}
    assert checkpoints.evaluated_item(7) == "params"
    shapes = jax.eval_shape(lambda: statistics)
    restored = checkpoints.restore(7, {"batch_stats": shapes})["batch_stats"]
    np.testing.assert_array_equal(restored["norm"]["mean"], np.arange(3.0))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    part = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )
    restored = checkpointing.restore_part(str(tmp_path), 7, "batch_stats", part)
    np.testing.assert_array_equal(restored["norm"]["mean"], np.arange(3.0))


def test_the_best_is_kept_beside_the_last_and_the_milestones(tmp_path):
    options = {"keep_last": 1, "keep_period": 4, "keep_best": True}
    checkpoints = checkpointing.Checkpoints(str(tmp_path), **options)
    for step in range(1, 8):
        best = {"metric": "top1", "value": 50.0, "step": min(step, 3)}
        checkpoints.save(step, {"params": {"x": jnp.zeros(2)}}, {"best": best})
        if step == 5:  # a resumed run knows which is the best
            checkpoints.close()
            checkpoints = checkpointing.Checkpoints(str(tmp_path), **options)
    checkpoints.close()
    kept = {int(path.name) for path in checkpoints.folder.iterdir()}
    assert kept == {3, 4, 7}


def test_a_step_is_chosen(checkpoints):
    with pytest.raises(CheckpointError, match="no complete checkpoint found"):
        checkpoints.find_step("last")
    checkpoints.save(2, {"params": {"x": jnp.zeros(2)}}, {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="step=best needs validations"):
        checkpoints.find_step("best")
    for step, best in ((4, 4), (6, 4), (8, 1)):
        checkpoints.save(
            step, {"params": {"x": jnp.zeros(2)}}, {"best": {"step": best}}
        )
        checkpoints.wait()
        if step == 6:
            assert checkpoints.find_step("best") == 4
    assert [checkpoints.find_step(x) for x in ("last", "6", 8)] == [8, 6, 8]
    for choice, message in {
        "best": "step=best is 1, which was not kept .*keep_best.*holds 6, 8",
        "7": "step=7 not found: .*checkpoints holds 6, 8",
        "newest": "step=newest must be last, best or a number",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            checkpoints.find_step(choice)


def test_an_item_that_was_not_saved_is_named(checkpoints):
    checkpoints.save(7, {"params": {"x": jnp.zeros(2)}}, {})
    checkpoints.wait()
    shape = {"x": jax.ShapeDtypeStruct((2,), np.float32)}
    for item in ("opt_state", "ema"):
        with pytest.raises(CheckpointError, match=f"/7 has no item {item}, which the"):
            checkpoints.restore(7, {"params": shape, item: shape})


def test_an_empty_folder_is_no_checkpoint(tmp_path, caplog):
    items = {"params": {"x": jnp.zeros(2)}}
    checkpoints = checkpointing.Checkpoints(str(tmp_path), keep_last=2)
    checkpoints.save(10, items, {})
    checkpoints.close()
    empty = tmp_path / "checkpoints" / "16"
    empty.mkdir()
    reader = checkpointing.Checkpoints(str(tmp_path), read_only=True)
    assert reader.latest_step() == 10 and reader.find_step("last") == 10
    with pytest.raises(CheckpointError, match="step=16 not found: .* holds 10$"):
        reader.find_step(16)
    reader.close()
    assert empty.exists()
    checkpoints = checkpointing.Checkpoints(str(tmp_path), keep_last=2)
    assert checkpoints.latest_step() == 10
    assert f"removed {empty}: an empty folder is not a checkpoint" in caplog.text
    checkpoints.save(16, items, {"rows": []})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 16] and checkpoints.meta(16) == {"rows": []}
    checkpoints.close()


def config_of(step=None, seed=0):
    return ConfigDict({"checkpoint": {"step": step}, "seed": seed})


def save(workdir, *steps, went_back_to=None):
    checkpoints = checkpointing.Checkpoints(str(workdir), keep_last=9)
    for step in steps:
        value = jnp.full(2, step if went_back_to is None else -step)
        meta = {"config": config_of(went_back_to).to_dict()}
        checkpoints.save(step, {"params": {"x": value}}, meta)
    checkpoints.close()


def test_a_run_goes_back_once_and_loses_nothing(tmp_path, caplog):
    save(tmp_path, 10, 13, 16)
    folder, aside = tmp_path / "checkpoints", tmp_path / "set_aside"
    with pytest.raises(CheckpointError, match="step=12 not found: .* 10, 13, 16$"):
        checkpointing.go_back(tmp_path, config_of(12))
    cut(folder / "16" / "meta" / "metadata")  # it need not be readable
    checkpointing.go_back(tmp_path, config_of(10))
    assert f"step=10: moved {folder / '16'} to {aside / '16'}" in caplog.text
    assert {x.name for x in folder.iterdir()} == {"10"}
    assert {x.name for x in aside.iterdir()} == {"13", "16"}

    # Killed, and started again with the same flags; the step itself may be deleted.
    save(tmp_path, 13, 16, went_back_to=10)
    checkpointing.go_back(tmp_path, config_of(10))
    assert {x.name for x in folder.iterdir()} == {"10", "13", "16"}
    shutil.rmtree(folder / "10")
    checkpointing.go_back(tmp_path, config_of(10))
    assert {x.name for x in folder.iterdir()} == {"13", "16"}

    # Another step is another decision.
    checkpointing.go_back(tmp_path, config_of(13))
    assert {x.name for x in folder.iterdir()} == {"13"}
    assert {x.name for x in aside.iterdir()} == {"13", "16", "16.2"}
    assert find_damage(aside / "16.2", read=None) is None


def test_a_run_goes_back_again_with_other_settings_or_from_damage(tmp_path, caplog):
    save(tmp_path, 10)
    save(tmp_path, 13, 16, went_back_to=10)
    folder, aside = tmp_path / "checkpoints", tmp_path / "set_aside"
    (tmp_path / "test").mkdir()  # results of 16
    checkpointing.go_back(tmp_path, config_of(10))
    assert "the run went back before; it resumes from step 16" in caplog.text
    assert not aside.exists()
    # As a damaged one says to resume from another.
    flip(next((folder / "16" / "params").rglob("d/*")))
    checkpointing.go_back(tmp_path, config_of(10))
    assert {x.name for x in folder.iterdir()} == {"10", "13"}
    assert {x.name for x in aside.iterdir()} == {"16", "test"}
    assert not (tmp_path / "test").exists()
    checkpointing.go_back(tmp_path, config_of(10, seed=1))
    assert {x.name for x in folder.iterdir()} == {"10"}
    # Nothing is left to go back to.
    save(tmp_path, 13, went_back_to=10)
    shutil.rmtree(folder / "10")
    flip(next((folder / "13" / "params").rglob("d/*")))
    with pytest.raises(CheckpointError, match="step=10 not found"):
        checkpointing.go_back(tmp_path, config_of(10))
    assert {x.name for x in folder.iterdir()} == {"13"}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_cannot_be_deleted_is_named_and_the_rest_is_deleted(
    tmp_path, caplog, monkeypatch
):
    """As on NFS, while somebody reads the file."""
    delete = PathDeleter.delete

    def busy(self, path, **kwargs):
        if path.name == "1":
            raise OSError(39, "Directory not empty", str(path))
        delete(self, path, **kwargs)

    monkeypatch.setattr(PathDeleter, "delete", busy)
    save_last(tmp_path, 1, 2, 3, 4)
    assert {x.name for x in (tmp_path / "checkpoints").iterdir()} == {"1", "4"}
    [message] = caplog.messages
    assert message == (
        f"{tmp_path / 'checkpoints' / '1'} cannot be deleted (directory not empty): "
        "delete it yourself"
    )


def save_last(workdir, *steps):
    checkpoints = checkpointing.Checkpoints(str(workdir))
    for step in steps:
        checkpoints.save(step, {"params": {"x": jnp.zeros(2)}}, {})
    checkpoints.close()


@pytest.mark.parametrize("name", ["exp#1", "50%", "a?b", "a%20b", "lr=1e-3, seed 2"])
def test_work_directories_have_any_name(tmp_path, name):
    """Such as one that means something in a URL."""
    checkpoints = checkpointing.Checkpoints(str(tmp_path / name))
    saved = {"x": np.arange(3.0, dtype=np.float32)}
    checkpoints.save(7, {"params": jax.tree.map(jnp.asarray, saved)}, {"best": None})
    checkpoints.close()
    checkpoints = checkpointing.Checkpoints(str(tmp_path / name), read_only=True)
    assert checkpoints.meta(7) == {"best": None}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"x": jax.ShapeDtypeStruct((3,), np.float32, sharding=place)}
    for restored in (
        checkpoints.restore(7, {"params": abstract})["params"],
        checkpointing.restore_part(str(tmp_path / name), 7, "params", abstract),
    ):
        np.testing.assert_array_equal(restored["x"], saved["x"])
    checkpoints.close()
    assert find_damage(checkpoints.folder / "7", read=None) is None
