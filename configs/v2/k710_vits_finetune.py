"""Fine-tunes VideoMAE ViT-S on Kinetics-710, before k710_vits_distill.py.

    python main.py --config=configs/v2/k710_vits_finetune.py

Recipe: ViT-B's (k710_vitb_finetune.py), because no script for ViT-S was published. It
starts from VideoMAE's pretraining on Kinetics-400, for the same reason.

Expected: unknown. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = v2.finetune("small", "k710")
    config.init.source = "runs/k400_vits_pretrain"
    config.batch_size = 512
    config.epochs = 90
    config.optimizer.base_lr = 7e-4
    return common.finish(config, arg)
