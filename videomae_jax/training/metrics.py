"""The metrics of the latest steps, and what happens when one is not finite."""

import logging

import jax
import numpy as np

from videomae_jax.errors import NonFiniteLossError

log = logging.getLogger(__name__)

# How many steps the host may be ahead of the devices: enough that they never wait for
# the host, few enough that waiting batches do not fill their memory.
STEPS_AHEAD = 2


class MetricBuffer:
    """The metrics of the steps since the last report, still on the devices.

    Fetching them is the only place where the host waits for the devices' results.
    """

    def __init__(self, rows: list[dict], nonfinite: int, allowed: int):
        """Continues with the rows and the count of skipped steps of a checkpoint."""
        self.rows, self.nonfinite, self._allowed = rows, nonfinite, allowed
        self._pending: list[tuple[int, dict, list[str]]] = []

    def add(self, step: int, metrics: dict, ids: list[str]) -> None:
        """Takes the metrics of a step without waiting for them."""
        self._pending.append((step, metrics, ids))
        if len(self._pending) > STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - STEPS_AHEAD][1])

    def fetch(self, last_checkpoint: int | None) -> None:
        """Waits for all metrics, and looks for steps that were not finite.

        Raises:
            NonFiniteLossError: if there were more such steps than allowed.
        """
        pending, self._pending = self._pending, []
        for step, metrics, ids in pending:
            row = {
                name: float(value) for name, value in jax.device_get(metrics).items()
            }
            if np.isfinite([row["loss"], row["grad_norm"]]).all():
                self.rows.append(row)
                continue
            self.nonfinite += 1
            what = (
                f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}; "
                f"its clips: {', '.join(dict.fromkeys(ids))}"
            )
            if self.nonfinite > self._allowed:
                saved = "none" if last_checkpoint is None else f"step {last_checkpoint}"
                raise NonFiniteLossError(
                    f"{what}.\nThe parameters were not touched. Last good checkpoint: "
                    f"{saved}. Look at these videos, lower config.optimizer.base_lr, "
                    "set config.optimizer.clip_norm, or allow more such steps with "
                    f"config.max_nonfinite_steps (now {self._allowed})."
                )
            log.warning("%s; skipped", what)

    def mean(self) -> dict[str, float]:
        """The means since the last call, but the last learning rate."""
        rows, self.rows = self.rows, []
        if not rows:
            return {"loss": float("nan"), "grad_norm": float("nan"), "learning_rate": 0}
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return means | {"learning_rate": rows[-1]["learning_rate"]}
