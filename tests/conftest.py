"""Eight fake CPU devices for every test; must run before the first `import jax`."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
