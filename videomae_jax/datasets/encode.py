"""One video, encoded anew so that training reads it fast.

Frame `i` of what comes out is frame `i` of what went in, as `Video` gives it: upright,
not larger than asked for, and as H.264 with settings chosen for reading few frames from
anywhere. Which settings, and what they bring, is measured by
benchmarks/prepare_settings.py and told in docs/data.md.
"""

import bisect
import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from videomae_jax.errors import VideoError
from videomae_jax.video import open as video_open
from videomae_jax.video.decoder import Video
from videomae_jax.video.images import ImageVideo
from videomae_jax.video.packet_index import PacketIndex
from videomae_jax.video.record import Record
from videomae_jax.video.rgb import RotationError, display_matrix, upright

# Bit-exact: without shortcuts that differ from one kind of processor to another.
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
PRESETS = tuple(
    "ultrafast superfast veryfast faster fast medium slow slower veryslow".split()
)
UNKNOWN_RATE = 30  # frames per second
_FULL_RANGE = ("yuvj", "gray")  # pixel formats that use all of 0 to 255


@dataclasses.dataclass(frozen=True)
class Settings:
    """How videos are encoded.

    Attributes:
        short_side: the shorter side becomes at most so many pixels, an even number.
            320 is what VideoMAE's authors used: crops down to 0.7 of it fill 224.
        keyframes: frames from one keyframe to the next, at most.
        b_frames: how many of them are between two that other frames need; a reader
            skips those that it does not want.
        crf: x264's constant rate factor; lower is better and larger.
        preset: x264's, one of PRESETS.
        tune: x264's; "" for none.
    """

    short_side: int = 320
    keyframes: int = 32
    b_frames: int = 7
    crf: int = 18
    preset: str = "medium"
    tune: str = "fastdecode"


