"""Post-pretrains VideoMAE V2 ViT-B (hybrid pretraining) on Kinetics-710.

    python main.py --config=configs/v2/k710_vitb_finetune.py

Recipe: the official script's, which is that of Kinetics-400. Batch 512 videos, each in
two augmentations; peak learning rate 7e-4 * 512 / 256; 90 epochs, layer decay 0.75,
test on 5 x 3 views. docs/videomae_v2.md explains how the lists are made.

Expected: unknown. InternVideo's ViT-B, pretrained without masking of the decoder, has
79.3 % top-1, 94.0 % top-5. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("base", "k710")
    config.batch_size = 512
    config.epochs = 90
    config.optimizer.base_lr = 7e-4
    return common.finish(config, arg)
