"""Exact random access to the frames of compressed videos.

Frame `i` of a video is, by definition, the `i`-th frame that decoding the whole file
yields. `Video` returns exactly those pixels while decoding as little as possible:

- One pass over the packets, without decoding, finds the order and number of frames.
- Decoding starts at the last keyframe before each group of requested frames.
- H.264 packets that no other frame refers to are decoded only if requested.
- Only requested frames are converted to RGB.

Decoded frames are checked against the packet table. A file whose timestamps do not
allow such a table is decoded from its beginning instead, which is slow but exact.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from videomae_jax.errors import VideoError
from videomae_jax.video.container import (
    VideoFile,
    decode_all,
    default_name,
    open_container,
    read_packets,
    video_stream,
)
from videomae_jax.video.packets import (
    Frame,
    PacketDecoder,
    PacketIndex,
    TableError,
    order_times,
    owner,
    packet_table,
)
from videomae_jax.video.rgb import (
    RotationError,
    VideoFrames,
    upright_size,
)
from videomae_jax.video.source import FrameSource, Indices


class Video(FrameSource):
    """Random access to the frames of one video, bit-exact with decoding all of it.

    Frames are upright: rotated and mirrored by the display matrix of the file, as
    players show them. The compressed file is held in memory while the video is open,
    and one thread decodes: for parallelism, open several videos at once.

    Damage: opening a file fails if its container shows it to be cut off. If packets in
    the middle are damaged, the other frames keep the index that their time gives them.
    Frames that may depend on damage reported by the decoder raise an error when read;
    they are never returned. Damage that it does not notice gives the same pixels
    whatever else is read.

    `num_frames` is the number that a full decode yields, found from the packets. Only
    files without usable timestamps are decoded to count the frames.
    """

    def __init__(self, file: VideoFile, name: str | None = None):
        """Opens a video and lists its packets.

        Args:
            file: path of a local file, or the content of a file.
            name: name in messages; by default the path.
        """
        self._file = file
        self.name = default_name(file) if name is None else name
        self._container: InputContainer | None = None
        # None if only decoding from the beginning tells the frames apart.
        self._decoder: PacketDecoder | None = None
        self._codec_name = "h264"  # FFmpeg's name of the decoder
        # When the frames are shown, in units of `_time_base`, or None if unknown.
        self._get_ticks: Callable[[], list[int]] | None = None
        self._time_base: Fraction | None = None
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, FFmpegError):
                raise self.error(f"cannot be read: {error.strerror}") from error
            raise

    def _open(self) -> None:
        """Sets `_decoder`, `num_frames`, `fps`, `_get_ticks` and `_time_base`."""
        self._container = open_container(self._file, self.name)
        stream = video_stream(self._container, self.name)
        self._codec_name = stream.codec_context.name
        packets = read_packets(self._container, self.name)
        table = packet_table(stream, packets)
        unit = stream.time_base  # a Fraction, or from PyAV 19 on a class of its own
        if unit:
            self._time_base = Fraction(unit.numerator, unit.denominator)
        if table is None:
            ticks = self._decode_ticks()
            self.num_frames = len(ticks)
            if ordered := order_times(ticks):
                self._get_ticks = lambda: ordered
        else:
            self._get_ticks = table.frame_times
            codec = stream.codec_context
            get_packet = packets.__getitem__
            self._decoder = PacketDecoder(
                codec, self._new_codec, get_packet, table, self.name
            )
            self.num_frames = len(table.positions)
        self.fps = _average_fps(stream, self.frame_ticks())

    def _new_codec(self) -> av.VideoCodecContext:
        """Returns a decoder that has not decoded anything."""
        # Only a container knows all that a decoder needs, such as the rotation.
        with open_container(self._file, self.name) as container:
            return video_stream(container, self.name).codec_context

    def close(self) -> None:
        """Releases the file and the packets."""
        super().close()
        self._decoder = None
        if self._container is not None:
            self._container.close()
            self._container = None

    @property
    def frame_times(self) -> np.ndarray | None:
        """When each frame is shown, see `FrameSource.frame_times`."""
        stamps = self.frame_ticks()
        if not self.fps or stamps is None or self.num_frames < 2:
            return super().frame_times
        ticks, unit = stamps
        times = np.array([*ticks, 2 * ticks[-1] - ticks[-2]]) - ticks[0]
        return times * unit.numerator / unit.denominator

    def frame_ticks(self) -> tuple[list[int], Fraction] | None:
        """Returns when each frame is shown, increasing, and the seconds of a unit.

        None if the file has no such times: `fps` is then all that is known.
        """
        if self._get_ticks is None or not self._time_base:
            return None
        return self._get_ticks(), self._time_base

    def packet_index(self) -> PacketIndex:
        """Returns the index for opening the same content as an `IndexedVideo`.

        Raises:
            ValueError: the video is not in memory, or its packets have no index.
        """
        decoder = self._decoder
        if decoder is None or not isinstance(self._file, bytes):
            raise ValueError("not a video in memory that has a packet table")
        packets = map(decoder.get_packet, range(len(decoder.table.times)))
        return PacketIndex.build(self._file, decoder.codec, packets, decoder.table)

    def decode(self, indices: Indices) -> VideoFrames:
        """Decodes frames without converting them to RGB, see `FrameSource.decode`."""
        distinct, order = self._distinct(indices)
        frames = self._decode(distinct)
        for index, frame in frames:
            try:
                size = upright_size(frame)
            except RotationError as error:
                raise self.error(f"frame {index} {error}") from error
            self._check_size(f"frame {index}", size)
        decoded = [frame for _, frame in frames]
        return VideoFrames(decoded, order, self.name, self.format)

    def _decode(self, indices: list[int]) -> list[Frame]:
        """Decodes frames whose indices increase."""
        if self._decoder is not None:
            try:
                return list(self._decoder.decode(indices))
            except TableError:
                # Either the timestamps are wrong, and only a full decode is exact from
                # here on, or the decoder drops frames, and no index is certain.
                where = f"frames {indices[0]} to {indices[-1]} cannot be read exactly"
                try:
                    count = len(self._decode_ticks())
                except VideoError as error:
                    raise self.error(f"{where}: damaged data") from error
                if count != self.num_frames:
                    raise self.error(
                        f"{where}: the packets hold {self.num_frames} frames, but the "
                        f"decoder returns {count}"
                    ) from None
                self._decoder = None
        selected, own = set(indices), owner(self._codec_name)
        frames = enumerate(itertools.islice(self._decode_all(), indices[-1] + 1))
        decoded = [(i, own(frame)) for i, frame in frames if i in selected]
        if len(decoded) < len(indices):
            raise self.error(
                f"the decoder did not return frame {indices[len(decoded)]}"
            )
        return decoded

    def decode_each(self) -> Iterator[av.VideoFrame]:
        """Yields all frames as `decode` decodes them, but holds only a few at a time.

        Raises:
            VideoError: a frame cannot be decoded exactly.
        """
        if self._decoder is None:
            yield from self._decode_all()
            return
        try:
            for _, frame in self._decoder.decode([*range(self.num_frames)]):
                yield frame
        except TableError:
            raise self.error("its frames cannot be read exactly") from None

    def _decode_ticks(self) -> list[int | None]:
        """Decodes all frames; returns when each is shown, as far as the file says.

        Damage is refused, because it could shift the index of frames.
        """
        ticks = [frame.pts for frame in self._decode_all()]
        if not ticks:
            raise self.error("no frame can be decoded")
        return ticks

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        # A new decoder: parameters from late in a file may outlive a flush.
        return decode_all(self._file, self.name, strict=False)


class IndexedVideo(Video):
    """A video in memory that is opened by its stored index, without a demuxer."""

    def __init__(
        self,
        content: bytes,
        index: PacketIndex,
        *,
        fps: float | None,
        size: tuple[int, int],
        name: str,
        time_base: Fraction | None = None,
    ):
        """Opens the content of a file with frames of `size`, (height, width), upright.

        An index of another video is noticed when frames are decoded. `time_base` is the
        unit of the index's times in seconds; None if they are only an order.
        """
        self._index, self._size, self.fps = index, size, fps
        self._stored_time_base = time_base
        super().__init__(content, name)

    def _open(self) -> None:
        assert isinstance(self._file, bytes)
        table = self._index.table()
        get_packet = functools.partial(self._index.packet, self._file)
        self._decoder = PacketDecoder(
            self._new_codec(), self._new_codec, get_packet, table, self.name
        )
        self.num_frames = len(table.positions)
        self._get_ticks, self._time_base = table.frame_times, self._stored_time_base

    def _new_codec(self) -> av.VideoCodecContext:
        return self._index.create_decoder()


def _average_fps(
    stream: av.VideoStream, times: tuple[list[int], Fraction] | None
) -> float | None:
    if times is not None and len(times[0]) > 1:
        ticks, unit = times
        return (len(ticks) - 1) / float((ticks[-1] - ticks[0]) * unit)
    return float(stream.average_rate) if stream.average_rate else None


def read_clip(
    path: VideoFile, num_frames: int = 16, *, stride: int = 4, start: int = 0
) -> np.ndarray:
    """Reads evenly spaced frames of a video.

    Args:
        path: path of a video file, or the content of a file.
        num_frames: number of frames to read.
        stride: distance between them, in frames of the video.
        start: index of the first one.

    Returns:
        uint8 [num_frames, height, width, 3], RGB: the frames `start + k * stride`.

    Raises:
        ValueError: `num_frames` or `stride` is below 1, or `start` is negative.
        VideoError: the video cannot be read or is too short.
    """
    if num_frames < 1 or stride < 1 or start < 0:
        raise ValueError(
            f"num_frames={num_frames} and stride={stride} must be at least 1, and "
            f"start={start} at least 0"
        )
    with Video(path) as video:
        last = start + (num_frames - 1) * stride
        if last >= video.num_frames:
            raise video.error(
                f"too short: {num_frames} frames, {stride} apart, from frame {start} "
                f"on need {last + 1} frames, but the video has {video.num_frames}"
            )
        return video.read(range(start, last + 1, stride))
