"""compile-for-tpu prints and writes the figures of a compiled step."""

import json

import jax
import pytest

from videomae_jax.__main__ import main
from videomae_jax.distributed.sharding import ShardingPlan
from videomae_jax.tpu import compile, topology
from videomae_jax.tpu.collectives import Traffic
from videomae_jax.tpu.compile import Compilation
from videomae_jax.tpu.step_time import Operation, StepTime

TIME = StepTime(
    seconds=0.2,
    cycles=225_000_000,
    overlapped=0.002,
    kinds={"products": 0.15, "kernels": 0.04, "collectives": 0.01},
    modules={"encoder": 0.12, "decoder": 0.07, "collectives": 0.01},
    largest=[
        Operation(
            *("fusion.1", "products", "encoder", 12, 0.05, "bf16[8,128]"),
            source="videomae_jax/models/vit.py:141",
        )
    ],
    unknown={"gather": Traffic(3, 2**20)},
)


def compilation(time: StepTime | None) -> Compilation:
    return Compilation(
        *(8, "TPU v5 lite", ShardingPlan(1, False, "small"), 32, 1, 60.0),
        *(2**34, 2**33, 2**30, 2**30, 2**30, 2**32),
        traffic={"all-reduce": Traffic(2, 2**20)},
        **{"time": time, "clips_per_second": 160.0, "share_of_peak": 0.165}
        if time
        else {},
    )


def run(monkeypatch, capsys, *arguments: str) -> str:
    """Returns what the command prints, of a step that is not compiled."""

    def compile_step(config, devices, *, with_time):
        return compilation(TIME if with_time else None)

    monkeypatch.setattr(compile, "compile_step", compile_step)
    monkeypatch.setattr(topology, "devices", lambda name, slices: [None] * 8)
    # The settings are those of a process with nothing else to do.
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    recipe = "--config=configs/k400_vitb_pretrain.py"
    assert not main(["compile-for-tpu", recipe, "--topology=v5e-8", *arguments])
    return capsys.readouterr().out


def test_time_is_reported_with_what_it_leaves_out(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "--time")
    assert "expected by the compiler, not measured" in out
    assert "200.0 ms per step, 160.0 clips/s per device, 16.5% of the peak" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "products 150.00 75.0%" in lines and "encoder 120.00 60.0%" in lines
    assert (
        "products 50.00 12 videomae_jax/models/vit.py:141 encoder bf16[8,128]" in lines
    )
    assert "gather: 3 times, 1.00 MiB" in lines
    assert "Collectives of 2.00 ms overlap" in out


def test_time_is_not_reported_unless_asked_for(monkeypatch, capsys):
    out = run(monkeypatch, capsys)
    assert "all-reduce" in out and "expected" not in out


def test_report_is_written_as_json(monkeypatch, capsys, tmp_path):
    file = tmp_path / "step.json"
    run(monkeypatch, capsys, "--time", f"--json={file}")
    report = json.loads(file.read_text())
    assert report["time"]["kinds"] == TIME.kinds
    assert report["time"]["largest"][0]["source"] == "videomae_jax/models/vit.py:141"
    assert report["share_of_peak"] == pytest.approx(0.165)
    assert report["traffic"]["all-reduce"] == {"count": 2, "bytes": 2**20}
