"""Encodes videos so that training reads them fast.

Frame `i` of the result is frame `i` of the original, as `Video` returns it: upright,
scaled down to the requested size, and encoded as H.264 with settings chosen for reading
few frames anywhere. benchmarks/prepare_settings.py measures these settings, and
docs/data.md documents them.
"""

import bisect
import dataclasses
import io
import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from videomae_jax.errors import VideoError
from videomae_jax.video.arrays import is_array_file
from videomae_jax.video.container import decode_all
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import frames_of, open_video, read_bytes
from videomae_jax.video.packets import PacketIndex
from videomae_jax.video.record import Record
from videomae_jax.video.rgb import (
    RotationError,
    check_8_bit_rgb,
    display_matrix,
    progressive,
    upright,
)
from videomae_jax.video.source import FrameSource

# Bit-exact: without optimizations that differ between processors.
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
PRESETS = tuple(
    "ultrafast superfast veryfast faster fast medium slow slower veryslow".split()
)
UNKNOWN_RATE = 30  # frames per second
_FRAMES_AT_ONCE = 32  # of a part, held decoded
_FULL_RANGE = ("yuvj", "gray")  # pixel formats with values from 0 to 255


@dataclasses.dataclass(frozen=True)
class Settings:
    """How videos are encoded."""

    # Largest short side in pixels, an even number. VideoMAE's authors used 320: crops
    # down to 0.7 of it fill 224 pixels.
    short_side: int = 320
    keyframes: int = 32  # largest distance between keyframes, in frames
    # Between two frames that others depend on; decoders can skip unrequested B-frames.
    b_frames: int = 7
    crf: int = 18  # constant rate factor of x264; lower is better and larger
    preset: str = "medium"  # of x264, one of PRESETS
    tune: str = "fastdecode"  # of x264; "" for none


@dataclasses.dataclass(frozen=True)
class Trim:
    """The part of a video to keep: the frames with start <= time < end.

    Times are in seconds after the first frame, and compared exactly: at 25 frames per
    second, frame 10 is the first one with a time of at least 0.4.
    """

    start: float
    end: float | None  # None for the end of the video

    def __str__(self) -> str:
        """Returns the value that `prepare --trim` takes."""
        end = "" if self.end is None else f"{self.end:.15g}"
        return f"{self.start:.15g}:{end}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A video as it is stored."""

    video: bytes  # content of the file
    num_frames: int
    fps: float  # average frames per second; 0 if the file does not say
    height: int  # pixels of the frames that `Video` returns
    width: int
    index: PacketIndex | None  # None if the file is stored unchanged
    # Unit of the index's times in seconds; None if all frames are 1 / fps apart.
    time_base: Fraction | None = None


def encode_record(
    record: Record,
    settings: Settings | None,
    trim: Trim | None = None,
    image_fps: float = UNKNOWN_RATE,
) -> Encoded | str:
    """Encodes the video of a record like `encode`; returns the reason if that fails.

    A video whose frames are images gets `image_fps` frames per second.
    """
    try:
        if is_array_file(record.path) and not record.is_stored:
            raise VideoError(
                "is an array, which cannot be encoded as a video: training reads it "
                "from the list as it is"
            )
        if not record.is_images:
            if record.is_part and settings:
                return _encode_part(record, settings)
            return encode(read_bytes(record), settings, trim)
        if settings is None:
            raise VideoError("its frames are images, which must be encoded as a video")
        with open_video(record) as video:
            return _encode_images(video, settings, trim, image_fps)
    except VideoError as error:
        return str(error).removeprefix("<bytes>: ").removeprefix(f"{record.location}: ")


