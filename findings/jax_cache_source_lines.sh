#!/bin/sh
# A program that JAX takes from its persistent compilation cache names the files, lines
# and scopes of whatever program was compiled first, also if that was another file: they
# are part of the executable, but not of its key in the cache. So the text of a compiled
# program, and a profile, may attribute all the time to a module that does not run, or to
# a scope that was renamed since. The field that includes them in the key is off by
# default (`jax_compilation_cache_include_metadata_in_key`).
#
# jax 0.10.2, jaxlib 0.10.2, on the CPU (https://docs.jax.dev, persistent compilation
# cache).
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
cat > see.py <<'PYTHON'
import importlib
import re
import sys

import jax
import jax.numpy as jnp

name, cache, metadata_in_key = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update(
    "jax_compilation_cache_include_metadata_in_key", metadata_in_key == "yes"
)
block = importlib.import_module(name).block
text = jax.jit(block).lower(jnp.ones((64, 64))).compile().as_text()
files = re.findall(r"(\w+\.py)\"", text)
scopes = re.findall(r'op_name="jit\(block\)/(\w+)/', text)
print(" ".join(sorted({*files, *scopes} - {"see.py"})))
PYTHON
cat > encoder.py <<'PYTHON'
import jax
import jax.numpy as jnp


def block(x):
    with jax.named_scope("attention"):
        return jnp.sin(x) @ x
PYTHON
sed 's/attention/mixer/' encoder.py > predictor.py
for in_key in no yes; do
  for module in encoder predictor; do
    seen=$(venv/bin/python see.py $module "$folder/cache_$in_key" $in_key)
    echo "metadata in the key: $in_key; $module.py is said to be: $seen"
    echo "$in_key $module $seen" >> all.txt
  done
done
grep -qx "no encoder attention encoder.py" all.txt
grep -qx "no predictor attention encoder.py" all.txt
grep -qx "yes predictor mixer predictor.py" all.txt
venv/bin/python -c 'import platform, jax; print("Python", platform.python_version(), "jax", jax.__version__)'
