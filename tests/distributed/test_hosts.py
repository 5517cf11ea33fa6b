"""Runs of several processes give the results of one process, and end together."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import common
from tests.helpers.official import CHECKPOINTS
from tests.helpers.videos import write_folder
from tests.training.test_loop import metrics
from videomae_jax.distributed import hosts, sharding
from videomae_jax.errors import ClusterError
from videomae_jax.training import loop, preemption
from videomae_jax.training.tasks import finetune

ROOT = pathlib.Path(__file__).parents[2]

# Runs main.py. Records the clips of every step, and makes one process fail after a
# step: RUN_EVENT is "PROCESS STEP SIGNAL", or has "error" in place of the signal, or
# "worker": then one of its worker processes is killed.
# Saving waits until a checkpoint is on disk: the test knows which is the newest.
PROGRAM = """
import json, multiprocessing, os, runpy
import jax
from videomae_jax import checkpointing
from videomae_jax.training.reporting import MetricBuffer

event = os.environ.get("RUN_EVENT", "0 0 0").split()
add, save = MetricBuffer.add, checkpointing.Checkpoints.save

def recording_add(self, step, metrics, ids):
    add(self, step, metrics, ids)
    with open(os.environ["RUN_IDS"] + f".{jax.process_index()}", "a") as file:
        file.write(json.dumps([step, ids]) + "\\n")
    if [str(jax.process_index()), str(step)] == event[:2]:
        if event[2] == "error":
            raise ValueError("out of luck")
        elif event[2] == "worker":
            multiprocessing.active_children()[0].kill()
        else:
            os.kill(os.getpid(), int(event[2]))

def waiting_save(self, *args):
    save(self, *args)
    self.wait()

MetricBuffer.add = recording_add
checkpointing.Checkpoints.save = waiting_save
if os.environ.get("RUN_MESH"):
    from jax.experimental import mesh_utils
    in_order = mesh_utils.create_device_mesh
    def alternating(shape, devices, **kwargs):
        return in_order(shape, devices[::2] + devices[1::2], **kwargs)
    mesh_utils.create_device_mesh = alternating
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 12)


def pretraining(folder):
    return [
        "--config=configs/k400_vits_pretrain.py:debug",
        f"--config.data.train={folder}",
        "--config.mask.ratio=0.75",
        "--config.model.decoder_width=24",
        "--config.picture.every=8",
        "--config.picture.clips=2",
    ]


def finetuning(folder):
    videos = folder / "labelled.txt"
    lines = [f"{i}.mp4 {i % 3}\n" for i in range(9)]
    missing = [f"missing{i}.mp4 {i}\n" for i in range(3)]
    videos.write_text("".join(lines + missing))
    return [
        "--config=configs/k400_vits_finetune.py:debug",
        *(f"--config.data.{x}={videos}" for x in ("train", "validation", "test")),
        "--config.data.labels=",
        "--config.data.max_bad_fraction=0.5",
        "--config.data.rand_augment=",
        "--config.model.head_init_scale=1.0",
        "--config.evaluation.every=8",
    ]


class Run:
    """Starts the processes of a run, each with its share of four devices."""

    def __init__(self, recipe, workdir, count, *flags, event="0 0 0", mesh=""):
        command = [sys.executable, "-c", PROGRAM, *recipe, f"--workdir={workdir}"]
        command += [f"--config.{flag}" for flag in (*TINY, *flags)]
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        self.logs = [workdir.parent / f"{workdir.name}.{i}.log" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(4 // count),
                "RUN_EVENT": event,
                "RUN_IDS": f"{workdir}.of{count}",
                "RUN_MESH": mesh,
            }
            if count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(i),
                }
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def tail(self, index, lines=3):
        return "\n".join(self.logs[index].read_text().splitlines()[-lines:])

    def finish(self, code=0):
        for process in self.processes:
            process.wait(timeout=500)
        codes = [process.returncode for process in self.processes]
        everything = "\n\n".join(log.read_text()[-3000:] for log in self.logs)
        assert set(codes) == {code}, everything
        return self

    def end_together(self, victim):
        """Waits until the victim is dead, and then at most a minute for the others."""
        self.processes[victim].wait(timeout=500)
        deadline = time.monotonic() + 60
        for process in self.processes:
            process.wait(timeout=max(deadline - time.monotonic(), 0))
        assert all(process.returncode for process in self.processes)