def encode(data: bytes, settings: Settings | None, trim: Trim | None = None) -> Encoded:
    """Encodes a video, or checks that it can be stored unchanged.

    If the frame rate varies, all frames are kept, in order. The file shows them at the
    average rate of the whole video; the index has their own times. Audio is removed.

    Args:
        data: content of a video file.
        settings: how to encode; None keeps the bytes.
        trim: the part to keep, None for all; the rest must also be undamaged.

    Raises:
        VideoError: some frame cannot be decoded or encoded, or no frame is in the part
            to keep.
        ValueError: `trim` is given without `settings`.
    """
    if trim and not settings:
        raise ValueError("settings=None must not be combined with trim")
    with Video(data) as video:
        announced, fps, stamps = video.num_frames, video.fps, video.frame_ticks()
    frames = decode_all(data)
    times = _times(data, fps) if trim else []
    kept = range(announced)
    if trim:
        kept = _within(times, trim)
        frames = itertools.islice(frames, kept.start, kept.stop)
    if settings is None:
        count = sum(1 for _ in frames)
    else:
        data, count = _encode(frames, fps, settings)
    decoded = len(times) if trim else count
    if decoded != announced:
        raise VideoError(
            f"the packets announce {announced} frames, but the decoder returned "
            f"{decoded}"
        )
    encoded = _describe(data, count, indexed=settings is not None)
    return _with_times(encoded, stamps, kept)


def _encode_part(record: Record, settings: Settings) -> Encoded:
    """Encodes a part of a video, of which the rest may be damaged."""
    whole = dataclasses.replace(record, frame_range=None, time_range=None)
    with Video(read_bytes(whole), record.location) as video:
        kept = frames_of(record, video)
        if kept.stop > video.num_frames:
            raise video.error(
                f"too short: the list asks for {len(kept)} frames from frame "
                f"{kept.start} on, but the video has {video.num_frames}"
            )
        chunks = (
            kept[i : i + _FRAMES_AT_ONCE] for i in range(0, len(kept), _FRAMES_AT_ONCE)
        )
        frames = (frame for chunk in chunks for frame in video.decode(chunk).decoded)
        encoded = _describe(*_encode(frames, video.fps, settings), indexed=True)
        return _with_times(encoded, video.frame_ticks(), kept)


def _with_times(
    encoded: Encoded, stamps: tuple[list[int], Fraction] | None, kept: range
) -> Encoded:
    """Returns a video with the times that its frames had, if these are known."""
    if encoded.index is None or stamps is None:
        return encoded
    ticks, time_base = stamps
    index = encoded.index.with_times(ticks[kept.start : kept.stop])
    return dataclasses.replace(encoded, index=index, time_base=time_base)


def _encode_images(
    video: FrameSource, settings: Settings, trim: Trim | None, fps: float
) -> Encoded:
    """Encodes a video whose frames are images; reads only those to keep."""
    kept = range(video.num_frames)
    if trim:
        kept = _within([index / Fraction(fps) for index in kept], trim)
    frames = (
        av.VideoFrame.from_ndarray(video.read([index])[0], format="rgb24")
        for index in kept
    )
    return _describe(*_encode(frames, fps, settings), indexed=True)


def _describe(data: bytes, count: int, *, indexed: bool) -> Encoded:
    """Describes a file that must have `count` frames."""
    with Video(data) as video:
        if video.num_frames != count:
            raise VideoError(
                f"encoding {count} frames gave a file of {video.num_frames}"
            )
        # Rounded: the division can give 24.999999999999996.
        fps = round(video.fps or 0.0, 6)
        index = video.packet_index() if indexed else None
        return Encoded(data, count, fps, video.height, video.width, index)


def _times(data: bytes, fps: float | None) -> list[Fraction]:
    """Decodes all frames; returns the time of each in seconds."""
    stamps = [(frame.pts, frame.time_base) for frame in decode_all(data)]
    times = [pts * unit for pts, unit in stamps if pts is not None and unit is not None]
    if len(times) == len(stamps):
        return sorted(times)  # AVI files may have them in decoding order
    if not fps:
        raise VideoError("its frames have no times, so it cannot be trimmed")
    rate = Fraction(fps).limit_denominator(1001)
    return [index / rate for index in range(len(stamps))]


def _within(times: Sequence[Fraction], trim: Trim) -> range:
    """Returns the indices of the frames to keep, at least one."""
    seconds = [time - times[0] for time in times]
    # repr gives the number as the user wrote it: the nearest double to 0.4 is above it.
    begin, end = (
        len(seconds) if x is None else bisect.bisect_left(seconds, Fraction(repr(x)))
        for x in (trim.start, trim.end)
    )
    if begin >= end:
        raise VideoError(
            f"none of its {len(times)} frames is within {trim} s; the last is at "
            f"{float(seconds[-1]):.6g} s"
        )
    return range(begin, end)


