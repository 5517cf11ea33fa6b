"""A checkpoint is what was given to be saved, whatever happens while it is written."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import checkpointing


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
