"""What can be found out of one video, by reading all of it as training would."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av

from videomae_jax.errors import VideoError
from videomae_jax.files import is_url
from videomae_jax.video import images
from videomae_jax.video.open import open_video, read_bytes
from videomae_jax.video.packets import packet_table
from videomae_jax.video.record import Record

_RUN = 16  # images decoded at a time


class Job(NamedTuple):
    """What to find out of a video."""

    record: Record
    decode: bool  # all frames; otherwise only headers and packets are read
    digest: bool  # of its content


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was found out of a video that can be opened.

    Attributes:
        num_frames: as the packets tell, or a decode if they do not: what training
            takes for the length.
        decoded_frames: that came out of the decoder; None if it was not asked.
        indexed: whether frames can be read without decoding from the beginning.
        fps: average frames per second, if the file tells it.
        seconds: num_frames at this rate.
        width, height: pixels, as stored, before a rotation that the file asks for.
        keyframe_interval: average number of frames from one that decoding may begin
            with to the next.
        codec, container: FFmpeg's names, such as h264 and mp4.
        digest: hash of the content, if asked for: of a file's bytes, or of the pixels
            where the frames are images.
        size: bytes, of what is no file by itself.
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
        """Whether the decoder contradicts the packets."""
        return self.decoded_frames not in (None, self.num_frames)


def examine(job: Job) -> ProbeResult | str:
    """Reads a video as training does, but all of it; returns why if that fails.

    Uses one thread. Memory is the size of the compressed file and a few frames.
    """
    record = job.record
    try:
        if record.is_images:
            return _examine_images(job)
        found = _examine_file(job)
        if record.frame_range is None or found.frame_count_mismatch:
            return found
        # All of the file was read, for what precedes a part may be needed to decode it.
        with open_video(record) as part:
            return dataclasses.replace(
                found,
                num_frames=part.num_frames,
                decoded_frames=found.decoded_frames and part.num_frames,
                seconds=part.num_frames / part.fps if part.fps else None,
                digest=None,  # other parts of the file are other videos
            )
    except VideoError as error:
        return str(error)
    except av.FFmpegError as error:
        return f"{record.place}: cannot be read: {error.strerror}"


def _examine_file(job: Job) -> ProbeResult:
    """Examines a video file, or one that a shard holds."""
    record = dataclasses.replace(job.record, frame_range=None)
    is_file = record.position is None and not is_url(record.path)
    with open_video(record) as video:
        num_frames, fps = video.num_frames, video.fps
        if job.decode:
            video.read([0])  # converts it to RGB, too
    # Video has looked at what the path is.
    path = os.path.abspath(record.path)
    content = None if is_file else read_bytes(record)
    with av.open(path if is_file else io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        codec.thread_count, codec.thread_type = 1, "NONE"
        packets = [packet for packet in container.demux(stream) if packet.size]
        table = packet_table(stream, packets)
        starts = table.starts if table else [p.is_keyframe for p in packets]
        decoded = None
        if job.decode:
            times = list(_decode(record.place, codec, packets))
            decoded = len(times)
            if table and times != [table.times[i] for i in table.positions]:
                table = None
        digest = None
        if job.digest:
            digest = _digest(path) if is_file else hashlib.blake2b(content).hexdigest()
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
            digest=digest,
            size=None if is_file else len(content),
        )


def _examine_images(job: Job) -> ProbeResult:
    """Examines a video whose frames are images."""
    with open_video(job.record) as video:
        count = video.num_frames
        size = sum(video.size(index) for index in range(count))
        digest = hashlib.blake2b()
        wanted = count if job.decode else 1
        for start in range(0, wanted, _RUN):
            frames = video.read(range(start, min(start + _RUN, wanted)))
            digest.update(frames)
        return ProbeResult(
            num_frames=count,
            decoded_frames=count if job.decode else None,
            indexed=True,
            fps=None,
            seconds=None,
            width=video.width,
            height=video.height,
            keyframe_interval=1.0,
            codec=images.kind(video.content(0)),
            container="frame folder" if job.record.frame_name else "tfds",
            digest=digest.hexdigest() if job.digest else None,
            size=size,
        )


def _decode(
    place: str, codec: av.VideoCodecContext, packets: Sequence[av.Packet]
) -> Iterator[int | None]:
    """Decodes all packets; yields the time of each frame.

    Raises:
        VideoError: at the first damage, or if the resolution changes.
    """
    count, size = 0, None
    for packet in [*packets, None]:  # None: what is held back for reordering
        try:
            frames = codec.decode(packet)
        except av.FFmpegError as error:
            raise VideoError(
                f"{place}: damaged near frame {count}: {error.strerror}"
            ) from error
        corrupt = packet is not None and packet.is_corrupt
        if corrupt or any(frame.is_corrupt for frame in frames):
            raise VideoError(f"{place}: damaged near frame {count}")
        for frame in frames:
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise VideoError(
                    f"{place}: changes its resolution: frame {count} is "
                    f"{frame.width}x{frame.height}, before it was {size[0]}x{size[1]}"
                )
            yield frame.pts
            count += 1


def _container_name(path: str, name: str) -> str:
    # FFmpeg has one name for a family, such as mov,mp4,m4a,3gp,3g2,mj2.
    names = name.split(",")
    extension = os.path.splitext(path)[1].lower().removeprefix(".")
    return extension if extension in names else names[0]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