TINY = (
    "data.num_frames=4",
    "data.stride=2",
    "data.image_size=32",
    "data.num_workers=0",
    "model.width=24",
    "model.depth=1",
    "steps=8",
    "log_every=2",
    "checkpoint.every=4",
)


def clips(workdir, count):
    """Returns the ids of the clips of each step of a run of `count` processes."""
    ids = {}
    for i in range(count):
        path = workdir.with_name(f"{workdir.name}.of{count}.{i}")
        for step, names in map(json.loads, path.read_text().splitlines()):
            ids[step] = ids.get(step, []) + names
    return ids


def assert_same_run(workdir, other):
    rows = list(zip(metrics(workdir), metrics(other), strict=True))
    assert rows
    for one, two in rows:
        assert one.keys() == two.keys() and one["step"] == two["step"]
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)


def finished(folder, workdir, processes):
    """Lets a run alone; returns its work directory."""
    with Run(pretraining(folder), workdir, processes) as run:
        run.finish()
    return workdir


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    return finished(folder, tmp_path_factory.mktemp("undisturbed") / "run", 1)


@pytest.fixture(scope="module")
def undisturbed_pair(folder, tmp_path_factory):
    """A run of two processes, which others of two equal bit for bit."""
    return finished(folder, tmp_path_factory.mktemp("undisturbed_pair") / "run", 2)


@pytest.mark.slow
def test_run_resumes_on_one_process_after_a_kill(folder, undisturbed, tmp_path):
    """With a mesh that alternates between the devices of the two processes.

    They accumulate the gradients of two micro-batches; one process takes them as one.
    """
    workdir = tmp_path / "run"
    flag, event = "micro_batch_per_device=1", f"1 6 {signal.SIGKILL:d}"
    with Run(pretraining(folder), workdir, 2, flag, event=event, mesh="mixed") as run:
        run.end_together(victim=1)
    host = socket.gethostname()
    log = run.logs[0].read_text()
    assert f"process 0 of 2 on {host}; hosts: 0={host} 1={host}\n" in log
    # JAX aborts process 0 and names process 1.
    assert re.search(r"Terminating process.* tasks are unhealthy [^\n]*:\n1\n", log)
    assert "Start the job again: it resumes from" in log
    assert run.processes[0].returncode == -signal.SIGABRT
    # The mesh has devices 0, 2, 1 and 3; process 0 has 0 and 1.
    undisturbed_clips = clips(undisturbed, 1)
    for step, names in clips(workdir, 2).items():
        pairs = np.reshape(undisturbed_clips[step], (4, 2))
        expected = pairs[[0, 2, 1, 3]].ravel().tolist()
        assert names == expected if step < 6 else names == expected[: len(names)]
    with Run(pretraining(folder), workdir, 1) as run:
        run.finish()
    assert f"resuming {workdir} at step=4" in run.logs[0].read_text()
    assert_same_run(workdir, undisturbed)
    assert (workdir / "pictures" / "00000008.png").exists()


@pytest.mark.slow
def test_two_lists_and_dual_masking(folder, tmp_path):
    """Two processes are stopped, one continues, as if one had done it all.

    They count the videos of both lists. With two steps in time, how many tokens of a
    clip count in the loss depends on its masks, so it differs between the processes.
    """
    lists = [
        {"list": "digits:train_small", "stride": 1, "weight": 1},
        {"list": str(folder), "stride": 3, "weight": 2},
    ]
    recipe = [
        *pretraining(folder),
        f"--config.data.train={json.dumps(lists)}",
        "--config.mask.decoder_kind=running_cell",
    ]
    workdir, event = tmp_path / "run", f"1 3 {signal.SIGTERM:d}"
    with Run(recipe, workdir, 2, event=event) as run:
        run.finish(code=128 + signal.SIGTERM)
    for path, saved in ((workdir, True), (tmp_path / "other", False)):
        with Run(recipe, path, 1) as run:
            run.finish()
        assert ("resuming" in run.logs[0].read_text()) == saved
    assert_same_run(workdir, tmp_path / "other")
    for row in metrics(workdir):
        counts = [row["videos/digits:train_small"], row[f"videos/{folder}"]]
        assert sum(counts) == 8 * row["step"] and min(counts) > 0


