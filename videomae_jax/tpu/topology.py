"""TPU slices by name, as targets of the compiler on a machine without TPUs."""

import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from videomae_jax.errors import TopologyError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)

# By generation: what each chip counts for in a name such as v5p-128 (1, or 2 for its
# two tensor cores), and the grids of chips that have such a name in Cloud TPU.
GENERATIONS = {
    "v4": (2, _CUBES),
    "v5e": (1, _FLAT),
    "v5p": (2, _CUBES),
    "v6e": (1, _FLAT),
    "tpu7x": (2, _CUBES),
}

_ENVIRONMENT = {
    # Do not search for chips: outside Google Cloud that takes minutes.
    "TPU_SKIP_MDS_QUERY": "1",
    # Several compilers at a time would otherwise wait for one lock.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Avoids long warnings about missing chips; the values make no difference.
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Returns the devices of TPU slices; programs can be compiled for them, not run.

    Args:
        name: a name of Cloud TPU, such as v5e-8, v5litepod-8 or v5p-128, or generation
            and grid of chips, such as v5e:2x4 or v5p:4x4x4.
        slices: number of such slices, joined by the data centre network.

    Raises:
        TopologyError: the slice is unknown, or libtpu is not installed.
    """
    generation, grid = _parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "compiling for TPUs needs libtpu, which does not need a TPU:\n"
            f"    pip install '{_requirement()}'"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    sizes = [int(size) for size in grid.split("x")]
    # Hosts have 2 x 2 chips, except in a slice of one chip.
    options: dict[str, Any] = {
        "chips_per_host_bounds": [*(min(size, 2) for size in sizes[:2]), 1]
    }
    if generation == "v4":
        # The two cores of a chip are one device, as in Google Cloud.
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
        raise TopologyError(f"unknown TPU slice {name!r}: {error}") from error


def _parse(name: str) -> tuple[str, str]:
    """Returns generation and grid of chips."""
    match = re.fullmatch(r"(\w*)([:-]?)(.*)", name)
    generation, separator, size = match.groups() if match else ("", "", "")
    generation = generation.replace("v5litepod", "v5e")
    if generation in GENERATIONS:
        count_per_chip, grids = GENERATIONS[generation]
        grid_of = {str(count_per_chip * _chips(grid)): grid for grid in grids}
        if separator == "-" and size in grid_of:
            return generation, grid_of[size]
        if separator == ":" and re.fullmatch(re.sub(r"\d+", r"\\d+", grids[0]), size):
            return generation, size
    raise TopologyError(
        f"unknown TPU slice {name!r}. Known are these, and others by their grid of "
        f"chips, such as v5e:2x4 or v5p:2x2x1:\n{_table()}"
    )


def _table() -> str:
    return "\n".join(
        "    " + ", ".join(f"{generation}-{count * _chips(grid)}" for grid in grids)
        for generation, (count, grids) in GENERATIONS.items()
    )


def _chips(grid: str) -> int:
    return math.prod(map(int, grid.split("x")))


def _requirement() -> str:
    """Returns the requirement of the installed JAX, such as libtpu==0.0.50."""
    requirements = importlib.metadata.requires("jax") or []
    return next(r for r in requirements if r.startswith("libtpu")).partition(";")[0]
