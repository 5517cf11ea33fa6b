"""Fine-tunes VideoMAE ViT-B (pretrained for 2400 epochs) on Something-Something V2.

    python main.py --config=configs/ssv2_vitb_finetune.py \
        --config.init.source=runs/ssv2_vitb_pretrain

Recipe: the official script's. Batch 384 with two augmentations of each video, peak
learning rate 5e-4 * 384 / 256, 30 epochs, layer decay 0.75, one frame from each of 16
segments of the video, no flips (labels distinguish left and right), test on 2 x 3
views. docs/data.md explains how the lists are made.

Expected: 70.8 % top-1, 92.4 % top-5, as reported by the authors. This library has not
run the whole recipe.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "runs/ssv2_vitb_pretrain"
    common.lists(config, "ssv2")
    config.data.frame_sampling = "uniform"
    config.data.flip = 0.0
    config.model.variant = "base"
    config.batch_size = 384
    config.micro_batch_per_device = 12
    config.epochs = 30
    config.optimizer.base_lr = 5e-4
    config.evaluation.segments = 2
    return common.finish(config, arg)
