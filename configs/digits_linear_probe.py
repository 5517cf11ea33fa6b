"""A linear classifier on the frozen pretrained digits encoder.

    python main.py --config=configs/digits_linear_probe.py

MAE's probe (section 4.1 there): batch norm without scale and bias, then one linear
layer, no weight decay and no augmentation. A quarter of a minute on two CPU cores,
after configs/digits_pretrain.py.
"""

from configs import digits_finetune


def get_config(arg: str = ""):
    """Returns the config; `:debug` after the file name shrinks it."""
    config = digits_finetune.get_config(arg)
    config.freeze = "^encoder/"
    config.model.head_norm = "batch"
    config.model.drop_path = 0.0
    config.loss.smoothing = 0.0
    config.optimizer.base_lr = 0.08
    config.optimizer.weight_decay = 0.0
    return config
