"""Trains a linear classifier on the frozen, pretrained encoder of the digits.

    python main.py --config=configs/digits_linear_probe.py

Recipe: MAE's linear probe (MAE, section 4.1): batch norm without scale and bias, then
one linear layer; no weight decay, no augmentation. It takes a quarter of a minute on
two CPU cores, after configs/digits_pretrain.py.

Expected: about 97 % top-1 (the README's table).
"""

from configs import digits_finetune


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = digits_finetune.get_config(arg)
    config.freeze = "^encoder/"
    config.model.head_norm = "batch"
    config.model.drop_path = 0.0
    config.loss.smoothing = 0.0
    config.optimizer.base_lr = 0.08
    config.optimizer.weight_decay = 0.0
    return config
