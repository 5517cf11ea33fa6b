"""Metrics in files and in the log; model FLOPs utilization."""

import json
import logging
import re
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from tensorboardX import summary

from configs import common
from tests.helpers.disks import limited
from tests.training import test_loop
from tests.training.test_loop import tiny
from videomae_jax.errors import ConfigError, OutputError
from videomae_jax.training import loop, reporting
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.tasks.finetune import Finetuning, send_test
from videomae_jax.training.tasks.pretrain import Pretraining

folder = test_loop.folder
one_device = test_loop.one_device


def test_curves_are_written_soon_after_a_report(tmp_path):
    """So that a kill loses little of them."""
    reporter = Reporter(tmp_path, start_step=0, total_steps=10, clips_per_device=1.0)
    reporter.values(1, {"validation/top1": 50.0})
    [events] = (tmp_path / "tensorboard").iterdir()
    deadline = time.monotonic() + 30
    while b"validation/top1" not in events.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    reporter.close()


def test_a_full_disk_ends_the_curves_with_an_error(tmp_path):
    """A thread of the writer could only end, and leave the next ones waiting."""
    curves = reporting._TensorBoard(tmp_path / "tensorboard", 1)
    message = "tensorboard cannot be written: file too large"
    with limited(500), pytest.raises(OutputError, match=message):
        for step in range(100):
            curves.add(step, summary.scalar("loss", 1.0))
    curves.close()


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_mfu_is_reported_if_the_peak_is_known(
    folder, tmp_path, caplog, monkeypatch, known
):
    caplog.set_level(logging.INFO, "videomae_jax")
    peak = 1e9
    if known:
        monkeypatch.setitem(reporting.PEAK_FLOPS, "cpu", peak)
    config = tiny(folder, **{"steps": 2})
    loop.train_and_evaluate(config, str(tmp_path))
    (line,) = [x for x in caplog.messages if x.startswith("step=2/2 ")]
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(rows[-1])
    assert "clips/s/device=" in line and "eta=0m00s" in line
    assert ("mfu=" in line) == ("mfu" in row) == known
    if known:
        flops = Pretraining(config).flops_per_clip
        expected = row["clips_per_second_per_device"] * flops / peak
        assert row["mfu"] == pytest.approx(expected)


