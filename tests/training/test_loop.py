"""Whole runs: what they write, how they end, and that nothing interrupts them."""

import json
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from tests.helpers import official
from tests.helpers.videos import write_folder
from videomae_jax import checkpointing
from videomae_jax.distributed import hosts
from videomae_jax.errors import (
    CheckpointError,
    CompleteRunError,
    ConfigError,
    OutputError,
    UserError,
)
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Preprocessing
from videomae_jax.training import loop, reporting
from videomae_jax.training.tasks import pretrain
from videomae_jax.training.train_step import TrainState

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 12)


def tiny(folder, **overrides):
    config = common.debug(common.pretrain())
    config.data.update(
        train=str(folder), num_frames=4, stride=2, image_size=32, num_workers=0
    )
    config.model.update(width=24, depth=1, decoder_width=24)
    config.mask.ratio = 0.75
    config.optimizer.warmup_epochs = 1.0
    config.picture.update(every=0, clips=2)
    config.update(steps=8, log_every=2)
    config.checkpoint.every = 4
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs use one device, as a laptop does, unless a test says otherwise."""
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:1])


def metrics(workdir):
    """What is the same in every run: all but the speed."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    speed = ("clips_per_second_per_device", "data_wait_fraction")
    rows = [json.loads(line) for line in lines]
    return [{name: row[name] for name in row if name not in speed} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        state = loop.train_and_evaluate(
            tiny(folder, **{"picture.every": 8, "batch_size": 8}), str(workdir)
        )
    return workdir, state


def test_run_leaves_metrics_checkpoints_and_pictures(undisturbed):
    workdir, state = undisturbed
    assert state.step == 8
    rows = metrics(workdir)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[0]["loss"] > rows[-1]["loss"] > 0
    speed = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert speed["clips_per_second_per_device"] > 0
    assert 0 <= speed["data_wait_fraction"] <= 1
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"4", "8"}
    assert list((workdir / "tensorboard").iterdir())
    with Image.open(workdir / "pictures" / "00000008.png") as file:
        image = np.asarray(file)
    # Two clips of three rows: a label, four 128-pixel frames, and lines between them.
    height, width, _ = image.shape
    assert height == 2 * (3 * 130) + 6 - 2 and 50 < width - (4 * 130 - 2) < 150
    with Image.open(workdir / "pictures" / "00000008.gif") as animation:
        assert animation.n_frames == 4
    assert json.loads((workdir / "config.json").read_text())["steps"] == 8


@pytest.mark.slow
def test_pictures_show_what_every_host_can_read(folder, monkeypatch):
    """Hosts with different numbers of clips would wait for each other for ever."""
    task = pretrain.Pretraining(tiny(folder))
    params, _ = task.init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.uint8))
    monkeypatch.setattr(hosts, "gather", lambda ids: [ids, ids[1:]])
    reporter = mock.MagicMock()
    task.validate(0, TrainState(0, params, (), {}), None, reporter)
    rows = reporter.picture.call_args.args[1]
    assert [len(clips) for clips in rows] == [1, 1, 1]


def test_stopping_in_the_middle_changes_nothing(folder, undisturbed, tmp_path):
    # The checkpoint lies between two lines of metrics: 5 is in the line of step 6.
    config = tiny(folder, **{"checkpoint.every": 5})
    run_until(config, tmp_path, 5)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert metrics(tmp_path) == metrics(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, undisturbed[1].params)


def run_until(config, workdir, step):
    """Runs and dies right after a checkpoint is complete."""

    class Killed(Exception):
        pass

    save = checkpointing.Checkpoints.save

    def save_and_die(self, at, *args):
        save(self, at, *args)
        if at == step:
            self.wait()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing.Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            loop.train_and_evaluate(config, str(workdir))


