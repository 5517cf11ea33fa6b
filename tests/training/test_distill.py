"""Distillation: its loss, what trains and what does not, and whole runs."""

import importlib
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import videomae_jax as vmae
from configs import common
from tests.helpers.models import random_variables
from tests.training import test_finetune, test_loop
from videomae_jax import checkpointing
from videomae_jax.distributed import sharding
from videomae_jax.errors import CheckpointError, ConfigError, PretrainedError
from videomae_jax.inference.predict import predict
from videomae_jax.interop import edit_head
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.models import flops, vit
from videomae_jax.models.array_types import Patches
from videomae_jax.tpu.compile import make_task
from videomae_jax.training import initialization, loop, train_step
from videomae_jax.training.tasks import distill
from videomae_jax.training.tasks.distill import Distillation

folder, one_device = test_finetune.folder, test_loop.one_device
NAMES = ("left", "right", "up")
TEACHER = {"width": 16, "depth": 1, "heads": 2, "position_size": (32, 32)}


def save_teacher(path, labels=NAMES, seed=0, **fields):
    """Saves a teacher with random weights, by default with the student's patches."""
    model = vmae.VideoClassifier(num_classes=3, **(TEACHER | fields))
    variables = random_variables(model, seed)
    clips = vmae.Preprocessing(num_frames=4, image_size=model.position_size)
    teacher = vmae.Pretrained(model, variables["params"], labels, clips)
    vmae.save_pretrained(path, teacher, format="huggingface")
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def tiny(folder, teacher, **overrides):
    """The run of test_finetune.py, distilled."""
    config = common.debug(common.distill())
    config.update(test_finetune.tiny(folder).to_dict())
    config.task = "distill"
    config.loss.smoothing = 0.0
    config.teacher.update(source=teacher, dtype="float32")
    config.update_from_flattened_dict(overrides)
    return config


def soft(logits, temperature):
    exponents = np.exp(np.asarray(logits, np.float64) / temperature)
    return exponents / exponents.sum(axis=-1, keepdims=True)


def test_divergence_of_the_teacher_from_the_student():
    teacher, student = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("f4") * 4
    p, q = soft(teacher, 3.0), soft(student, 3.0)
    expected = (p * np.log(p / q)).sum(axis=-1).mean()
    ours = distill.kl_divergence(teacher, student, 3.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert distill.kl_divergence(teacher, teacher, 3.0) == pytest.approx(0, abs=1e-6)


def test_tokens_are_compared_with_normalized_ones():
    teacher, ours = np.random.default_rng(0).normal(3, 5, (2, 2, 6, 8)).astype("f4")
    deviation = teacher.std(axis=-1, keepdims=True)
    target = (teacher - teacher.mean(axis=-1, keepdims=True)) / deviation
    expected = np.square(ours - target).mean()
    np.testing.assert_allclose(distill.feature_loss(teacher, ours), expected, rtol=1e-4)


def test_tokens_of_another_grid_are_interpolated():
    """A linear function of the place stays one, away from the border."""
    grid, to = (2, 4, 4), (2, 8, 8)
    columns = np.broadcast_to(np.arange(4) + 0.5, grid).reshape(1, -1, 1)
    tokens = jnp.asarray(columns, jnp.float32)
    assert distill.resample(tokens, grid, grid) is tokens
    finer = distill.resample(tokens, grid, to).reshape(to)
    expected = (np.arange(8) + 0.5) / 2
    np.testing.assert_allclose(finer[1, 5, 1:7], expected[1:7], rtol=1e-6)


def clips(seed=0, batch=4):
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (batch, 4, 32, 32, 3), np.uint8)
    label = np.arange(batch, dtype=np.int32) % 3
    return {"patches": jnp.asarray(vit.patchify(video, 16, 2)), "label": label}


