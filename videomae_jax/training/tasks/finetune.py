"""Fine-tuning as a task of the training loop: labels, mixing, loss and evaluation."""

import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from videomae_jax.config import Config, check_choices
from videomae_jax.data import labels, pipeline
from videomae_jax.data.clips import (
    SAMPLERS,
    CenterClips,
    FinetuningClips,
    MultiViewClips,
    clip_bytes,
    clip_shape,
    pixel_format,
)
from videomae_jax.data.randaugment import RandAugment
from videomae_jax.data.workers import choose_workers
from videomae_jax.distributed import hosts
from videomae_jax.errors import ConfigError, RecordError
from videomae_jax.evaluation import class_report, results
from videomae_jax.evaluation.evaluator import Evaluator
from videomae_jax.evaluation.metrics import Predictions
from videomae_jax.files import read_json
from videomae_jax.models import build, flops
from videomae_jax.models.array_types import Array, Patches
from videomae_jax.models.classifier import HEAD_NORMS, POOLINGS, VideoClassifier
from videomae_jax.training import initialization, losses, mixture, mixup, optimizer
from videomae_jax.training.reporting import Reporter, start_wandb
from videomae_jax.training.task import NothingFrozen, clip_grid
from videomae_jax.training.train_step import TrainState
from videomae_jax.video.record import Record
from videomae_jax.video.source import RGB

log = logging.getLogger(__name__)

_CHOICES = {
    "data.frame_sampling": SAMPLERS,
    "model.pooling": POOLINGS,
    "model.head_norm": HEAD_NORMS,
    "mix.mode": mixup.MODES,
    "loss.kind": losses.KINDS,
}

# The metric that chooses checkpoints is the first of these that a validation has; of
# "-name", lower is better.
_SCORES = (
    "all_top1",
    "top1",
    "mean_average_precision",
    "-standardized_mean_absolute_error",
    "-mean_absolute_error",
)


