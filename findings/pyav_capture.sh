#!/bin/sh
# PyAV's av.logging.Capture misses a message of FFmpeg that was the last one before.
#
# The way to learn what FFmpeg says about one call is `with av.logging.Capture() as logs`.
# With PyAV 18.1.0 the second of two equal calls gives an empty list: a message equal to
# the one before is dropped, across captures and threads, and counted. The count arrives
# later, in the capture of another call. `av.logging.set_skip_repeated(False)` ends that.
#
# Source: `set_skip_repeated` in the documentation of PyAV's av.logging; that it reaches
# across captures was seen by running this.
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
"$folder/venv/bin/python" - <<'END'
import sys

import av
import av.logging

av.logging.set_level(av.logging.WARNING)


def messages():
    """Converts a frame of full range, of which FFmpeg warns; returns its messages."""
    frame = av.VideoFrame(48, 32, "yuvj420p")
    with av.logging.Capture() as logs:
        frame.reformat(format="rgb24")
    return [text.strip() for _, _, text in logs]


print("av", av.__version__)
default = [len(messages()) for _ in range(3)]
print("messages of three equal conversions:", default)
av.logging.set_skip_repeated(False)
late = messages()
print("then, of one more:", late)
print("with set_skip_repeated(False):", [len(messages()) for _ in range(3)])
seen = default == [1, 0, 0] and "repeated 2 more times" in late[0]
sys.exit(0 if seen else 1)
END
