"""The training loop, for every task: entry points, setup, restore, train, test.

What differs between tasks (data, model, loss, evaluation) is in `task.Task`; what runs
on the devices in `train_step`. This file is the host's side of a run, top to bottom.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from videomae_jax import config as config_lib
from videomae_jax.checkpointing import Checkpoints, go_back
from videomae_jax.config import Config
from videomae_jax.data import pipeline
from videomae_jax.data.bad_videos import BadVideos
from videomae_jax.data.clips import clip_bytes, pixel_format
from videomae_jax.data.workers import WorkerConfig, WorkerPlan, choose_workers
from videomae_jax.distributed import failures, hosts, sharding
from videomae_jax.distributed.workdir_lock import one_writer
from videomae_jax.errors import CheckpointError, ConfigError, OutputError
from videomae_jax.files import atomic_write, is_url, writing
from videomae_jax.training import (
    initialization,
    preemption,
    profiling,
    reporting,
    train_step,
)
from videomae_jax.training.input_report import InputReport
from videomae_jax.training.progress import Progress, count_steps
from videomae_jax.training.reporting import Reporter
from videomae_jax.training.task import Task, check_hosts
from videomae_jax.training.tasks import TASKS
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.train_step import TrainState, TrainStep

log = logging.getLogger(__name__)


# Entry points -------------------------------------------------------------------------


def run(config: Config, workdir: str) -> TrainState:
    """Trains or tests, as `config.mode` says.

    Args:
        config: see configs/common.py.
        workdir: folder of checkpoints, metrics and results; created if needed.

    Returns:
        The final state.

    Raises:
        Preempted: after SIGTERM on one of the hosts, once the last step is saved.
        UserError: everything that the user can fix, see errors.py.
    """
    config_lib.check_ranges(config)
    modes = {"train": train_and_evaluate, "eval": evaluate}
    config_lib.check_choices(config, {"mode": modes, "task": TASKS})
    if is_url(workdir):
        raise ConfigError(
            f"--workdir={workdir} must be a folder: metrics are appended to files, "
            "which object stores do not support. Mount the bucket (docs/tpu_pods.md)."
        )
    config = initialization.with_source_sizes(config, pathlib.Path(workdir))
    try:
        with reporting.warnings_last():
            return modes[config.mode](config, workdir)
    except OutputError as error:
        start = failures.next_start(pathlib.Path(workdir))
        resumed = f". The next start {start}." if config.mode == "train" else ""
        raise OutputError(f"{error}{resumed}") from error


def train_and_evaluate(config: Config, workdir: str) -> TrainState:
    """Trains to the last step, resuming if there is a checkpoint, then tests.

    Arguments, result and errors are those of `run`.
    """
    with set_up(config, pathlib.Path(workdir)) as run:
        state, progress = restore_or_init(run)
        is_tested = False
        if progress.is_complete:
            run.checkpoints.close()
            is_tested = run.task.is_tested(run.workdir, progress.tested_step(config))
        else:
            state = train(run, state, progress)
        if not hosts.gather(is_tested)[0]:
            test(run, state, progress)
    if progress.best is not None:
        kept = config.checkpoint.keep_best
        log.info("best validation %s%s", progress.best, ", kept" if kept else "")
    # Scripts wait for this line (docs/tpu_pods.md).
    log.info("%s is complete: %d of %d steps", workdir, state.step, run.total_steps)
    return state


# Setup --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings and objects of a run; they do not change while it trains."""

    config: Config
    workdir: pathlib.Path
    task: Task
    train_step: TrainStep
    checkpoints: Checkpoints
    total_steps: int

    @property
    def keys(self) -> tuple[jax.Array, jax.Array]:
        """The keys of the initial parameters and of the steps."""
        init_key, step_key = jax.random.split(jax.random.key(self.config.seed))
        return init_key, step_key


