"""Commands beside training: `python -m videomae_jax COMMAND ...`."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from videomae_jax.errors import UserError

# What each does. cli/NAME.py, where _ stands for a dash, has
# `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "predict": "tell which actions videos show, as a whole or through time",
    "reconstruct": "show what a masked autoencoder makes of hidden parts of a video",
    "features": "write features of videos for temporal detection, retrieval, probes...",
    "inspect": "tell what a checkpoint is: model, sizes, classes",
    "convert": "write a model for transformers, the official scripts, or ourselves",
    "check-data": "read all videos of a list, tell what is wrong, write a clean list",
    "prepare": "encode the videos of a list anew, for fast access, into TFDS",
    "compile-for-tpu": "tell, without a TPU, whether training fits a slice of them",
    "lists": "make the list files of a data set: Kinetics, UCF101, your own videos...",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m videomae_jax", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if argv[:1] == [name]:
            # Only the one that runs: others may bring in much that it does not need.
            file = name.replace("-", "_")
            module = importlib.import_module(f"videomae_jax.cli.{file}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown and not hasattr(args, "config"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # Such as --config.model.remat=blocks, of a command that takes --config.
    args.config_flags = unknown
    if not argv:
        parser.print_help()
        return 0
    # Orbax tells on opening a run only to read it that it will not write.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        args.run(args)
    except (UserError, OSError) as error:
        # What a user can mend is told without a trace through our code.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
