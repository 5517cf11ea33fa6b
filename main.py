"""Trains a model: `python main.py --config=configs/digits_pretrain.py`.

Kept short so that everything it does can be imported, tested and used in Colab:
see `videomae_jax/training/loop.py`.
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from videomae_jax.data.bad_videos import TooManyBadVideosError
from videomae_jax.data.pipeline import NoReadableVideoError
from videomae_jax.data.records import RecordError
from videomae_jax.training import loop
from videomae_jax.training.checkpointing import CheckpointError
from videomae_jax.training.loop import NonFiniteLossError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The experiment, such as configs/digits_pretrain.py, and :debug.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of checkpoints, metrics and pictures; runs/<config name> by default. "
    "A run that it holds is continued.",
)
flags.mark_flag_as_required("config")


def main(argv):
    """Runs the experiment that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or f"runs/{default_name(name)}"
    logging.info(
        "process %d of %d, devices: %s",
        jax.process_index(),
        jax.process_count(),
        jax.local_devices(),
    )
    try:
        loop.train_and_evaluate(_CONFIG.value, workdir)
    except (
        CheckpointError,
        NoReadableVideoError,
        NonFiniteLossError,
        RecordError,
        TooManyBadVideosError,
    ) as error:
        # What a user can mend is told without a trace through our code.
        logging.error("%s", error)
        sys.exit(1)


def default_name(config_file: str) -> str:
    """The run's name: digits_pretrain, or digits_pretrain_debug with `:debug`."""
    path, _, option = config_file.partition(":")
    return "_".join(filter(None, (pathlib.Path(path).stem, option)))


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    jax.config.config_with_absl()
    app.run(main)