@contextlib.contextmanager
def set_up(config: Config, workdir: pathlib.Path) -> Iterator[Run]:
    """Builds the task and its training step, and opens the work directory.

    No other run writes to it in the body.

    Raises:
        UserError: fields of the config do not fit each other, the lists or the devices.
    """
    config_lib.check_evaluation(config)
    if jax.process_index() == 0:
        reporting.check_wandb(config)
    # The lists first: a wrong path, the most common mistake, should fail at once.
    task = TASKS[config.task](config)
    if jax.process_index() == 0:
        task.log_lists()
    total_steps, warmup_steps = count_steps(config, len(task.training_videos))
    check_hosts(config, task)
    step = train_step.build(
        config, task, total_steps=total_steps, warmup_steps=warmup_steps
    )
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    hosts.check_shared(workdir)
    with one_writer(workdir):
        if config.checkpoint.step is not None:
            go_back(workdir, config)
        checkpoints = Checkpoints(
            str(workdir),
            keep_last=config.checkpoint.keep_last,
            keep_period=config.checkpoint.keep_period,
            keep_best=config.checkpoint.get("keep_best", False),
            digests=config.checkpoint.digests,
        )
        yield Run(config, workdir, task, step, checkpoints, total_steps)


# Restore or initialize ----------------------------------------------------------------


def restore_or_init(run: Run) -> tuple[TrainState, Progress]:
    """Returns the state and the progress of the run.

    In this order:

    1. A checkpoint in the work directory: resume it, with its optimizer state and the
       metrics since the last line of the log. Nothing below applies.
    2. Otherwise random parameters, from `config.seed`.
    3. `config.init.source` replaces the parameters that it has.
    4. The optimizer and the averaged parameters start from the result.

    Raises:
        CheckpointError: the checkpoint or the source is of another model, or damaged.
        CompleteRunError: the run is complete with other settings.
        ClusterError: the hosts see different checkpoints.
    """
    config, checkpoints = run.config, run.checkpoints
    start = checkpoints.latest_step()
    hosts.check_alike(checkpoints=start)
    if start is not None:  # 1
        meta = checkpoints.meta(start)
        progress = Progress.resume(config, run.total_steps, start, meta)
        # Earlier releases did not save whether a run was complete.
        if progress.is_complete and meta.get("complete", True):
            config_lib.check_same_run(str(run.workdir), meta["config"], config)
        elif config.checkpoint.get("keep_best", False):
            progress.forget_lost_best(hosts.gather(checkpoints.steps())[0])
        config_lib.log_changes(meta["config"], config)
        run.task.resume(str(run.workdir), meta)
        abstract = run.train_step.abstract_state
        state = abstract.replace(
            step=jax.device_put(jnp.int32(start), abstract.step.sharding),
            **checkpoints.restore(start, abstract.items()),
        )
        log.info("resuming %s at step=%d", run.workdir, start)
    else:
        state = run.train_step.init(run.keys[0])  # 2
        params = run.task.load_source(state.params)  # 3
        if params is not state.params:
            state = run.train_step.start(params, state.batch_stats)  # 4
        progress = Progress.start(config, run.total_steps)
    frozen = run.task.load_frozen(run.train_step.abstract_state.frozen)
    if jax.process_index() == 0:
        with atomic_write(run.workdir / "config.json") as file:
            file.write(config.to_json(indent=2) + "\n")
        reporting.log_parameters(state.params)
        run.train_step.log_plan(
            num_videos=len(run.task.training_videos),
            num_clips=config.batch_size * config.data.num_samples,
            total_steps=run.total_steps,
        )
    return state.replace(frozen=frozen), progress


# Train --------------------------------------------------------------------------------


