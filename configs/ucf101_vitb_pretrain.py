"""Pretrains VideoMAE ViT-B on UCF101 from scratch for 3200 epochs.

    python main.py --config=configs/ucf101_vitb_pretrain.py \
        --config.data.train=/data/ucf101/train.txt

Recipe: the official script's. Batch 192, peak learning rate 3e-4 * 192 / 256, 40 epochs
of warm-up, tube masking of 75 %, 16 frames 4 apart. For split 1's 9,537 videos that is
49 steps per epoch, 156,800 in all; the authors needed about 30 hours on 8 GPUs.

Expected: 91.3 % top-1 after fine-tuning, with 16 frames x 5 x 3 views, as reported by
the authors. This library has not run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.pretrain()
    config.model.variant = "base"
    config.batch_size = 192
    config.micro_batch_per_device = 24
    config.epochs = 3200
    config.data.train = "data/ucf101/train.txt"
    config.mask.ratio = 0.75
    config.optimizer.base_lr = 3e-4
    config.checkpoint.keep_period = 4900
    return common.finish(config, arg)
