"""Trains a model: `python main.py --config=configs/digits_pretrain.py`.

Flags, logging and exit codes only: the run is `videomae_jax/training/loop.py`.
"""

import logging
import pathlib
import re
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from videomae_jax import config as config_lib
from videomae_jax.distributed import failures, hosts
from videomae_jax.errors import UserError
from videomae_jax.training import loop, preemption, reporting

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="The experiment, such as configs/digits_pretrain.py, or with :debug.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of checkpoints, metrics and pictures; runs/<config name> by default. "
    "A run that it holds is resumed.",
)
flags.mark_flag_as_required("config")


def main(argv):
    """Runs the experiment that the flags name; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unrecognized arguments: {' '.join(argv[1:])}")
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or f"runs/{default_name(name)}"
    if not flags.FLAGS["verbosity"].present:
        # Orbax logs every action. Errors are raised; our own lines have their logger.
        absl_logging.set_verbosity(absl_logging.ERROR)
    log = reporting.start_log(detailed=True)
    try:
        hosts.initialize()
        if jax.process_index() > 0:
            log.setLevel(logging.WARNING)
        with failures.ending_together(workdir):
            try:
                loop.run(_CONFIG.value, workdir)
            except preemption.Preempted as stop:
                # All processes get here together: a regular end.
                log.info("%s", stop)
                return preemption.EXIT_CODE
    except UserError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def default_name(config_file: str) -> str:
    """Returns the run's name: digits_pretrain, or digits_pretrain_debug."""
    path, _, option = config_file.partition(":")
    return "_".join(filter(None, (pathlib.Path(path).stem, option)))


def parse_flags(argv):
    """Parses the command line; an unknown config field is an error with a remedy."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        # Both --config=FILE and --config FILE are flags.
        file = re.search(r"(?:^| )--?config[= ]([^ ]+)", " ".join(argv))[1]
        config = config_lib.load(file.partition(":")[0])
        message = config_lib.unknown_field(argv, config)
        if message:
            sys.exit(message)
        raise


if __name__ == "__main__":
    jax.config.config_with_absl()
    app.run(main, flags_parser=parse_flags)
