"""A checkpoint is what was given to be saved, whatever happens while it is written."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import checkpointing
from videomae_jax.errors import CheckpointError


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
    assert checkpoints.shapes(7, "batch_stats") == {"norm/mean": (3,)}
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


def largest_data_file(checkpoint):
    files = (x for x in (checkpoint / "params").rglob("d/*") if x.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def cut(path, size=10):
    with path.open("r+b") as file:
        file.truncate(size)


def clear(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = {
    "data file cut off": (lambda x: cut(largest_data_file(x), 1000), r"params/\w+: "),
    "data file empty": (lambda x: cut(largest_data_file(x), 0), r"params/\w+: "),
    "data file missing": (lambda x: largest_data_file(x).unlink(), r"params/\w+: "),
    "table cut off": (lambda x: cut(x / "params/manifest.ocdbt"), "params/manifest"),
    "table missing": (lambda x: (x / "params/manifest.ocdbt").unlink(), "manifest"),
    "names cut off": (lambda x: cut(x / "params/_METADATA"), "_METADATA: cut off"),
    "names missing": (
        lambda x: (x / "params/_METADATA").unlink(),
        "params/_METADATA: no such file",
    ),
    "meta empty": (lambda x: cut(x / "meta/metadata", 0), "meta/metadata: empty"),
    "half deleted": (lambda x: shutil.rmtree(x / "opt_state"), "opt_state/_METADATA"),
    "empty folder": (clear, "_CHECKPOINT_METADATA: no such file"),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """Work directory with steps 10 and 16 of arrays of some size."""
    workdir = tmp_path_factory.mktemp("whole")
    checkpoints = checkpointing.Checkpoints(str(workdir), keep_last=2)
    random = np.random.default_rng(0)
    for step in (10, 16):
        params = {name: jnp.asarray(random.normal(size=4000)) for name in "abcd"}
        items = {"params": params, "opt_state": {"count": jnp.zeros(3)}}
        checkpoints.save(step, items, {"config": {}})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_explained_in_one_line(
    two_checkpoints, tmp_path, damage, capfd
):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    destroy, file = DAMAGES[damage]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = jax.ShapeDtypeStruct((4000,), np.float32, sharding=place)
    abstract = {name: shape for name in "abcd"}
    destroy(workdir / "checkpoints" / "16")
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    assert checkpoints.latest_step() == 16
    for read in (
        lambda: (checkpoints.meta(16), checkpoints.restore(16, {"params": abstract})),
        lambda: checkpointing.restore_part(str(workdir), 16, "params", abstract),
    ):
        with pytest.raises(CheckpointError, match=file) as error:
            read()
        message = str(error.value)
        assert message.startswith("checkpoint 16 cannot be read (")
        assert "; 10 is whole: read it with --step=10" in message
        assert f"delete {workdir / 'checkpoints' / '16'} to resume" in message
        assert "\n" not in message
    assert "Traceback" not in capfd.readouterr().err
    # The other one is never taken instead, but may be chosen.
    step = checkpoints.find_step(10)
    restored = checkpoints.restore(step, {"params": abstract})["params"]
    assert restored.keys() == set("abcd")
    checkpoints.close()


def test_no_checkpoint_is_whole(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    clear(workdir / "checkpoints" / "10")
    clear(workdir / "checkpoints" / "16")
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    with pytest.raises(CheckpointError, match="no other checkpoint is whole"):
        checkpoints.meta(16)
    checkpoints.close()


@pytest.mark.parametrize("error", [TypeError, MemoryError, jax.errors.JaxRuntimeError])
def test_other_errors_are_not_taken_for_damage(two_checkpoints, monkeypatch, error):
    """They come at once: a checkpoint may have hundreds of gigabytes to read."""
    folder = two_checkpoints / "checkpoints"
    find_damage, read = checkpointing.find_damage, []

    def watched(checkpoint, *, read_arrays=False):
        read.append(read_arrays)
        return find_damage(checkpoint, read_arrays=read_arrays)

    monkeypatch.setattr(checkpointing, "find_damage", watched)
    with pytest.raises(error, match="not of a file"):
        with checkpointing._damage_explained(folder, 16):
            raise error("not of a file")
    assert read == [False]
    with pytest.raises(OSError, match="of a file"):
        with checkpointing._damage_explained(folder, 16):
            raise OSError("of a file that is whole by now")
    assert read == [False, False, True]


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
    assert checkpointing.find_damage(checkpoints.folder / "7", read_arrays=True) is None
