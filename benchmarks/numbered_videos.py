"""Makes files of which every frame shows its number, for readers_agree.py."""

import io
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

COUNT, RATE = 120, 25  # frames of a file, and in a second
HEIGHT, WIDTH, BLOCK = 96, 128, 16


# --- Pictures that say which frame they are ---


def picture(number: int, height: int = HEIGHT) -> np.ndarray:
    """Draws frame `number`, uint8 [height, WIDTH, 3].

    A texture moves; below it are 8 blocks of bits, and below these the opposite bits.
    """
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    image = np.roll(texture, (number, 2 * number), axis=(0, 1))
    bits = np.unpackbits(np.uint8(number)).repeat(BLOCK)[None, :, None] * 255
    image[-2 * BLOCK : -BLOCK], image[-BLOCK:] = bits, 255 - bits
    return image[HEIGHT - height :]


def number_of(image: np.ndarray) -> int | None:
    """Reads the number of a picture; None if it shows none, or a mixture of two."""
    if image.shape[1:] != (WIDTH, 3) or not HEIGHT - 2 < image.shape[0] <= HEIGHT:
        return None
    rows = image[-2 * BLOCK :].reshape(2, BLOCK, 8, BLOCK, 3)
    bits, opposite = rows[:, 4:12, :, 4:12].mean(axis=(1, 3, 4))
    if (abs(bits - opposite) < 180).any():
        return None
    return int(np.packbits(bits > opposite)[0])


# --- Files ---


def encode(
    codec: str,
    container: str,
    *,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    ticks: list[int] | None = None,
    b_frames: int | None = None,
    muxer: dict[str, str] | None = None,
    height: int = HEIGHT,
    rotation: int | None = None,
) -> bytes:
    """Encodes the pictures; frame t is shown at ticks[t] hundredths of a second."""
    target = io.BytesIO()
    base = Fraction(1, 4 * RATE)
    # The first two take only certain time bases, and AVI would announce 100 frames a
    # second, three of four of them empty.
    if codec in ("mpeg4", "mpeg2video") or container == "avi":
        base = Fraction(1, RATE)
    with av.open(target, "w", format=container, options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options=options or {})
        sides = (WIDTH, height) if rotation in (None, 180) else (height, WIDTH)
        (stream.width, stream.height), stream.pix_fmt = sides, pixels
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(COUNT):
            image = picture(number, height)
            if rotation is not None:
                image = np.rot90(image, -rotation // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
            frame = frame.reformat(format=pixels)
            seconds = Fraction(ticks[number], 100) if ticks else Fraction(number, RATE)
            frame.pts, frame.time_base = int(seconds / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


def copy(content: bytes, container: str, first: int, begin: int | None = None) -> bytes:
    """Copies packets from the `first` on, without encoding, as `ffmpeg -c copy` does.

    Time 0 becomes that of frame `begin`, if given: mp4 then hides the earlier frames by
    an edit list.
    """
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(target, "w", format=container) as out,
    ):
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        packets = [packet for packet in source.demux(template) if packet.size]
        times = sorted(packet.pts for packet in packets)
        offset = times[begin] if begin is not None else 0
        for packet in packets[first:]:
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = stream
            out.mux(packet)
    return target.getvalue()


def keyframes(content: bytes) -> list[int]:
    """Returns the positions of the packets that are keyframes."""
    with av.open(io.BytesIO(content)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        return [i for i, packet in enumerate(packets) if packet.is_keyframe]


X264 = {"x264-params": "keyint=24:bframes=3:scenecut=0"}
OPEN = {"x264-params": "keyint=24:bframes=3:scenecut=0:open-gop=1"}
X265 = {"x265-params": "keyint=24:bframes=3:open-gop=1:log-level=none:pools=1"}
VPX = {"deadline": "good", "cpu-used": "4", "lag-in-frames": "16", "auto-alt-ref": "1"}
FIELDS = {"flags": "+ilme+ildct", "g": "12"}
# As phones do in the dark: 25 frames a second, then one each 0.23 s.
VARIABLE = [*range(0, 240, 4), *range(240, 240 + 23 * 60, 23)]


def pack_b_frames(content: bytes) -> bytes:
    """Copies MPEG-4 with one B-frame between others as old versions of Xvid wrote it.

    A chunk of an AVI file then holds a frame and the B-frame shown before it, and the
    next chunk an empty picture, so that no chunk needs a time of its own.
    """
    picture, empty = b"\0\0\1\xb6", b"\0\0\1\xb6\x51\x4f"  # "P, not coded"
    mark = b"\0\0\1\xb2DivX503b1393p"  # user data that announces it
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(target, "w", format="avi") as out,
    ):
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        chunks: list[tuple[bytes, bool]] = []
        for packet in source.demux(template):
            data = bytes(packet)
            if not data:
                continue
            if data[data.index(picture) + 4] >> 6 == 2:  # a B-frame
                before, is_key = chunks.pop()
                chunks += [(before + data, is_key), (empty, False)]
            else:
                header, frame = data.split(picture, 1)
                header += mark if packet.is_keyframe else b""
                chunks.append((header + picture + frame, packet.is_keyframe))
        for index, (data, is_key) in enumerate(chunks):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, RATE), stream
            packet.is_keyframe = is_key
            out.mux(packet)
    return target.getvalue()


