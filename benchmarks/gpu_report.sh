#!/usr/bin/env bash
# Measures this library on a GPU, in one command of less than nine minutes:
#
#     benchmarks/gpu_report.sh --out=runs/gpu_report
#     benchmarks/gpu_report.sh --rehearse      # the same parts, tiny, on the CPU
#
# Nothing is downloaded. The steps need jax, flax, optax, jaxtyping and OpenCV; PyTorch
# and transformers for the comparison; digits_pretrain the extra `train`; the tests
# pytest, hypothesis and safetensors. Packages that the machine lacks may be brought in folders
# of PYTHONPATH (pip install --target=FOLDER --no-deps ...). See gpu_report.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu_report.py "$@"
