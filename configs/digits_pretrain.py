"""VideoMAE on the embedded moving digits.

    python main.py --config=configs/digits_pretrain.py

3,000 small mp4 files are made on first use (about 20 s). 2,000 steps of 32 clips take
five to six minutes on two CPU cores. Predicting each patch's mean would give a loss of
0.50 (half of the patches are plain paper, whose target is zero); the run stays there
for some 300 steps, until it has found out where to look, and ends near 0.26. The
pictures in runs/digits_pretrain/pictures show digits completed in the hidden places.

Why not VideoMAE's values: with 75 % of the places hidden, 2,400 steps ended at 0.34 and
showed few digits; with four heads of width 32 the plateau lasted much longer.
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
    # Half, not 90 %: so few steps and 16 places would show hardly a digit.
    config.mask.ratio = 0.5
    config.batch_size = 32
    config.steps = 2000
    config.optimizer.base_lr = 0.012
    config.optimizer.min_lr = 1e-4
    config.optimizer.warmup_epochs = 2.0
    config.log_every = 100
    config.checkpoint.every = 500
    config.picture.every = 500
    return common.finish(config, arg)
