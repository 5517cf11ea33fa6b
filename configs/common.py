"""Every field of a run, with VideoMAE's values for ViT-B on Kinetics-400.

`pretrain()` and `finetune()` return the fields of `_training()` and their own,
`distill()` those of `finetune()` and its own. The recipes in this folder change a few
of them. On the command line, any field is set with
`--config.<field>=<value>`; an unknown field is refused.

Every recipe also takes `:debug` (`--config=configs/k400_vitb_pretrain.py:debug`), which
runs the same code with a small model for a few steps: seconds on two CPU cores.

Fields declared with `placeholder` are None until they are set.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def _training() -> ConfigDict:
    """Returns the fields that pretraining and fine-tuning share."""
    config = ConfigDict()
    # train: train, then test. eval: only test the newest checkpoint of --workdir, which
    # must be a fine-tuning run.
    config.mode = "train"
    # Seeds everything random: parameters, order, frames, crops, masks.
    config.seed = 0
    # Videos per step over all devices. The learning rate scales with it.
    config.batch_size = placeholder(int)
    # Maximum number of clips that a device processes at once. A larger share of the
    # batch is split into micro-batches, whose gradients are accumulated.
    config.micro_batch_per_device = 32
    # Passes over the training videos.
    config.epochs = placeholder(int)
    # Steps of the whole run. 0: `epochs` passes over the training videos.
    config.steps = 0
    # Steps with a non-finite loss that may be skipped before the run stops.
    config.max_nonfinite_steps = 0
    # Steps between lines of metrics.
    config.log_every = 20
    # Regular expression. Parameters in whose path, such as encoder/norm/scale, it is
    # found are not trained. Empty: all are trained.
    config.freeze = ""

    config.model = ConfigDict()
    # tiny, small, base, large, huge or giant; or source: the sizes of init.source. The
    # sizes below that are None are the variant's, position_size the source's.
    config.model.variant = "base"
    config.model.width = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.heads = placeholder(int)
    config.model.patch_size = placeholder(int)
    config.model.tubelet_size = placeholder(int)
    config.model.mlp_ratio = placeholder(float)
    # Added to the variance by LayerNorm, in the blocks and before the head. None: 1e-6.
    config.model.norm_epsilon = placeholder(float)
    config.model.head_norm_epsilon = placeholder(float)
    # Channels of the videos: 3 for RGB, 1 for gray, 4 and 2 for these with alpha, any
    # number for arrays. None: 3.
    config.model.channels = placeholder(int)
    # Mean and standard deviation of each channel, of values scaled to [0, 1]. None:
    # those of ImageNet, for RGB.
    config.model.pixel_mean = placeholder(object)
    config.model.pixel_std = placeholder(object)
    # Dtype of the computation. Parameters, softmax and loss are always float32.
    config.model.dtype = "bfloat16"
    # What is kept for the backward pass. none: everything; dots: results of matrix
    # products; blocks: only the inputs of blocks, which takes the least memory and the
    # most computation.
    config.model.remat = "none"
    # Blocks that an iteration of the loop over them computes. On a TPU, all at once
    # save time, by the compiler's estimate, but take two to three times as long to
    # compile. None: one, or on a TPU all of at most 12, unless remat=blocks or FSDP.
    config.model.unroll = placeholder(int)
    # Attention implementation: xla, by_head (CPU), cudnn (GPU), fused or splash (TPU).
    # None: chosen automatically.
    config.model.attention = placeholder(str)

    config.data = ConfigDict()
    # The training videos. A list file (one video, or folder of frames, and its label
    # per line), tfds:FOLDER/SPLIT, or digits:train, the embedded data set. Pretraining
    # also takes a list without labels, or a folder of videos. Several of these are
    # shuffled as one: ("a.txt", {"list": "b.txt", "stride": 2}). Each may have its own
    # stride, root and frame_name, and a weight, by which its videos are drawn (see
    # docs/data.md).
    config.data.train = FieldReference("", field_type=object)
    # Held-out videos. Pretraining shows their reconstructions (those of training videos
    # if this is empty); fine-tuning measures accuracy on them during training (not at
    # all if this is empty).
    config.data.validation = ""
    # Folder that relative paths of a list start from. Empty: the list file's folder.
    config.data.root = ""
    # Names of the images in a folder of frames, with a place for the frame's number.
    config.data.frame_name = "img_{:05}.jpg"
    config.data.num_frames = 16
    # Distance between two frames of a clip, in frames of the video.
    config.data.stride = 4
    # Height and width of a clip, in pixels: one number for both, or two (128, 224).
    config.data.image_size = FieldReference(224, field_type=object)
    # Lowest and highest value of the videos' pixels, such as (0, 65535) for images of
    # 16 bits, or of floating-point arrays; they are scaled to [0, 1] and kept with 16
    # bits. None: pixels have 8 bits.
    config.data.value_range = placeholder(object)
    # Probability of a horizontal flip.
    config.data.flip = 0.0
    # Clips per decoded video, each with its own crop, augmentation and mask.
    config.data.num_samples = 1
    # Worker processes that decode, per training process (one per host by default).
    # 0: threads of the training process decode. None: chosen automatically from cores
    # and memory (videomae_jax/data/workers.py).
    config.data.num_workers = placeholder(int)
    # Threads that decode in each worker. None: chosen automatically.
    config.data.num_threads = placeholder(int)
    # Memory for decoding in GB, per training process: half for training, half for an
    # evaluation that runs meanwhile. None: half of the available memory.
    config.data.memory_gb = placeholder(float)
    # The run stops when a larger fraction of the videos is unreadable.
    config.data.max_bad_fraction = 0.01

    config.optimizer = ConfigDict()
    # Peak and final learning rate for a batch of 256 (VideoMAE, appendix).
    config.optimizer.base_lr = placeholder(float)
    config.optimizer.min_lr = placeholder(float)
    config.optimizer.warmup_epochs = placeholder(float)
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = placeholder(float)
    config.optimizer.eps = 1e-8
    # Maximum gradient norm. 0: no clipping. VideoMAE V2 uses 0.02 to pretrain giant.
    config.optimizer.clip_norm = 0.0
    # Learning rate of each block relative to that of the next block. 1: all the same.
    config.optimizer.layer_decay = 1.0

    config.ema = ConfigDict()
    # Decay of the exponential moving average of the parameters, which is evaluated in
    # their place. 0: no average. Early in training the decay is at most
    # (1 + step) / (10 + step).
    config.ema.decay = 0.0

    config.mesh = ConfigDict()
    # Number of devices that share one copy of parameters and optimizer state. None:
    # chosen automatically from the sizes of model and memory; the log gives the reason.
    # The batch is always split over all devices.
    config.mesh.fsdp = placeholder(int)
    # Split the optimizer state over all devices of a TPU slice or host of GPUs, even
    # where parameters are replicated.
    # None: chosen automatically.
    config.mesh.shard_optimizer = placeholder(bool)
    # Dtype in which gradients are summed over the devices, once per step: float32 or
    # bfloat16, which sends half as much. Micro-batches are added up in float32. None:
    # bfloat16 if model.dtype is, otherwise float32.
    config.mesh.gradient_dtype = placeholder(str)

    config.wandb = ConfigDict()
    # Project of Weights & Biases that gets the metrics too, under the name of the work
    # directory; needs the package wandb. Empty: none.
    config.wandb.project = ""

    config.profile = ConfigDict()
    # First step to trace for XProf, into <workdir>/profile, counted from the start or
    # resumption of the run; for example 20. 0: no trace.
    config.profile.first = 0
    # Steps to trace.
    config.profile.steps = 3

    config.checkpoint = ConfigDict()
    # Steps between checkpoints.
    config.checkpoint.every = 1000
    # How many of the newest checkpoints to keep, besides keep_period's and keep_best's.
    config.checkpoint.keep_last = 2
    # Checkpoints at multiples of this number of steps are never deleted. 0: none.
    config.checkpoint.keep_period = 0
    # Save digests of the files of a checkpoint, and compare them when its arrays are
    # read: a file that has changed is refused. False: sizes and small files are still
    # compared where digests were saved, and other programs compare all.
    config.checkpoint.digests = True
    # Resume from this checkpoint instead of the newest. Newer ones are moved to
    # <workdir>/set_aside, unless they were saved with this very config since, and their
    # rows of metrics.jsonl are removed. None: the newest.
    config.checkpoint.step = placeholder(int)
    return config


def pretrain() -> ConfigDict:
    """Returns the fields of a pretraining run; the config is locked."""
    config = _training()
    config.task = "pretrain"
    config.batch_size = 2048
    config.epochs = 800

    config.model.decoder_width = placeholder(int)
    config.model.decoder_depth = placeholder(int)
    config.model.decoder_heads = placeholder(int)
    # None: the encoder's.
    config.model.decoder_mlp_ratio = placeholder(float)
    # As `remat`, for the decoder. None: the encoder's.
    config.model.decoder_remat = placeholder(str)
    # As `attention`, for the decoder. None: chosen automatically.
    config.model.decoder_attention = placeholder(str)

    config.init = ConfigDict()
    # Weights to start from: a work directory, or whatever load_pretrained takes, with a
    # decoder. Empty: random initialisation.
    config.init.source = ""

    config.mask = ConfigDict()
    # tube (the same patches in all frames) or random.
    config.mask.kind = "tube"
    config.mask.ratio = 0.9
    # Which patches the decoder predicts. Empty: all masked ones. running_cell (VideoMAE
    # V2) or random: only those that a second mask leaves; visible ones among them do
    # not count in the loss.
    config.mask.decoder_kind = ""
    # Share of the patches that the decoder does not predict; running_cell rounds it
    # down to quarters.
    config.mask.decoder_ratio = 0.5
    # Predict patches normalised per patch and channel. False: pixels in [0, 1].
    config.normalize_targets = True

    # Sides of the random crop, as fractions of the shorter side of the frame (official
    # code). The crop is then resized to image_size.
    config.data.crop_scales = (1.0, 0.875, 0.75, 0.66)

    config.optimizer.base_lr = 1.5e-4
    config.optimizer.min_lr = 1e-5
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.b2 = 0.95

    config.picture = ConfigDict()
    # Steps between pictures of original, masked and reconstructed clips. 0: none.
    config.picture.every = 5000
    # Clips in a picture.
    config.picture.clips = 4
    # Source of the mean and contrast with which hidden patches are shown. visible: the
    # visible patches nearby. hidden: the hidden patches, as in the official code, which
    # gives away part of the answer.
    config.picture.unpatch_stats = "visible"
    return config.lock()


def finetune() -> ConfigDict:
    """Returns the fields of a fine-tuning run; the config is locked."""
    config = _training()
    config.task = "finetune"
    config.batch_size = 384
    config.epochs = 75

    config.init = ConfigDict()
    # Weights to start from: the work directory of a pretraining or fine-tuning run, or
    # whatever load_pretrained takes, such as MCG-NJU/videomae-base. Empty: random
    # initialisation.
    config.init.source = ""
    # Also load the classification head: its classes that have the same names; others
    # start anew. Without names, the classes must be the source's.
    config.init.head = False

    # mean (of all tokens), first_token (most models fine-tuned with Hugging Face
    # transformers) or attentive (a cross-attention block).
    config.model.pooling = "mean"
    # Normalisation before the head: layer, batch (MAE's linear probe) or none.
    config.model.head_norm = "layer"
    # Image size of pretraining in pixels, whose position table is interpolated to
    # image_size. 0: the plain 1-D table, as in the official V1 code.
    config.model.position_size = FieldReference(224, field_type=object)
    # Stochastic depth: probability of dropping the last block's branches, rising
    # linearly from 0 in the first block.
    config.model.drop_path = 0.1
    # Dropout rate of the pooled features.
    config.model.dropout = 0.0
    # Factor on the initial weights of the head.
    config.model.head_init_scale = 0.001

    # The list of the final test, and of config.mode=eval.
    config.data.test = ""
    # File of class names, one per line, or digits:labels. Empty: the folders of the
    # videos, if each class has its own. With `heads`, a file for each, separated by
    # commas. With loss.kind=mse, names of the values.
    config.data.labels = ""
    # Names of the label columns, such as verb,noun, if a video has a class in each of
    # several: the model gets a head for each. Empty: one label column, one head.
    config.data.heads = ""
    # None: the number of names in `labels`, or of classes in the training list. With
    # loss.kind=mse, the number of values.
    config.data.num_classes = placeholder(int)
    # Which frames make a clip. dense: as in the official code, whose frames are 64 / 15
    # apart at stride 4. exact: `stride` apart. uniform: one from each of num_frames
    # segments of the video (Something-Something). sparse: as V2's --sparse_sample, a
    # variant of uniform. mmaction: trains as exact, tests as MMAction2. transformers,
    # transformers_first: as transformers' pipeline, see docs/model_zoo.md.
    config.data.frame_sampling = "dense"
    config.data.flip = 0.5
    # Repeated augmentation: augmented clips per decoded video.
    config.data.num_samples = 2
    # rand-m<magnitude>-n<operations>-mstd<spread>-inc1. Empty: none.
    config.data.rand_augment = "rand-m7-n4-mstd0.5-inc1"
    # Range of the crop's area as a fraction of the frame, and of its width / height.
    config.data.crop_area = (0.08, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    # Probability of random erasing: a box of the clip is replaced by noise.
    config.data.erase = 0.25

    config.mix = ConfigDict()
    # Alpha of the Beta distribution of mixup and of cutmix. 0 disables one.
    config.mix.mixup = 0.8
    config.mix.cutmix = 1.0
    # Probability of mixing, and of cutmix instead of mixup.
    config.mix.probability = 1.0
    config.mix.switch_probability = 0.5
    # batch: one random draw for all clips; sample: one for each clip.
    config.mix.mode = "batch"

    config.loss = ConfigDict()
    # softmax: one class per video, or one per head. sigmoid: multi-label, scored by
    # mean average precision; a line of the list may have several labels, of one
    # vocabulary. mse: regression; the list has one or more numbers per video instead of
    # labels.
    config.loss.kind = "softmax"
    # Label smoothing. None: 0.1, but 0 with kind=mse, which has no labels to smooth.
    config.loss.smoothing = placeholder(float)
    # Class-balanced loss: beta of the effective number of videos (Cui et al. 2019), for
    # example 0.999. 0: all classes weigh the same.
    config.loss.class_balance = 0.0

    config.optimizer.base_lr = 5e-4
    config.optimizer.min_lr = 1e-6
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.b2 = 0.999
    config.optimizer.layer_decay = 0.75

    # Save and keep the checkpoint with the best validation.
    config.checkpoint.keep_best = True

    config.evaluation = ConfigDict()
    # Steps between evaluations on the centre clips of the validation videos. 0: none.
    config.evaluation.every = 1000
    # End training after so many validations in a row that are not better than the best
    # (top-1, mean average precision or mean absolute error). 0: take all steps.
    config.evaluation.patience = 0
    # The checkpoint that the final test takes: last, as in the papers, or best, by
    # validation. With config.mode=eval, also the number of a step. Where the validation
    # videos are the test's, the accuracy of the best is too optimistic.
    config.evaluation.step = "last"
    # Views of a test video: segments in time, and spatial crops of each.
    config.evaluation.segments = 5
    config.evaluation.crops = 3
    # Videos per device in a batch; their views are computed one after another.
    config.evaluation.videos_per_device = 4
    # File for the test's probabilities, in the format of MMAction2's --dump; needs
    # PyTorch.
    config.evaluation.dump = ""
    return config.lock()


def distill() -> ConfigDict:
    """Returns a distillation run, of the fields of a fine-tuning run and its own.

    VideoMAE V2, appendix, "knowledge distillation": the values without another source.
    """
    config = finetune().unlock()
    config.task = "distill"

    config.teacher = ConfigDict()
    # The classifier to learn from: the work directory of a fine-tuning run, or whatever
    # load_pretrained takes. It must have the classes of the student, by name; it may
    # have more. A run resumes only with the same weights.
    config.teacher.source = ""
    # File of the teacher's class names, one per line, or digits:labels. Empty: those of
    # the source; of a source without names, the student's, in their order.
    config.teacher.labels = ""
    # Size of the teacher for compile-for-tpu: tiny, small, base, large, huge or giant.
    # A run takes that of the source. Empty: compile-for-tpu reads the source, too.
    config.teacher.variant = ""
    # Dtype in which the teacher computes, and keeps its matrices: bfloat16 or float32.
    config.teacher.dtype = "bfloat16"

    config.distill = ConfigDict()
    # Divides the logits of both before the probabilities are compared.
    config.distill.temperature = 3.0
    # Multiply the divergence by temperature**2, which keeps the size of its gradient.
    # Beyer et al. 2022 do; whether V2 did is unknown. With AdamW, it only changes what
    # clip_norm and the other parts of the loss weigh.
    config.distill.square_temperature = True
    # Share of the loss of the labels; the rest is the divergence from the teacher.
    config.distill.label_share = 0.0
    # Weight of a loss of the encoder's tokens, which is added: the error of those of
    # the teacher, normalized, as a linear layer predicts them from the student's. 0:
    # none.
    config.distill.feature_weight = 0.0

    config.batch_size = 1024
    config.epochs = 100
    # Not listed: repeated augmentation, label smoothing.
    config.data.num_samples = 1
    config.loss.smoothing = 0.0
    config.optimizer.base_lr = 1e-3
    config.optimizer.clip_norm = 1.0
    return config.lock()


def lists(config: ConfigDict, name: str) -> None:
    """Sets the lists that `python -m videomae_jax lists NAME` writes to data/NAME."""
    config.data.update(
        train=f"data/{name}/train.txt",
        validation=f"data/{name}/val.txt",
        # The papers report the accuracy on the validation videos.
        test=f"data/{name}/val.txt",
        labels=f"data/{name}/labels.txt",
    )


def debug(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to seconds on two CPU cores; the code it runs stays the same.

    Sizes that must divide each other keep their ratios.
    """
    config.update(
        batch_size=8,
        micro_batch_per_device=4,
        steps=20,
        log_every=5,
    )
    config.model.update(width=96, depth=2, heads=3, dtype="float32")
    if config.model.variant == "source":
        config.model.variant = "base"
    config.data.update(num_frames=8, num_workers=1)
    config.data.image_size = _at_most(config.data.image_size, 96)
    if config.model.variant == "giant":
        config.data.image_size = 84
    config.checkpoint.update(every=10, keep_period=0)
    if config.task == "pretrain":
        config.model.update(decoder_width=48, decoder_depth=1, decoder_heads=3)
        config.picture.every = 10
    else:
        config.evaluation.update(every=10, segments=2, videos_per_device=2)
        # The image size of the pretraining recipe's :debug.
        config.model.position_size = _at_most(
            config.model.position_size, config.data.image_size
        )
        config.init.source = _debug_run(config.init.source)
    if config.task == "distill":
        config.teacher.source = _debug_run(config.teacher.source)
        if config.teacher.variant == "giant":
            config.data.image_size = 112  # patches of 14 and 16 pixels divide it
    return config


def _debug_run(source: str) -> str:
    """Returns the :debug run of a recipe; "" for other weights, of other sizes."""
    return f"{source}_debug" if source.startswith("runs/") else ""


def _at_most(size: int | tuple, most: int | tuple) -> int | tuple:
    """Returns an image size of at most another in height and width."""
    if isinstance(size, int) and isinstance(most, int):
        return min(size, most)
    pairs = ((x, x) if isinstance(x, int) else x for x in (size, most))
    return tuple(map(min, *pairs))


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies the option after the colon: nothing, or `debug`.

    Raises:
        ValueError: if the option is neither.
    """
    if arg not in ("", "debug"):
        raise ValueError(
            f"config option {arg!r}: only ':debug' may follow the config file"
        )
    return debug(config) if arg else config
