"""Fine-tunes VideoMAE ViT-B (pretrained on UCF101 for 3200 epochs) on UCF101, split 1.

    python main.py --config=configs/ucf101_vitb_finetune.py \
        --config.init.source=runs/ucf101_vitb_pretrain

Recipe: the official script's. Batch 128 with two augmentations of each video, peak
learning rate 5e-4 * 128 / 256, 100 epochs, layer decay 0.7, drop-path 0.2, dropout 0.5
before the head, test on 5 x 3 views. docs/data.md explains how the lists are made.

Expected: 91.3 % top-1, 98.5 % top-5, as reported by the authors. This library has not
run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/ucf101_vitb_pretrain"
    common.lists(config, "ucf101")
    config.model.variant = "base"
    config.model.drop_path = 0.2
    config.model.dropout = 0.5
    config.batch_size = 128
    config.micro_batch_per_device = 16
    config.epochs = 100
    config.optimizer.base_lr = 5e-4
    config.optimizer.min_lr = 1e-5
    config.optimizer.layer_decay = 0.7
    return common.finish(config, arg)
