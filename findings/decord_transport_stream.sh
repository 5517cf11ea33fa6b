#!/bin/sh
# decord's frame 0 of an MPEG transport stream is that of the second keyframe.
#
# decord 0.6.0 lists the packets of a file (IndexKeyframes), then seeks back to the time
# of the first frame (SeekStart). In a transport stream it then continues one group of
# pictures too late: all frames are shifted, and the last is repeated. len() is right,
# and the same pictures in an mp4 are read right. A plain decode of the stream, by PyAV
# 18.1.0, returns every frame.
#
# Source: https://github.com/dmlc/decord, src/video/video_reader.cc
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

COUNT, GROUP = 96, 24  # frames, and frames from a keyframe to the next


def picture(number):
    """Draws a number as eight black or white columns."""
    bits = np.unpackbits(np.uint8(number)).repeat(16) * 255
    return np.broadcast_to(bits[None, :, None], (96, 128, 3)).copy()


def number_of(image):
    """Reads the number of a picture."""
    return int(np.packbits(image.reshape(96, 8, 16, 3).mean((0, 2, 3)) > 128)[0])


def encode(path):
    with av.open(path, "w") as out:
        options = {"x264-params": f"keyint={GROUP}:scenecut=0:bframes=3"}
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(number))
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, fractions.Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def by_decord(path):
    reader = decord.VideoReader(path, num_threads=1)
    return [number_of(image) for image in reader.get_batch(range(len(reader))).asnumpy()]


decord.logging.set_level(decord.logging.QUIET)
for path in ("a.mp4", "a.ts"):
    encode(path)
with av.open("a.ts") as container:
    plain = [number_of(x.to_ndarray(format="rgb24")) for x in container.decode(video=0)]
mp4, ts = by_decord("a.mp4"), by_decord("a.ts")
print("av", av.__version__, "decord", decord.__version__)
print("PyAV, a.ts:   ", plain[:4], "...", plain[-4:])
print("decord, a.mp4:", mp4[:4], "...", mp4[-4:])
print("decord, a.ts: ", ts[:4], "...", ts[-4:])
right = list(range(COUNT))
same = plain == right and mp4 == right and len(ts) == COUNT and ts[0] == GROUP
sys.exit(0 if same else 1)
END
