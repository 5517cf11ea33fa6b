"""Speeds of TPUs, to turn a compiler's cycles and bytes into seconds."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Speeds of a device: a chip, or of TPU7x one of the two cores of a chip.

    Attributes:
        clock: cycles per second, as the compiler counts them.
        units: matrix units. With clock, number and width of the compiler's units, the
            peak is the published one.
        width: rows and columns of a matrix unit.
        memory: published bandwidth of the memory, bytes per second.
        link: published bandwidth of all links to other chips together, in one
            direction, bytes per second.
    """

    clock: float
    units: int
    width: int
    memory: float
    link: float

    @property
    def peak(self) -> float:
        """The operations of matrix products per second, in bfloat16."""
        return 2 * self.units * self.width**2 * self.clock


# By `jax.Device.device_kind`. The bandwidths are those of November 2026 in
# https://docs.cloud.google.com/tpu/docs/v5e and its neighbours (v4, v5p, v6e, tpu7x),
# which give both directions of the links together. The links of v4 are those of table 4
# of Jouppi et al. 2023, arXiv:2304.01433.
CHIPS = {
    "TPU v4": Chip(1.05e9, 8, 128, 1200e9, 300e9),
    "TPU v5 lite": Chip(1.5e9, 4, 128, 819e9, 200e9),
    "TPU v5": Chip(1.75e9, 8, 128, 2765e9, 600e9),
    "TPU v6 lite": Chip(1.75e9, 4, 256, 1638e9, 400e9),
    "TPU7x": Chip(2.2e9, 4, 256, 3690e9, 300e9),
}
