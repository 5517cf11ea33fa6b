"""Fine-tunes VideoMAE V2 ViT-H (hybrid pretraining) on Kinetics-600.

    python main.py --config=configs/v2/k600_vith_finetune.py

Recipe: the official script's but for the batch. Batch 128 videos, each in two
augmentations; peak learning rate 1e-3 * 128 / 256; 40 epochs, layer decay 0.8,
drop-path 0.2, dropout 0.5 before the head, test on 5 x 3 views. The script's default is
one machine of 4 videos, a leftover, with a learning rate of 1.6e-5 and 3.7 million
steps. The batch here is that of k400_vith_finetune.py.

Expected: unknown; the authors report Kinetics-600 only after K710. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("huge", "kinetics600")
    config.model.drop_path = 0.2
    config.model.dropout = 0.5
    config.batch_size = 128
    config.epochs = 40
    config.optimizer.base_lr = 1e-3
    return common.finish(config, arg)