class Finetuning(NothingFrozen):
    """Training of a classifier; implements `task.Task`.

    Attributes:
        objective: what logits mean and what is minimized.
    """

    def __init__(self, config: Config, saved: Mapping[str, Any] | None = None):
        """Reads the lists and builds the model.

        Args:
            config: see configs/common.py.
            saved: `meta` of a trained classifier that is only tested; then only the
                test list is read.

        Raises:
            ConfigError: model, clip, mixing and loss of the config do not fit together.
            RecordError: a list is missing or malformed, or a label is not a class.
        """
        check_choices(config, _CHOICES)
        self._config, data = config, config.data
        self._label_kind = losses.label_kind(config)
        results.check_dump(config.evaluation.dump, self._label_kind)
        dump = config.evaluation.dump
        self._dump = pathlib.Path(dump) if dump else None
        self._read_lists(saved)
        self.model = build.classifier(config.model, len(self.class_names))
        self._clip_shape = clip_shape(config)
        self.patch_shape = self.model.tubelet_size, self.model.patch_size
        self._grid = clip_grid(config, self.model)
        if config.model.head_norm == "batch":
            self._check_probe()
        self.training_clips, self._held_out_clips = _make_clips(config, self.model)
        self.eval_every = config.evaluation.every if data.validation else 0
        self._evaluators: dict[str, Evaluator] = {}

    def _read_lists(self, saved: Mapping[str, Any] | None) -> None:
        data = self._config.data
        self.training_lists, self.training_videos = [], []
        splits = ["test"]
        if saved is None:
            splits.append("validation")
            names = losses.read_class_names(self._config)
            columns = losses.label_columns(self._config)
            self.training_lists = mixture.load(
                data,
                label_kind=self._label_kind,
                class_names=names,
                label_columns=columns,
            )
            for own in self.training_lists:
                _check_labelled(own.records, own.name)
            self.training_videos = pipeline.all_records(self.training_lists)
            objective = losses.make_objective(self._config, self.training_videos)
        else:
            objective = losses.saved_objective(self._config, saved)
        self.objective = objective
        names, columns = objective.class_names, objective.label_columns
        self._held_out = {
            split: self._load(data[split], names, columns) if data[split] else []
            for split in splits
        }
        for split, videos in self._held_out.items():
            objective.check(videos, data[split])

    @property
    def class_names(self) -> list[str]:
        """The name of each logit: of a class, or of a value."""
        return list(self.objective.names)

    def _load(
        self, source: str, class_names: Sequence | None, label_columns: Sequence[str]
    ) -> list[Record]:
        data = self._config.data
        records = mixture.load_list(
            source,
            data,
            label_kind=self._label_kind,
            class_names=class_names,
            label_columns=label_columns,
        )
        _check_labelled(records, source)
        return records

    @property
    def label_array(self) -> np.ndarray:
        """The labels of the training videos, see `Objective.standardize`."""
        array: Any = labels.to_array(self.training_videos, self._label_kind)
        return self.objective.standardize(array)

    @property
    def lists(self) -> list[list[Record]]:
        """The records of every list."""
        return [self.training_videos, *self._held_out.values()]

    @property
    def flops_per_clip(self) -> int:
        """Floating-point operations of a training step per clip."""
        return flops.training(flops.classification(self.model, math.prod(self._grid)))

    def _check_probe(self) -> None:
        """Checks that the encoder is frozen under a head with batch norm.

        The running statistics would lag behind an encoder that changes.
        """
        video = jax.ShapeDtypeStruct((1, *self._clip_shape), "uint8")
        variables = jax.eval_shape(self.model.init, jax.random.key(0), video)
        frozen = optimizer.is_frozen(variables["params"], self._config.freeze)
        if not all(jax.tree.leaves(frozen["encoder"])):
            raise ConfigError(
                "config.model.head_norm=batch is for linear probes: set "
                "config.freeze=^encoder/, or config.model.head_norm=layer"
            )

    @property
    def meta(self) -> dict:
        """The classes or values, which a checkpoint keeps beside the parameters."""
        return self.objective.meta

    def resume(self, workdir: str, saved: Mapping[str, Any]) -> None:
        """Checks that classes or units are a checkpoint's; see `Objective.resumed`."""
        self.objective = self.objective.resumed(workdir, saved)

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Returns random parameters and statistics for clips like video."""
        batch_stats = dict(self.model.init(key, video))
        return batch_stats.pop("params"), batch_stats

    def log_lists(self) -> None:
        """Logs sizes and classes of the lists, and warns of what is probably wrong."""
        lists = {"training": self.training_videos} | self._held_out
        if self._config.data.validation == self._config.data.test:
            del lists["validation"]  # as in the papers; each problem is told once
        arguments = lists, self.class_names, self.objective.problem
        log.info("%s", "\n  ".join(class_report.describe(*arguments)))
        problems = class_report.find_problems(*arguments)
        if problems:
            log.warning("%s", "\n  ".join(["check the lists:", *problems]))

    def load_source(self, params: dict) -> dict:
        """Returns params with the weights of `config.init.source`, if it is set."""
        source = self._config.init.source
        if not source:
            log.info("config.init.source is empty: training from scratch")
            return params
        params, report = initialization.load(
            source,
            params,
            config=self._config.model,
            load_head=self._config.init.head,
            class_names=() if self.objective.problem.heads else self.class_names,
        )
        log.info("%s", report)
        return params

    def add_randomness(self, batch: dict, key: jax.Array) -> dict:
        """Adds the keys of dropout and the mixing of clips, for the whole batch."""
        mix, patches = self._config.mix, batch["patches"]
        drop_key, mix_key = (jax.random.fold_in(key, i) for i in range(2))
        batch |= {"keys": jax.random.split(drop_key, len(patches))}
        if mix.probability and (mix.mixup or mix.cutmix):
            batch |= {
                "mixup_pair_patches": patches[::-1],
                "mixup_pair_label": batch["label"][::-1],
                "mix": mixup.draw(
                    mix_key,
                    len(patches),
                    size=self._clip_shape[1:3],
                    mixup=mix.mixup,
                    cutmix=mix.cutmix,
                    probability=mix.probability,
                    switch_probability=mix.switch_probability,
                    mode=mix.mode,
                ),
            }
        return batch

    def loss(
        self, params: dict, batch_stats: dict, batch: dict, frozen: dict
    ) -> tuple[Array, tuple[dict, dict]]:
        """Returns the mean loss over the clips, and the new batch statistics."""
        patches, targets = self._mixed(batch)
        logits, updated = self.model.apply(
            {"params": self._with_freeze(params), **batch_stats},
            patches,
            batch["keys"],
            mutable=list(batch_stats),
        )
        return self.objective.loss(logits, targets), (dict(updated), {})

    def _with_freeze(self, params: dict) -> dict:
        """Returns params without a backward pass through what is not trained."""
        return jax.tree.map(
            lambda x, freeze: jax.lax.stop_gradient(x) if freeze else x,
            params,
            optimizer.is_frozen(params, self._config.freeze),
        )

    def _mixed(self, batch: dict) -> tuple[Patches, Array]:
        """Returns the clips that the model sees, and their targets."""
        patches = Patches(batch["patches"], self._grid)
        targets = self.objective.targets(batch["label"])
        if "mix" in batch:
            patches = mixup.mix_patches(
                patches,
                Patches(batch["mixup_pair_patches"], self._grid),
                batch["mix"],
                self.model.dtype,
                patch_shape=self.patch_shape,
                mean=self.model.pixel_mean,
                std=self.model.pixel_std,
            )
            pair = self.objective.targets(batch["mixup_pair_label"])
            targets = mixup.mix_targets(targets, pair, batch["mix"])
        return patches, targets

    def validate(
        self, step: int, state: TrainState, mesh: Mesh, reporter: Reporter
    ) -> tuple[str, float]:
        """Classifies the centre clips of the validation videos; returns the score."""
        with reporter.pause():
            predictions = self._evaluate("validation", state, mesh)
        values = predictions.metrics
        reporter.values(step, {f"validation/{name}": x for name, x in values.items()})
        log.info("step=%d validation: %s", step, _shown(values))
        name = next(x for x in _SCORES if x.removeprefix("-") in values)
        return name, values[name.removeprefix("-")]

    def test(self, state: TrainState, mesh: Mesh, workdir: pathlib.Path) -> None:
        """Classifies all views of the test videos; writes to `<workdir>/test`."""
        if not self._held_out["test"]:
            log.info("config.data.test is empty: no test")
            return
        predictions = self._evaluate("test", state, mesh)
        if jax.process_index() == 0:
            if self._dump:
                # The dump of an earlier test must not pass for this one's.
                self._dump.unlink(missing_ok=True)
            results.write(predictions, workdir / "test", step=int(state.step))
            send_test(self._config, workdir, predictions.metrics)
            if self._dump and isinstance(predictions, Predictions):
                results.write_mmaction_dump(predictions, self._dump)
        evaluation = self._config.evaluation
        log.info(
            "test views=%dx%d: %s; details in %s",
            evaluation.segments,
            evaluation.crops,
            _shown(predictions.metrics),
            workdir / "test",
        )

    def is_tested(self, workdir: pathlib.Path, step: int) -> bool:
        """Returns whether the results of the test at this step are on disk."""
        saved = read_json(workdir / "test" / "metrics.json")
        if saved is None or saved["step"] != step:
            return False
        return self._dump is None or self._dump.exists()

    def _evaluate(self, split: str, state: TrainState, mesh: Mesh):
        if split not in self._evaluators:
            self._evaluators[split] = self._make_evaluator(split, mesh)
        return self._evaluators[split](state.evaluated_variables)

    def _make_evaluator(self, split: str, mesh: Mesh) -> Evaluator:
        videos, read_clips = self._held_out[split], self._held_out_clips[split]
        videos_per_device = self._config.evaluation.videos_per_device
        batch_size = videos_per_device * mesh.size
        plan = choose_workers(
            self._config.data,
            clip_bytes=clip_bytes(self._config),
            clips_per_video=read_clips.views,
            batch_size=batch_size // jax.process_count(),
            num_batches=-(-len(videos) // batch_size),
            num_records=len(videos),
            model_on_cpu=mesh.devices.flat[0].platform == "cpu",
            sharing=hosts.processes_sharing_resources(),
        )
        return Evaluator(
            self.model,
            self.objective.problem.outputs,
            records=videos,
            class_names=self.class_names,
            problem=self.objective.problem,
            mean=self.objective.mean,
            std=self.objective.std,
            read_clips=read_clips,
            image_shape=self._clip_shape,
            pixels=pixel_format(self._config),
            mesh=mesh,
            videos_per_device=videos_per_device,
            workers=plan.workers,
        )


def _check_labelled(records: Sequence[Record], source: str) -> None:
    if not any(record.labels or record.values for record in records):
        raise RecordError(f"{source}: no video has a label, as fine-tuning needs")


def _make_clips(config: Config, model: VideoClassifier):
    """Returns what is cut out of videos: for training, and by split for evaluation."""
    data, evaluation = config.data, config.evaluation
    if data.rand_augment and pixel_format(config) != RGB:
        raise ConfigError(
            f"config.data.rand_augment={data.rand_augment} is for RGB of 8 bits: set "
            "it to '' with other config.model.channels or a config.data.value_range"
        )
    clip = {
        "frame_sampling": data.frame_sampling,
        "num_frames": data.num_frames,
        "stride": data.stride,
        "size": clip_shape(config)[1:3],
    }
    training = FinetuningClips(
        rand_augment=data.rand_augment and RandAugment.parse(data.rand_augment),
        crop_area=tuple(data.crop_area),
        crop_aspect=tuple(data.crop_aspect),
        flip=data.flip,
        erase=data.erase,
        num_samples=data.num_samples,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        **clip,
    )
    held_out = {
        "validation": CenterClips(**clip),
        "test": MultiViewClips(
            segments=evaluation.segments, crops=evaluation.crops, **clip
        ),
    }
    return training, held_out


def send_test(
    config: Config, workdir: pathlib.Path, metrics: Mapping[str, float]
) -> None:
    """Adds the metrics of a test to the summary of the run of Weights & Biases."""
    run = start_wandb(config, workdir)
    if run is not None:
        run.summary.update({f"test/{name}": x for name, x in metrics.items()})
        run.finish()


def _shown(values: dict[str, float]) -> str:
    """Returns metrics as one line; those of unreadable videos only if not zero."""
    return " ".join(
        f"{name}={value:.6g}"
        for name, value in values.items()
        if values["unreadable"] or "unreadable" not in name
    )
