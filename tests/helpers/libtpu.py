"""Programs that the TPU's compiler makes, in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, of the extra `tpu`, is not installed",
)


def output_of(module: str, *arguments: str) -> Any:
    """Runs a module that compiles and prints JSON; returns what it prints.

    In another process: XLA flags and cache of the tests are for the CPU.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XLA_", "JAX_"))
    }
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, *arguments],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert not process.returncode, process.stderr
    return json.loads(process.stdout)
