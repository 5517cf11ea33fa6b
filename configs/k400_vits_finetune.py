"""Fine-tunes VideoMAE ViT-S (pretrained for 1600 epochs) on Kinetics-400.

    python main.py --config=configs/k400_vits_finetune.py \
        --config.init.source=runs/k400_vits_pretrain

Recipe: the official script's. Batch 384 with two augmentations of each video, peak
learning rate 5e-4 * 384 / 256, 150 epochs, layer decay 0.75, test on 5 x 3 views.
docs/data.md explains how the lists are made.

Expected: 79.0 % top-1, 93.8 % top-5, as reported by the authors. This library has not
run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/k400_vits_pretrain"
    common.lists(config, "kinetics400")
    config.model.variant = "small"
    config.batch_size = 384
    config.micro_batch_per_device = 24
    config.epochs = 150
    config.optimizer.base_lr = 5e-4
    return common.finish(config, arg)
