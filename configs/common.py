"""Every field of a run, with VideoMAE's values for Kinetics-400, ViT-B.

`pretrain()` and `finetune()` each give the fields of `_training()` and their own. The
recipes in this folder change a few of them. On the command line any field is set
with `--config.<field>=<value>`; a misspelt one is refused. Every recipe also takes
`:debug` (`--config=configs/k400_vitb_pretrain.py:debug`): the same code with a small
model and few steps, in seconds on two CPU cores.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def _training() -> ConfigDict:
    """Returns what pretraining and fine-tuning have in common."""
    config = ConfigDict()
    # train, or eval: test the newest checkpoint of a fine-tuning run's --workdir.
    config.mode = "train"
    # Decides everything random: parameters, order, frames, crops, masks.
    config.seed = 0
    # Videos per step over all devices. The learning rate scales with it.
    config.batch_size = placeholder(int)
    # The most clips one device takes at once; beyond it, gradients are accumulated.
    config.micro_batch_per_device = 32
    config.epochs = placeholder(int)
    # Steps of the whole run; 0 means `epochs` over the training videos.
    config.steps = 0
    # How many steps with a loss that is not finite may be skipped before stopping.
    config.max_nonfinite_steps = 0
    # Steps between lines of metrics.
    config.log_every = 20
    # Regular expression: parameters in whose path, such as encoder/norm/scale, it is
    # found are not trained.
    config.freeze = ""

    config.model = ConfigDict()
    # tiny, small, base, large, huge or giant; the fields left None are the variant's.
    config.model.variant = "base"
    config.model.width = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.heads = placeholder(int)
    config.model.patch_size = placeholder(int)
    config.model.tubelet_size = placeholder(int)
    config.model.mlp_ratio = placeholder(float)
    # Computation only: parameters, softmax and loss are float32.
    config.model.dtype = "bfloat16"
    # What the backward pass keeps: none (all is kept), dots, blocks (least memory).
    config.model.remat = "none"
    # How attention is computed: xla, by_head (CPU), cudnn (GPU), splash (TPU); None
    # chooses.
    config.model.attention = placeholder(str)

    config.data = ConfigDict()
    # A list file (a video, or a folder of its frames, and its label a line),
    # tfds:FOLDER/SPLIT, or digits:train, the embedded data set; for pretraining also a
    # list without labels, or a folder of videos.
    config.data.train = ""
    # Held-out videos: pretraining's pictures (of training videos if this is empty),
    # fine-tuning's accuracy while it trains (none if empty).
    config.data.validation = ""
    # Where relative paths of a list start; beside the list file if empty.
    config.data.root = ""
    # How images of frame folders are named, with a place for the number.
    config.data.frame_name = "img_{:05}.jpg"
    config.data.num_frames = 16
    # Frames of the video between two frames of the clip.
    config.data.stride = 4
    config.data.image_size = 224
    # Probability of a horizontal flip.
    config.data.flip = 0.0
    # Clips per decoded video, each with its own crop, augmentation and mask.
    config.data.num_samples = 1
    # Processes that decode for each training process, of which there is one on a host
    # unless it was started otherwise; 0 decodes in threads of the training process.
    # None: by the cores and the memory that there are (videomae_jax/data/workers.py).
    config.data.num_workers = placeholder(int)
    # Threads that decode, in each of them; None: likewise.
    config.data.num_threads = placeholder(int)
    # Memory in GB that decoding may take for each training process: half of it for
    # training, half for an evaluation meanwhile; None: half of what there is.
    config.data.memory_gb = placeholder(float)
    # The run stops when a larger share of the videos cannot be read.
    config.data.max_bad_fraction = 0.01

    config.optimizer = ConfigDict()
    # Both rates are for a batch of 256; VideoMAE, appendix.
    config.optimizer.base_lr = placeholder(float)
    config.optimizer.min_lr = placeholder(float)
    config.optimizer.warmup_epochs = placeholder(float)
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = placeholder(float)
    config.optimizer.eps = 1e-8
    # Largest gradient norm; 0 clips nothing. V2 uses 0.02 to pretrain giant.
    config.optimizer.clip_norm = 0.0
    # Learning rate of each block relative to the next one; 1: all alike.
    config.optimizer.layer_decay = 1.0

    config.ema = ConfigDict()
    # Of an average of the parameters, which is then what is evaluated; 0: none. Early
    # on it is less, (1 + step) / (10 + step).
    config.ema.decay = 0.0

    config.mesh = ConfigDict()
    # Ways to split parameters and optimizer state; all devices split the batch. None:
    # chosen by the sizes of model and memory, as the log says.
    config.mesh.fsdp = placeholder(int)
    # Split the optimizer's state over all devices even where the parameters are not;
    # None: likewise.
    config.mesh.shard_optimizer = placeholder(bool)

    config.profile = ConfigDict()
    # The first step to trace for XProf, into <workdir>/profile, such as 20, counted
    # from where the run starts or goes on; 0: none.
    config.profile.first = 0
    config.profile.steps = 3

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000
    config.checkpoint.keep_last = 2
    # Steps whose multiples are kept for good; 0: none.
    config.checkpoint.keep_period = 0
    return config


def pretrain() -> ConfigDict:
    """Returns the fields of a pretraining run; no other can be added."""
    config = _training()
    config.task = "pretrain"
    config.batch_size = 2048
    config.epochs = 800

    config.model.decoder_width = placeholder(int)
    config.model.decoder_depth = placeholder(int)
    config.model.decoder_heads = placeholder(int)
    # Where they are not the encoder's; None: the same remat, its own choice.
    config.model.decoder_remat = placeholder(str)
    config.model.decoder_attention = placeholder(str)

    config.init = ConfigDict()
    # Where training goes on from: a work directory, or what load_pretrained takes, with
    # its decoder; empty: from scratch.
    config.init.source = ""

    config.mask = ConfigDict()
    # tube (the same places in every frame) or random.
    config.mask.kind = "tube"
    config.mask.ratio = 0.9
    # Targets are normalised per patch and channel; False: plain pixels in [0, 1].
    config.normalize_targets = True

    # Crops are these shares of the shorter side, then resized (official code).
    config.data.crop_scales = (1.0, 0.875, 0.75, 0.66)

    config.optimizer.base_lr = 1.5e-4
    config.optimizer.min_lr = 1e-5
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.b2 = 0.95

    config.picture = ConfigDict()
    # Steps between pictures of originals, masks and reconstructions; 0: none.
    config.picture.every = 5000
    config.picture.clips = 4
    # Whose mean and contrast hidden patches are shown with: the visible patches', or
    # the hidden ones' own, as the official code does (that shows part of the answer).
    config.picture.unpatch_stats = "visible"
    return config.lock()


def finetune() -> ConfigDict:
    """Returns the fields of a fine-tuning run; no other can be added."""
    config = _training()
    config.task = "finetune"
    config.batch_size = 384
    config.epochs = 75

    config.init = ConfigDict()
    # The --workdir of a pretraining run, or of a fine-tuning run to go on from, or what
    # load_pretrained takes, as MCG-NJU/videomae-base; empty: from scratch.
    config.init.source = ""
    # Take the head of a fine-tuning run too: the same classes are wanted.
    config.init.head = False

    # mean (of all tokens), first_token (most fine-tunes made with Hugging Face's
    # library) or attentive (a cross-attention block).
    config.model.pooling = "mean"
    # layer, or batch: MAE's for a linear probe.
    config.model.head_norm = "layer"
    # Size of pretraining's images in pixels, whose position table is interpolated to
    # image_size; 0: the plain 1-D table, as in the official V1 code.
    config.model.position_size = 224
    # Probability of dropping the last block's branches, rising from 0 in the first.
    config.model.drop_path = 0.1
    # Of the pooled features.
    config.model.dropout = 0.0
    config.model.head_init_scale = 0.001

    # The list of the final test, and of config.mode=eval.
    config.data.test = ""
    # Class names, one a line, or digits:labels; by default the videos' folders, where
    # each class has its own.
    config.data.labels = ""
    # By default as many as `labels` names, or the training list has.
    config.data.num_classes = placeholder(int)
    # dense: the official code's, whose frames are 64 / 15 apart at stride 4; exact:
    # `stride` apart; uniform: one of each of num_frames parts (Something-Something);
    # mmaction: as exact, tested as MMAction2 does.
    config.data.frame_sampling = "dense"
    config.data.flip = 0.5
    # Augmentations per decoded video (repeated augmentation).
    config.data.num_samples = 2
    # rand-m<magnitude>-n<operations>-mstd<spread>-inc1; empty: none.
    config.data.rand_augment = "rand-m7-n4-mstd0.5-inc1"
    # Smallest and largest share of the frame, and width over height, of a crop.
    config.data.crop_area = (0.08, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    # Probability of erasing a box of the clip.
    config.data.erase = 0.25

    config.mix = ConfigDict()
    # Alphas of the Beta distributions; 0 switches one off.
    config.mix.mixup = 0.8
    config.mix.cutmix = 1.0
    # Of mixing at all; of cutmix rather than mixup.
    config.mix.probability = 1.0
    config.mix.switch_probability = 0.5
    # batch: one draw for all clips; sample: one for each.
    config.mix.mode = "batch"

    config.loss = ConfigDict()
    # softmax: one class a video; sigmoid: multi-label, where a line of a list may have
    # several labels, each class is asked for itself, and mean average precision counts.
    config.loss.kind = "softmax"
    config.loss.smoothing = 0.1
    # Weighs classes by their effective number of videos (Cui et al. 2019), such as
    # 0.999; 0: all alike.
    config.loss.class_balance = 0.0

    config.optimizer.base_lr = 5e-4
    config.optimizer.min_lr = 1e-6
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.b2 = 0.999
    config.optimizer.layer_decay = 0.75

    config.evaluation = ConfigDict()
    # Steps between evaluations on the validation videos' centre clips; 0: none.
    config.evaluation.every = 1000
    # Views of each test video: clips in time, and crops of each.
    config.evaluation.segments = 5
    config.evaluation.crops = 3
    # Videos that each device takes at once, view by view.
    config.evaluation.videos_per_device = 4
    # A file for the test's probabilities as MMAction2's --dump writes them.
    config.evaluation.dump = ""
    return config.lock()


def lists(config: ConfigDict, name: str) -> None:
    """Sets the lists that `python -m videomae_jax lists NAME` makes, in data/NAME."""
    config.data.update(
        train=f"data/{name}/train.txt",
        validation=f"data/{name}/val.txt",
        # The papers report the accuracy on the validation videos.
        test=f"data/{name}/val.txt",
        labels=f"data/{name}/labels.txt",
    )


def debug(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to seconds on two CPU cores, leaving the code it runs the same.

    Sizes that must divide each other stay as they are relative to each other.
    """
    config.update(
        batch_size=8,
        micro_batch_per_device=4,
        steps=20,
        log_every=5,
    )
    config.model.update(width=96, depth=2, heads=3, dtype="float32")
    config.data.update(num_frames=8, num_workers=1)
    config.data.image_size = min(config.data.image_size, 96)
    if config.model.variant == "giant":
        config.data.image_size = 98
    config.checkpoint.update(every=10, keep_period=0)
    if config.task == "pretrain":
        config.model.update(decoder_width=48, decoder_depth=1, decoder_heads=3)
        config.picture.every = 10
    else:
        config.evaluation.update(every=10, segments=2, videos_per_device=2)
        # What the pretraining recipe's :debug leaves.
        config.model.position_size = min(
            config.model.position_size, config.data.image_size
        )
        if config.init.source:
            config.init.source += "_debug"
    return config


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """What every recipe ends with: nothing after the colon, or `debug`.

    Raises:
        ValueError: for any other word after the colon.
    """
    if arg not in ("", "debug"):
        raise ValueError(f"config option {arg!r}: only ':debug' may follow the file")
    return debug(config) if arg else config
