"""Pretrains VideoMAE V2 ViT-L on UnlabeledHybrid, 300 epochs of 4 views.

    python main.py --config=configs/v2/hybrid_vitl_pretrain.py

Recipe: the official script's, as that of ViT-B but for batch 1536 (6144 clips), peak
learning rate 1e-3 * 1536 / 256, 30 epochs of warm-up, and a decoder of width 512 with 4
blocks (V1's has 12). 877 steps per epoch, 263,100 in all.

The paper counts the 4 views as epochs: 1200. It gives no settings for ViT-L.

Expected: 85.4 % top-1 on Kinetics-400, 75.7 % on Something-Something V2 after
fine-tuning, as reported by the authors. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.pretrain("large")
    config.batch_size = 1536
    config.micro_batch_per_device = 16
    config.epochs = 300
    config.optimizer.warmup_epochs = 30.0
    return common.finish(config, arg)
