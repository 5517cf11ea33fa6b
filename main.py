"""Trains a model: `python main.py --config=configs/digits_pretrain.py`.

Kept short so that everything it does can be imported, tested and used in Colab:
see `videomae_jax/training/loop.py`.
"""

import difflib
import logging
import pathlib
import re
import runpy
import sys

import flax
import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from videomae_jax.distributed import failures, hosts
from videomae_jax.training import loop, preemption, reporting

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
    """Runs the experiment that the flags name; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or f"runs/{default_name(name)}"
    if not flags.FLAGS["verbosity"].present:
        # Orbax tells each of its thoughts, and warns of what it was asked to do; what
        # goes wrong it raises. Ours have their own logger.
        absl_logging.set_verbosity(absl_logging.ERROR)
    log = reporting.start_log(detailed=True)
    try:
        hosts.initialize()
        if jax.process_index() > 0:
            log.setLevel(logging.WARNING)
        with failures.ending_together(workdir, loop.EXPLAINED_ERRORS):
            try:
                loop.run(_CONFIG.value, workdir)
            except preemption.Preempted as stop:
                # All processes come here: an end as any other.
                log.info("%s", stop)
                return preemption.EXIT_CODE
    except loop.EXPLAINED_ERRORS as error:
        # What a user can mend is told without a trace through our code.
        log.error("%s", error)
        return 1
    return 0


def default_name(config_file: str) -> str:
    """The run's name: digits_pretrain, or digits_pretrain_debug with `:debug`."""
    path, _, option = config_file.partition(":")
    return "_".join(filter(None, (pathlib.Path(path).stem, option)))


def parse_flags(argv):
    """Parses the command line; names the nearest field where one does not exist."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        # Both --config=FILE and --config FILE are flags.
        file = re.search(r"(?:^| )--?config[= ]([^ ]+)", " ".join(argv))[1]
        config = runpy.run_path(file.partition(":")[0])["get_config"]().to_dict()
        fields = list(flax.traverse_util.flatten_dict(config, sep="."))
        for arg in argv:
            name = arg.partition("=")[0].removeprefix("--config.")
            if arg.startswith("--config.") and name not in fields:
                nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0)[0]
                sys.exit(
                    f"there is no --config.{name}; the nearest is --config.{nearest}. "
                    "configs/common.py explains every field."
                )
        raise


if __name__ == "__main__":
    jax.config.config_with_absl()
    app.run(main, flags_parser=parse_flags)
