"""Random parameters from NumPy, and jitted models: few programs to be compiled.

`model.init` compiles a random number generator for each parameter: seconds a model.
"""

import functools
from typing import Any

import jax
import numpy as np

from videomae_jax.interop import pretrained


def random_variables(model, seed: int = 0) -> dict[str, Any]:
    """Returns variables of which none is zero, so that every part has an effect.

    Matrices keep the size of what they multiply, scales and variances are around 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path, x):
        values = rng.normal(size=x.shape)
        if path[-1].key in ("scale", "var"):
            values = 1 + 0.2 * np.abs(values)
        elif path[-1].key == "kernel":
            values /= np.sqrt(x.shape[-2])
        else:
            values *= 0.2
        return values.astype(x.dtype)

    # They do not depend on the size of clips.
    inputs = pretrained._inputs(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, variables, *inputs, method: str | None = None):
    """Returns `model.apply(variables, *inputs, method=method)`, compiled as a whole."""
    return model.apply(variables, *inputs, method=method)