@pytest.mark.slow
def test_resumes_on_other_devices(folder, undisturbed, tmp_path, monkeypatch):
    config = tiny(folder)
    run_until(config, tmp_path, 4)
    monkeypatch.undo()
    config.mesh.update(fsdp=4, shard_optimizer=True)
    loop.train_and_evaluate(config, str(tmp_path))
    for one, other in zip(metrics(tmp_path), metrics(undisturbed[0]), strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_train_alike(folder, undisturbed, tmp_path, monkeypatch):
    monkeypatch.undo()
    config = tiny(folder, **{"micro_batch_per_device": 1})
    loop.train_and_evaluate(config, str(tmp_path))
    for one, other in zip(metrics(tmp_path), metrics(undisturbed[0]), strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def test_complete_run_is_left_alone(folder, undisturbed):
    before = (undisturbed[0] / "metrics.jsonl").read_bytes()
    state = loop.train_and_evaluate(tiny(folder), str(undisturbed[0]))
    assert state.step == 8
    assert (undisturbed[0] / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_stopped_may_end_with_fewer_steps(
    folder, undisturbed, tmp_path, caplog
):
    """Only a complete run has results that other settings would contradict."""
    caplog.set_level("INFO", "videomae_jax")
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    config = tiny(folder, steps=6)
    with pytest.raises(CompleteRunError, match="config.steps=6, was 8"):
        loop.train_and_evaluate(config, str(workdir))
    file = workdir / "checkpoints" / "8" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    assert meta["complete"] and meta["total_steps"] == 8
    file.write_text(json.dumps(meta | {"complete": False, "total_steps": 20}))
    (file.parent / "digests.json").unlink()
    assert loop.train_and_evaluate(config, str(workdir)).step == 8
    assert caplog.messages[-1] == f"{workdir} is complete: 8 of 6 steps"


@pytest.mark.slow
def test_a_run_is_complete_when_nothing_is_left_to_do(
    folder, tmp_path, monkeypatch, caplog
):
    """Scripts give the machines back then: not before the test of the last step."""

    class Preempted(Exception):
        pass

    def test(*_):
        raise Preempted

    caplog.set_level("INFO", "videomae_jax")
    monkeypatch.setattr(pretrain.Pretraining, "is_tested", lambda *_: False)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Pretraining, "test", test)
        with pytest.raises(Preempted):
            loop.train_and_evaluate(tiny(folder, steps=2), str(tmp_path))
        assert "is complete" not in caplog.text
    loop.train_and_evaluate(tiny(folder, steps=2), str(tmp_path))
    assert caplog.messages[-1] == f"{tmp_path} is complete: 2 of 2 steps"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "test"}, "config.mode='test' must be one of: train, eval"),
        (
            {"task": "detect"},
            "config.task='detect' must be one of: pretrain, finetune, distill",
        ),
        ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
        ({"mask.kind": "cube"}, "config.mask.kind='cube' must be one of: tube, random"),
        ({"batch_size": 12}, "config.batch_size .* divisible by the 8 devices"),
        (
            {"micro_batch_per_device": 0},
            "config.micro_batch_per_device=0 must be at least 1",
        ),
        ({"mesh.fsdp": 3}, "config.mesh.fsdp=3 must divide"),
        ({"data.num_workers": -1}, "num_workers=-1 must be at least 0"),
        (
            {"model.attention": "flash"},
            "config.model.attention='flash' is unknown. Use xla, by_head, or None",
        ),
        (
            {"model.decoder_attention": "splash"},
            "model.decoder_attention='splash' needs a TPU, but the devices are CPUs",
        ),
    ],
)
def test_mistakes_of_the_config_are_explained(
    changes, message, folder, tmp_path, monkeypatch
):
    monkeypatch.undo()  # all eight devices
    with pytest.raises(UserError, match=message):
        loop.run(tiny(folder, **changes), str(tmp_path))


def test_mistakes_of_the_code_keep_their_trace(folder, tmp_path, monkeypatch):
    def add(*_):
        raise ValueError("out of luck")

    monkeypatch.setattr(reporting.MetricBuffer, "add", add)
    with pytest.raises(ValueError, match="out of luck") as error:
        loop.run(tiny(folder), str(tmp_path))
    assert not isinstance(error.value, UserError)


def test_another_models_checkpoint_is_refused(folder, undisturbed):
    config = tiny(folder, **{"model.width": 48, "steps": 10})
    with pytest.raises(CheckpointError, match="another model"):
        loop.train_and_evaluate(config, str(undisturbed[0]))


@pytest.mark.slow
def test_checkpoints_keep_the_last_and_the_milestones(folder, tmp_path):
    config = tiny(folder, **{"checkpoint.every": 1, "checkpoint.keep_period": 3})
    loop.train_and_evaluate(config, str(tmp_path))
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {3, 6, 7, 8}


