"""Fine-tunes VideoMAE V2 ViT-g (after K710) on HMDB51, split 1.

    python main.py --config=configs/v2/k710_hmdb51_vitg_finetune.py

Recipe: the official script's, with which the paper's table agrees. Batch 24 videos,
each in two augmentations; peak learning rate 5e-4 * 24 / 256; 15 epochs, stride 2,
layer decay 0.9, drop-path 0.35, dropout 0.5 before a new head, test on 5 x 3 views.

Expected: 88.1 % top-1, 98.5 % top-5, as reported by the authors, who do not say of
which splits. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("giant", "hmdb51")
    config.init.source = "runs/v2/k710_vitg_finetune"
    config.data.stride = 2
    config.model.drop_path = 0.35
    config.model.dropout = 0.5
    config.batch_size = 24
    config.epochs = 15
    config.optimizer.base_lr = 5e-4
    return common.finish(config, arg)
