"""The training step compiled for TPU slices: its memory and its collectives."""

import functools
import importlib.util
import json
import sys

import jax
import pytest

from configs import common
from tests.helpers.libtpu import needs_libtpu, output_of
from videomae_jax import config as configuration
from videomae_jax.__main__ import main
from videomae_jax.distributed.sharding import ShardingPlan
from videomae_jax.errors import TopologyError
from videomae_jax.tpu import topology
from videomae_jax.tpu.compile import (
    Compilation,
    bytes_needed,
    compile_step,
    make_task,
    search_largest,
)


def tiny(**fields):
    """Returns the config of a small autoencoder, with 2 clips per chip of four."""
    config = common.pretrain()
    config.update(batch_size=8)
    config.model.update(width=128, depth=2, heads=2)
    config.model.update(decoder_width=128, decoder_depth=2, decoder_heads=2)
    config.data.update(num_frames=4, image_size=32)
    config.mask.ratio = 0.5
    config.update(fields)
    return config


@functools.cache
def compiled(fields: str, slices: int = 1) -> dict:
    """Returns the Compilation of `tiny` on slices of four chips, as a JSON object."""
    return output_of("tests.tpu.test_compile", fields, str(slices))


def moved(fields: str) -> dict[str, int]:
    """Returns the bytes in collectives, by kind."""
    return {kind: t["bytes"] for kind, t in compiled(fields)["traffic"].items()}


@pytest.mark.slow
@needs_libtpu
def test_replicas_only_sum_gradients():
    result = compiled("{}")
    assert result["traffic"].keys() == {"all-reduce"}
    # One for the gradients, one for the loss, which is float32.
    assert result["traffic"]["all-reduce"]["count"] == 2
    # Each parameter once, in the dtype of computation.
    assert 2 <= result["traffic"]["all-reduce"]["bytes"] / parameters() < 2.1
    assert result["needed"] < result["available"] == int(15.75 * 2**30)
    assert result["device_kind"] == "TPU v5 lite"


@pytest.mark.slow
@needs_libtpu
def test_fsdp_gathers_parameters_but_no_activations():
    result = compiled('{"mesh": {"fsdp": 4}}')
    split = result["arguments"] / compiled("{}")["arguments"]
    assert 0.25 < split < 0.4
    traffic = moved('{"mesh": {"fsdp": 4}}')
    assert traffic.keys() <= {"all-reduce", "all-gather", "reduce-scatter"}
    # In the forward and the backward pass, in the dtype of computation.
    assert 2 < traffic["all-gather"] / parameters() < 4.5


@needs_libtpu
@pytest.mark.slow
def test_fsdp_of_two_splits_the_state_in_two():
    result = compiled('{"mesh": {"fsdp": 2}}')
    assert 0.5 < result["arguments"] / compiled("{}")["arguments"] < 0.6
    assert result["traffic"].keys() <= {"all-reduce", "all-gather", "reduce-scatter"}


@needs_libtpu
@pytest.mark.slow
def test_zero_splits_only_the_moments():
    result = compiled('{"mesh": {"shard_optimizer": true}}')
    # Of parameters and two moments, the moments are split in four.
    split = result["arguments"] / compiled("{}")["arguments"]
    assert 1 / 3 + 2 / 3 / 4 < split < 0.6
    assert result["traffic"].keys() <= {"all-reduce", "all-gather", "reduce-scatter"}


@needs_libtpu
@pytest.mark.slow
def test_traffic_between_slices_is_reported():
    result = compiled('{"mesh": {"shard_optimizer": true}}', slices=2)["traffic"]
    between = {kind: t["bytes"] for kind, t in result.items() if "slices" in kind}
    # A chip of four sums a quarter of the bfloat16 gradients with its counterpart. Each
    # slice updates all parameters.
    assert between.keys() == {"between slices: all-reduce"}
    assert 1 <= between["between slices: all-reduce"] / (parameters() / 2) < 1.1


@needs_libtpu
@pytest.mark.slow
def test_gradients_of_all_micro_batches_are_summed_once():
    result = compiled('{"micro_batch_per_device": 1}')
    assert result["grad_accum_steps"] == 2
    assert result["traffic"] == compiled("{}")["traffic"]
    in_float32 = moved('{"mesh": {"gradient_dtype": "float32"}}')["all-reduce"]
    assert 1.95 < in_float32 / result["traffic"]["all-reduce"]["bytes"] <= 2


@needs_libtpu
@pytest.mark.slow
def test_step_that_does_not_fit_is_reported():
    clips = 2**23
    fields = {"batch_size": clips, "micro_batch_per_device": clips}
    result = compiled(json.dumps(fields))
    assert result["needed"] > result["available"] and result["traffic"] is None


def test_bytes_needed_are_parsed_from_out_of_memory_errors():
    gibi = 2**30
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (24.5G) exceeds available HBM (15.75G)."
    )
    assert bytes_needed(message) == 24.5 * gibi
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 17.25G of 15.75G hbm. Exceeded hbm capacity by 1.50G."
    )
    assert bytes_needed(message) == 17.25 * gibi
    assert bytes_needed("INTERNAL: Mosaic failed to compile") is None


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e-1", 1, "TPU v5 lite"),
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5litepod-256", 256, "TPU v5 lite"),
        ("v4-8", 4, "TPU v4"),
        ("v5p-128", 64, "TPU v5"),
        ("v6e-256", 256, "TPU v6 lite"),
        ("tpu7x-8", 8, "TPU7x"),
        ("v5p:4x4x12", 192, "TPU v5"),
    ],
)
def test_slices_by_name(name, count, kind):
    devices = topology.devices(name)
    assert (len(devices), devices[0].device_kind) == (count, kind)


