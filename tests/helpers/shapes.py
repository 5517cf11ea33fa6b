"""Checks the types and shapes of signatures while the tests run."""

import beartype
import jaxtyping

CHECKED_MODULES = [
    "videomae_jax.models",
    "videomae_jax.training.losses",
    "videomae_jax.training.tasks.distill",
]

# Like a type checker, takes an int where a float is declared.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def typechecked(function):
    """Checks every call of a function; leaves the fields of modules to Flax."""
    return function if function.__name__ == "__init__" else _check(function)


def install() -> None:
    """Checks every call of CHECKED_MODULES; call before they are imported."""
    jaxtyping.install_import_hook(CHECKED_MODULES, "tests.helpers.shapes.typechecked")
