"""Runs of several processes: the same as of one, and they end together."""

import json
import os
import pathlib
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
from videomae_jax.training import finetune, loop, preemption

ROOT = pathlib.Path(__file__).parents[2]

# Runs main.py. Notes which clips every step has had, and lets one process come to grief
# after a step: RUN_EVENT is "PROCESS STEP SIGNAL", or "error" in place of the signal.
# Checkpoints are waited for, so that it is known which is the newest.
PROGRAM = """
import json, os, runpy
import jax
from videomae_jax.training import checkpointing, history

event = os.environ.get("RUN_EVENT", "0 0 0").split()
add, save = history.MetricBuffer.add, checkpointing.Checkpoints.save

def noted_add(self, step, metrics, ids):
    add(self, step, metrics, ids)
    with open(os.environ["RUN_IDS"] + f".{jax.process_index()}", "a") as file:
        file.write(json.dumps([step, ids]) + "\\n")
    if [str(jax.process_index()), str(step)] == event[:2]:
        if event[2] == "error":
            raise ValueError("out of luck")
        os.kill(os.getpid(), int(event[2]))

def waiting_save(self, *args):
    save(self, *args)
    self.wait()

history.MetricBuffer.add, checkpointing.Checkpoints.save = noted_add, waiting_save
if os.environ.get("RUN_MESH"):
    from jax.experimental import mesh_utils
    in_order = mesh_utils.create_device_mesh
    def mixed(shape, devices, **kwargs):
        return in_order(shape, devices[::2] + devices[1::2], **kwargs)
    mesh_utils.create_device_mesh = mixed
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
    """The processes of a run, each with its share of four devices."""

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
        """Waits for the victim to die, and for the others, which have a minute."""
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
    """Ids of the clips of each step of the run of so many processes, in their order."""
    found = {}
    for i in range(count):
        path = workdir.with_name(f"{workdir.name}.of{count}.{i}")
        for step, names in map(json.loads, path.read_text().splitlines()):
            found[step] = found.get(step, []) + names
    return found


def assert_same_run(workdir, other):
    rows = list(zip(metrics(workdir), metrics(other), strict=True))
    assert rows
    for one, two in rows:
        assert one.keys() == two.keys() and one["step"] == two["step"]
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with Run(pretraining(folder), workdir, 1) as run:
        run.finish()
    return workdir


@pytest.mark.slow
def test_a_process_is_killed_and_one_goes_on(folder, undisturbed, tmp_path):
    """On a mesh that takes the devices of the two processes in turns."""
    workdir = tmp_path / "run"
    event = f"1 6 {signal.SIGKILL:d}"
    with Run(pretraining(folder), workdir, 2, event=event, mesh="mixed") as run:
        run.end_together(victim=1)
    assert run.tail(0, 2).partition(" ")[2] == (
        f"process 1 of 2 ({socket.gethostname()}) stopped answering; this one ends too."
        "\nStart the job again: it continues from step 4."
    )
    assert run.processes[0].returncode == 1
    # The mesh has devices 0, 2, 1 and 3; process 0 those with the first two numbers.
    wanted = clips(undisturbed, 1)
    for step, names in clips(workdir, 2).items():
        parts = np.reshape(wanted[step], (4, 2))[[0, 2, 1, 3]].ravel().tolist()
        assert names == parts if step < 6 else names == parts[: len(names)]
    with Run(pretraining(folder), workdir, 1) as run:
        run.finish()
    assert "at step 4" in run.logs[0].read_text()
    assert_same_run(workdir, undisturbed)
    assert (workdir / "pictures" / "00000008.png").exists()


@pytest.mark.slow
def test_four_then_two_then_one(folder, undisturbed, tmp_path):
    """One is asked to stop, one fails: always all end, and nothing changes."""
    workdir = tmp_path / "run"
    recipe = pretraining(folder)
    event = f"2 2 {signal.SIGTERM:d}"
    with Run(recipe, workdir, 4, "mesh.fsdp=4", event=event) as run:
        run.finish(code=128 + signal.SIGTERM)
    assert "asked to stop: saved step" in run.logs[0].read_text()
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 2 <= saved < 8
    with Run(recipe, workdir, 2, "mesh.fsdp=2", event=f"1 {saved + 1} error") as run:
        run.end_together(victim=1)
    for i in range(2):
        assert "process 1 of 2" in run.tail(i)
        assert "ValueError: out of luck" in run.logs[i].read_text()
        assert f"continues from step {saved}." in run.tail(i)
    with Run(recipe, workdir, 1) as run:
        run.finish()
    assert_same_run(workdir, undisturbed)
    done = clips(undisturbed, 1)
    for count, steps in ((4, range(1, saved + 1)), (1, range(saved + 1, 9))):
        assert clips(workdir, count) == {step: done[step] for step in steps}
    assert clips(workdir, 2)[saved + 1] == done[saved + 1]


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_process_is_gone(folder, undisturbed, tmp_path, send):
    workdir = tmp_path / "run"
    with Run(pretraining(folder), workdir, 2, event=f"0 6 {send:d}") as run:
        if send == signal.SIGKILL:
            run.end_together(victim=0)
        else:
            run.processes[1].wait(timeout=500)
        assert "process 0 of 2" in run.tail(1) and "stopped answering" in run.tail(1)
        assert "continues from step 4." in run.tail(1)
    with Run(pretraining(folder), workdir, 2) as run:
        run.finish()
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_finetuning_and_its_test(folder, tmp_path):
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
        # Whoever meets an unreadable video, all know of it, and it is told once.
        bad = [path / "bad_videos.jsonl" for path in (workdir, whole)]
        assert bad[0].read_text() == bad[1].read_text() != ""
        assert not run.logs[1].read_text().count("bad video")
        for one, two in zip(predicted(workdir), predicted(whole), strict=True):
            assert one["id"] == two["id"]
            np.testing.assert_allclose(
                one["probabilities"], two["probabilities"], rtol=1e-4
            )


def predicted(workdir):
    lines = (workdir / "test" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_processes_that_differ_are_named(monkeypatch):
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
    monkeypatch.setattr(hosts, "check_alike", lambda **things: compared.append(things))
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
    different = {repr(things["videos"]) for things in compared}
    assert len(different) == 4


def test_sigterm_is_not_swallowed_where_nobody_asks(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as JAX's own
    try:
        preemption.leave_sigterm()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rows_of_scattered_devices(monkeypatch):
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
    with pytest.raises(ValueError, match="make config.batch_size, 2, a multiple of"):
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
