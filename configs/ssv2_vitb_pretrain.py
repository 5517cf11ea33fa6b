"""Pretrains VideoMAE ViT-B on Something-Something V2 for 2400 epochs.

    python main.py --config=configs/ssv2_vitb_pretrain.py \
        --config.data.train=/data/ssv2/train.txt

Recipe: the official script's. Batch 2048, peak learning rate 1.5e-4 * 2048 / 256, 40
epochs of warm-up, tube masking of 90 %, 16 frames 2 apart. For 168,913 videos that is
82 steps per epoch, 196,800 in all.

Expected: 69.6 % (800 epochs) or 70.8 % (2400 epochs) top-1 after fine-tuning, with 16
frames x 2 x 3 views, as reported by the authors. This library has not run the whole
recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.pretrain()
    config.model.variant = "base"
    config.batch_size = 2048
    config.epochs = 2400
    config.data.train = "data/ssv2/train.txt"
    config.data.stride = 2
    return common.finish(config, arg)
