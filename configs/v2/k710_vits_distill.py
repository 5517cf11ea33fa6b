"""Distills VideoMAE V2 ViT-g into ViT-S on Kinetics-710.

    python main.py --config=configs/v2/k710_vits_distill.py

Recipe: that of k710_vitb_distill.py; its docstring names the sources. The paper
distills ViT-B; the authors published ViT-S, too, without its settings.

The student starts from ViT-S after post-pretraining (k710_vits_finetune.py).

Expected: 77.6 % top-1 on Kinetics-710, 83.7 % on Kinetics-400 with these of its
classes, as reported by the authors. Not run here.
"""

from configs import common, v2


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    return common.finish(v2.distill("small"), arg)
