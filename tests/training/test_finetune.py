"""Whole fine-tuning runs: where they start, what they leave, what they refuse."""

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs import common
from tests.helpers import official
from tests.helpers.videos import write_folder
from tests.training import test_loop
from videomae_jax import checkpoint_files, checkpointing
from videomae_jax.distributed import sharding
from videomae_jax.errors import CheckpointError, ConfigError, RecordError
from videomae_jax.evaluation import results
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.models import positions
from videomae_jax.training import loop, train_step
from videomae_jax.training.tasks import finetune

one_device = test_loop.one_device
SIZES = {"width": 24, "depth": 2, "heads": 3, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven videos of three classes and their list, `list.txt`; the last is bad."""
    folder = write_folder(tmp_path_factory.mktemp("videos"), 11)
    (folder / "10.mp4").write_bytes(b"not a video")
    lines = [f"{i}.mp4 {i % 3}\n" for i in range(11)]
    (folder / "list.txt").write_text("".join(lines))
    (folder / "good.txt").write_text("".join(lines[:10]))
    (folder / "names.txt").write_text("left\nright\nup\n")
    return folder


def tiny(folder, **overrides):
    config = common.debug(common.finetune())
    config.data.update(
        train=str(folder / "good.txt"),
        validation=str(folder / "list.txt"),
        test=str(folder / "list.txt"),
        labels=str(folder / "names.txt"),
        num_frames=4,
        stride=2,
        image_size=32,
        num_workers=0,
    )
    config.model.update(**SIZES, position_size=32)
    config.update(steps=8, log_every=2, batch_size=4)
    config.ema.decay = 0.9
    config.evaluation.every = 4
    config.checkpoint.every = 4
    config.update_from_flattened_dict(overrides)
    return config


def best_of(folder, **overrides):
    fields = {"evaluation.every": 1, "evaluation.step": "best"} | overrides
    return tiny(folder, **{"checkpoint.every": 100, "checkpoint.keep_last": 1} | fields)


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """The work directory of a pretraining run."""
    workdir = tmp_path_factory.mktemp("pretrained")
    config = test_loop.tiny(folder / "good.txt", steps=1)
    config.model.update(SIZES)
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        loop.train_and_evaluate(config, str(workdir))
    return workdir


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        return workdir, loop.train_and_evaluate(tiny(folder), str(workdir))


def test_run_leaves_accuracies_and_predictions(undisturbed):
    workdir, state = undisturbed
    assert state.step == 8
    validations = [
        row for row in test_loop.metrics(workdir) if "validation/top1" in row
    ]
    assert [row["step"] for row in validations] == [4, 8]
    assert validations[0]["validation/unreadable"] == 1
    metrics = json.loads((workdir / "test" / "metrics.json").read_text())
    assert metrics["videos"] == 10 and metrics["unreadable"] == 1
    wrong = metrics["top1_counting_unreadable_wrong"]
    assert wrong == pytest.approx(metrics["top1"] * 10 / 11)
    lines = (workdir / "test" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [row["id"] for row in predictions] == [f"{i}.mp4" for i in range(10)]
    assert [row["label"] for row in predictions] == [i % 3 for i in range(10)]
    for row in predictions:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    unreadable = (workdir / "test" / "unreadable.jsonl").read_text()
    assert "10.mp4" in unreadable
    with (workdir / "test" / "per_class.csv").open() as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"left", "right", "up"}
    assert (workdir / "test" / "confusion.png").exists()


@pytest.mark.slow
def test_stopping_in_the_middle_changes_nothing(folder, undisturbed, tmp_path):
    config = tiny(folder, **{"checkpoint.every": 5})
    test_loop.run_until(config, tmp_path, 5)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert test_loop.metrics(tmp_path) == test_loop.metrics(undisturbed[0])
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.ema, state.opt_state),
        (undisturbed[1].params, undisturbed[1].ema, undisturbed[1].opt_state),
    )
    test = "test/predictions.jsonl"
    assert (tmp_path / test).read_bytes() == (undisturbed[0] / test).read_bytes()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_damaged_checkpoint_is_never_replaced_by_an_older(
    folder, undisturbed, tmp_path, mode
):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    (workdir / "checkpoints" / "8" / "params" / "manifest.ocdbt").unlink()
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="checkpoint 8 cannot be read.*4 is whol"):
        loop.run(tiny(folder, mode=mode, steps=12), str(workdir))
    assert (workdir / "metrics.jsonl").read_bytes() == before
    with pytest.raises(CheckpointError, match="checkpoint 8 cannot be read"):
        load_pretrained(workdir)
    assert load_pretrained(workdir, step=4).labels == ("left", "right", "up")


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_best_that_was_not_kept_is_not_tested(
    folder, undisturbed, tmp_path, keep_best
):
    """Patience counts on, but the final test needs a checkpoint."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    file = workdir / "checkpoints" / "8" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    best = {"metric": "top1", "value": 99.0, "step": 6, "since": 1}
    file.write_text(json.dumps(meta | {"best": best, "complete": False}))
    (file.parent / checkpoint_files.DIGESTS).unlink()
    fields = {"checkpoint.keep_best": keep_best, "steps": 16}
    fields["evaluation.step"] = "best" if keep_best else "last"
    config = best_of(folder, **fields)
    with loop.set_up(config, workdir) as run:
        _, progress = loop.restore_or_init(run)
        run.checkpoints.close()
    assert (progress.best is None) == keep_best
    assert progress.tested_step(config) == 8


def test_a_test_needs_a_list(folder, undisturbed):
    with pytest.raises(ConfigError, match="needs a list of videos: config.data.test"):
        loop.run(tiny(folder, mode="eval", **{"data.test": ""}), str(undisturbed[0]))


def test_a_run_goes_back_to_an_older_checkpoint(folder, undisturbed, tmp_path):
    """As the message of a damaged one says; here, of a parameter with another value."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    newest = workdir / "checkpoints" / "8"
    files = [x for x in (newest / "params").rglob("d/*") if x.is_file()]
    file = max(files, key=lambda x: x.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = r"checkpoint 8 cannot be read \(params/.*: it is not what was saved"
    with loop.set_up(tiny(folder, steps=12), workdir) as run:
        with pytest.raises(CheckpointError, match=message) as error:
            loop.restore_or_init(run)
        run.checkpoints.close()
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(workdir)
    assert "--config.checkpoint.step=4" in str(error.value)
    config = tiny(folder, steps=12, **{"checkpoint.step": 4})
    with loop.set_up(config, workdir) as run:
        state, progress = loop.restore_or_init(run)
        run.checkpoints.close()
    assert state.step == progress.step == 4 and not newest.exists()
    # Nothing is lost: also what is damaged can still be looked at.
    aside = workdir / "set_aside" / "8"
    assert (aside / file.relative_to(newest)).read_bytes() == content


def test_lists_are_described_at_the_start(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    caplog.set_level("INFO", "videomae_jax")
    (tmp_path / "names.txt").write_text("left\nright\nup\ndown\n")
    config = tiny(folder, **{"data.labels": str(tmp_path / "names.txt")})
    finetune.Finetuning(config).log_lists()
    facts, doubts = caplog.messages
    assert "videos: training=10 test=11" in facts
    assert "classes: 4; training videos of a class: 0 (down) to 4 (left)" in facts
    assert "1 of 4 classes have no training video: down" in doubts
    assert "10 of 11 test videos are training videos, too" in doubts


def test_killed_before_its_test_a_complete_run_makes_it_up(
    folder, undisturbed, tmp_path
):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    shutil.rmtree(workdir / "test")
    loop.train_and_evaluate(tiny(folder), str(workdir))
    name = "test/predictions.jsonl"
    assert (workdir / name).read_bytes() == (undisturbed[0] / name).read_bytes()
    # One of another step does not count, one of this step is left alone.
    metrics = workdir / "test" / "metrics.json"
    assert json.loads(metrics.read_text())["step"] == 8
    metrics.write_text(metrics.read_text().replace('"step": 8', '"step": 5'))
    loop.train_and_evaluate(tiny(folder), str(workdir))
    assert json.loads(metrics.read_text())["step"] == 8
    before = (workdir / name).stat().st_mtime_ns
    loop.train_and_evaluate(tiny(folder), str(workdir))
    assert (workdir / name).stat().st_mtime_ns == before


def test_killed_before_its_dump_a_complete_run_makes_it_up(
    folder, undisturbed, tmp_path, monkeypatch
):
    pytest.importorskip("torch")

    def killed(*_):
        raise KeyboardInterrupt

    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    dump = tmp_path / "dump.pkl"
    dump.write_bytes(b"of an earlier test")
    shutil.rmtree(workdir / "test")
    config = tiny(folder, **{"evaluation.dump": str(dump)})
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_mmaction_dump", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(config, str(workdir))
    assert (workdir / "test" / "metrics.json").exists()  # is not lost
    loop.train_and_evaluate(config, str(workdir))
    assert dump.stat().st_size > 100


def test_the_average_is_what_is_evaluated(folder, undisturbed, tmp_path):
    workdir, state = undisturbed
    differing = jax.tree.map(lambda a, b: np.any(a != b), state.params, state.ema)
    assert any(jax.tree.leaves(differing))
    # Plain parameters, tested, give other predictions than the average.
    task = finetune.Finetuning(tiny(folder))
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    task.test(state, mesh, tmp_path / "average")
    task.test(state.replace(ema=None), mesh, tmp_path / "plain")
    name = "test/predictions.jsonl"
    average = (tmp_path / "average" / name).read_bytes()
    assert average == (workdir / name).read_bytes()
    assert average != (tmp_path / "plain" / name).read_bytes()


@pytest.mark.slow
def test_devices_workers_and_accumulation_train_alike(folder, tmp_path, monkeypatch):
    config = tiny(folder, **{"data.num_samples": 2, "steps": 4})
    loop.train_and_evaluate(config, str(tmp_path / "one"))
    monkeypatch.undo()
    config.mesh.fsdp = 2
    config.data.num_workers = 2
    config.micro_batch_per_device = 1
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:4])
    loop.train_and_evaluate(config, str(tmp_path / "other"))
    for one, other in zip(
        test_loop.metrics(tmp_path / "one"),
        test_loop.metrics(tmp_path / "other"),
        strict=True,
    ):
        if "loss" in one:
            np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def start(folder, source, **overrides):
    """The task's parameters before and after loading, and the report."""
    config = tiny(folder, **{"init.source": str(source)} | overrides)
    task = finetune.Finetuning(config)
    params, _ = jax.jit(task.init)(jax.random.key(0), train_step.dummy_clip(config))
    return params, task.load_source(params)


def test_encoder_comes_from_pretraining(folder, pretrained, caplog, monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    with caplog.at_level("INFO", logger="videomae_jax"):
        params, loaded = start(folder, pretrained)
    table = caplog.text
    for line in (
        r"encoder/blocks +13 +loaded",
        r"encoder/embedding +2 +loaded",
        r"norm +2 +newly initialised",
        r"head +2 +newly initialised",
        r"encoder/norm +2 +in the source, dropped",
        r"decoder +\d+ +in the source, dropped",
    ):
        assert re.search(line, table), table
    checkpoints = checkpointing.Checkpoints(str(pretrained), read_only=True)
    shapes = jax.eval_shape(lambda: params["encoder"])
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
    )
    saved = checkpointing.restore_part(
        str(pretrained), checkpoints.latest_step(), "params", {"encoder": abstract}
    )
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"], saved["encoder"])
    np.testing.assert_array_equal(loaded["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.slow
def test_encoder_comes_from_other_libraries_too(folder, tmp_path, caplog, monkeypatch):
    """As from a hub folder; mean pooling leaves the encoder's own norm out."""
    config = tiny(folder, **{"data.num_frames": 8, "data.image_size": 64})
    config.model.update(width=48, depth=2, heads=3, position_size=64)
    config.init.source = str(official.GOLDEN / "checkpoints" / "hf_pretrain")
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    task = finetune.Finetuning(config)
    video = np.zeros((1, 8, 64, 64, 3), np.uint8)
    params, _ = task.init(jax.random.key(0), video)
    with caplog.at_level("INFO", logger="videomae_jax"):
        loaded = task.load_source(params)
    assert re.search(r"hf_pretrain \(huggingface\)", caplog.text)
    assert re.search(r"encoder/norm +2 +in the source, dropped", caplog.text)
    theirs = load_pretrained(config.init.source).params["encoder"]
    assert theirs.pop("norm")
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"], theirs)
    np.testing.assert_array_equal(loaded["head"]["kernel"], params["head"]["kernel"])

    config.model.heads = 2
    with pytest.raises(CheckpointError, match="heads=2 must be 3"):
        finetune.Finetuning(config).load_source(params)


def test_first_token_takes_the_encoders_norm_too(folder, pretrained):
    params, loaded = start(folder, pretrained, **{"model.pooling": "first_token"})
    assert "norm" in loaded["encoder"] and "norm" not in loaded


def test_head_of_a_finetuned_run_on_request(folder, undisturbed):
    workdir, state = undisturbed
    _, loaded = start(folder, workdir)
    np.testing.assert_array_equal(loaded["norm"]["bias"], state.ema["norm"]["bias"])
    assert np.any(loaded["head"]["kernel"] != state.ema["head"]["kernel"])
    _, loaded = start(folder, workdir, **{"init.head": True})
    np.testing.assert_array_equal(loaded["head"]["kernel"], state.ema["head"]["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"data.num_frames": 8, "data.num_samples": 2, "mix.mixup": 0.0},
        {"data.image_size": 48, "loss.class_balance": 0.9, "mix.mode": "sample"},
        {
            "data.num_frames": 16,
            "data.image_size": 48,
            "model.position_size": 0,
            "data.frame_sampling": "uniform",
            "evaluation.segments": 3,
        },
        {"freeze": "^encoder/", "model.head_norm": "batch", "model.drop_path": 0.0},
        {"freeze": "^encoder/", "model.pooling": "attentive"},
    ],
    ids=lambda overrides: "-".join(f"{k.split('.')[-1]}" for k in overrides),
)
def test_variations_run_from_a_pretrained_encoder(
    folder, pretrained, tmp_path, overrides
):
    config = tiny(folder, **{"init.source": str(pretrained), "steps": 2} | overrides)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert (tmp_path / "test" / "metrics.json").exists()
    if config.freeze:
        # A resumed probe finds its statistics, too.
        config.steps = 3
        assert loop.train_and_evaluate(config, str(tmp_path)).step == 3
        assert bool(state.batch_stats) == (config.model.head_norm == "batch")


def test_image_size_interpolates_the_pretrained_positions(folder, pretrained):
    config = tiny(folder, **{"data.image_size": 48})
    grid = (2, 3, 3)
    model = finetune.Finetuning(config).model
    assert model.position_size == (32, 32)
    interpolated = positions.position_table(grid, 24, (2, 2))
    assert np.abs(interpolated - positions.position_table(grid, 24)).max() > 0.1


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"data.num_classes": 2}, RecordError, r"num_classes=2.*names 3 classes"),
        (
            {"data.num_classes": 2, "data.labels": ""},
            RecordError,
            r"2\.mp4 has label 2, but with 2 classes labels must be 0 to 1",
        ),
        ({"data.labels": "nowhere.txt"}, RecordError, "config.data.labels"),
        (
            {"data.frame_sampling": "middle"},
            ValueError,
            "config.data.frame_sampling.*dense",
        ),
        (
            {"loss.kind": "sigmoid", "evaluation.dump": "out.pkl"},
            ValueError,
            "config.evaluation.dump",
        ),
        ({"loss.kind": "hinge"}, ValueError, "config.loss.kind.*sigmoid"),
        ({"mix.mode": "elem"}, ValueError, "config.mix.mode.*sample"),
        ({"model.pooling": "cls"}, ValueError, "first_token"),
        ({"init.source": "nowhere"}, CheckpointError, "nowhere"),
        ({"data.image_size": 40}, ValueError, "multiple"),
        ({"freeze": "backbone"}, ValueError, "config.freeze"),
        ({"model.head_norm": "batch"}, ValueError, "config.freeze=.encoder/"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_explained(folder, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        loop.train_and_evaluate(tiny(folder, **overrides), str(tmp_path))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"model.width": 48}, r"config.model.width=48 must be 24, as in the source"),
        ({"model.heads": 2}, r"config.model.heads=2 must be 3, as in the source"),
        ({"model.position_size": 64}, r"position_size=64 must be 32 or 0.* 32 pixels"),
        ({"init.head": True}, r"head/kernel: missing, expected \(24, 3\)"),
    ],
)
def test_weights_of_another_model_are_refused(folder, pretrained, overrides, message):
    with pytest.raises(CheckpointError, match=message):
        start(folder, pretrained, **overrides)
