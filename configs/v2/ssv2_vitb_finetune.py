"""Fine-tunes VideoMAE V2 ViT-B (hybrid pretraining) on Something-Something V2.

    python main.py --config=configs/v2/ssv2_vitb_finetune.py

Recipe: the official script's. Batch 256 videos, each in two augmentations; peak
learning rate 2e-3 * 256 / 256; 25 epochs, layer decay 0.65, one frame from each of 16
segments of the video, no flips, test on 2 x 3 views.

Expected: 71.2 % top-1 (69.5 % with one view), as reported by the authors. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("base", "ssv2")
    config.batch_size = 256
    config.epochs = 25
    config.optimizer.base_lr = 2e-3
    config.optimizer.layer_decay = 0.65
    return common.finish(config, arg)
