"""Video files: opening the container, listing the packets, decoding every frame.

The argument `name`, by default the path, begins the messages of VideoErrors.
"""

import io
import logging
import os
import re
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from videomae_jax.errors import VideoError
from videomae_jax.video import arrays
from videomae_jax.video.h264 import PacketParser

# The path of a local file, or the content of a file.
VideoFile = str | os.PathLike | bytes

FILMS = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .wmv .flv".split())
EXTENSIONS = FILMS + arrays.EXTENSIONS  # of all videos that are files

# The decoder of H.264 flags damaged frames, and also logs errors about streams that it
# decodes exactly. Only missing references make frames depend on what else is decoded.
_H264_DAMAGE = re.compile("reference picture", re.I)


def is_video(path: str) -> bool:
    """Returns whether a path ends like a video file or an array."""
    return path.lower().endswith(EXTENSIONS)


def has_extension(path: str) -> bool:
    """Returns whether a path has an extension; in lists, the others get `.mp4`."""
    # Python finds no extension in `...mp4`.
    return is_video(path) or bool(os.path.splitext(path)[1])


def default_name(file: VideoFile) -> str:
    """Returns the name of a video in messages: its path, or "<bytes>"."""
    return "<bytes>" if isinstance(file, bytes) else os.fsdecode(file)


def open_container(file: VideoFile, name: str) -> InputContainer:
    """Opens a video file for demuxing, and for decoding in this thread alone."""
    if isinstance(file, bytes):
        size, target = len(file), io.BytesIO(file)
    else:
        # Checked first: FFmpeg takes some names for URLs or patterns.
        target = os.path.abspath(os.fsdecode(file))
        if not os.path.exists(target):
            raise VideoError(f"{name}: no such file")
        if os.path.isdir(target):
            raise VideoError(f"{name}: is a directory, not a video file")
        size = os.path.getsize(target)
    if not size:
        raise VideoError(f"{name}: empty file (0 bytes)")
    try:
        container = av.open(target, "r")
    except PermissionError as error:
        raise VideoError(f"{name}: no permission to read the file") from error
    except UnicodeDecodeError as error:  # PyAV 18, for titles that are not UTF-8
        raise VideoError(f"{name}: its metadata is not UTF-8: {error}") from error
    except FFmpegError as error:
        raise VideoError(
            f"{name}: not a video, or one that is cut off: {error.strerror}"
        ) from error
    try:
        stream = video_stream(container, name)
        codec = stream.codec_context
        if codec is None:
            raise VideoError(f"{name}: no decoder for its video codec")
        # WebM keeps alpha beside the packets, where FFmpeg's own decoders ignore it.
        if stream.metadata.get("alpha_mode") == "1":
            raise VideoError(
                f"{name}: its alpha channel would be lost: convert it without alpha, "
                "for example with ffmpeg -i in.webm -pix_fmt yuv420p out.mp4"
            )
        set_up_decoder(codec)
    except BaseException:
        container.close()
        raise
    return container


def video_stream(container: InputContainer, name: str) -> av.VideoStream:
    """Returns the first video stream; the cover picture of music is not one."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = sorted({stream.type for stream in container.streams} - {"video"})
    if container.streams.video:
        kinds.append("a cover picture")
    streams = f"only {' and '.join(kinds)}" if kinds else "no stream at all"
    raise VideoError(f"{name}: no video stream: {streams}")


def set_up_decoder(codec: av.VideoCodecContext) -> None:
    """Makes a decoder work in the thread that calls it, and report all damage."""
    codec.thread_count, codec.thread_type = 1, "NONE"
    # PyAV drops what FFmpeg logs until a level is set, and then drops each message that
    # equals the one before, in whichever thread or capture that was.
    if (av.logging.get_level() or 0) < av.logging.ERROR:
        logging.getLogger("libav").setLevel(logging.CRITICAL)  # only for captures
        av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)


def decode_packet(
    codec: av.VideoCodecContext, packet: av.Packet | None, *, from_start: bool = True
) -> tuple[list[av.VideoFrame], bool]:
    """Decodes a packet, or with None returns the frames held back for reordering.

    Some decoders only log damage, and return frames of which they left out parts: these
    show what the memory held before.

    Args:
        codec: a decoder that `set_up_decoder` has set up.
        packet: a packet with data, or None at the end.
        from_start: whether all packets since a keyframe that needs none before it were
            decoded, apart from those that no frame refers to.

    Returns:
        Frames, which may be flagged as corrupt, and whether the decoder has logged
        damage.

    Raises:
        FFmpegError: the decoder fails.
    """
    with av.logging.Capture() as messages:
        frames = codec.decode(packet)
    return frames, any(
        level <= av.logging.ERROR
        and (codec.name != "h264" or from_start and _H264_DAMAGE.search(text))
        for level, _, text in messages
    )


def read_packets(container: InputContainer, name: str) -> list[av.Packet]:
    """Returns the packets of the video stream that hold data, in decoding order."""
    stream = video_stream(container, name)
    try:
        packets = [packet for packet in container.demux(stream) if packet.size]
    except IndexError as error:  # PyAV 18, for streams that a damaged file adds
        raise VideoError(f"{name}: its packets cannot be listed: {error}") from error
    if not packets:
        raise VideoError(f"{name}: the video stream holds no packets")
    # Only this container lists every packet ahead of the data.
    expected = len(stream.index_entries)
    if "mp4" in container.format.name and len(packets) < expected:
        raise VideoError(
            f"{name}: cut off: {len(packets)} of {expected} packets are present"
        )
    return packets


def decode_all(
    file: VideoFile, name: str | None = None, *, strict: bool = True
) -> Iterator[av.VideoFrame]:
    """Yields every frame of a video in order, from a new decoder.

    Unless `strict`, changes of the resolution, missing frames, and damage of a
    container that leaves all frames whole, raise no error.
    """
    name = default_name(file) if name is None else name
    count, size = 0, None
    with open_container(file, name) as container:
        stream = video_stream(container, name)
        codec = stream.codec_context
        parser = None
        if strict and codec.name == "h264":
            parser = PacketParser(codec.extradata or b"")
        try:
            for packet in container.demux(stream):
                # Of the packets without data, only the last, which has no time either,
                # is for the decoder: it asks for the frames held for reordering.
                if not packet.size and packet.dts is not None:
                    continue
                if parser and packet.size and parser.parse(packet).is_unsure:
                    raise VideoError(
                        f"{name}: damaged near frame {count}: frames are missing"
                    )
                # Streams that are cut may begin with frames whose references are
                # missing: the decoder of H.264 holds these back.
                frames, is_damaged = decode_packet(codec, packet, from_start=False)
                suspects = (packet, *frames) if strict else frames
                if is_damaged or any(x.is_corrupt for x in suspects):
                    raise VideoError(f"{name}: damaged near frame {count}")
                for frame in frames:
                    size = size or (frame.width, frame.height)
                    if strict and size != (frame.width, frame.height):
                        raise VideoError(
                            f"{name}: changes its resolution: frame {count} is "
                            f"{frame.width}x{frame.height}, earlier ones are "
                            f"{size[0]}x{size[1]}"
                        )
                    yield frame
                    count += 1
        except FFmpegError as error:
            raise VideoError(
                f"{name}: damaged near frame {count}: {error.strerror}"
            ) from error
