"""Traces some steps for XProf: the work of the devices and of the host."""

import logging
import pathlib
from collections.abc import Generator

import jax

log = logging.getLogger(__name__)


def traced(
    steps: range, *, first: int, count: int, folder: pathlib.Path
) -> Generator[int, None, None]:
    """Yields the steps, and traces some of them while the caller executes them.

    Args:
        steps: all steps of the run.
        first: the first step to trace, counted from 1 at the step where the run starts
            or resumes; 0 traces none.
        count: steps to trace.
        folder: receives the trace, one file per host; docs/performance.md explains how
            to read it.
    """
    tracing = False
    first += steps.start - 1 if first else 0
    try:
        for step in steps:
            if step == first and count > 0:
                _wait_for_devices()
                options = jax.profiler.ProfileOptions()
                # Tracing every Python call would take time, and most of the file.
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
    _wait_for_devices()
    jax.profiler.stop_trace()
    log.info("trace of the steps: %s", folder)


def _wait_for_devices() -> None:
    """Waits for all queued steps, so that none is traced in part."""
    jax.block_until_ready(jax.live_arrays())