@pytest.mark.slow
def test_run_resumes_on_four_then_two_then_one(folder, undisturbed, tmp_path):
    """One process gets SIGTERM, one fails: all end, and the results do not change."""
    workdir = tmp_path / "run"
    recipe = pretraining(folder)
    event = f"2 2 {signal.SIGTERM:d}"
    with Run(recipe, workdir, 4, "mesh.fsdp=4", event=event) as run:
        run.finish(code=128 + signal.SIGTERM)
    assert "preempted: saved step" in run.logs[0].read_text()
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 2 <= saved < 8
    with Run(recipe, workdir, 2, "mesh.fsdp=2", event=f"1 {saved + 1} error") as run:
        run.end_together(victim=1)
    for i in range(2):
        failed = (
            f"process 1 of 2 ({socket.gethostname()}) failed: ValueError: out of luck"
        )
        assert failed in run.tail(i)
        assert f"resumes from step {saved}." in run.tail(i)
        assert run.processes[i].returncode == 1
    with Run(recipe, workdir, 1) as run:
        run.finish()
    assert_same_run(workdir, undisturbed)
    done = clips(undisturbed, 1)
    for count, steps in ((4, range(1, saved + 1)), (1, range(saved + 1, 9))):
        assert clips(workdir, count) == {step: done[step] for step in steps}
    assert clips(workdir, 2)[saved + 1] == done[saved + 1]


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_others_end_if_process_0_is_gone(
    folder, undisturbed, undisturbed_pair, tmp_path, send
):
    workdir = tmp_path / "run"
    with Run(pretraining(folder), workdir, 2, event=f"0 6 {send:d}") as run:
        if send == signal.SIGKILL:
            run.end_together(victim=0)
        else:
            run.processes[1].wait(timeout=500)
    log = run.logs[1].read_text()
    # JAX's words, and the line that explains them.
    assert re.search("Terminating process(.|\n)*(leader task|/Heartbeat)", log)
    assert f"'leader task' or 'Heartbeat' is process 0 ({socket.gethostname()})" in log
    with Run(pretraining(folder), workdir, 2) as run:
        run.finish()
    assert f"resuming {workdir} at step=4" in run.logs[0].read_text()
    assert_same_run(workdir, undisturbed)
    assert metrics(workdir) == metrics(undisturbed_pair)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_on_its_host(
    folder, undisturbed_pair, tmp_path
):
    """The other host does not notice, and the run stays the same."""
    workdir = tmp_path / "run"
    flags, event = ["data.num_workers=1"], "1 2 worker"
    with Run(pretraining(folder), workdir, 2, *flags, event=event) as run:
        run.finish()
    death = "worker 0 of 1 was killed by SIGKILL"
    assert [death in log.read_text() for log in run.logs] == [False, True]
    assert metrics(workdir) == metrics(undisturbed_pair)
    assert clips(workdir, 2) == clips(undisturbed_pair, 2)


@pytest.mark.slow
def test_finetuning_and_final_test(folder, tmp_path):
    recipe = finetuning(folder)
    whole = tmp_path / "whole"
    weights = [
        f"init.source={CHECKPOINTS / 'hf_classifier'}",
        *("model.width=48", "model.depth=2", "model.heads=3"),
        *("model.patch_size=16", "model.tubelet_size=2", "model.position_size=64"),
    ]
    with Run(recipe, whole, 1, *weights) as run:
        run.finish()
    for count, fsdp in ((2, 1), (4, 4)):
        workdir = tmp_path / f"of{count}"
        with Run(recipe, workdir, count, f"mesh.fsdp={fsdp}", *weights) as run:
            run.finish()
        assert_same_run(workdir, whole)
        # All processes know of each unreadable video, and it is logged once.
        bad = [path / "bad_videos.jsonl" for path in (workdir, whole)]
        assert bad[0].read_text() == bad[1].read_text() != ""
        assert not run.logs[1].read_text().count("bad video")
        for one, two in zip(predicted(workdir), predicted(whole), strict=True):
            assert one["id"] == two["id"]
            np.testing.assert_allclose(
                one["probabilities"], two["probabilities"], rtol=1e-4
            )


