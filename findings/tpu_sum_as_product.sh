#!/bin/sh
# XLA's TPU compiler turns a product with one row of ones into a sum on the vector unit,
# and by its own estimate that takes over ten times as long as the same product with
# eight rows, of which seven are thrown away. The gradient of a bias, a sum over all
# tokens, is such a sum in every framework; beside the product for the kernel's gradient
# it costs more than that product.
#
# jax 0.10.2, jaxlib 0.10.2, libtpu 0.0.42.1 (https://docs.jax.dev, ahead-of-time
# compilation for a TPU topology; no TPU is needed). The cycles are the compiler's
# estimate (`estimated_cycles` in the text of the program), not a measurement.
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
# Nothing is executed, so another process may have the library loaded.
export ALLOW_MULTIPLE_LIBTPU_LOAD=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cat > "$folder/see.py" <<'PYTHON'
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies

jax.config.update("jax_platforms", "cpu")
topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)


def cycles(function, *arrays):
    text = jax.jit(function).lower(*arrays).compile().as_text()
    entry = text[text.index("ENTRY") :]
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', entry))


def product(rows):
    def total(x):
        ones = jnp.ones((rows, len(x)), x.dtype)
        return jnp.dot(ones, x, preferred_element_type=jnp.float32)[0]

    return total


def kernel_gradient(x, y):
    return jnp.dot(x.T, y, preferred_element_type=jnp.float32)


tokens = array(40960, 512)
plain = cycles(lambda x: x.astype(jnp.float32).sum(axis=0), tokens)
one, eight = cycles(product(1), tokens), cycles(product(8), tokens)
kernel = cycles(kernel_gradient, tokens, tokens)
print(f"jax {jax.__version__}, one v5e chip, 40960 tokens of width 512, cycles:")
print(f"sum {plain}, product with 1 row of ones {one}, with 8 rows {eight}")
print(f"the product for the kernel's gradient {kernel}")
assert one > 10 * eight, "one row is no longer slower than eight"
assert plain > kernel, "the sum no longer costs more than the product"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
