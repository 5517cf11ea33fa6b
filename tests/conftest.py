"""Eight fake CPU devices for every test; must run before the first `import jax`."""

import os
import sys
import tempfile
from importlib import metadata

import pytest

# For benchmarks/gpu_report.sh: "cuda" runs tests on a GPU, of which there is only one.
PLATFORM = os.environ.get("VIDEOMAE_JAX_TEST_PLATFORM", "cpu")

# The workers of pytest-xdist inherit the environment of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ and PLATFORM != "cpu":
    os.environ["JAX_PLATFORMS"] = f"{PLATFORM},cpu"
    # Otherwise products of float32 have the ten bits of TF32.
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
elif "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = "8"
    # Compilation takes most of the time; the compiled programs run for milliseconds.
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            # Newer releases do not have the option, and compile as fast without it.
            "--xla_cpu_use_fusion_emitters=false"
            if metadata.version("jaxlib").startswith("0.10.")
            else "",
        ]
    )
    # Shared by all workers and by the processes that tests start: many run the same
    # small programs. CI sets it, for the fast and the slow tests together.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _cache = tempfile.TemporaryDirectory(prefix="videomae_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

if PLATFORM == "cpu":
    # They do not depend on the device, and need a package more.
    from tests.helpers import shapes

    shapes.install()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the compiled programs of a file, which would add up to gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
