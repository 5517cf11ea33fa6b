"""Trains a model, or tests it: `python main.py --config=configs/digits_pretrain.py`.

Arguments, logging and exit codes only: the run is `videomae_jax/training/loop.py`.
"""

import ast
import logging
import pathlib
import sys

from videomae_jax import config as config_lib
from videomae_jax.cli import program
from videomae_jax.config import Config
from videomae_jax.errors import ConfigError, UserError

# Worker processes import this file, and mistakes in the arguments are reported at once:
# what takes seconds to import is imported where it is used.

JAX_FLAGS = ("--jax_", "--nojax_")
FIELDS = """
fields of the recipe:
  --config.FIELD=VALUE sets any of them, for example --config.batch_size=64 or
  --config.data.train=videos.txt; configs/common.py explains them all.
  --config=FILE:debug runs a recipe with a small model for a few steps.
  Flags of JAX, such as --jax_debug_nans=True, work too.

exit codes:
  0 done, 1 failed, or another process writes to the work directory, 2 wrong arguments,
  or the run is complete with other settings, 130 interrupted, 143 saved its last step
  after SIGTERM or Ctrl-C: run it again

recipes:
"""


def main() -> int:
    """Runs the experiment that the arguments name; returns the exit code."""
    parser = make_parser()
    parser.check_flags(sys.argv[1:], ("--config.", *JAX_FLAGS))
    args, unknown = parser.parse_known_args()
    overrides = [x for x in unknown if not x.startswith(JAX_FLAGS)]
    if not args.config:
        parser.error("--config is missing, such as configs/digits_pretrain.py")
    config = config_lib.load(args.config, overrides)
    workdir = args.workdir or f"runs/{default_name(args.config)}"
    return train(config, workdir, recipe=args.config, verbose=args.verbose)


def make_parser() -> program.Parser:
    """Returns the parser of the command line, whose help lists the recipes."""
    parser = program.Parser(
        prog="main.py",
        usage="main.py --config=FILE [--workdir=FOLDER] [--config.FIELD=VALUE ...]",
        description="Trains a model, or tests it.",
        epilog=FIELDS + "\n".join(recipes()),
    )
    program.add_version(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the recipe, such as configs/digits_pretrain.py",
    )
    parser.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="folder of checkpoints, metrics and pictures (default: runs/RECIPE); a "
        "run that it holds is resumed",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also log every parameter, and what is done with checkpoints",
    )
    return parser


def recipes() -> list[str]:
    """Returns a line for each recipe: its file and the first line of its docstring."""
    root = pathlib.Path(__file__).parent
    lines = []
    for file in sorted(root.glob("configs/**/*.py")):
        text = file.read_text()
        if "def get_config" in text:
            try:
                summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            except SyntaxError as error:
                summary = f"(line {error.lineno}: {error.msg})"
            lines.append(f"  {file.relative_to(root)!s:40} {summary}")
    return lines


def train(config: Config, workdir: str, *, recipe: str, verbose: bool) -> int:
    """Joins the cluster, if there is one, and runs the experiment."""
    import jax
    from absl import flags
    from absl import logging as absl_logging

    from videomae_jax.distributed import failures, hosts
    from videomae_jax.training import loop, preemption, reporting

    try:
        jax.config.parse_flags_with_absl()
    except flags.Error as error:
        raise ConfigError(f"{error}; write flags of JAX as --jax_NAME=VALUE") from None
    for name in (x.partition("=")[0] for x in sys.argv if x.startswith(JAX_FLAGS)):
        if name.removeprefix("--").removeprefix("no") not in flags.FLAGS:
            raise ConfigError(f"{name}: unknown flag of JAX")
    if not verbose:
        # Orbax logs every action. Errors are raised; our own lines have their logger.
        absl_logging.set_verbosity(absl_logging.ERROR)
    log = reporting.start_log(logging.DEBUG if verbose else logging.INFO)
    log.info("workdir=%s", workdir)
    try:
        hosts.initialize()
        if jax.process_index() > 0:
            log.setLevel(logging.WARNING)
        with failures.ending_together(workdir):
            try:
                loop.run(config, workdir)
            except preemption.Preempted as stop:
                # All processes get here together: a regular end.
                log.info("%s", stop)
                return preemption.EXIT_CODE
            except UserError as error:
                # Here: with several processes, `ending_together` reports it.
                error.args = (config_lib.name_defaults(str(error), config, recipe),)
                raise
    except UserError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def default_name(config_file: str) -> str:
    """Returns the run's name: digits_pretrain, or digits_pretrain_debug.

    Recipes in a folder of configs have runs in a folder: v2/hybrid_vitb_pretrain.
    """
    path, _, option = config_file.partition(":")
    file = pathlib.Path(path).resolve().with_suffix("")
    folder = pathlib.Path(__file__).resolve().parent / "configs"
    name = file.relative_to(folder) if file.is_relative_to(folder) else file.name
    return "_".join(filter(None, (str(name), option)))


if __name__ == "__main__":
    program.end(program.run(main))
