"""Recipes of VideoMAE V2's scripts, and what these have in common.

docs/videomae_v2.md compares them with the paper.
"""

from ml_collections import ConfigDict

from configs import common

# By variant: layer decay of the fine-tuning scripts, and the clips that a device
# processes at once: those of V1's recipes, and for giant half of huge's, not tried.
_FINETUNING = {
    "small": (0.75, 12),
    "base": (0.75, 12),
    "large": (0.75, 4),
    "huge": (0.8, 16),
    "giant": (0.9, 8),
}


def pretrain(variant: str) -> ConfigDict:
    """Returns a pretraining run with dual masking on the UnlabeledHybrid data."""
    config = common.pretrain()
    config.model.variant = variant
    if variant != "base":
        config.model.update(decoder_width=512, decoder_depth=4, decoder_heads=8)
    config.mask.decoder_kind = "running_cell"
    config.data.num_samples = 4
    config.data.train = (
        "data/k710/train.txt",
        # It has 12 frames per second, less than the others.
        {"list": "data/ssv2/train.txt", "stride": 2},
        {"list": "data/ava/train.txt", "frame_name": "image_{:06}.jpg"},
        "data/webvid/train.txt",
        "data/own/train.txt",
    )
    config.optimizer.base_lr = 1e-3
    return config


def finetune(variant: str, data: str) -> ConfigDict:
    """Returns a fine-tuning run that starts from the hybrid pretraining.

    Args:
        variant: name of the model.
        data: folder of the lists, see `common.lists`.
    """
    config = common.finetune()
    config.model.variant = variant
    config.init.source = f"runs/v2/hybrid_vit{variant[0]}_pretrain"
    common.lists(config, data)
    config.optimizer.layer_decay, config.micro_batch_per_device = _FINETUNING[variant]
    if variant in ("huge", "giant"):
        config.model.remat = "blocks"
    if data == "ssv2":
        config.data.frame_sampling = "uniform"
        config.data.flip = 0.0
        config.evaluation.segments = 2
    return config


def distill(variant: str) -> ConfigDict:
    """Returns a distillation of ViT-g on Kinetics-710; both had labels of it before."""
    config = common.distill()
    config.model.variant = variant
    config.init.source = f"runs/v2/k710_vit{variant[0]}_finetune"
    config.init.head = True
    config.teacher.source = "runs/v2/k710_vitg_finetune"
    config.teacher.variant = "giant"
    common.lists(config, "k710")
    config.micro_batch_per_device = 8
    return config