def cut_at_keyframe(container: str) -> bytes:
    """Returns a file that begins with a later keyframe of another."""
    content = encode("libx264", "mp4", options=X264)
    return copy(content, container, keyframes(content)[1], 24)


def cut_open_gop() -> bytes:
    """Returns a file of an I-frame, frames that need earlier ones, and the rest."""
    content = encode("libx264", "mpegts", options=OPEN)
    return copy(content, "mpegts", keyframes(content)[1])


class Input(NamedTuple):
    """A kind of file: how it is made, and the numbers of the frames that it shows."""

    make: Callable[[], bytes]
    extension: str
    shown: range = range(COUNT)


INPUTS = {
    "H.264 mp4": Input(lambda: encode("libx264", "mp4", options=X264), "mp4"),
    "H.264 mp4, open GOP": Input(lambda: encode("libx264", "mp4", options=OPEN), "mp4"),
    "H.264 mp4, fragmented": Input(
        lambda: encode(
            "libx264",
            "mp4",
            options=X264,
            muxer={"movflags": "frag_keyframe+empty_moov"},
        ),
        "mp4",
    ),
    "H.264 mp4, variable rate": Input(
        lambda: encode("libx264", "mp4", options=X264, ticks=VARIABLE), "mp4"
    ),
    "H.264 mkv, variable rate": Input(
        lambda: encode("libx264", "matroska", options=X264, ticks=VARIABLE), "mkv"
    ),
    "H.264 mp4, cut by copying at a keyframe": Input(
        lambda: cut_at_keyframe("mp4"), "mp4", range(24, COUNT)
    ),
    "H.264 mp4, cut by copying elsewhere (edit list)": Input(
        lambda: copy(encode("libx264", "mp4", options=X264), "mp4", 0, 37),
        "mp4",
        range(37, COUNT),
    ),
    "H.264 mpegts": Input(lambda: encode("libx264", "mpegts", options=X264), "ts"),
    "H.264 mpegts, open GOP": Input(
        lambda: encode("libx264", "mpegts", options=OPEN), "ts"
    ),
    "H.264 mpegts, cut by copying at a keyframe": Input(
        lambda: cut_at_keyframe("mpegts"), "ts", range(24, COUNT)
    ),
    "H.264 mpegts, open GOP, cut at an I-frame": Input(
        cut_open_gop, "ts", range(24, COUNT)
    ),
    "H.264 mpegts, cut by copying elsewhere": Input(
        lambda: copy(encode("libx264", "mpegts", options=X264), "mpegts", 37),
        "ts",
        range(48, COUNT),  # what comes before the next keyframe cannot be decoded
    ),
    "H.264 avi, B-frames": Input(lambda: encode("libx264", "avi", options=X264), "avi"),
    "H.264 mp4, turned by 90 degrees": Input(
        lambda: encode("libx264", "mp4", options=X264, rotation=90), "mp4"
    ),
    "H.264 mp4, interlaced": Input(
        lambda: encode(
            "libx264", "mp4", options={"x264-params": "interlaced=1:tff=1:keyint=24"}
        ),
        "mp4",
    ),
    "H.264 mp4, 10 bits": Input(
        lambda: encode("libx264", "mp4", options=X264, pixels="yuv420p10le"), "mp4"
    ),
    "HEVC mp4, open GOP": Input(lambda: encode("libx265", "mp4", options=X265), "mp4"),
    "HEVC mp4, 10 bits": Input(
        lambda: encode("libx265", "mp4", options=X265, pixels="yuv420p10le"), "mp4"
    ),
    "MPEG-4 (as Xvid) avi, B-frames": Input(
        lambda: encode("mpeg4", "avi", options={"g": "24"}, b_frames=2), "avi"
    ),
    "MPEG-4 (as Xvid) avi, packed B-frames": Input(
        lambda: pack_b_frames(encode("mpeg4", "mp4", options={"g": "24"}, b_frames=1)),
        "avi",
    ),
    "MPEG-4 (as Xvid) mp4, B-frames": Input(
        lambda: encode("mpeg4", "mp4", options={"g": "24"}, b_frames=2), "mp4"
    ),
    "MPEG-2 mpg, B-frames": Input(
        lambda: encode("mpeg2video", "mpeg", options={"g": "12"}, b_frames=2), "mpg"
    ),
    "MPEG-2 mpegts, interlaced": Input(
        lambda: encode("mpeg2video", "mpegts", options=FIELDS, b_frames=2), "ts"
    ),
    "MJPEG avi": Input(lambda: encode("mjpeg", "avi", pixels="yuvj420p"), "avi"),
    "VP8 webm, alt-ref frames": Input(
        lambda: encode("libvpx", "webm", options=VPX | {"g": "60"}), "webm"
    ),
    "VP9 webm, alt-ref frames": Input(
        lambda: encode("libvpx-vp9", "webm", options=VPX | {"g": "60"}), "webm"
    ),
    "VP9 webm, odd height": Input(
        lambda: encode("libvpx-vp9", "webm", options=VPX, height=HEIGHT - 1), "webm"
    ),
    "AV1 mp4": Input(
        lambda: encode(
            "libsvtav1", "mp4", options={"preset": "8", "g": "48", "crf": "20"}
        ),
        "mp4",
    ),
}
