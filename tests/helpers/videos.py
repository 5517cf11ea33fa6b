"""Small videos for tests, written with PyAV: any codec, container and timestamps."""

import io
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_noise(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns frames that all differ and that motion search can follow.

    A noisy texture slides and a bright column marks the time, so encoders produce
    real motion vectors while no two frames decode to the same pixels.

    Args:
        num_frames: number of frames.
        height, width: size in pixels.
        seed: seed of the noise.

    Returns:
        uint8 [num_frames, height, width, 3], RGB.
    """
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        frames[t] = np.roll(texture, (t, 2 * t), (0, 1))
        frames[t] += rng.integers(0, 24, (height, width, 1), np.uint8)
        frames[t, :, (5 * t) % width] = (10 * t) % 256
    return frames


def write_folder(folder: Path, count: int) -> Path:
    """Writes videos 0.mp4, 1.mp4, ... of 12, 13, ... frames; returns the folder."""
    for i in range(count):
        write_video(folder / f"{i}.mp4", moving_noise(12 + i, 48, 64, seed=i))
    return folder


def write_video(
    target,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    container: str | None = None,
    pixel_format: str = "yuv420p",
    rate: int = 25,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    ticks: Iterable[int] | None = None,
    rotation: int | None = None,
    flip: bool = False,
    audio: bool = False,
    max_b_frames: int | None = None,
) -> None:
    """Encodes frames into a video file.

    Args:
        target: path or writable binary file.
        frames: uint8 [num_frames, height, width, 3], RGB.
        codec: name of the encoder.
        container: container format; by default that of the path's suffix.
        pixel_format: pixel format to encode.
        rate: frames per second.
        options: options of the encoder.
        container_options: options of the muxer.
        ticks: presentation time of each frame in units of 1 / (4 * rate) seconds; by
            default frame t is at 4 * t.
        rotation: counter-clockwise degrees of the display matrix, if any.
        flip: whether the display matrix also mirrors left and right.
        audio: whether to add a silent audio track (AAC), interleaved.
        max_b_frames: consecutive B-frames, for encoders without an option for it.
    """
    num_frames, height, width, _ = frames.shape
    ticks = [4 * t for t in range(num_frames)] if ticks is None else list(ticks)
    with av.open(target, "w", format=container, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = width, height
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, 4 * rate)
        stream.codec_context.thread_count = 1
        if codec in ("mpeg4", "mpeg2video"):  # accept only certain time bases
            stream.codec_context.time_base = Fraction(1, rate)
            ticks = [tick // 4 for tick in ticks]
        if max_b_frames is not None:
            stream.codec_context.max_b_frames = max_b_frames
        if rotation is not None or flip:
            stream.set_display_rotation(rotation or 0, hflip=flip)
        sound = out.add_stream("aac", rate=8000, layout="mono") if audio else None
        silence = np.zeros((1, 1024), np.float32)
        samples = 0
        for tick, image in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = tick
            frame.time_base = stream.codec_context.time_base
            out.mux(stream.encode(frame))
            while sound and samples * rate * 4 < 8000 * tick:
                chunk = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
                chunk.sample_rate, chunk.pts = 8000, samples
                samples += 1024
                out.mux(sound.encode(chunk))
        out.mux(stream.encode(None))
        if sound:
            out.mux(sound.encode(None))


def video_bytes(frames: np.ndarray, *, container: str = "mp4", **settings) -> bytes:
    """Encodes frames like `write_video`, but returns the content of the file."""
    with tempfile.TemporaryDirectory() as folder:  # a file: faststart reads it back
        path = Path(folder, "video")
        write_video(str(path), frames, container=container, **settings)
        return path.read_bytes()


def change_packets(
    content: bytes, container: str, change: Callable[[int, bytes], bytes]
) -> bytes:
    """Copies a video; `change` returns the new data of a packet, from its position.

    Packets without data are left out.
    """
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(target, "w", format=container) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for position, packet in enumerate(packets):
            if not (data := change(position, bytes(packet))):
                continue
            copy = av.Packet(data)
            copy.pts, copy.dts, copy.time_base = (
                packet.pts,
                packet.dts,
                packet.time_base,
            )
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            out.mux(copy)
    return target.getvalue()


def plain_decode(content: bytes) -> np.ndarray:
    """Decodes all frames with PyAV, uint8 [num_frames, height, width, 3]."""
    with av.open(io.BytesIO(content)) as container:
        return np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        )


def content_of_two_sizes(container: str) -> bytes:
    """Returns a video of 10 frames of 48 x 64, then 10 frames of 64 x 96 pixels."""
    parts = [
        video_bytes(
            moving_noise(10, *size),
            container=container,
            ticks=[4 * t + start for t in range(10)],
        )
        for size, start in (((48, 64), 0), ((64, 96), 40))
    ]
    return b"".join(parts)


CORRUPTIONS = ("truncated", "flipped", "zeroed", "removed", "repeated", "replaced")


def corrupted(content: bytes, rng: np.random.Generator, kind: str) -> bytes:
    """Returns the content of a file, damaged as disks, downloads and copies do.

    Args:
        content: content of the file.
        rng: draws where the damage is, and how much.
        kind: one of CORRUPTIONS: cut off somewhere, single bits flipped, or a range of
            bytes zeroed, left out, written twice or replaced by noise.
    """
    start = int(rng.integers(len(content)))
    length = int(rng.choice([4, 100, 3000]))
    before, middle = content[:start], content[start : start + length]
    after = content[start + length :]
    match kind:
        case "truncated":
            return before
        case "flipped":
            data = bytearray(content)
            for index in rng.integers(len(data), size=rng.choice([1, 5, 50])):
                data[index] ^= 1 << int(rng.integers(8))
            return bytes(data)
        case "zeroed":
            return before + bytes(len(middle)) + after
        case "removed":
            return before + after
        case "repeated":
            return before + middle + middle + after
        case "replaced":
            return before + rng.bytes(len(middle)) + after
    raise ValueError(kind)
