"""Evaluation: every video once, whatever the number of devices and hosts."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.models import apply
from tests.training import test_finetune
from tests.training.test_finetune import folder, undisturbed  # noqa: F401
from videomae_jax.data import sources
from videomae_jax.data.clips import MultiViewClips
from videomae_jax.distributed import sharding
from videomae_jax.errors import CheckpointError, ConfigError, NoReadableVideoError
from videomae_jax.evaluation.evaluator import Evaluator
from videomae_jax.training import loop, train_step
from videomae_jax.training.tasks import finetune
from videomae_jax.video.decoder import Video

ROOT = pathlib.Path(__file__).parents[2]


def predictions(workdir):
    return (workdir / "test" / "predictions.jsonl").read_bytes()


@pytest.fixture
def trained(undisturbed, tmp_path):
    """A copy of a trained run without its test, and the predictions of the test."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    expected = predictions(workdir)
    shutil.rmtree(workdir / "test")
    return workdir, expected


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("per_device", [1, 3])
def test_devices_and_batches_change_nothing(
    folder,
    trained,
    monkeypatch,
    devices,
    per_device,
):
    workdir, expected = trained
    everything = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: everything[:devices])
    config = test_finetune.tiny(folder)
    config.evaluation.videos_per_device = per_device
    # The checkpoint names the classes: no training list is needed.
    config.data.update(train="", validation="nowhere.txt", labels="")
    loop.evaluate(config, str(workdir))
    assert predictions(workdir) == expected


PROCESS = """
import json, sys
import jax
from tests.helpers.models import apply
from tests.training import test_finetune
from videomae_jax.training import loop
import pathlib
folder, workdir, address, index = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
assert jax.process_count() == 2 and len(jax.devices()) == 4
config = test_finetune.tiny(pathlib.Path(folder))
loop.evaluate(config, workdir)
"""


@pytest.mark.slow
def test_two_processes_give_the_same_file(folder, trained):
    workdir, expected = trained
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder), str(workdir), address, str(i)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert predictions(workdir) == expected
    # The second process met the unreadable video; the first one writes the reason.
    row = json.loads((workdir / "test" / "unreadable.jsonl").read_text())
    assert row["id"] == "10.mp4" and row["reason"]


def test_probabilities_are_the_mean_over_views(folder, monkeypatch):
    task = finetune.Finetuning(
        test_finetune.tiny(folder, **{"model.head_init_scale": 50.0})
    )
    config = test_finetune.tiny(folder)
    clip = train_step.dummy_clip(config)
    params, _ = jax.jit(task.init)(jax.random.key(0), clip)
    videos = sources.load(str(folder / "good.txt"))[:3]
    reads = []
    read_frames = Video.read
    monkeypatch.setattr(
        Video, "read", lambda self, i: reads.append(1) or read_frames(self, i)
    )
    reader = MultiViewClips(4, 2, 32, "dense", segments=2, crops=3)
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    shape = (4, 32, 32, 3)
    evaluator = Evaluator(
        task.model,
        jax.nn.softmax,
        records=videos,
        class_names=task.class_names,
        problem=task.objective.problem,
        read_clips=reader,
        image_shape=shape,
        mesh=mesh,
        videos_per_device=2,
    )
    result = evaluator({"params": params})
    assert len(reads) == 3  # one decode, not six
    for i, record in enumerate(videos):
        with Video(record.path) as video:
            logits = apply(task.model, {"params": params}, reader(video, None))
        expected = np.asarray(jax.nn.softmax(logits)).mean(axis=0)
        np.testing.assert_allclose(result.probabilities[i], expected, atol=1e-5)
        assert np.ptp(expected) > 0.01
    assert result.ids == [record.id for record in videos]
    assert result.labels.tolist() == [0, 1, 2]


def test_equal_file_names_in_two_folders_stay_apart(folder, tmp_path):
    for name, source in (("a", "0.mp4"), ("b", "1.mp4")):
        (tmp_path / name).mkdir()
        shutil.copy(folder / source, tmp_path / name / "same.mp4")
    (tmp_path / "list.txt").write_text("a/same.mp4 0\nb/same.mp4 1\n")
    config = test_finetune.tiny(folder, **{"data.test": str(tmp_path / "list.txt")})
    task = finetune.Finetuning(config)
    clip = train_step.dummy_clip(config)
    params, _ = jax.jit(task.init)(jax.random.key(0), clip)
    state = loop.TrainState(0, params, (), {})
    task.test(state, sharding.make_mesh(1, jax.devices()[:1]), tmp_path)
    rows = [json.loads(line) for line in predictions(tmp_path).splitlines()]
    assert [row["id"] for row in rows] == ["a/same.mp4", "b/same.mp4"]


def test_only_unreadable_videos_are_an_error(folder, tmp_path):
    (tmp_path / "damaged.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("damaged.mp4 0\n")
    config = test_finetune.tiny(folder, **{"data.test": str(tmp_path / "list.txt")})
    task = finetune.Finetuning(config)
    clip = train_step.dummy_clip(config)
    params, _ = jax.jit(task.init)(jax.random.key(0), clip)
    state = loop.TrainState(0, params, (), {})
    with pytest.raises(NoReadableVideoError, match="none of 1 .*\n.*damaged.mp4"):
        task.test(state, sharding.make_mesh(1, jax.devices()[:1]), tmp_path)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.heads": 2}, "config.model.heads=2, but the checkpoint's is 3"),
        ({"model.position_size": 0}, "position_size=0, but the checkpoint's is 32"),
        ({"loss.kind": "sigmoid"}, "loss.kind='sigmoid', but .* is 'softmax'"),
    ],
)
def test_another_use_of_the_parameters_is_refused(
    folder,
    trained,
    overrides,
    message,
):
    config = test_finetune.tiny(folder, **overrides)
    with pytest.raises(CheckpointError, match=message):
        loop.evaluate(config, str(trained[0]))


def test_eval_without_a_test_list_is_an_error(folder, trained):
    config = test_finetune.tiny(folder, **{"data.test": ""})
    with pytest.raises(ConfigError, match="config.data.test"):
        loop.evaluate(config, str(trained[0]))


def test_nothing_to_evaluate_is_explained(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        loop.evaluate(test_finetune.tiny(folder), str(tmp_path))
