"""A trace of some steps, for XProf: what the devices did, and what the host."""

import logging
import pathlib
from collections.abc import Iterator

import jax

log = logging.getLogger(__name__)


def traced(steps: range, first: int, count: int, folder: pathlib.Path) -> Iterator[int]:
    """The steps, of which some are traced while they are done.

    Args:
        steps: all of the run.
        first: the first step to trace, counted from where the run starts or goes on; 0
            traces none.
        count: how many to trace.
        folder: what the trace is written to, for each host; docs/performance.md says
            how to read it.
    """
    tracing = False
    first += steps.start - 1 if first else 0
    try:
        for step in steps:
            if step == first and count > 0:
                _finish()
                options = jax.profiler.ProfileOptions()
                # Each call of Python's would take time, and most of the file.
                options.python_tracer_level = 0
                jax.profiler.start_trace(str(folder), profiler_options=options)
                tracing = True
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
            if tracing and step + 1 == first + count:
                tracing = False
                _stop(folder)
    finally:
        if tracing:
            _stop(folder)


def _stop(folder: pathlib.Path) -> None:
    _finish()
    jax.profiler.stop_trace()
    log.info("trace of the steps: %s", folder)


def _finish() -> None:
    """Waits for all steps under way: they belong on their side of the edge."""
    jax.block_until_ready(jax.live_arrays())