@dataclasses.dataclass(frozen=True)
class Trim:
    """Which part of a video is kept: the frames with start <= time < end.

    Times are seconds after the first frame, and are compared exactly: at 25 frames per
    second, frame 10 is the first one from 0.4 on.

    Attributes:
        start: 0 for the beginning.
        end: None for the end of the video.
    """

    start: float
    end: float | None

    def __str__(self) -> str:
        """As `prepare --trim` takes it."""
        end = "" if self.end is None else f"{self.end:.15g}"
        return f"{self.start:.15g}:{end}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A video as it is stored.

    Attributes:
        video: content of the file.
        num_frames: how many frames it has.
        fps: average frames per second; 0 if the file does not tell.
        height: of its frames as `Video` gives them, in pixels; width: likewise.
        index: its packets; None if the file is kept as it was.
    """

    video: bytes
    num_frames: int
    fps: float
    height: int
    width: int
    index: PacketIndex | None


def encode_record(
    record: Record,
    settings: Settings | None,
    trim: Trim | None = None,
    image_fps: float = UNKNOWN_RATE,
) -> Encoded | str:
    """Encodes the video of a record, as `encode` does; returns why if that fails.

    Args:
        record: a video file, or one whose frames are images.
        settings: how to encode; None keeps the bytes of a file.
        trim: the part to keep, None for all.
        image_fps: frames per second, where frames are images, which do not tell.
    """
    try:
        if not record.is_images:
            return encode(video_open.read_bytes(record), settings, trim)
        with video_open.open_video(record) as video:
            return _encode_images(video, settings, trim, image_fps)
    except VideoError as error:
        return str(error).removeprefix("<bytes>: ").removeprefix(f"{record.place}: ")


def encode(data: bytes, settings: Settings | None, trim: Trim | None = None) -> Encoded:
    """Encodes a video anew, or looks whether it can be kept as it is.

    Where frames come at varying intervals, all are kept, in order, at the average rate
    of the whole video. Sound is left out.

    Args:
        data: content of a video file.
        settings: how to encode; None keeps the bytes.
        trim: the part to keep, None for all; the rest has to be without damage, too.

    Raises:
        VideoError: if not every frame can be decoded and encoded, or no frame is in the
            part to keep.
        ValueError: if a part of bytes that are to be kept is asked for.
    """
    if trim and not settings:
        raise ValueError("to keep a part, a video has to be encoded anew")
    with Video(data) as video:
        promised, fps = video.num_frames, video.fps
    frames = _decode(data)
    if trim:
        times = _times(data, fps)
        found, kept = len(times), _within(times, trim)
        frames = itertools.islice(frames, kept.start, kept.stop)
    if settings is None:
        count = sum(1 for _ in frames)
    else:
        data, count = _encode(frames, fps, settings)
    if not trim:
        found = count
    if found != promised:
        raise VideoError(
            f"the packets hold {promised} frames, but {found} come out of the decoder"
        )
    return _described(data, count, settings)


def _encode_images(
    video: ImageVideo, settings: Settings, trim: Trim | None, fps: float
) -> Encoded:
    """Encodes a video whose frames are images; reads those that are kept."""
    kept = range(video.num_frames)
    if trim:
        kept = _within([index / Fraction(fps) for index in kept], trim)
    frames = (
        av.VideoFrame.from_ndarray(video.read([index])[0], format="rgb24")
        for index in kept
    )
    return _described(*_encode(frames, fps, settings), settings)


def _described(data: bytes, count: int, settings: Settings | None) -> Encoded:
    """What is known of a file that has to have so many frames."""
    with Video(data) as video:
        if video.num_frames != count:
            raise VideoError(f"encoded, {count} frames became {video.num_frames}")
        # Rounded: the division leaves 24.999999999999996.
        fps = round(video.fps or 0.0, 6)
        index = PacketIndex.of(video, data) if settings else None
        return Encoded(data, count, fps, video.height, video.width, index)


def _decode(data: bytes) -> Iterator[av.VideoFrame]:
    """Yields all frames, and fails where one is damaged or has another size."""
    count, size = 0, None
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_type = "NONE"
        container.streams.video[0].codec_context.thread_count = 1
        try:
            for packet in container.demux(video=0):
                frames = packet.decode()
                if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
                    raise VideoError(f"damaged near frame {count}")
                for frame in frames:
                    size = size or (frame.width, frame.height)
                    if size != (frame.width, frame.height):
                        raise VideoError(f"changes its resolution at frame {count}")
                    yield frame
                    count += 1
        except av.FFmpegError as error:
            raise VideoError(f"damaged near frame {count}: {error.strerror}") from error


def _times(data: bytes, fps: float | None) -> list[Fraction]:
    """The time of each frame in seconds, from a decode of all of them."""
    times = [
        None if frame.pts is None else frame.pts * frame.time_base
        for frame in _decode(data)
    ]
    if None not in times:
        return sorted(times)  # AVI files may have them in decoding order
    if not fps:
        raise VideoError("its frames have no times: it cannot be trimmed")
    rate = Fraction(fps).limit_denominator(1001)
    return [index / rate for index in range(len(times))]


def _within(times: Sequence[Fraction], trim: Trim) -> range:
    """The frames of a part, which has to hold one at least."""
    seconds = [time - times[0] for time in times]
    # As a user wrote them: the nearest double to 0.4 is above 2/5.
    begin = bisect.bisect_left(seconds, Fraction(repr(trim.start)))
    end = len(seconds)
    if trim.end is not None:
        end = bisect.bisect_left(seconds, Fraction(repr(trim.end)))
    if begin >= end:
        raise VideoError(
            f"none of its {len(times)} frames is within {trim} s; the last is at "
            f"{float(seconds[-1]):.6g} s"
        )
    return range(begin, end)


def _encode(
    frames: Iterable[av.VideoFrame], fps: float | None, settings: Settings
) -> tuple[bytes, int]:
    """Returns the file's content and the number of frames in it.

    Raises:
        VideoError: if the encoder fails, or the frames do.
    """
    # Like 30000/1001: the denominators of broadcasting, or close enough.
    rate = Fraction(fps or UNKNOWN_RATE).limit_denominator(1001)
    rate = max(rate, Fraction(1, 1001))
    count, stream, reformatter = 0, None, VideoReformatter()
    target = io.BytesIO()
    try:
        # Bit-exact: without the versions of the libraries, which change with no pixel.
        with av.open(target, "w", format="mp4", options={"fflags": "+bitexact"}) as out:
            for frame in frames:
                frame = _prepare(frame, reformatter, settings.short_side)
                if stream is None:
                    stream = _add_stream(out, frame, rate, settings)
                frame.pts, frame.time_base = count, 1 / rate
                out.mux(stream.encode(frame))
                count += 1
            if stream is not None:
                out.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise VideoError(f"cannot be encoded: {error.strerror}") from error
    except RotationError as error:
        raise VideoError(f"frame {count} {error}") from error
    return target.getvalue(), count


def _add_stream(out, frame: av.VideoFrame, rate: Fraction, settings: Settings):
    stream = out.add_stream("libx264", rate=rate)
    stream.width, stream.height = frame.width, frame.height
    stream.pix_fmt = frame.format.name
    codec = stream.codec_context
    codec.time_base = 1 / rate
    # Without these a reader would have to guess how to get back to RGB.
    codec.color_range, codec.colorspace = frame.color_range, frame.colorspace
    # One thread: bytes do not depend on the machine, and others have their own videos.
    stream.options = {
        "preset": settings.preset,
        "crf": str(settings.crf),
        "g": str(settings.keyframes),
        "bf": str(settings.b_frames),
        "b_strategy": "0",  # always so many
        # No B-frame refers to another: a reader may skip all of them.
        "b-pyramid": "none",
        "threads": "1",
        # MB-tree reads memory that was never written, unless the width is a multiple of
        # 128: the same frames would give other bytes every time.
        "mbtree": "0",
        "a53cc": "0",  # subtitles
        "flags": "+bitexact",
    }
    if settings.tune:
        stream.options = {**stream.options, "tune": settings.tune}
    return stream


def _prepare(
    frame: av.VideoFrame, reformatter: VideoReformatter, short_side: int
) -> av.VideoFrame:
    """Scales a frame and turns it upright, without a detour over RGB."""
    shortest = min(frame.width, frame.height)
    limit = min(short_side, shortest)
    # Rounded down: sizes have to be even for 4:2:0, and nothing grows.
    width, height = (
        max(side * limit // shortest // 2 * 2, 2)
        for side in (frame.width, frame.height)
    )
    format_name = frame.format.name
    full = frame.color_range == ColorRange.JPEG or format_name.startswith(_FULL_RANGE)
    colors = ColorRange.JPEG if full else ColorRange.MPEG
    scaled = reformatter.reformat(
        frame,
        width,
        height,
        "yuv420p",
        interpolation=_SCALING,
        dst_color_range=colors,
        threads=1,
    )
    turned = _turn(scaled, frame)
    turned.color_range, turned.colorspace = colors, frame.colorspace
    # Else the encoder would take keyframes and B-frames where the original has them.
    turned.pict_type = PictureType.NONE
    return turned


def _turn(frame: av.VideoFrame, original: av.VideoFrame) -> av.VideoFrame:
    """Rotates and mirrors the planes of a 4:2:0 frame as the original's matrix says."""
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
