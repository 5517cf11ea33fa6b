#!/bin/sh
# PyAV and decord give other RGB pixels for the same interlaced 4:2:0 frame.
#
# PyAV 18.1.0 (FFmpeg 8) converts a frame that is flagged interlaced field by field;
# decord 0.6.0 (FFmpeg 4), which read the videos of the published VideoMAE weights,
# converts it as a whole. The decoded planes are the same: a copy of them without the
# flag gives decord's pixels with PyAV too.
#
# Source: the flag is AV_FRAME_FLAG_INTERLACED of FFmpeg's libavutil/frame.h; how each
# version converts was seen by running this, not read from its code.
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 decord==0.6.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import fractions
import sys

import av
import decord
import numpy as np

rng = np.random.default_rng(0)
image = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
with av.open("a.mp4", "w") as out:
    options = {"x264-params": "interlaced=1:tff=1"}
    stream = out.add_stream("libx264", rate=25, options=options)
    stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
    for t in range(10):
        picture = np.roll(image, (t, 2 * t), (0, 1))
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        frame.pts, frame.time_base = t, fractions.Fraction(1, 25)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))

with av.open("a.mp4") as container:
    frames = list(container.decode(video=0))
copies = [av.VideoFrame.from_ndarray(x.to_ndarray(), format="yuv420p") for x in frames]
for copy, frame in zip(copies, frames):
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
flagged, plain = (
    np.stack([x.to_ndarray(format="rgb24") for x in some]).astype(int)
    for some in (frames, copies)
)
reader = decord.VideoReader("a.mp4", num_threads=1)
expected = reader.get_batch(range(len(reader))).asnumpy().astype(int)
print("av", av.__version__, "decord", decord.__version__)
print("flagged interlaced:", all(x.interlaced_frame for x in frames))
print("mean difference from decord:", abs(flagged - expected).mean().round(2))
print("of copies without the flag:", abs(plain - expected).mean().round(2))
same = (flagged != expected).any() and (plain == expected).all()
sys.exit(0 if same else 1)
END