def train(run: Run, state: TrainState, progress: Progress) -> TrainState:
    """Takes the steps that `progress` lacks, which it updates, and saves checkpoints.

    The host never waits for the devices between two lines of the log, except for a few
    steps to be done before it queues more (`MetricBuffer`).

    Raises:
        Preempted: after SIGTERM, once the last step is saved.
        NonFiniteLossError: the training diverged.
        TooManyBadVideosError, NoReadableVideoError: the videos cannot be read.
        OutputError: a file or a checkpoint cannot be written.
    """
    config, task, mesh = run.config, run.task, run.train_step.mesh
    step_key, start, metrics = run.keys[1], progress.step, progress.metrics
    with contextlib.ExitStack() as stack:
        # SIGTERM is heard until the last checkpoint is on disk: a second one must not
        # interrupt the save.
        preempted = preemption.Preemption(run.checkpoints)
        stack.callback(preempted.close)
        stack.callback(run.checkpoints.close)
        bad_videos = open_bad_videos(run, start)
        reporter = open_reporter(run, start)
        stack.callback(reporter.close)
        plan = choose_training_workers(run, start)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        input_report = InputReport(
            config.data, plan, videos=task.training_videos, model_on_cpu=on_cpu
        )
        batches = stack.enter_context(open_batches(run, start, plan.workers))
        stack.enter_context(jax.set_mesh(mesh))
        steps = profiling.traced(
            range(start + 1, run.total_steps + 1),
            first=config.profile.first,
            count=config.profile.steps,
            folder=run.workdir / "profile",
        )
        stack.enter_context(contextlib.closing(steps))
        reporting.release_warnings()

        def report_metrics():
            metrics.fetch(run.checkpoints.latest_step())
            bad_videos.report(progress.step * config.batch_size)
            values = metrics.mean() | progress.gather_videos()
            input_report.advise(*reporter.metrics(progress.step, values))

        for step in steps:
            with reporter.waiting_for_data():
                batch = next(batches)
            bad_videos.collect(step, batch.bad)
            arrays = sharding.to_devices(batch.arrays, mesh)
            input_report.before_step(batch, (state, arrays))
            with reporter.compiling(is_first=step == start + 1):
                state, values = run.train_step.apply(state, arrays, step_key)
            input_report.after_step(state)
            progress.add_step(step, values, batch)
            run.checkpoints.check()
            last = step == run.total_steps
            is_reported = last or step % config.log_every == 0
            if is_reported:
                report_metrics()
            improved = False
            if task.eval_every and (last or step % task.eval_every == 0):
                improved = validate(run, state, progress, reporter)
            if progress.stopped_early and not is_reported:  # the last step, after all
                report_metrics()
            due = step % config.checkpoint.every == 0 or progress.is_complete
            if due or (improved and config.checkpoint.keep_best):
                save(run, state, progress, bad_videos)
            if preempted.requested(step):
                save(run, state, progress, bad_videos)
                raise preemption.Preempted(step)
            if progress.stopped_early:
                log.info("stopped early: config.evaluation.patience is used up")
                break
    if preempted.requested(progress.step + 1):  # SIGTERM came during the last save
        raise preemption.Preempted(progress.step)
    return state


def validate(
    run: Run, state: TrainState, progress: Progress, reporter: Reporter
) -> bool:
    """Evaluates on held-out videos; returns whether no earlier result was better.

    The score of process 0 counts: all must agree on what is saved and when to stop.
    """
    score = run.task.validate(progress.step, state, run.train_step.mesh, reporter)
    score = hosts.gather(score)[0]
    return score is not None and progress.add_validation(*score)


def save(
    run: Run, state: TrainState, progress: Progress, bad_videos: BadVideos
) -> None:
    """Saves a checkpoint from which the run resumes as if it had not been interrupted.

    Raises:
        NonFiniteLossError: a step was not finite; nothing is saved.
        TooManyBadVideosError: see BadVideos.
    """
    progress.metrics.fetch(run.checkpoints.latest_step())
    # A resumed run will not see these videos again, so log them with the checkpoint.
    bad_videos.report(progress.step * run.config.batch_size)
    progress.gather_videos()
    meta = {"config": json.loads(run.config.to_json())}
    meta |= progress.meta | run.task.meta
    run.checkpoints.save(progress.step, state.items(), meta)


def open_bad_videos(run: Run, start: int) -> BadVideos:
    """Opens the log of videos that cannot be read."""
    return BadVideos(
        run.workdir / "bad_videos.jsonl",
        start_step=start,
        num_records=len(run.task.training_videos),
        max_fraction=run.config.data.max_bad_fraction,
        active=jax.process_index() == 0,
        gather=hosts.gather,
    )


