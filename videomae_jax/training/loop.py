"""The training loop, for every task.

A task (`pretrain.Pretraining`, `finetune.Finetuning`) says what is read from a video,
how parameters start, what is random on the device, what the loss is, and what is looked
at on held-out videos; everything else is here.
"""

import contextlib
import itertools
import json
import logging
import pathlib

import flax
import jax
import jax.numpy as jnp
import ml_collections
from clu import parameter_overview

from videomae_jax import __version__
from videomae_jax import config as config_checks
from videomae_jax.checkpointing import Checkpoints
from videomae_jax.data import pipeline
from videomae_jax.data.bad_videos import BadVideos
from videomae_jax.distributed import hosts, sharding
from videomae_jax.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    NonFiniteLossError,
    NoReadableVideoError,
    RecordError,
    TooManyBadVideosError,
)
from videomae_jax.training import preemption, profiling
from videomae_jax.training import setup as programs
from videomae_jax.training.finetune import Finetuning
from videomae_jax.training.input_report import InputReport
from videomae_jax.training.metrics import MetricBuffer
from videomae_jax.training.pretrain import Pretraining
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.train_step import TrainState
from videomae_jax.training.workers import choose_workers

log = logging.getLogger(__name__)

TASKS = {"pretrain": Pretraining, "finetune": Finetuning}

# What stops a run for a reason that its user can mend, and is told in the message.
EXPLAINED_ERRORS = (
    CheckpointError,
    ConfigError,
    ClusterError,
    NonFiniteLossError,
    NoReadableVideoError,
    RecordError,
    TooManyBadVideosError,
)

# The last line of a run, which scripts wait for (docs/tpu_pods.md).
_COMPLETE = "%s is complete: %d of %d steps"


