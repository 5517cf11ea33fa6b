"""Fine-tuning as a task of the training loop: labels, mixing, loss and evaluation."""

import json
import logging
import pathlib
from collections.abc import Sequence

import jax
import ml_collections

from videomae_jax.data import labels, sources
from videomae_jax.data.clips import (
    SAMPLERS,
    CenterClips,
    FinetuningClips,
    MultiViewClips,
)
from videomae_jax.data.randaugment import RandAugment
from videomae_jax.evaluation import multi_label, results
from videomae_jax.evaluation.evaluator import Evaluator
from videomae_jax.models import build, vit
from videomae_jax.models.classifier import HEAD_NORMS, POOLINGS
from videomae_jax.training import initialization, losses, mixup, optimizer
from videomae_jax.training.workers import choose_workers
from videomae_jax.video.record import Record

log = logging.getLogger(__name__)

# Fields of the config that name one of several.
_CHOICES = {
    "data.frame_sampling": SAMPLERS,
    "model.pooling": POOLINGS,
    "model.head_norm": HEAD_NORMS,
    "mix.mode": mixup.MODES,
    "loss.kind": losses.KINDS,
}


class Finetuning:
    """What the training loop needs to know of training a classifier.

    Attributes:
        model: the VideoClassifier.
        class_names: a name for each logit.
        training_videos: the records to train on.
        training_clips: what is read from each of them.
        eval_every: steps between evaluations on the validation videos; 0 for none.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        class_names: Sequence[str] | None = None,
    ):
        """Reads the lists and builds the model.

        Args:
            config: see configs/common.py.
            class_names: those of a trained classifier that is only to be tested; only
                the test list is then read.

        Raises:
            ValueError: if model, clip, mixing and loss of the config do not fit.
            RecordError: if a list is missing or malformed, or a label is no class.
        """
        self._config, data = config, config.data
        for field, choices in _CHOICES.items():
            section, name = field.split(".")
            if config[section][name] not in choices:
                raise ValueError(
                    f"config.{field} is {config[section][name]!r}; one of: "
                    f"{', '.join(choices)}"
                )
        self._loss, self._probabilities = losses.KINDS[config.loss.kind]
        self._results = multi_label if config.loss.kind == "sigmoid" else results
        if config.evaluation.dump and self._results is multi_label:
            raise ValueError("config.evaluation.dump has no form for several labels")
        dump = config.evaluation.dump
        self._dump = pathlib.Path(dump) if dump else None
        self._class_weights = None
        self.training_videos = []
        held_out = ["test"]
        if class_names is None:
            held_out.append("validation")
            self.training_videos = self._load(data.train)
            class_names = labels.class_names(
                self.training_videos, data.train, data.labels, data.num_classes
            )
            if config.loss.class_balance:
                counts = labels.counts(self.training_videos, len(class_names))
                self._class_weights = losses.class_weights(
                    counts, config.loss.class_balance
                )
        self.class_names = list(class_names)
        self._held_out = {
            name: self._load(data[name]) if data[name] else [] for name in held_out
        }
        for name, videos in self._held_out.items():
            labels.check(videos, data[name], len(self.class_names))
        self.model = build.classifier(config.model, len(self.class_names))
        self._image_shape = (data.num_frames, data.image_size, data.image_size, 3)
        vit.token_grid(
            self._image_shape, self.model.patch_size, self.model.tubelet_size
        )
        if config.model.head_norm == "batch":
            self._check_that_this_is_a_probe()
        clip = {
            "frame_sampling": data.frame_sampling,
            "num_frames": data.num_frames,
            "stride": data.stride,
            "size": data.image_size,
        }
        self.training_clips = FinetuningClips(
            rand_augment=data.rand_augment and RandAugment.parse(data.rand_augment),
            crop_area=tuple(data.crop_area),
            crop_aspect=tuple(data.crop_aspect),
            flip=data.flip,
            erase=data.erase,
            num_samples=data.num_samples,
            **clip,
        )
        self._read_clips = {
            "validation": CenterClips(**clip),
            "test": MultiViewClips(
                segments=config.evaluation.segments,
                crops=config.evaluation.crops,
                **clip,
            ),
        }
        self.eval_every = config.evaluation.every if data.validation else 0
        self._evaluators = {}

    @property
    def lists(self) -> list[list[Record]]:
        """The records of every list that is read."""
        return [self.training_videos, *self._held_out.values()]

    def _load(self, source: str) -> list[Record]:
        return sources.load(
            source,
            self._config.data.root,
            require_labels=True,
            several_labels=self._config.loss.kind == "sigmoid",
            frame_name=self._config.data.frame_name,
        )

    def _check_that_this_is_a_probe(self) -> None:
        """Batch norm's statistics would lag behind an encoder that changes."""
        video = jax.ShapeDtypeStruct((1, *self._image_shape), "uint8")
        params, _ = jax.eval_shape(self.init, jax.random.key(0), video)
        frozen = optimizer.is_frozen(params, self._config.freeze)
        if not all(jax.tree.leaves(frozen["encoder"])):
            raise ValueError(
                "config.model.head_norm=batch is for linear probes: set "
                "config.freeze=^encoder/, or config.model.head_norm=layer"
            )

    @property
    def meta(self) -> dict:
        """What a checkpoint says of the model besides its parameters."""
        return {"class_names": self.class_names}

    def init(self, key: jax.Array, video: jax.Array) -> tuple[dict, dict]:
        """Initial parameters and statistics for clips like video [B, T, H, W, 3]."""
        statistics = dict(self.model.init(key, video))
        return statistics.pop("params"), statistics

    def load(self, params):
        """Replaces parameters by those of `config.init.source`, if there is one."""
        source = self._config.init.source
        if not source:
            log.info("training from scratch: config.init.source is empty")
            return params
        params, report = initialization.load(
            source, params, self._config.model, self._config.init.head
        )
        log.info("%s", report)
        return params

    def prepare(self, batch: dict, key: jax.Array) -> dict:
        """Adds what is random on the device, for the whole batch."""
        mix, video = self._config.mix, batch["video"]
        drop_key, mix_key = (jax.random.fold_in(key, i) for i in range(2))
        batch |= {"keys": jax.random.split(drop_key, len(video))}
        if mix.probability and (mix.mixup or mix.cutmix):
            batch |= {
                "mixup_pair_video": video[::-1],
                "mixup_pair_label": batch["label"][::-1],
                "mix": mixup.draw(
                    mix_key,
                    len(video),
                    video.shape[2:4],
                    mix.mixup,
                    mix.cutmix,
                    mix.probability,
                    mix.switch_probability,
                    mix.mode,
                ),
            }
        return batch

    def loss(self, params, statistics, batch: dict) -> tuple[jax.Array, dict]:
        """Mean loss of a prepared batch, float32 scalar, and the new statistics."""
        frozen = optimizer.is_frozen(params, self._config.freeze)
        # Nothing is computed backwards through what is not trained.
        params = jax.tree.map(
            lambda x, freeze: jax.lax.stop_gradient(x) if freeze else x, params, frozen
        )
        video, targets = batch["video"], self._targets(batch["label"])
        if "mix" in batch:
            video = mixup.mix_videos(
                video, batch["mixup_pair_video"], batch["mix"], self.model.dtype
            )
            partner = self._targets(batch["mixup_pair_label"])
            targets = mixup.mix_targets(targets, partner, batch["mix"])
        logits, statistics = self.model.apply(
            {"params": params, **statistics},
            video,
            batch["keys"],
            mutable=list(statistics),
        )
        return self._loss(logits, targets, self._class_weights), statistics

    def _targets(self, label):
        return losses.soft_targets(
            label, len(self.class_names), self._config.loss.smoothing
        )

    def check(self, step: int, state, mesh, reporter) -> None:
        """Evaluates on the centre clips of the validation videos."""
        with reporter.pause():
            found = self._evaluate("validation", state, mesh)
        values = self._results.metrics(found)
        reporter.values(step, {f"validation/{name}": x for name, x in values.items()})
        log.info("step %d | validation: %s", step, _shown(values))

    def finish(self, state, mesh, workdir: pathlib.Path) -> None:
        """Tests with all views, and writes what came out to `<workdir>/test`."""
        if not self._held_out["test"]:
            log.info("no test: config.data.test is empty")
            return
        found = self._evaluate("test", state, mesh)
        if jax.process_index() == 0:
            if self._dump:
                # One of an earlier test would look like this one's.
                self._dump.unlink(missing_ok=True)
            self._results.write(found, workdir / "test", int(state.step))
            if self._dump:
                results.write_mmaction_dump(found, self._dump)
        metrics = self._results.metrics(found)
        evaluation = self._config.evaluation
        log.info(
            "test, %d x %d views: %s; details in %s",
            evaluation.segments,
            evaluation.crops,
            _shown(metrics),
            workdir / "test",
        )

    def is_finished(self, workdir: pathlib.Path, step: int) -> bool:
        """Whether the test of this step has been done."""
        path = workdir / "test" / "metrics.json"
        if not path.exists() or json.loads(path.read_text())["step"] != step:
            return False
        return self._dump is None or self._dump.exists()

    def _evaluate(self, split: str, state, mesh):
        if split not in self._evaluators:
            videos, read_clips = self._held_out[split], self._read_clips[split]
            per_device = self._config.evaluation.videos_per_device
            batch_size = per_device * mesh.size
            readers = choose_workers(
                self._config.data,
                read_clips.views,
                batch_size,
                -(-len(videos) // batch_size),
                len(videos),
                mesh,
            )
            self._evaluators[split] = Evaluator(
                self.model,
                self._probabilities,
                videos,
                self.class_names,
                read_clips,
                self._image_shape,
                mesh,
                per_device,
                **readers.arguments,
            )
        # The averaged parameters are what is evaluated, where there are any.
        params = state.params if state.ema is None else state.ema
        return self._evaluators[split]({"params": params, **state.statistics})


def _shown(metrics: dict[str, float]) -> str:
    """Metrics on one line; those of unreadable videos only if there are some."""
    return ", ".join(
        f"{name} {value:.6g}"
        for name, value in metrics.items()
        if metrics["unreadable"] or "unreadable" not in name
    )
