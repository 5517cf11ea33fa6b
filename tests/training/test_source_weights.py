"""A head takes the classes of its source by their names."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers.models import random_variables
from tests.training.test_finetune import folder, tiny  # noqa: F401
from videomae_jax import checkpointing
from videomae_jax.distributed import sharding
from videomae_jax.errors import CheckpointError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.interop.saving import save_pretrained
from videomae_jax.training.tasks import finetune


def make_task(folder, classes, **overrides):
    """Returns a task with classes of these names; none: three without names."""
    file = folder / "classes.txt"
    file.write_text("\n".join(classes))
    labels = str(file) if classes else ""
    return finetune.Finetuning(tiny(folder, **{"data.labels": labels} | overrides))


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory):
    """Returns a function that saves a classifier, in one of two ways."""

    def save(classes, layout="workdir"):
        task = make_task(folder, classes)
        path = tmp_path_factory.mktemp("source")
        params = random_variables(task.model)["params"]
        if layout == "jax":
            clips = Preprocessing(4, 2, 32)
            loaded = Pretrained(task.model, params, preprocessing=clips)
            loaded = dataclasses.replace(loaded, labels=tuple(classes))
            save_pretrained(path, loaded, format="jax")
        else:
            checkpoints = checkpointing.Checkpoints(str(path))
            meta = {"config": json.loads(task._config.to_json())} | task.meta
            checkpoints.save(8, {"params": params}, meta | {"total_steps": 8})
            checkpoints.close()
        return path, params["head"]

    return save


def start(folder, source, classes, seed=1):
    """Returns the head before and after loading; parameters are split over devices."""
    overrides = {"init.source": str(source), "init.head": True}
    task = make_task(folder, classes, **overrides)
    params = random_variables(task.model, seed)["params"]
    mesh = sharding.make_mesh(2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(params, everywhere)
    # In a way that five classes cannot be split.
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    params["head"]["kernel"] = jax.device_put(params["head"]["kernel"], split)
    loaded = task.load_source(params)["head"]
    assert loaded["kernel"].sharding == split
    return jax.device_get((params["head"], loaded))


@pytest.mark.parametrize("layout", ["workdir", "jax"])
def test_classes_are_found_by_name(folder, source, layout, caplog, monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    path, theirs = source(["run", "sit_down", "jump", "fall", "walk"], layout)
    with caplog.at_level("INFO", logger="videomae_jax"):
        ours, loaded = start(folder, path, ["Fall", "swim", "Sit down", "dive"])
    for name in ("kernel", "bias"):
        expected = ours[name].copy()
        expected[..., 0], expected[..., 2] = theirs[name][..., 3], theirs[name][..., 1]
        np.testing.assert_array_equal(loaded[name], expected)
    assert (
        "classes: 2 of 4 by name, from 5 in the source; newly initialised: swim, dive"
        in caplog.text
    )


def test_another_order_of_the_same_classes_is_followed(folder, source):
    path, theirs = source(["run", "jump", "fall", "dive"])
    _, loaded = start(folder, path, ["jump", "dive", "fall", "run"])
    np.testing.assert_array_equal(loaded["bias"], theirs["bias"][[1, 3, 2, 0]])


def test_a_head_without_names_is_taken_as_it_is(folder, source, caplog, monkeypatch):
    path, theirs = source([])
    message = r"head/bias: \(3,\), expected \(4,\)(.|\n)*convert --labels"
    with pytest.raises(CheckpointError, match=message):
        start(folder, path, ["run", "jump", "fall", "dive"])
    task = make_task(folder, ["a", "b", "c"])
    task._config.init.update(source=str(path), head=True)
    params = random_variables(task.model, 1)["params"]
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    with caplog.at_level("INFO", logger="videomae_jax"):
        loaded = task.load_source(jax.device_put(params))
    assert "classes: in the order of the source, not by name" in caplog.text
    np.testing.assert_array_equal(loaded["head"]["bias"], theirs["bias"])


def test_heads_without_a_common_class_are_refused(folder, source):
    path, _ = source(["run", "jump", "fall", "dive"])
    message = "none of the classes, such as 'left', is one of .*, such as 'run'"
    with pytest.raises(CheckpointError, match=message):
        start(folder, path, ["left", "right", "up", "down"])