def open_reporter(run: Run, start: int) -> Reporter:
    """Opens metrics.jsonl, TensorBoard, Weights & Biases and the progress bar."""
    mesh, is_first = run.train_step.mesh, jax.process_index() == 0
    num_clips = run.config.batch_size * run.config.data.num_samples
    return Reporter(
        run.workdir,
        start_step=start,
        total_steps=run.total_steps,
        clips_per_device=num_clips / mesh.size,
        flops_per_clip=run.task.flops_per_clip,
        peak_flops=reporting.peak_flops(mesh.devices.flat[0]),
        wandb_run=reporting.start_wandb(run.config, run.workdir) if is_first else None,
        active=is_first,
    )


def choose_training_workers(run: Run, start: int) -> WorkerPlan:
    """Chooses the processes and threads that read training videos."""
    data, mesh = run.config.data, run.train_step.mesh
    return choose_workers(
        data,
        clip_bytes=clip_bytes(run.config),
        clips_per_video=data.num_samples,
        batch_size=-(-run.config.batch_size // jax.process_count()),
        num_batches=run.total_steps - start,
        num_records=len(run.task.training_videos),
        model_on_cpu=mesh.devices.flat[0].platform == "cpu",
        sharing=hosts.processes_sharing_resources(),
    )


def open_batches(run: Run, start: int, workers: WorkerConfig):
    """Opens the stream of batches from step `start` on; see `pipeline.batches`."""
    config, task, mesh = run.config, run.task, run.train_step.mesh
    indices = sharding.local_indices(mesh, config.batch_size, config.data.num_samples)
    return pipeline.batches(
        task.training_lists,
        task.training_clips,
        patch_shape=task.patch_shape,
        pixels=pixel_format(config),
        batch_size=config.batch_size,
        seed=config.seed,
        steps=range(start, run.total_steps),
        workers=workers,
        local_indices=indices.tolist(),
        label_array=task.label_array,
    )


# Test ---------------------------------------------------------------------------------


def test(run: Run, state: TrainState, progress: Progress) -> None:
    """Runs the final test of the task, with the last or the best parameters."""
    preemption.leave_sigterm()
    reporting.release_warnings()
    mesh, step = run.train_step.mesh, progress.tested_step(run.config)
    if step != progress.step:
        checkpoints = Checkpoints(
            str(run.workdir), digests=run.config.checkpoint.digests, read_only=True
        )
        mesh, state = train_step.restore_for_test(
            run.config, run.task, checkpoints, step
        )
        checkpoints.close()
    run.task.test(state, mesh, run.workdir)


def evaluate(config: Config, workdir: str) -> TrainState:
    """Tests a checkpoint of a classifier's run, `config.evaluation.step`.

    Classes are the checkpoint's; results are written to `<workdir>/test`. Arguments,
    result (without the optimizer's state) and errors are those of `run`.
    """
    if config.task == "pretrain":
        raise ConfigError(
            "config.mode=eval needs a classifier: config.task=finetune or distill"
        )
    checkpoints = Checkpoints(
        workdir, digests=config.checkpoint.digests, read_only=True
    )
    if checkpoints.latest_step() is None:
        raise CheckpointError(
            f"--workdir={workdir}: no checkpoint found. Train first, or use the "
            "--workdir of a fine-tuning run."
        )
    step = checkpoints.find_step(config.evaluation.step)
    meta = checkpoints.meta(step)
    if "class_names" not in meta:
        raise CheckpointError(f"--workdir={workdir} must be of a fine-tuning run")
    if not config.data.test:
        raise ConfigError("config.mode=eval needs a list of videos: config.data.test")
    config_lib.check_same_model(workdir, meta["config"], config)
    config_lib.log_changes(meta["config"], config, config_lib.PREPROCESSING_FIELDS)
    train_step.check_attention(config.model, jax.devices())
    # Also of a distilled run: its teacher is not needed.
    task = Finetuning(config, meta)
    check_hosts(config, task)
    hosts.check_shared(pathlib.Path(workdir))
    hosts.check_alike(checkpoints=step)
    preemption.leave_sigterm()
    with one_writer(pathlib.Path(workdir)):
        mesh, state = train_step.restore_for_test(config, task, checkpoints, step)
        checkpoints.close()
        reporting.release_warnings()
        task.test(state, mesh, pathlib.Path(workdir))
    return state