@pytest.mark.slow
def test_distillation_from_a_run(folder, tmp_path):
    """Each process reads the teacher, and puts its part of it on its devices."""
    teacher = tmp_path / "teacher"
    recipe = [*finetuning(folder), "--config.init.source="]
    with Run(recipe, teacher, 1) as run:
        run.finish()
    recipe[0] = "--config=configs/v2/k710_vits_distill.py:debug"
    recipe += [
        f"--config.teacher.source={teacher}",
        # What both have learned is little: without this, rounding would be as large.
        *("--config.distill.temperature=0.05", "--config.teacher.dtype=float32"),
        "--config.distill.square_temperature=False",
        "--config.distill.feature_weight=1.0",
    ]
    for count, fsdp in ((1, 1), (2, 2)):
        with Run(recipe, tmp_path / f"of{count}", count, f"mesh.fsdp={fsdp}") as run:
            run.finish()
    rows = list(zip(metrics(tmp_path / "of1"), metrics(tmp_path / "of2"), strict=True))
    assert {"kl", "feature_loss"} <= rows[0][0].keys()
    for one, two in rows:
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


def predicted(workdir):
    lines = (workdir / "test" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_processes_with_other_flags_are_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)

    def gather(value):
        host, digests = value
        return [value, ["host1", digests], ["host2", digests | {"flags": "other"}]]

    monkeypatch.setattr(hosts, "gather", gather)
    with pytest.raises(ClusterError, match=r"flags of process 2 \(host2\) diff"):
        hosts.check_alike(videos=["a", "b"], flags={"seed": 0})
    hosts.check_alike(videos=["a", "b"])


def test_all_lists_are_compared(folder, monkeypatch):
    compared = []
    monkeypatch.setattr(hosts, "check_alike", lambda **values: compared.append(values))
    config = common.debug(common.finetune())
    for i, name in enumerate(("train", "validation", "test")):
        path = folder / f"{name}.txt"
        path.write_text(f"{i}.mp4 1\n")
        config.data[name] = str(path)
    config.data.labels = ""
    loop.check_hosts(config, finetune.Finetuning(config))
    for name in ("train", "validation", "test"):
        (folder / f"{name}.txt").write_text("9.mp4 1\n")
        loop.check_hosts(config, finetune.Finetuning(config))
    different = {repr(values["videos"]) for values in compared}
    assert len(different) == 4


def test_sigterm_ends_a_process_that_no_longer_saves(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as JAX's own
    try:
        preemption.leave_sigterm()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_local_indices_of_scattered_devices(monkeypatch):
    class Scattered:
        def addressable_devices_indices_map(self, shape):
            quarter = shape[0] // 4
            return {
                0: (slice(0, quarter),),
                1: (slice(2 * quarter, 3 * quarter),),
            }

    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Scattered())
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    assert sharding.local_indices(mesh, 8).tolist() == [0, 1, 4, 5]
    assert sharding.local_indices(mesh, 4, clips_per_video=2).tolist() == [0, 2]
    with pytest.raises(
        ValueError, match="config.batch_size=2 must be a multiple of the 4"
    ):
        sharding.local_indices(mesh, 2, clips_per_video=4)


def test_processes_that_share_cores_and_memory_are_counted(monkeypatch):
    """Four with all cores of their host in common, and one on another host."""
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    monkeypatch.setattr(
        hosts.multihost_utils,
        "process_allgather",
        lambda own: np.stack([own] * 4 + [own + 1]),
    )
    hosts.processes_sharing_resources.cache_clear()
    assert hosts.processes_sharing_resources() == (4, 4)
    hosts.processes_sharing_resources.cache_clear()


def test_a_lone_process_shares_nothing():
    hosts.processes_sharing_resources.cache_clear()
    assert hosts.processes_sharing_resources() == (1, 1)
