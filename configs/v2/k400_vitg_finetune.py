"""Fine-tunes VideoMAE V2 ViT-g (hybrid pretraining) on Kinetics-400.

    python main.py --config=configs/v2/k400_vitg_finetune.py

Recipe: the official script's. Batch 192 videos, each in two augmentations; peak
learning rate 1e-3 * 192 / 256; 30 epochs, layer decay 0.9, drop-path 0.2, weight decay
0.1, test on 5 x 3 views.

Expected: 87.2 % top-1, 97.4 % top-5 (83.9 % top-1 with one view), as reported by the
authors. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("giant", "kinetics400")
    config.model.drop_path = 0.2
    config.batch_size = 192
    config.epochs = 30
    config.optimizer.base_lr = 1e-3
    config.optimizer.weight_decay = 0.1
    return common.finish(config, arg)
