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
        heads=8,
        decoder_width=128,
        decoder_depth=1,
        decoder_heads=8,
        patch_size=8,
        dtype="float32",
    )
    config.mask.ratio = 0.75
    config.batch_size = 32
    config.steps = 2400
    config.optimizer.base_lr = 0.012
    config.optimizer.min_lr = 1e-4
    config.optimizer.warmup_epochs = 2.0
    config.log_every = 100
    config.checkpoint.every = 600
    config.picture.every = 600
    return common.finish(config, arg)
