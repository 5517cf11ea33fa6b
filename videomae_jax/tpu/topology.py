"""TPU slices by name, to compile for on a machine that has none."""

import importlib.metadata
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from videomae_jax.errors import TopologyError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)

# By generation: what a name such as v5p-128 counts of each chip (chips, or tensor
# cores), and the grids of chips that Cloud TPU names so.
GENERATIONS = {
    "v4": (2, _CUBES),
    "v5e": (1, _FLAT),
    "v5p": (2, _CUBES),
    "v6e": (1, _FLAT),
    "tpu7x": (2, _CUBES),
}

_ENVIRONMENT = {
    # No look for chips, which would take minutes elsewhere than in the Cloud.
    "TPU_SKIP_MDS_QUERY": "1",
    # Several compilers at a time would else wait for one lock.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Else it warns at length that it finds no chips; which ones, makes no difference.
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(name: str, slices: int = 1) -> list:
    """The devices of TPU slices: programs can be compiled for them, but not run.

    Args:
        name: v5e-8 or v5litepod-8, v5p-128 ..., as Cloud TPU says, or the generation
            and the grid of chips, v5e:2x4, v5p:4x4x4 ...
        slices: so many of them, joined by the data centre's network.

    Raises:
        TopologyError: if there is no such slice, or libtpu is not installed.
    """
    generation, grid = _parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "compiling for TPU takes libtpu, which runs without one:\n"
            f"    pip install '{_requirement()}'"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    sizes = [int(size) for size in grid.split("x")]
    # Hosts of 2 x 2 chips, but for a slice of one.
    options = {"chips_per_host_bounds": [*(min(size, 2) for size in sizes[:2]), 1]}
    if generation == "v4":
        # Two cores make one device, as they do in the Cloud.
        options["chip_config_name"] = "megacore"
    if slices > 1:
        options["num_slices"] = slices
    try:
        return list(
            topologies.get_topology_desc(
                f"{generation}:{grid}", "tpu", **options
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(f"no slice {name!r}: {error}") from error


def _parse(name: str) -> tuple[str, str]:
    """Generation and grid of chips."""
    generation, separator, size = re.fullmatch(r"(\w*)([:-]?)(.*)", name).groups()
    generation = generation.replace("v5litepod", "v5e")
    if generation in GENERATIONS:
        counted, grids = GENERATIONS[generation]
        named = {str(counted * _chips(grid)): grid for grid in grids}
        if separator == "-" and size in named:
            return generation, named[size]
        if separator == ":" and re.fullmatch(re.sub(r"\d+", r"\\d+", grids[0]), size):
            return generation, size
    raise TopologyError(
        f"no slice {name!r}; there are these, and others by their grid of chips, such "
        f"as v5e:2x4 or v5p:2x2x1:\n{_table()}"
    )


def _table() -> str:
    return "\n".join(
        "    " + ", ".join(f"{generation}-{counted * _chips(grid)}" for grid in grids)
        for generation, (counted, grids) in GENERATIONS.items()
    )


def _chips(grid: str) -> int:
    return math.prod(map(int, grid.split("x")))


def _requirement() -> str:
    """The libtpu that the installed JAX asks for."""
    requirements = importlib.metadata.requires("jax") or []
    return next(r for r in requirements if r.startswith("libtpu")).partition(";")[0]
