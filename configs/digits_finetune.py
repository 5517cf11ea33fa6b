"""Fine-tunes the pretrained digits model on 400 labelled videos of eight directions.

    python main.py --config=configs/digits_finetune.py

Takes under a minute on two CPU cores, after configs/digits_pretrain.py.

Expected: 100 % top-1. The README's table (benchmarks/digits.py) compares it with
digits_scratch.py and digits_linear_probe.py.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/digits_pretrain"
    config.data.train = "digits:train_small"
    config.data.validation = "digits:val"
    config.data.test = "digits:test"
    config.data.labels = "digits:labels"
    config.data.num_frames = 8
    config.data.stride = 1
    config.data.image_size = 32
    config.data.frame_sampling = "exact"
    config.data.num_workers = 0
    # Almost no augmentation: a mirrored or rotated motion has another label, and the
    # digits wrap around the border.
    config.data.rand_augment = ""
    config.data.crop_area = (1.0, 1.0)
    config.data.crop_aspect = (1.0, 1.0)
    config.data.flip = 0.0
    config.data.erase = 0.0
    config.data.num_samples = 1
    config.mix.probability = 0.0
    config.model.variant = "tiny"
    config.model.update(width=128, depth=4, heads=8, patch_size=8, dtype="float32")
    config.model.position_size = 32
    config.batch_size = 32
    # Too few to train from scratch, so that the gain from pretraining shows.
    config.steps = 120
    config.optimizer.base_lr = 8e-3
    config.optimizer.warmup_epochs = 2.0
    config.log_every = 20
    config.checkpoint.every = 60
    config.evaluation.every = 60
    config.evaluation.segments = 2
    config.evaluation.crops = 1
    config.evaluation.videos_per_device = 32
    return common.finish(config, arg)