def run(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Does what `config.mode` says.

    Raises:
        ConfigError: for an unknown mode, and what the modes raise.
        CheckpointError: if the work directory is a URL, and what the modes raise.
    """
    modes = {"train": train_and_evaluate, "eval": evaluate}
    if config.mode not in modes:
        raise ConfigError(f"config.mode is {config.mode!r}; one of: {', '.join(modes)}")
    if "://" in workdir:
        raise CheckpointError(
            f"--workdir={workdir} is no folder: metrics are appended to files there, "
            "which a bucket cannot do; mount it (docs/tpu_pods.md) and give its folder"
        )
    return modes[config.mode](config, workdir)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Trains as the config says, continuing what the work directory holds.

    Args:
        config: see configs/common.py.
        workdir: folder of checkpoints, metrics and pictures; made if needed.

    Returns:
        The final state.

    Raises:
        Preempted: at a step that is saved, after SIGTERM on one of the hosts.
        ConfigError: if fields of the config do not fit each other or the devices.
        RecordError: if the list of videos is missing or malformed.
        CheckpointError: if the work directory holds the run of another model.
        ClusterError: if the hosts of the run do not have the same.
        TooManyBadVideosError, NoReadableVideoError: if the videos are bad.
        NonFiniteLossError: if the training diverges.
    """
    workdir = pathlib.Path(workdir)
    # Videos first: the commonest mistake should take a second to be told.
    with config_checks.checking():
        if config.task not in TASKS:
            raise ValueError(
                f"config.task is {config.task!r}; one of: {', '.join(TASKS)}"
            )
        if config.batch_size < 1:
            raise ValueError(f"config.batch_size is {config.batch_size}, not 1 or more")
        task = TASKS[config.task](config)
        videos = task.training_videos
    num_clips = config.batch_size * config.data.num_samples
    steps_per_epoch = max(len(videos) // config.batch_size, 1)
    total_steps = config.steps or int(config.epochs * steps_per_epoch)
    first_process = jax.process_index() == 0

    check_hosts(config, task)

    # State and step, on the devices.
    warmup_steps = int(config.optimizer.warmup_epochs * steps_per_epoch)
    with config_checks.checking():
        program = programs.build(config, task, total_steps, warmup_steps)
    mesh = program.mesh
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    # Resume if there is something to resume.
    workdir.mkdir(parents=True, exist_ok=True)
    hosts.check_shared(workdir)
    checkpoints = Checkpoints(
        str(workdir), config.checkpoint.keep_last, config.checkpoint.keep_period
    )
    start = checkpoints.latest_step()
    hosts.check_alike(checkpoints=start)
    history = MetricBuffer([], 0, config.max_nonfinite_steps)
    if start is None:
        start = 0
        state = program.init(init_key)
        params = task.load(state.params)
        if params is not state.params:
            state = program.start(params, state.statistics)
    else:
        meta = checkpoints.meta(start)
        config_checks.report_changes(meta["config"], config)
        history = MetricBuffer(
            meta["rows"], meta["nonfinite"], config.max_nonfinite_steps
        )
        state = program.state.replace(
            step=jax.device_put(jnp.int32(start), program.state.step.sharding),
            **checkpoints.restore(start, program.state.items()),
        )
        log.info("continuing %s at step %d", workdir, start)
    if first_process:
        (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
        print_overview(state.params, program, total_steps, num_clips, videos)
    if start >= total_steps:
        checkpoints.close()
        if not hosts.gather(task.is_finished(workdir, start))[0]:
            preemption.leave_sigterm()
            task.finish(state, mesh, workdir)
        log.info(_COMPLETE, workdir, start, total_steps)
        return state

    # What goes along with the steps, and is closed in any event.
    with contextlib.ExitStack() as stack:
        notice = preemption.Preemption(checkpoints)
        # Listens for as long as something is saved: who asks twice must not stop that.
        stack.callback(notice.close)
        stack.callback(checkpoints.close)
        bad_videos = BadVideos(
            workdir / "bad_videos.jsonl",
            start,
            len(videos),
            config.data.max_bad_fraction,
            active=first_process,
        )
        met = []
        clips_per_device = num_clips / mesh.size
        reporter = Reporter(
            workdir, start, total_steps, clips_per_device, active=first_process
        )
        stack.callback(reporter.close)

        def note_bad_videos(step):
            everywhere = itertools.chain(*hosts.gather(met))
            bad_videos.add(everywhere, step * config.batch_size)
            met.clear()

        def save(step):
            # First of all: a checkpoint after a bad step would hide it.
            history.fetch(checkpoints.latest_step())
            # Whoever continues does not meet them again.
            note_bad_videos(step)
            meta = {
                "config": json.loads(config.to_json()),
                "rows": history.rows,
                "nonfinite": history.nonfinite,
            }
            checkpoints.save(step, state.items(), meta | task.meta)

        readers = choose_workers(
            config.data,
            config.data.num_samples,
            config.batch_size,
            total_steps - start,
            len(videos),
            mesh,
        )
        with config_checks.checking():
            local_indices = sharding.local_indices(
                mesh, config.batch_size, config.data.num_samples
            )
        on_cores = mesh.devices.flat[0].platform == "cpu"
        inputs = InputReport(config.data, readers, videos, on_cores)
        batches = stack.enter_context(
            pipeline.batches(
                videos,
                task.training_clips,
                config.batch_size,
                config.seed,
                range(start, total_steps),
                **readers.arguments,
                local_indices=local_indices,
            )
        )
        stack.enter_context(jax.set_mesh(mesh))

        steps = profiling.traced(
            range(start + 1, total_steps + 1),
            config.profile.first,
            config.profile.steps,
            workdir / "profile",
        )
        stack.enter_context(contextlib.closing(steps))
        for step in steps:
            with reporter.waiting_for_data():
                batch = next(batches)
            for row, record, why in batch.bad:
                where = {"step": step, "row": row}
                met.append(
                    where | {"id": record.id, "path": record.path, "reason": why}
                )
            inputs.add(batch)
            arrays = sharding.to_devices(batch.arrays, mesh)
            state, metrics = inputs.step(program.train_step, state, arrays, step_key)
            history.add(step, metrics, batch.ids)

            last = step == total_steps
            if last or step % config.log_every == 0:
                history.fetch(checkpoints.latest_step())
                note_bad_videos(step)
                inputs.advise(*reporter.metrics(step, history.mean()))
            if task.eval_every and (last or step % task.eval_every == 0):
                task.check(step, state, mesh, reporter)
            if last or step % config.checkpoint.every == 0:
                save(step)
            if notice.asked(step):
                save(step)
                raise preemption.Preempted(step)
    if notice.asked(total_steps + 1):  # while the last step was saved
        raise preemption.Preempted(total_steps)
    preemption.leave_sigterm()
    task.finish(state, mesh, workdir)
    log.info(_COMPLETE, workdir, total_steps, total_steps)
    return state


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> TrainState:
    """Tests the newest checkpoint of a work directory, and nothing else.

    Args:
        config: see configs/common.py; the classes are the checkpoint's.
        workdir: folder of a fine-tuning run; results go to `<workdir>/test`.

    Returns:
        The state that was tested, without the optimizer's.

    Raises:
        ConfigError: if the config is not of fine-tuning, or does not fit the devices.
        CheckpointError: if there is no checkpoint, or it is of another model.
        ClusterError: if the hosts of the run do not have the same.
        RecordError: if the list of test videos is missing or malformed.
    """
    if config.task != "finetune":
        raise ConfigError("config.mode=eval is for fine-tuned classifiers")
    checkpoints = Checkpoints(workdir, 1, 0, read_only=True)
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(
            f"{workdir} holds no checkpoint to evaluate: train first, or give the "
            "--workdir of a fine-tuning run"
        )
    meta = checkpoints.meta(step)
    if "class_names" not in meta:
        raise CheckpointError(f"{workdir} is not the run of a classifier")
    if not config.data.test:
        raise RecordError("config.mode=eval wants the videos to test: config.data.test")
    config_checks.refuse_another_model(workdir, meta["config"], config)
    config_checks.report_changes(
        meta["config"], config, config_checks.SEEN_BY_THE_MODEL
    )
    with config_checks.checking():
        programs.check_attention(config.model, jax.devices())
        task = Finetuning(config, meta["class_names"])
    check_hosts(config, task)
    hosts.check_shared(pathlib.Path(workdir))
    hosts.check_alike(checkpoints=step)
    preemption.leave_sigterm()
    video = programs.dummy_clip(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0), video)
    state = TrainState(jnp.int32(0), shapes[0], (), shapes[1])
    with config_checks.checking():
        layout = sharding.choose_layout(state, jax.devices(), config.mesh.fsdp)
    mesh = sharding.make_mesh(layout.fsdp)
    params, statistics = sharding.with_shardings(
        shapes, sharding.state_shardings(shapes, mesh)
    )
    # What training evaluates: the averaged parameters, where there are any.
    item = "ema" if checkpoints.shapes(step, "ema") else "params"
    wanted = {item: params} | ({"statistics": statistics} if statistics else {})
    restored = checkpoints.restore(step, wanted)
    checkpoints.close()
    log.info("evaluating %s, step %d (%s)", workdir, step, item)
    state = TrainState(
        jnp.int32(step), restored[item], (), restored.get("statistics", {})
    )
    task.finish(state, mesh, pathlib.Path(workdir))
    return state


def check_hosts(config: ml_collections.ConfigDict, task) -> None:
    """Makes sure that all hosts of the run were given the same.

    Raises:
        ClusterError: if they were not.
    """
    hosts.check_alike(
        flags=config.to_json(),
        videos=[
            [(x.id, x.label, x.frame_range) for x in videos] for videos in task.lists
        ],
        packages=(__version__, jax.__version__, flax.__version__),
    )


def print_overview(params, program, total_steps, num_clips, videos) -> None:
    """Logs the parameters and the plan of the run."""
    # Mean and deviation are not for one process to compute where others have a part.
    stats = True if jax.process_count() == 1 else "sharding"
    table = parameter_overview.get_parameter_overview(params, include_stats=stats)
    log.info("parameters:\n%s", table)
    mesh, layout = program.mesh, program.layout
    log.info(
        "mesh %s, optimizer state %s (%s)",
        dict(mesh.shape),
        "split over all devices" if layout.shard_optimizer else "as the parameters",
        layout.reason,
    )
    log.info(
        "%d videos, %d steps of %d clips, on %d %s device(s): %d clips per device in "
        "%d micro-batch(es)",
        len(videos),
        total_steps,
        num_clips,
        mesh.size,
        mesh.devices.flat[0].platform,
        num_clips // mesh.size,
        program.accumulation,
    )