def test_mfu_is_the_share_of_the_peak(tmp_path, monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: next(clock))
    reporter = Reporter(
        tmp_path,
        start_step=0,
        total_steps=10,
        clips_per_device=8,
        flops_per_clip=3e9,
        peak_flops=24e9,
    )
    reporter.metrics(2, {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1})
    reporter.close()
    (row,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    # 16 clips in 4 s take 12 of 24 GFLOP/s.
    assert json.loads(row)["mfu"] == 0.5


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_peak_of_a_kind_of_device(kind, tera):
    device = types.SimpleNamespace(device_kind=kind)
    assert reporting.peak_flops(device) == tera * 1e12


def test_peak_of_a_cpu_is_not_known():
    assert reporting.peak_flops(jax.devices()[0]) is None


def test_flops_per_clip_agree_with_published_figures():
    """ViT-B on 16 frames of 224x224 pixels."""
    # Fine-tuning: 180 G multiply-adds forward (VideoMAE, table 6), which count as two
    # operations each; three times as many for a step.
    config = common.finetune()
    config.data.update(train="digits:train", labels="", validation="", test="")
    assert Finetuning(config).flops_per_clip == pytest.approx(180e9 * 2 * 3, rel=0.01)
    # Pretraining at ratio 0.9: 160 visible of 1568 tokens in the encoder, all of them
    # in the decoder of width 384 and depth 4; counted by hand, matrix by matrix.
    width, decoder, values = 768, 384, 3 * 2 * 16 * 16

    def blocks(tokens, width, depth):
        weights = 12 * width**2  # qkv 3, projection 1, and an MLP of 4 + 4
        return depth * (tokens * weights + 2 * tokens**2 * width)

    multiply_adds = (
        160 * values * width
        + blocks(160, width, 12)
        + 160 * width * decoder
        + blocks(1568, decoder, 4)
        + 1408 * decoder * values
    )
    counted = Pretraining(common.pretrain()).flops_per_clip
    assert counted == 2 * 3 * multiply_adds
    assert counted == pytest.approx(203e9, rel=0.005)


class FakeWandb(types.ModuleType):
    """Records what a run is started with, and what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **settings):
        run = types.SimpleNamespace(settings=settings, rows=[], finished=0, summary={})
        run.log = lambda values, step: run.rows.append((step, values))
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        self.runs.append(run)
        return run


def report_to_wandb(workdir, start_step=0):
    config = common.finetune()
    assert reporting.start_wandb(config, workdir) is None
    config.wandb.project = "gestures"
    reporter = Reporter(
        workdir,
        start_step=start_step,
        total_steps=10,
        clips_per_device=1.0,
        wandb_run=reporting.start_wandb(config, workdir),
    )
    reporter.metrics(
        start_step + 2, {"loss": 1.5, "grad_norm": 1.0, "learning_rate": 0.1}
    )
    reporter.values(start_step + 2, {"validation/top1": 50.0})
    reporter.close()


def test_a_resumed_run_continues_its_run_of_wandb(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 2):
        report_to_wandb(tmp_path, step)
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"]
    assert first.settings["resume"] == "allow" and first.finished == 1
    assert first.settings["project"] == "gestures"
    assert first.settings["name"] == tmp_path.name
    assert first.settings["config"]["loss"]["kind"] == "softmax"
    (step, metrics), validation = second.rows
    assert step == 4 and metrics["loss"] == 1.5 and "step" not in metrics
    assert validation == (4, {"validation/top1": 50.0})
    # Another work directory is another run.
    (tmp_path / "other").mkdir()
    report_to_wandb(tmp_path / "other")
    assert wandb.runs[2].settings["id"] != first.settings["id"]


def test_metrics_of_a_test_are_in_the_summary_of_its_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    report_to_wandb(tmp_path)
    config = common.finetune()
    send_test(config, tmp_path, {"top1": 75.0})
    assert len(wandb.runs) == 1
    config.wandb.project = "gestures"
    send_test(config, tmp_path, {"top1": 75.0, "unreadable": 0})
    first, second = wandb.runs
    assert second.settings["id"] == first.settings["id"] and second.finished == 1
    assert second.summary == {"test/top1": 75.0, "test/unreadable": 0}


def test_a_run_of_the_real_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 2):
        report_to_wandb(tmp_path, step)
    config = common.finetune()
    config.wandb.project = "gestures"
    send_test(config, tmp_path, {"top1": 75.0})
    id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{id}"))) >= 1


def test_without_the_package_the_field_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = "wandb.project=gestures needs the package"
    with pytest.raises(ConfigError, match=message):
        report_to_wandb(tmp_path)
    # Before anything else: here the lists do not exist, either.
    config = common.pretrain()
    config.wandb.project = "gestures"
    with pytest.raises(ConfigError, match=message):
        loop.set_up(config, tmp_path / "run").__enter__()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def printed_log():
    """Lets this package's lines go to stderr, as in a program."""
    logger = logging.getLogger("videomae_jax")
    before = logger.level, logger.propagate
    yield reporting.start_log(logging.INFO)
    logger.removeHandler(reporting._handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


def test_warnings_come_last_until_training_begins(printed_log, capsys):
    def lines():
        return [line[9:] for line in capsys.readouterr().err.splitlines()]

    with reporting.warnings_last():
        printed_log.warning("low on memory")
        printed_log.info("videos=12")
        assert lines() == ["videos=12"]
        reporting.release_warnings()
        assert lines() == ["low on memory"]
        printed_log.warning("skipped a step")
        assert lines() == ["skipped a step"]
    with reporting.warnings_last():
        printed_log.warning("low on memory")
        printed_log.error("no video")
        assert lines() == ["low on memory", "no video"]
    with pytest.raises(ZeroDivisionError), reporting.warnings_last():
        printed_log.warning("low on memory")
        raise ZeroDivisionError
    assert lines() == ["low on memory"]


def test_other_threads_log_too(printed_log, capsys):
    with reporting.warnings_last():
        pass
    printed_log.error("of this thread")
    thread = threading.Thread(target=printed_log.info, args=["of the other"])
    thread.daemon = True
    thread.start()
    thread.join(10)
    assert not thread.is_alive() and "of the other" in capsys.readouterr().err


def test_parameters_are_one_line_unless_asked_for(printed_log, capsys):
    params = {"encoder": {"kernel": jax.numpy.ones((30, 50)), "bias": np.ones(50)}}
    reporting.log_parameters(params)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("parameters=1,550 in 2 arrays")
    printed_log.setLevel(logging.DEBUG)
    reporting.log_parameters(params)
    assert "encoder/kernel" in capsys.readouterr().err


def test_compilation_is_timed_and_no_part_of_the_speed(tmp_path, caplog):
    reporter = Reporter(tmp_path, start_step=0, total_steps=9, clips_per_device=1)
    with caplog.at_level(logging.INFO, "videomae_jax"):
        with reporter.waiting_for_data():
            time.sleep(0.2)  # for the workers to start
        with reporter.compiling(is_first=True):
            time.sleep(0.3)
        with reporter.compiling(is_first=False):
            pass
    values = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1}
    seconds, data_wait = reporter.metrics(1, values)
    reporter.close()
    assert seconds < 0.2 and not data_wait
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "compiling the train step ..."
    assert re.fullmatch(r"compiled the train step in [0-9.]+ s", messages[1])