@needs_libtpu
def test_several_slices():
    devices = topology.devices("v5e-4", slices=3)
    assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", ["v5e-7", "v5p-7", "h100-8", "v5e:2x2x1", "v5e", ""])
def test_unknown_slices_raise_with_a_list_of_known_ones(name):
    with pytest.raises(TopologyError, match="v5e-256(.|\n)*tpu7x-8"):
        topology.devices(name)


def test_missing_libtpu_raises_with_the_package_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=r"pip install 'libtpu==0\.0\.\d+"):
        topology.devices("v5e-8")


def test_search_goes_up_or_down_until_the_answer_changes(monkeypatch):
    def compilation(clips, limit, grad_accum_steps=1):
        traffic = {} if clips <= limit else None
        plan = ShardingPlan(1, False, "")
        return Compilation(
            4, "", plan, clips, grad_accum_steps, 0.0, 0, 0, traffic=traffic
        )

    config = common.finetune()
    for limit, first, grad_accum_steps, expected in (
        (20, 8, 1, [8, 12, 16, 24]),
        (20, 32, 4, [8, 12, 16, 24]),
        (5, 17, 1, [16, 12, 8, 6, 4]),
        (0, 3, 1, [3, 2, 1]),
    ):

        def fake_step(config, devices, limit=limit):
            clips = config.micro_batch_per_device
            assert config.batch_size * 2 == clips * len(devices)
            return compilation(clips, limit)

        monkeypatch.setattr("videomae_jax.tpu.compile.compile_step", fake_step)
        start = compilation(first, limit, grad_accum_steps)
        results = search_largest(config, [None] * 4, start)
        assert [x.clips for x in results] == expected


@needs_libtpu
def test_command_explains_wrong_arguments(capsys):
    def error(*arguments):
        assert main(["compile-for-tpu", *arguments]) in (1, 2)
        return capsys.readouterr().err

    recipe = "--config=configs/k400_vitb_pretrain.py"
    assert "v5e-256" in error(recipe, "--topology=v5e-3")
    assert "modell" in error(recipe, "--topology=v5e-4", "--config.modell.remat=none")
    assert "batch_size" in error(recipe, "--topology=v5e-4", "--config.batch_size=a")
    assert "divisible" in error(recipe, "--topology=v5e-4", "--config.batch_size=2")
    assert "'debag'" in error(recipe + ":debag", "--topology=v5e-4")
    assert main(["compile-for-tpu", "--config=not/there.py", "--topology=v5e-4"]) == 2
    assert "not/there.py" in capsys.readouterr().err
    tuning = "--config=configs/k400_vitb_finetune.py"
    assert "--config.data.num_classes=400" in error(tuning, "--topology=v5e-4")


@needs_libtpu
def test_command_reports_why_the_compiler_refused(monkeypatch, capsys):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: not today\nat some_file.cc:1")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    recipe = "--config=configs/k400_vitb_pretrain.py:debug"
    assert main(["compile-for-tpu", recipe, "--topology=v5e-4"]) == 1
    refusal, advice = capsys.readouterr().err.splitlines()
    assert refusal == "error: the compiler refused: UNIMPLEMENTED: not today"
    assert "--config.mesh.fsdp" in advice


def test_command_reads_configs_as_training_does():
    config = configuration.load(
        "configs/k400_vitb_finetune.py:debug",
        ["--config.model.remat=blocks", "--config.data.num_classes=7"],
    )
    assert config.batch_size == 8 and config.model.remat == "blocks"
    assert config.data.num_classes == 7


@functools.cache
def test_heads_and_values_are_known_without_a_list(tmp_path):
    for name, classes in (("verbs.txt", "take\nput\ncut"), ("nouns.txt", "egg\npan")):
        (tmp_path / name).write_text(classes)
    config = common.debug(common.finetune())
    config.data.labels = f"{tmp_path}/verbs.txt,{tmp_path}/nouns.txt"
    config.data.heads = "verb,noun"
    task = make_task(config)
    assert task.objective.problem.heads == (("verb", 3), ("noun", 2))
    assert task.model.num_classes == 5

    config = common.debug(common.finetune())
    config.loss.kind = "mse"
    assert make_task(config).model.num_classes == 1
    config.data.num_classes = 3
    task = make_task(config)
    assert task.objective.problem.is_regression and task.model.num_classes == 3


def parameters() -> int:
    config = tiny()
    shapes = jax.eval_shape(
        make_task(config).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 4, 32, 32, 3), "uint8"),
    )
    return sum(x.size for x in jax.tree.leaves(shapes))


if __name__ == "__main__":
    step = compile_step(
        tiny(**json.loads(sys.argv[1])), topology.devices("v5e-4", int(sys.argv[2]))
    )
    traffic = step.traffic and {k: vars(t) for k, t in step.traffic.items()}
    print(json.dumps(vars(step) | {"plan": None, "traffic": traffic}))
