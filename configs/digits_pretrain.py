"""VideoMAE on the embedded moving digits.

    python main.py --config=configs/digits_pretrain.py

TBD
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; `:debug` after the file name shrinks it."""
    config = common.pretrain()
    config.data.train = "digits:train"
    config.data.validation = "digits:val"
    config.data.num_frames = 8
    config.data.stride = 1
    config.data.image_size = 32
    # The digits wrap around the border: a part of the frame would tell less.
    config.data.crop_scales = (1.0,)
    config.data.num_workers = 0
    config.model.variant = "tiny"
    config.model.update(
        width=128,
        depth=4,
        heads=4,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=2,
        patch_size=8,
        dtype="float32",
    )
    config.mask.ratio = 0.75
    config.batch_size = 64
    config.max_clips_per_device = 64
    config.steps = 1600
    config.optimizer.base_lr = 4e-3
    config.optimizer.min_lr = 4e-5
    config.optimizer.warmup_epochs = 2.0
    config.log_every = 50
    config.checkpoint.every = 400
    config.picture.every = 400
    return common.finish(config, arg)
