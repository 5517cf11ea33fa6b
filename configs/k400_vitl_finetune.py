"""Fine-tunes VideoMAE ViT-L (pretrained for 1600 epochs) on Kinetics-400.

    python main.py --config=configs/k400_vitl_finetune.py \
        --config.init.source=runs/k400_vitl_pretrain

Recipe: the official script's. Batch 128 with two augmentations of each video, peak
learning rate 2e-3 * 128 / 256, 35 epochs, layer decay 0.75, test on 5 x 3 views.
docs/data.md explains how the lists are made.

Expected: 85.2 % top-1, 96.8 % top-5, as reported by the authors. This library has not
run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/k400_vitl_pretrain"
    common.lists(config, "kinetics400")
    config.model.variant = "large"
    config.batch_size = 128
    config.micro_batch_per_device = 4
    config.epochs = 35
    config.optimizer.base_lr = 2e-3
    return common.finish(config, arg)
