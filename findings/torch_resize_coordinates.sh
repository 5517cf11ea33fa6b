#!/bin/sh
# PyTorch's bilinear `interpolate` of float32 frames is off by over a thousand times the
# precision of float32 where videos are shrunk: it computes the place of each pixel in
# the source in float32, whose spacing near column 1900 is 1e-4 of a pixel. The larger
# the frame, the larger the error. Features and pixels of two correct implementations
# therefore agree to 1e-4 only, unless both are PyTorch, and parity tests on small frames
# do not show it.
#
# torch 2.13.0, NumPy 2.4.6 (https://docs.pytorch.org, torch.nn.functional.interpolate).
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/see.py" <<'PYTHON'
import numpy as np
import torch
from torch.nn.functional import interpolate


def error(height, width):
    """Largest difference of float32 from float64, for values in [0, 1]."""
    frame = np.random.default_rng(3).random((1, 3, height, width), np.float32)
    frame = torch.from_numpy(frame)
    options = {"size": (224, 224), "mode": "bilinear", "align_corners": False}
    single, double = (interpolate(x, **options) for x in (frame, frame.double()))
    return float((single - double).abs().max())


print("torch", torch.__version__, "NumPy", np.__version__)
errors = {size: error(*size) for size in ((112, 112), (360, 640), (1080, 1920))}
for (height, width), largest in errors.items():
    print(f"{width}x{height} to 224x224: off by {largest:.1e} of the range")
assert errors[112, 112] < 1e-6
assert errors[1080, 1920] > 5e-5, "large frames are now resized precisely"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