@pytest.mark.parametrize(
    "teacher_patch, overrides",
    [
        (8, {"distill.label_share": 0.25, "distill.feature_weight": 0.5}),
        pytest.param(
            16,
            {"distill.square_temperature": False, "mix.probability": 0.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_both_see_the_same_mixed_clips(folder, tmp_path, teacher_patch, overrides):
    """The loss is what both models give alone for the clips, mixed by hand."""
    source = save_teacher(tmp_path / "teacher", patch_size=teacher_patch)
    fields = {"model.drop_path": 0.0, "model.head_init_scale": 1.0}
    task = Distillation(tiny(folder, source, **fields | overrides))
    config, settings = task._config, task._config.distill
    params, batch_stats = jax.jit(task.init)(
        jax.random.key(0), train_step.dummy_clip(config)
    )
    frozen = task._teacher.variables
    batch = task.add_randomness(clips(), jax.random.key(2))
    loss, (_, parts) = jax.jit(task.loss)(params, batch_stats, batch, frozen)

    grid, sizes = (2, 2, 2), (16, 2)
    raw = vit.unpatchify(clips()["patches"], grid, *sizes)
    video = np.asarray(vit.normalize(raw), np.float64)
    labels = np.eye(3)[clips()["label"]]
    if mix := batch.get("mix"):
        weight = np.asarray(mix.weight)[:, None, None, None, None]
        mixed = weight * video + (1 - weight) * video[::-1]
        for i, (top, left, bottom, right) in enumerate(np.asarray(mix.box)):
            box = slice(None), slice(top, bottom), slice(left, right)
            mixed[i][box] = video[::-1][i][box]
        video, share = mixed, np.asarray(mix.label_weight)[:, None]
        labels = share * labels + (1 - share) * labels[::-1]
    video = jnp.asarray(video, jnp.float32)
    loaded = load_pretrained(source)
    seen = loaded.model.apply(loaded.variables, video)
    student = task.model.apply({"params": params}, video)
    p, q = soft(seen, 3.0), soft(student, 3.0)
    kl = (p * np.log(p / q)).sum(axis=-1).mean()
    kl *= 9 if settings.square_temperature else 1
    label_loss = -(labels * np.log(soft(student, 1.0))).sum(axis=-1).mean()
    expected = {"kl": kl, "label_loss": label_loss}
    total = (1 - settings.label_share) * kl + settings.label_share * label_loss
    if settings.feature_weight:
        tokens = task.model.apply({"params": params}, video, method="tokens")
        layer = params["projection"]
        tokens = distill.normalize_tokens(tokens)
        predicted = tokens @ layer["kernel"] + layer["bias"]
        theirs = loaded.model.apply(loaded.variables, video, method="tokens")
        theirs = distill.resample(theirs, (2, 4, 4), grid)
        expected["feature_loss"] = distill.feature_loss(theirs, predicted)
        total += settings.feature_weight * expected["feature_loss"]
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(loss, total, rtol=1e-4)


def build(config, devices):
    task = Distillation(config)
    step = train_step.build(
        config, task, total_steps=8, warmup_steps=0, devices=devices
    )
    return task, step


def take_steps(config, devices, count=2):
    """Returns the losses, the state and the teacher of a few steps."""
    task, step = build(config, devices)
    state = step.init(jax.random.key(0))
    frozen = task.load_frozen(step.abstract_state.frozen)
    before = jax.device_get(frozen)
    places = []
    state, losses = state.replace(frozen=frozen), []
    with jax.set_mesh(step.mesh):
        for i in range(count):
            batch = sharding.to_devices(clips(i, config.batch_size), step.mesh)
            state, metrics = step.apply(state, batch, jax.random.key(1))
            losses.append([float(metrics[x]) for x in ("loss", "kl", "grad_norm")])
            kernel = state.frozen["params"]["encoder"]["embedding"]["kernel"]
            places.append(kernel.addressable_shards[0].data.unsafe_buffer_pointer())
    # Given on from step to step. (In the first, a CPU copies what NumPy holds.)
    assert len(set(places)) == 1
    return losses, state, before


RANDOM = {
    "model.drop_path": 0.2,
    "model.head_init_scale": 1.0,
    "distill.feature_weight": 0.5,
    "micro_batch_per_device": 16,
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def alone(folder, teacher):
    """Two steps of one device, with all that is random."""
    return take_steps(tiny(folder, teacher, **RANDOM), jax.devices()[:1])


def test_only_the_student_changes(alone):
    _, state, before = alone
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before)
    assert "frozen" not in state.items()
    initial = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in initial) < 3 * sum(
        x.size for x in jax.tree.leaves(state.params)
    )


def test_devices_and_accumulation_change_nothing(folder, teacher, alone, monkeypatch):
    """Also where student and teacher are split over devices."""
    monkeypatch.undo()
    config = tiny(folder, teacher, **RANDOM)
    config.micro_batch_per_device = 1
    config.mesh.fsdp = 2
    losses, state, before = take_steps(config, jax.devices())
    np.testing.assert_allclose(losses, alone[0], rtol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before)
    kernel = state.frozen["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert not kernel.sharding.is_fully_replicated


def test_matrices_of_the_teacher_are_in_its_dtype(folder, teacher):
    config = tiny(folder, teacher, **{"teacher.dtype": "bfloat16"})
    task = Distillation(config)
    assert task._teacher.model.dtype == "bfloat16"
    params = task.frozen["params"]
    assert params["encoder"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
    assert params["head"]["kernel"].dtype == jnp.float32
    assert params["encoder"]["blocks"]["norm1"]["scale"].dtype == jnp.float32
    # Another dtype, but the same teacher.
    other = Distillation(tiny(folder, teacher))
    assert other.meta["teacher"]["digest"] == task.meta["teacher"]["digest"]


def test_teacher_gets_normalized_pixels_of_its_own(folder, teacher, tmp_path):
    """Whatever mean and deviation it was trained with."""
    loaded = load_pretrained(teacher)
    gray = edit_head.with_pixel_stats(loaded, (0.5,) * 3, (0.5,) * 3)
    vmae.save_pretrained(tmp_path / "gray", gray, format="huggingface")
    teachers = [
        Distillation(tiny(folder, str(source)))._teacher
        for source in (teacher, tmp_path / "gray")
    ]
    logits = [
        x.model.apply(x.variables, Patches(clips()["patches"], (2, 2, 2)))
        for x in teachers
    ]
    assert teachers[1].model.pixel_mean == vit.IMAGENET_MEAN
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_classes_are_compared_by_name(folder, teacher, tmp_path):
    ours = load_pretrained(teacher)
    turned = save_teacher(tmp_path / "turned", ("Up", "LEFT", "right"))
    head = Distillation(tiny(folder, turned))._teacher.variables["params"]["head"]
    np.testing.assert_array_equal(
        head["kernel"], np.asarray(ours.params["head"]["kernel"])[:, [1, 2, 0]]
    )
    other = save_teacher(tmp_path / "other", ("left", "right", "down"))
    with pytest.raises(PretrainedError, match="(?s)teacher.source=.*'up'.*data.labels"):
        Distillation(tiny(folder, other))
    names = tmp_path / "names.txt"
    names.write_text("left\nright\nup\n")
    labels = {"teacher.labels": str(names)}
    Distillation(tiny(folder, other, **labels))
    names.write_text("left\nright\n")
    with pytest.raises(PretrainedError, match="has 3 classes, but .* names 2"):
        Distillation(tiny(folder, other, **labels))


def test_a_teacher_without_names_has_the_classes_in_order(
    folder, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    source = save_teacher(tmp_path / "nameless", None)
    Distillation(tiny(folder, source))
    assert "no names: they are taken for those of the student" in caplog.text
    (tmp_path / "four.txt").write_text("left\nright\nup\ndown\n")
    config = tiny(folder, source, **{"data.labels": str(tmp_path / "four.txt")})
    with pytest.raises(PretrainedError, match="3 classes without names, .* has 4"):
        Distillation(config)


@pytest.mark.parametrize("source", ["runs/k710_vitg_finetune", "./gone", "gone"])
def test_a_teacher_that_is_gone_is_not_looked_up_elsewhere(folder, source, monkeypatch):
    monkeypatch.setattr(distill.loading, "read", None)  # would download
    with pytest.raises(CheckpointError, match=f"teacher.source={source} not found"):
        Distillation(tiny(folder, source))


def test_what_is_no_teacher_is_refused(folder, teacher, tmp_path):
    for fields, message in (
        ({"teacher.source": ""}, "teacher.source is empty"),
        ({"teacher.dtype": "float16"}, "teacher.dtype='float16' must be one of"),
        ({"loss.kind": "sigmoid"}, "loss.kind must be softmax"),
    ):
        with pytest.raises(ConfigError, match=message):
            Distillation(tiny(folder, teacher, **fields))
    autoencoder = vmae.VideoMAE(16, 1, 2, 16, 1, 2)
    variables = random_variables(autoencoder)
    pretraining = vmae.Pretrained(autoencoder, variables["params"])
    vmae.save_pretrained(tmp_path / "mae", pretraining, format="huggingface")
    with pytest.raises(PretrainedError, match="one class per video"):
        Distillation(tiny(folder, str(tmp_path / "mae")))
    large = save_teacher(tmp_path / "large", patch_size=12, position_size=(24, 24))
    with pytest.raises(PretrainedError, match="do not divide into patches"):
        Distillation(tiny(folder, large))


def test_the_teacher_counts_in_the_operations(folder, teacher):
    task = Distillation(tiny(folder, teacher))
    student = flops.training(flops.classification(task.model, 8))
    forward = flops.classification(task._teacher.model, 8)
    assert task.flops_per_clip == student + forward


# Whole runs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(folder, teacher, tmp_path_factory):
    """A run of one device, with all losses."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        state = loop.train_and_evaluate(whole(folder, teacher), str(workdir))
    return workdir, state


def whole(folder, teacher, **overrides):
    losses = {"distill.label_share": 0.1, "distill.feature_weight": 0.5}
    return tiny(folder, teacher, **losses | {"evaluation.every": 8} | overrides)


def test_run_leaves_a_classifier(folder, undisturbed, tmp_path):
    """As a fine-tuning run does: nothing of the teacher, no other layer."""
    workdir, state = undisturbed
    rows = test_loop.metrics(workdir)
    for row in rows:
        if "loss" in row:
            total = 0.9 * row["kl"] + 0.1 * row["label_loss"]
            assert row["loss"] == pytest.approx(total + 0.5 * row["feature_loss"])
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    shapes = checkpoints.shapes(8)
    checkpoints.close()
    assert shapes.keys() == {"params", "opt_state", "ema"}
    assert "projection/kernel" in shapes["params"]
    loaded = load_pretrained(workdir)
    assert loaded.labels == NAMES and "projection" not in loaded.params
    head = loaded.params["head"]
    jax.tree.map(np.testing.assert_array_equal, head, state.ema["head"])
    assert dict(predict(loaded, folder / "0.mp4")).keys() == set(NAMES)
    vmae.save_pretrained(tmp_path / "export", loaded, format="huggingface")
    task = test_finetune.finetune.Finetuning(test_finetune.tiny(folder))
    fresh, _ = jax.jit(task.init)(
        jax.random.key(0), train_step.dummy_clip(task._config)
    )
    params, report = initialization.load(
        str(workdir), fresh, config=task._config.model, load_head=True
    )
    assert report.dropped == ["projection/bias", "projection/kernel"]
    np.testing.assert_array_equal(params["head"]["bias"], state.ema["head"]["bias"])


def test_a_test_needs_no_teacher(folder, undisturbed, tmp_path):
    """Nor the settings of a distillation: the student is a classifier."""
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    before = (workdir / "test" / "predictions.jsonl").read_bytes()
    for config in (
        whole(folder, "gone", mode="eval"),
        test_finetune.tiny(folder, mode="eval"),
    ):
        shutil.rmtree(workdir / "test")
        loop.run(config, str(workdir))
        assert (workdir / "test" / "predictions.jsonl").read_bytes() == before


def test_stopping_in_the_middle_changes_nothing(folder, teacher, undisturbed, tmp_path):
    config = whole(folder, teacher)
    test_loop.run_until(config, tmp_path, 4)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert test_loop.metrics(tmp_path) == test_loop.metrics(undisturbed[0])
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.ema, state.opt_state, state.frozen),
        (
            undisturbed[1].params,
            undisturbed[1].ema,
            undisturbed[1].opt_state,
            undisturbed[1].frozen,
        ),
    )


def test_a_run_resumes_only_with_its_teacher(folder, teacher, undisturbed, tmp_path):
    def restore(source):
        with loop.set_up(whole(folder, source, steps=12), workdir) as run:
            try:
                return loop.restore_or_init(run)[0]
            finally:
                run.checkpoints.close()

    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    other = save_teacher(tmp_path / "other", seed=1)
    message = f"config.teacher.source={other} must be the teacher that the run began"
    with pytest.raises(CheckpointError, match=message):
        restore(other)
    moved = shutil.copytree(teacher, tmp_path / "moved")
    assert restore(str(moved)).step == 8


def test_a_run_without_a_teacher_does_not_get_one(folder, teacher):
    task = Distillation(tiny(folder, teacher))
    saved = {x: task.meta[x] for x in ("class_names", "problem")}
    with pytest.raises(CheckpointError, match="config.task=distill must be finetune"):
        task.resume("run", saved | {"config": {"task": "finetune"}})


def test_a_student_starts_from_any_source(folder, undisturbed, tmp_path):
    """Here from one of another teacher, whose tokens are of another width."""
    wider = save_teacher(tmp_path / "wider", width=32)
    config = whole(folder, wider, **{"init.source": str(undisturbed[0])})
    task = Distillation(config)
    params, _ = jax.jit(task.init)(jax.random.key(0), train_step.dummy_clip(config))
    loaded = task.load_source(params)
    ema = undisturbed[1].ema
    embedding = loaded["encoder"]["embedding"]["kernel"]
    np.testing.assert_array_equal(embedding, ema["encoder"]["embedding"]["kernel"])
    assert loaded["projection"]["kernel"] is params["projection"]["kernel"]


def test_compiles_without_weights(folder):
    """The teacher's size is that of the config; its source does not exist."""
    config = tiny(folder, "gone", **{"distill.feature_weight": 1.0})
    config.teacher.update(variant="tiny", dtype="bfloat16")
    task = make_task(config)
    shapes = task.frozen["params"]
    assert shapes["encoder"]["blocks"]["mlp"]["fc1"]["kernel"].shape == (12, 192, 768)
    params, _ = jax.eval_shape(
        task.init, jax.random.key(0), train_step.dummy_clip(config)
    )
    assert params["projection"]["kernel"].shape == (24, 192)
    assert task.flops_per_clip > flops.classification(task._teacher.model, 8)
    assert math.prod(task._teacher_grid) == 8


# VideoMAE V2, appendix, table of the distillation; what it does not list is 0 or 1.
@pytest.mark.parametrize("variant", ["small", "base"])
def test_recipe_equals_the_table(variant):
    recipe = importlib.import_module(f"configs.v2.k710_vit{variant[0]}_distill")
    config = recipe.get_config()
    assert (config.model.variant, config.teacher.variant) == (variant, "giant")
    assert (config.batch_size, config.epochs) == (1024, 100)
    assert config.distill.temperature == 3.0
    optimizer = config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.999, 0.05)
    assert (optimizer.base_lr, optimizer.warmup_epochs) == (1e-3, 5)
    assert (optimizer.clip_norm, optimizer.layer_decay) == (1.0, 0.75)
    assert (config.mix.mixup, config.mix.cutmix, config.mix.probability) == (0.8, 1, 1)
    assert (config.model.drop_path, config.model.dropout) == (0.1, 0.0)
    assert (config.data.num_samples, config.data.flip) == (1, 0.5)
    assert config.data.rand_augment and not config.loss.smoothing
    assert not config.distill.label_share and not config.distill.feature_weight