def test_a_bucket_is_no_work_directory(folder):
    with pytest.raises(ConfigError, match="gs://bucket/run must be a folder"):
        loop.run(tiny(folder), "gs://bucket/run")


@pytest.mark.parametrize(
    "mode, end", [("train", ". The next start starts from step 0."), ("eval", "")]
)
def test_a_training_that_cannot_write_says_where_it_resumes(
    folder, tmp_path, monkeypatch, mode, end
):
    def fail(*_):
        raise OutputError("x cannot be written")

    monkeypatch.setattr(loop, "train_and_evaluate", fail)
    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(OutputError) as error:
        loop.run(tiny(folder, mode=mode), str(tmp_path))
    assert str(error.value) == f"x cannot be written{end}"


@pytest.mark.slow
# Of jaxlib, when the statistics of an event are read.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_steps_are_traced(folder, tmp_path):
    """Counted from where a run goes on, here after step 4."""
    config = tiny(folder)
    run_until(config, tmp_path, 4)
    config.profile.update(first=3, steps=5)
    loop.train_and_evaluate(config, str(tmp_path))
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    # To the end of the run, which comes before that of the trace.
    numbers = [
        dict(event.stats)["step_num"]
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert numbers == [7, 8]


def test_nothing_is_read_from_the_devices_between_logs(folder, tmp_path, monkeypatch):
    # On a CPU the transfer guard lets reading pass, which costs nothing there.
    reads, fetched, array = [], [], type(jax.numpy.zeros(()))
    value = array._value
    monkeypatch.setattr(
        array, "_value", property(lambda self: reads.append(1) or value.fget(self))
    )
    fetch = reporting.MetricBuffer.fetch

    def allowed(*args):
        assert not reads
        with jax.transfer_guard("allow"):
            fetch(*args)
        fetched.append(bool(reads))
        del reads[:]

    monkeypatch.setattr(reporting.MetricBuffer, "fetch", allowed)
    steps = loop.profiling.traced

    def guarded(*args, **kwargs):
        del reads[:]
        with jax.transfer_guard("disallow"):
            for step in steps(*args, **kwargs):
                yield step
                assert not reads, f"after step {step}"

    monkeypatch.setattr(loop.profiling, "traced", guarded)
    config = tiny(folder, **{"log_every": 4, "checkpoint.every": 100})
    monkeypatch.setattr(loop.Checkpoints, "save", lambda *args: None)
    loop.train_and_evaluate(config, str(tmp_path))
    assert fetched == [True, True, False]  # steps 4 and 8, and nothing left to save


@pytest.mark.slow
def test_pretraining_goes_on_from_other_weights(folder, tmp_path):
    """Decoder included; the first loss is that of the weights it starts with."""
    golden = official.GOLDEN / "checkpoints" / "hf_pretrain"
    config = tiny(folder, **{"data.num_frames": 8, "data.image_size": 64})
    config.model.update(
        width=48, depth=2, heads=3, decoder_width=32, decoder_depth=2, decoder_heads=2
    )
    config.init.source = str(golden)
    config.update(steps=2, log_every=1)
    state = loop.train_and_evaluate(config, str(tmp_path / "run"))
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        load_pretrained(golden).params,
        state.params,
    )
    assert 0 < max(jax.tree.leaves(moved)) < 1e-3

    config.model.decoder_heads = 4
    with pytest.raises(CheckpointError, match="decoder_heads=4 must be 2"):
        loop.train_and_evaluate(config, str(tmp_path / "other"))
    config.model.decoder_heads = 2
    config.init.source = str(golden.parent / "hf_classifier")
    with pytest.raises(CheckpointError, match="decoder/.*: missing"):
        loop.train_and_evaluate(config, str(tmp_path / "another"))


@pytest.mark.slow
def test_a_finished_run_is_read_as_a_model(folder, tmp_path):
    state = loop.train_and_evaluate(tiny(folder, steps=2), str(tmp_path / "run"))
    loaded = load_pretrained(tmp_path / "run")
    assert loaded.format == "workdir" and loaded.model.width == 24
    assert loaded.preprocessing == Preprocessing(4, 2, 32, "exact")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.params)
