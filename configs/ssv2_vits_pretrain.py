"""VideoMAE ViT-S on Something-Something V2, 2400 epochs.

    python main.py --config=configs/ssv2_vits_pretrain.py \
        --config.data.train=/data/ssv2/train.txt

The official script's recipe: batch 2048, peak learning rate 1.5e-4 * 2048 / 256, 40
epochs of warm-up, tube masking of 90 %, 16 frames 2 apart. With 168,913 videos that is
82 steps an epoch, 196,800 in all. The paper's authors report 66.8 % top-1 after fine-
tuning from their weights (16 frames x 2 x 3 views); this library has not run the whole
recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; `:debug` after the file name shrinks it."""
    config = common.pretrain()
    config.model.variant = "small"
    config.batch_size = 2048
    config.epochs = 2400
    config.data.train = "data/ssv2/train.txt"
    config.data.stride = 2
    return common.finish(config, arg)
