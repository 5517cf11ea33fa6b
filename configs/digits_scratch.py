"""Trains a classifier of the digits without pretraining, as a baseline.

    python main.py --config=configs/digits_scratch.py

Recipe: that of configs/digits_finetune.py, from random initialisation.

Expected: about 37 % top-1 after 120 steps, varying much with the seed (the README's
table), where fine-tuning reaches 100 %.
"""

from configs import digits_finetune


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = digits_finetune.get_config(arg)
    config.init.source = ""
    return config
