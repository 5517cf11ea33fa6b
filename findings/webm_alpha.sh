#!/bin/sh
# PyAV opens WebM files with transparency and hands out opaque frames, without a word.
#
# The alpha plane of VP8 and VP9 is a second picture beside each packet. FFmpeg's own
# decoders, which PyAV 18.1.0 takes by default, ignore it: the frames are yuv420p. The
# decoders of libvpx, in the same package, give yuva420p with the right values. Only the
# tag alpha_mode of the stream shows which files are concerned.
#
# Source: "AlphaMode" and "BlockAdditions" of the Matroska specification (RFC 9559); which
# decoder uses them was seen by running this.
#
# Prints what was seen; exit code 1 if it is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0
"$folder/venv/bin/python" - <<'END'
import io
import sys

import av

OPACITY = [20, 80, 140, 200]


def encoded(codec):
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as out:
        # The encoder refuses alpha together with its alternate reference frames.
        stream = out.add_stream(codec, rate=5, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuva420p"
        for opacity in OPACITY:
            frame = av.VideoFrame(48, 32, "yuva420p")
            for plane, value in zip(frame.planes, (120, 100, 150, opacity)):
                plane.update(bytes([value]) * plane.buffer_size)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def decoded(data, decoder=None):
    """Returns the name of the decoder, the tag, the formats, and the opacities."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        if decoder:
            context = av.CodecContext.create(decoder, "r")
        frames = [
            frame
            for packet in container.demux(stream)
            for frame in context.decode(packet if packet.size else None)
        ]
        return (
            context.codec.name,
            stream.metadata.get("alpha_mode"),
            sorted({x.format.name for x in frames}),
            [bytes(x.planes[3])[0] for x in frames if len(x.planes) > 3],
        )


print("av", av.__version__)
seen = True
for codec in ("libvpx", "libvpx-vp9"):
    data = encoded(codec)
    default, other = decoded(data), decoded(data, codec)
    for name, tag, formats, opacity in (default, other):
        print(f"decoder {name}: alpha_mode={tag}, {formats}, opacity {opacity}")
    seen &= default[1:] == ("1", ["yuv420p"], [])
    seen &= other[2:] == (["yuva420p"], OPACITY)
sys.exit(0 if seen else 1)
END
