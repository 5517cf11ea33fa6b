"""Fine-tunes VideoMAE V2 ViT-H (hybrid pretraining) on Something-Something V2.

    python main.py --config=configs/v2/ssv2_vith_finetune.py

Recipe: the official script's. Batch 128 videos, each in two augmentations; peak
learning rate 5e-4 * 128 / 256; 20 epochs, layer decay 0.8, drop-path 0.2, one frame
from each of 16 segments of the video, no flips, test on 2 x 3 views.

Expected: 76.8 % top-1, 95.8 % top-5 (75.5 % top-1 with one view), as reported by the
authors. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("huge", "ssv2")
    config.model.drop_path = 0.2
    config.batch_size = 128
    config.epochs = 20
    config.optimizer.base_lr = 5e-4
    return common.finish(config, arg)
