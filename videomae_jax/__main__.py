"""Commands besides training: `python -m videomae_jax COMMAND ...`."""

import importlib
import logging
import sys
import warnings
from collections.abc import Sequence

from videomae_jax.cli import program
from videomae_jax.errors import nearest, printable

# Each is implemented by cli/NAME.py, with _ in place of -, which defines
# `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "predict": "Classify the actions in videos, as a whole or over time",
    "reconstruct": "Show how a masked autoencoder reconstructs hidden parts of videos",
    "features": "Extract features of videos, for temporal detection, retrieval, probes",
    "inspect": "Describe a checkpoint: model, sizes, classes",
    "convert": "Convert a model to transformers, the official scripts, or this library",
    "check-data": "Check all videos of a list, report problems, write a clean list",
    "prepare": "Encode the videos of a list into a TFDS data set that loads fast",
    "compile-for-tpu": "Check, without a TPU, whether training fits on a TPU slice",
    "evaluate-detections": "Compute the mAP of action detections, as AVA's evaluators",
    "lists": "Write the list files of a data set: Kinetics, UCF101, your own videos",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit code."""
    return program.run(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    parser = program.Parser(prog="python -m videomae_jax", description=__doc__)
    program.add_version(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    selected = parser
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if argv[:1] == [name]:
            # Only the selected one: the others may import packages it does not need.
            file = name.replace("-", "_")
            module = importlib.import_module(f"videomae_jax.cli.{file}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
            selected = command
    if not argv:
        parser.print_help()
        return 0
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS)
        parser.error(f"{argv[0]}: unknown command{hint}")
    takes_config = any(x.dest == "config" for x in selected._actions)
    selected.check_flags(argv, ("--config.",) if takes_config else ())
    args, unknown = parser.parse_known_args(argv)
    if unknown and not takes_config:
        selected.error(f"unrecognized arguments: {' '.join(unknown)}")
    if selected is parser:
        parser.error("a command is missing, such as predict")
    # Overrides such as --config.model.remat=blocks, for a command with --config.
    args.config_flags = unknown
    # Orbax warns about each run that is opened only for reading.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(
            f"warning: {printable(str(message))}", file=sys.stderr
        )
        args.run(args)
    return 0


if __name__ == "__main__":
    program.end(main())
