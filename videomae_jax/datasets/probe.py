"""Probes one video: its properties, and whether all of it can be decoded."""

import dataclasses
import hashlib
import os
import zlib
from typing import NamedTuple

import av
from av.error import FFmpegError

from videomae_jax.errors import VideoError
from videomae_jax.files import is_url
from videomae_jax.video.arrays import is_array_file
from videomae_jax.video.container import (
    decode_all,
    open_container,
    read_packets,
    video_stream,
)
from videomae_jax.video.decoder import Video
from videomae_jax.video.images import ImageVideo, image_format
from videomae_jax.video.open import open_video, read_bytes
from videomae_jax.video.packets import LEAVES_GAPS, packet_table
from videomae_jax.video.record import Record
from videomae_jax.video.rgb import VideoFrames
from videomae_jax.video.source import RGB, FrameSource, PixelFormat

_IMAGES_PER_READ = 16  # bounds the memory of a frame folder


class Job(NamedTuple):
    """A video to probe."""

    record: Record
    decode: bool  # all frames; otherwise only headers and packets are read
    digest: bool  # hash the content
    format: PixelFormat = RGB  # that training converts frames to


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeResult:
    """The properties of a video that can be opened.

    Attributes:
        num_frames: the length that training uses: the number that the packets announce
            or, if they do not, that a decode yields.
        decoded_frames: number of frames that the decoder returned; None without decode.
        indexed: whether frames can be read without decoding from the beginning.
        fps: average frames per second; None if the file does not say.
        seconds: num_frames / fps; None if fps is.
        width, height: pixels as stored, before any rotation that the file asks for.
        keyframe_interval: average frames between points where decoding can start.
        codec, container: FFmpeg's names, such as h264 and mp4.
        digest: hash of the file's bytes, or of the pixels of images, if asked for.
        size: bytes of a video that is not a file of its own; None for files.
    """

    num_frames: int
    decoded_frames: int | None
    indexed: bool
    fps: float | None
    seconds: float | None
    width: int
    height: int
    keyframe_interval: float
    codec: str
    container: str
    digest: str | None
    size: int | None = None

    @property
    def frame_count_mismatch(self) -> bool:
        """True if the decoder returned another number of frames than announced."""
        return self.decoded_frames not in (None, self.num_frames)


def probe(job: Job) -> ProbeResult | str:
    """Reads a whole video the way training does; returns the reason if that fails.

    Uses one thread, and memory for the compressed file and a few frames.
    """
    record = job.record
    try:
        if record.is_images:
            return _probe_images(job)
        if is_array_file(record.path) and not record.is_stored:
            return _probe_array(job)
        result = _probe_file(job)
        if not record.is_part or result.frame_count_mismatch:
            return result
        # The whole file was read: decoding a segment may need what precedes it.
        with open_video(record) as segment:
            return dataclasses.replace(
                result,
                num_frames=segment.num_frames,
                decoded_frames=result.decoded_frames and segment.num_frames,
                seconds=segment.num_frames / segment.fps if segment.fps else None,
                digest=None,  # other segments of the file are other videos
            )
    except VideoError as error:
        return str(error)
    except FFmpegError as error:
        return f"{record.location}: cannot be read: {error.strerror}"


def _probe_file(job: Job) -> ProbeResult:
    """Probes a video file, on disk or in a shard."""
    record = dataclasses.replace(job.record, frame_range=None, time_range=None)
    is_file = not record.is_stored and not is_url(record.path)
    with open_video(record, job.format) as video:
        num_frames, fps = video.num_frames, video.fps
        if job.decode:
            video.read([0])  # also checks the conversion to RGB
    file = record.path if is_file else read_bytes(record)
    with open_container(file, record.location) as container:
        stream = video_stream(container, record.location)
        codec = stream.codec_context
        packets = read_packets(container, record.location)
        table = packet_table(stream, packets)
        starts = table.starts if table else [p.is_keyframe for p in packets]
        decoded = None
        if job.decode:
            times, sums, has_gaps = [], [], codec.name in LEAVES_GAPS
            for frame in decode_all(file, record.location):
                times.append(frame.pts)
                sums += [_checksum(frame, job)] if has_gaps else []
            decoded = len(times)
            if table and times != [table.times[i] for i in table.positions]:
                table = None
            if table and has_gaps:
                _decode_again(record, job, sums)
        return ProbeResult(
            num_frames=num_frames,
            decoded_frames=decoded,
            indexed=table is not None,
            fps=fps,
            seconds=num_frames / fps if fps else None,
            width=codec.width,
            height=codec.height,
            keyframe_interval=len(packets) / max(sum(starts), 1),
            codec=codec.codec.canonical_name,
            container=_container_name(record.path, container.format.name),
            digest=_digest(file) if job.digest else None,
            size=len(file) if isinstance(file, bytes) else None,
        )


def _decode_again(record: Record, job: Job, checksums: list[int]) -> None:
    """Decodes a file as training does, from each keyframe instead of the beginning.

    Raises:
        VideoError: other pixels came out, as damage may show what was decoded before.
    """
    with open_video(record, job.format) as video:
        assert isinstance(video, Video)
        for index, frame in enumerate(video.decode_each()):
            if _checksum(frame, job) != checksums[index]:
                raise video.error(
                    f"frame {index} is damaged: its pixels depend on which frames are "
                    "decoded before it"
                )


def _checksum(frame: av.VideoFrame, job: Job) -> int:
    """Returns a checksum of the pixels that training sees."""
    frames = VideoFrames([frame], [0], job.record.location, job.format)
    return zlib.crc32(frames.pixels().data)


def _probe_images(job: Job) -> ProbeResult:
    """Probes a video whose frames are images."""
    with open_video(job.record, job.format) as video:
        assert isinstance(video, ImageVideo)
        return dataclasses.replace(
            _probe_frames(video, job),
            codec=image_format(video.content(0)),
            container="frame folder" if job.record.frame_name else "tfds",
            size=sum(video.size(index) for index in range(video.num_frames)),
        )


def _probe_array(job: Job) -> ProbeResult:
    """Probes a video that is an array."""
    with open_video(job.record, job.format) as video:
        container = os.path.splitext(job.record.path)[1].lower().removeprefix(".")
        return dataclasses.replace(_probe_frames(video, job), container=container)


def _probe_frames(video: FrameSource, job: Job) -> ProbeResult:
    """Probes a video whose frames are independent of each other."""
    digest = _read_frames(video, job.decode)
    return ProbeResult(
        num_frames=video.num_frames,
        decoded_frames=video.num_frames if job.decode else None,
        indexed=True,
        fps=None,
        seconds=None,
        width=video.width,
        height=video.height,
        keyframe_interval=1.0,
        codec="array",
        container="array",
        digest=digest if job.digest else None,
    )


def _read_frames(video: FrameSource, decode: bool) -> str:
    """Reads all frames, or the first; returns the hash of their pixels."""
    digest = hashlib.blake2b()
    to_decode = range(video.num_frames if decode else 1)
    for start in to_decode[::_IMAGES_PER_READ]:
        indices = to_decode[start : start + _IMAGES_PER_READ]
        digest.update(video.read(indices).data)
    return digest.hexdigest()


def _container_name(path: str, name: str) -> str:
    # FFmpeg has one name for a family, such as mov,mp4,m4a,3gp,3g2,mj2.
    names = name.split(",")
    extension = os.path.splitext(path)[1].lower().removeprefix(".")
    return extension if extension in names else names[0]


def _digest(file: str | bytes) -> str:
    if isinstance(file, bytes):
        return hashlib.blake2b(file).hexdigest()
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()
