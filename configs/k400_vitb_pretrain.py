"""Pretrains VideoMAE ViT-B on Kinetics-400 for 800 epochs.

    python main.py --config=configs/k400_vitb_pretrain.py \
        --config.data.train=/data/kinetics400/train.txt

Recipe: the official script's. Batch 2048, peak learning rate 1.5e-4 * 2048 / 256, 40
epochs of warm-up, tube masking of 90 %, 16 frames 4 apart, decoder of 4 layers. For
240,436 videos that is 117 steps per epoch, 93,600 in all.

Expected: 80.0 % top-1 (81.5 % after 1600 epochs of pretraining) after fine-tuning, with
16 frames x 5 x 3 views, as reported by the authors. This library has not run the whole
recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.pretrain()
    config.model.variant = "base"
    config.batch_size = 2048
    config.micro_batch_per_device = 32
    config.epochs = 800
    config.data.train = "data/kinetics400/train.txt"
    return common.finish(config, arg)
