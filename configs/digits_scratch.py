"""What configs/digits_finetune.py reaches without pretraining.

python main.py --config=configs/digits_scratch.py
"""

from configs import digits_finetune


def get_config(arg: str = ""):
    """Returns the config; `:debug` after the file name shrinks it."""
    config = digits_finetune.get_config(arg)
    config.init.source = ""
    return config