def _encode(
    frames: Iterable[av.VideoFrame], fps: float | None, settings: Settings
) -> tuple[bytes, int]:
    """Returns the content of the file and its number of frames."""
    # Up to 1001, the denominator of broadcast rates such as 30000/1001.
    rate = Fraction(fps or UNKNOWN_RATE).limit_denominator(1001)
    rate = max(rate, Fraction(1, 1001))
    count, stream, reformatter = 0, None, VideoReformatter()
    target = io.BytesIO()
    try:
        # Bit-exact: without library versions in the file, which do not affect pixels.
        with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as out:
            for frame in frames:
                check_8_bit_rgb(frame, "<bytes>")
                frame = _scale(frame, reformatter, settings.short_side)
                if stream is None:
                    stream = _add_stream(out, frame, rate, settings)
                frame.pts, frame.time_base = count, 1 / rate
                out.mux(stream.encode(frame))
                count += 1
            if stream is not None:
                out.mux(stream.encode(None))
    except FFmpegError as error:
        raise VideoError(f"encoding failed: {error.strerror}") from error
    except RotationError as error:
        raise VideoError(f"frame {count} {error}") from error
    return target.getvalue(), count


def _add_stream(out, frame: av.VideoFrame, rate: Fraction, settings: Settings):
    stream = out.add_stream("libx264", rate=rate)
    stream.width, stream.height = frame.width, frame.height
    stream.pix_fmt = frame.format.name
    codec = stream.codec_context
    codec.time_base = 1 / rate
    # Decoders need these to convert back to RGB.
    codec.color_range, codec.colorspace = frame.color_range, frame.colorspace
    # One thread: bytes must not depend on the machine, and each worker has its video.
    stream.options = {
        "preset": settings.preset,
        "crf": str(settings.crf),
        "g": str(settings.keyframes),
        "bf": str(settings.b_frames),
        "b_strategy": "0",  # always this many
        # No B-frame refers to another, so that all of them can be skipped.
        "b-pyramid": "none",
        "threads": "1",
        # MB-tree reads uninitialized memory unless the width is a multiple of 128, so
        # that the same frames would give different bytes every time.
        "mbtree": "0",
        "a53cc": "0",  # subtitles
        "flags": "+bitexact",
        **({"tune": settings.tune} if settings.tune else {}),
    }
    return stream


def _scale(
    frame: av.VideoFrame, reformatter: VideoReformatter, short_side: int
) -> av.VideoFrame:
    """Scales a frame and rotates it upright, without conversion to RGB."""
    frame, original = progressive(frame), frame
    shortest = min(frame.width, frame.height)
    limit = min(short_side, shortest)
    # Rounded down: 4:2:0 needs even sizes, and frames must not grow.
    width, height = (
        max(side * limit // shortest // 2 * 2, 2)
        for side in (frame.width, frame.height)
    )
    format_name = frame.format.name
    full = frame.color_range == ColorRange.JPEG or format_name.startswith(_FULL_RANGE)
    colors = ColorRange.JPEG if full else ColorRange.MPEG
    options = {"interpolation": _SCALING, "dst_color_range": colors, "threads": 1}
    scaled = reformatter.reformat(frame, width, height, "yuv420p", **options)
    rotated = _rotate(scaled, original)
    rotated.color_range, rotated.colorspace = colors, frame.colorspace
    # Otherwise the encoder would copy the frame types of the original.
    rotated.pict_type = PictureType.NONE
    return rotated


def _rotate(frame: av.VideoFrame, original: av.VideoFrame) -> av.VideoFrame:
    """Rotates and flips the planes of a 4:2:0 frame as in the original's metadata."""
    if display_matrix(original) is None:
        return frame
    height, width = frame.height, frame.width
    sizes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
    planes = [
        upright(plane.reshape(size), original)
        for plane, size in zip(
            np.split(frame.to_ndarray().ravel(), ends), sizes, strict=True
        )
    ]
    packed = np.concatenate([plane.ravel() for plane in planes])
    return av.VideoFrame.from_ndarray(
        packed.reshape(-1, planes[0].shape[1]), format="yuv420p"
    )
