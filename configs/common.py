"""Every field of a pretraining run, with VideoMAE's values for Kinetics-400, ViT-B.

The recipes in this folder change a few of them. On the command line any field is set
with `--config.<field>=<value>`; a misspelt one is refused. Every recipe also takes
`:debug` (`--config=configs/k400_vitb_pretrain.py:debug`): the same code with a small
model and few steps, in seconds on two CPU cores.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def pretrain() -> ConfigDict:
    """Returns the fields of a pretraining run; no other can be added."""
    config = ConfigDict()
    config.task = "pretrain"
    # Decides everything random: parameters, order, frames, crops, masks.
    config.seed = 0
    # Videos per step over all devices. The learning rate scales with it.
    config.batch_size = 2048
    # The most clips one device takes at once; beyond it, gradients are accumulated.
    config.max_clips_per_device = 32
    config.epochs = 800
    # Steps of the whole run; 0 means `epochs` over the training videos.
    config.steps = 0
    # How many steps with a loss that is not finite may be skipped before stopping.
    config.max_nonfinite_steps = 0
    # Steps between lines of metrics.
    config.log_every = 20

    config.model = ConfigDict()
    # tiny, small, base, large, huge or giant; the fields left None are the variant's.
    config.model.variant = "base"
    config.model.width = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.heads = placeholder(int)
    config.model.decoder_width = placeholder(int)
    config.model.decoder_depth = placeholder(int)
    config.model.decoder_heads = placeholder(int)
    config.model.patch_size = placeholder(int)
    config.model.tubelet_size = placeholder(int)
    config.model.mlp_ratio = placeholder(float)
    # Computation only: parameters, softmax and loss are float32.
    config.model.dtype = "bfloat16"
    # What the backward pass keeps: none (all is kept), dots, blocks (least memory).
    config.model.remat = "none"

    config.mask = ConfigDict()
    # tube (the same places in every frame) or random.
    config.mask.kind = "tube"
    config.mask.ratio = 0.9
    # Targets are normalised per patch and channel; False: plain pixels in [0, 1].
    config.normalize_targets = True

    config.data = ConfigDict()
    # A list file (a video and, if you like, its label a line), a folder of videos, or
    # digits:train, the embedded data set.
    config.data.train = ""
    # Held-out videos, for pictures; training videos are shown if empty.
    config.data.validation = ""
    # Where relative paths of a list start; beside the list file if empty.
    config.data.root = ""
    config.data.num_frames = 16
    # Frames of the video between two frames of the clip.
    config.data.stride = 4
    config.data.image_size = 224
    # Crops are these shares of the shorter side, then resized (official code).
    config.data.crop_scales = (1.0, 0.875, 0.75, 0.66)
    # Probability of a horizontal flip; the official code pretrains without.
    config.data.flip = 0.0
    # Clips per decoded video, each with its own crop and mask (V2, section 3.3).
    config.data.num_samples = 1
    # Processes that decode on each host; 0 decodes in threads of the training process.
    config.data.num_workers = 8
    # Threads that decode, in each of them.
    config.data.num_threads = 2
    # The run stops when a larger share of the videos cannot be read.
    config.data.max_bad_fraction = 0.01

    config.optimizer = ConfigDict()
    # Both rates are for a batch of 256; VideoMAE, appendix.
    config.optimizer.base_lr = 1.5e-4
    config.optimizer.min_lr = 1e-5
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    # Largest gradient norm; 0 clips nothing. V2 uses 0.02 for giant.
    config.optimizer.clip_norm = 0.0

    config.mesh = ConfigDict()
    # Ways to split the batch; -1: all devices that fsdp leaves.
    config.mesh.data = -1
    # Ways to split batch, parameters and optimizer state.
    config.mesh.fsdp = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000
    config.checkpoint.keep_last = 2
    # Steps whose multiples are kept for good; 0: none.
    config.checkpoint.milestone_every = 0

    config.picture = ConfigDict()
    # Steps between pictures of originals, masks and reconstructions; 0: none.
    config.picture.every = 5000
    config.picture.clips = 4
    # Whose mean and contrast hidden patches are shown with: the visible patches', or
    # the hidden ones' own, as the official code does (that shows part of the answer).
    config.picture.statistics = "visible"
    return config.lock()


def debug(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to seconds on two CPU cores, leaving the code it runs the same.

    Sizes that must divide each other stay as they are relative to each other.
    """
    config.update(
        batch_size=8,
        max_clips_per_device=4,
        steps=20,
        log_every=5,
    )
    config.model.update(
        width=96,
        depth=2,
        heads=3,
        decoder_width=48,
        decoder_depth=1,
        decoder_heads=3,
        dtype="float32",
    )
    config.data.update(num_frames=8, num_workers=1)
    config.data.image_size = min(config.data.image_size, 96)
    if config.model.variant == "giant":
        config.data.image_size = 98
    config.checkpoint.update(every=10, milestone_every=0)
    config.picture.every = 10
    return config


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """What every recipe ends with: nothing after the colon, or `debug`.

    Raises:
        ValueError: for any other word after the colon.
    """
    if arg not in ("", "debug"):
        raise ValueError(f"config option {arg!r}: only ':debug' may follow the file")
    return debug(config) if arg else config
