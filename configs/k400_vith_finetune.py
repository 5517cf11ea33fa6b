"""Fine-tunes VideoMAE ViT-H (pretrained for 1600 epochs) on Kinetics-400.

    python main.py --config=configs/k400_vith_finetune.py \
        --config.init.source=runs/k400_vith_pretrain --config.mesh.fsdp=8

Recipe: the official script's. Batch 512 with two augmentations of each video, peak
learning rate 1e-3 * 512 / 256, 50 epochs, layer decay 0.75, drop-path 0.2, dropout 0.5
before the head, remat of all blocks, test on 5 x 3 views. docs/data.md explains how the
lists are made.

Expected: 86.6 % top-1, 97.1 % top-5, as reported by the authors. This library has not
run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/k400_vith_pretrain"
    common.lists(config, "kinetics400")
    config.model.variant = "huge"
    config.model.drop_path = 0.2
    config.model.dropout = 0.5
    config.model.remat = "blocks"
    config.batch_size = 512
    config.micro_batch_per_device = 16
    config.epochs = 50
    config.optimizer.base_lr = 1e-3
    config.optimizer.min_lr = 1e-5
    return common.finish(config, arg)
