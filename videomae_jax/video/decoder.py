"""Exact frames out of a compressed video.

Frame `i` of a video is, by definition, the `i`-th frame that decoding the whole file
yields. `Video` returns exactly those pixels while decoding as little as it can:

- one pass over the packets, without decoding, gives the order and number of frames;
- decoding starts at the last keyframe before each group of wanted frames;
- H.264 packets that no other frame refers to are not decoded unless wanted;
- only wanted frames are converted to RGB.

Whatever is decoded is checked against the table made from the packets. A file whose
timestamps cannot carry such a table is decoded from its beginning instead, which is
slow and always right.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np

from videomae_jax.video.packets import packet_table
from videomae_jax.video.rgb import DecodedFrames, RotationError, upright_size
from videomae_jax.video.source import FrameSource

# Frames with their indices.
_Frames = Iterator[tuple[int, av.VideoFrame]]


class _TableError(Exception):
    """The decoder's frames are not those that the packets announced."""


class Video(FrameSource):
    """Random access to the frames of one video, bit-exact with decoding all of it.

    Frames are upright: rotated and mirrored by the display matrix that the file
    carries, as players show them. The compressed file is held in memory while the
    video is open, and one thread decodes: use several videos at once for parallelism.

    Damage: a file that its container shows to be cut off is refused when opened. If
    packets in the middle are damaged, the other frames keep the index that their time
    gives them; those that could depend on damage the decoder notices are refused when
    read, never returned.

    Attributes:
        num_frames: Number of frames a full decode yields. Taken from the packets;
            only for files without usable timestamps are the frames decoded to count.
        fps: Average frames per second, `None` if the file does not tell.
    """

    num_frames: int
    fps: float | None

    def __init__(self, source: str | os.PathLike | bytes, name: str | None = None):
        """Opens a video and lists its packets.

        Args:
            source: Path of a local file, or the file's content.
            name: What messages call it; by default its path.

        Raises:
            VideoError: The file is missing, empty, cut off, not a video, or has no
                video stream.
        """
        self._source = source
        if name is None:
            name = "<bytes>" if isinstance(source, bytes) else os.fsdecode(source)
        self._name = name
        self._container = self._decoder = None
        try:
            self._container = self._open()
            self._stream = self._container.streams.video[0]
            self._decoder = self._stream.codec_context
            self._list_packets()
            # `None` if frames can only be told apart by decoding from the beginning.
            self._table = packet_table(self._stream, self._packets)
            if self._table is None:
                self.num_frames = self._count_frames()
            else:
                self.num_frames = len(self._table.positions)
            self.fps = self._average_fps()
        except BaseException as error:
            self.close()
            if isinstance(error, av.FFmpegError):
                raise self.error(f"cannot be read: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Releases the file and the packets; may be called more than once."""
        self._packets, self._decoder = [], None
        if self._container is not None:
            self._container.close()
            self._container = None

    def decode(self, indices: Sequence[int]) -> DecodedFrames:
        """Decodes frames without converting them to RGB, of which parts may do.

        Args:
            indices: At least one frame wanted, in any order; an index may repeat.

        Raises:
            IndexError: An index is negative or not below `num_frames`.
            VideoError: As in `read`.
        """
        wanted, places = self._distinct(indices)
        return DecodedFrames(self._decode(wanted), places, self.error)

    def _decode(self, wanted: list[int]) -> list[av.VideoFrame]:
        """Decodes frames, given in increasing order."""
        if self._table is not None:
            try:
                return [self._checked(*x) for x in self._decode_indexed(wanted)]
            except _TableError:
                # Either the timestamps lie, and only a full decode is to be trusted
                # from here on, or the decoder drops frames, and no index is certain.
                count = self._count_frames()
                if count != self.num_frames:
                    raise self.error(
                        f"frames {wanted[0]} to {wanted[-1]} cannot be read exactly: "
                        f"the packets hold {self.num_frames} frames, but {count} of "
                        "them come out of the decoder"
                    ) from None
                self._table = None
        return [self._checked(*x) for x in self._decode_all(wanted)]

    def _is_open(self) -> bool:
        return self._decoder is not None

    def _open(self):
        """Opens the container, or says in plain words why it is no video."""
        if isinstance(self._source, bytes):
            size, target = len(self._source), io.BytesIO(self._source)
        else:
            # Checked first: FFmpeg would take some names for URLs or patterns.
            path = os.path.abspath(os.fsdecode(self._source))
            if not os.path.exists(path):
                raise self.error("no such file")
            if os.path.isdir(path):
                raise self.error("is a directory, not a video file")
            size, target = os.path.getsize(path), path
        if not size:
            raise self.error("empty file (0 bytes)")
        try:
            container = av.open(target)
        except PermissionError as error:
            raise self.error("no permission to read the file") from error
        except UnicodeDecodeError as error:  # PyAV 18, of titles that are not UTF-8
            raise self.error(f"its metadata is not UTF-8: {error}") from error
        except av.FFmpegError as error:
            raise self.error(
                f"not a video, or one that is cut off: {error.strerror}"
            ) from error
        try:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams})
                found = f"only {' and '.join(kinds)}" if kinds else "no stream at all"
                raise self.error(f"no video stream: {found}")
            codec = container.streams.video[0].codec_context
            if codec is None:
                raise self.error("no decoder for its video codec")
            codec.thread_count = 1
            codec.thread_type = "NONE"
        except BaseException:
            container.close()
            raise
        return container

    def _list_packets(self) -> None:
        """Reads all packets of the video stream, in decoding order."""
        try:
            self._packets = [
                packet for packet in self._container.demux(self._stream) if packet.size
            ]
        except IndexError as error:  # PyAV 18, of streams that a damaged file adds
            raise self.error(f"its packets cannot be listed: {error}") from error
        if not self._packets:
            raise self.error("the video stream holds no packets")
        # Only this container lists every packet ahead of the data.
        promised = len(self._stream.index_entries)
        if "mp4" in self._container.format.name and len(self._packets) < promised:
            raise self.error(
                f"cut off: {len(self._packets)} of {promised} packets are there"
            )

    def _average_fps(self) -> float | None:
        table = self._table
        if table is not None and self.num_frames > 1:
            first, last = (table.times[table.positions[i]] for i in (0, -1))
            seconds = float((last - first) * self._stream.time_base)
            return (self.num_frames - 1) / seconds
        rate = self._stream.average_rate
        return float(rate) if rate else None

    def _decode_indexed(self, wanted: list[int]) -> _Frames:
        """Yields (index, frame) of the wanted frames, by way of the packet table."""
        run: list[int] = []
        run_start = run_end = -1
        for index in wanted:
            position = self._table.positions[index]
            start = self._start_of(position)
            if run and start > run_end:
                yield from self._decode_run(run_start, run_end, run)
                run = []
            if not run:
                run_start = start
            run.append(index)
            run_end = max(run_end, position)
        yield from self._decode_run(run_start, run_end, run)

    def _start_of(self, position: int) -> int:
        """Last position from where decoding gives the frame at `position` exactly."""
        start, time = position, self._packets[position].pts
        # Frames shown before a keyframe but coded after it refer to what precedes it.
        while not self._table.starts[start] or self._packets[start].pts > time:
            start -= 1
        return start

    def _decode_run(self, start: int, end: int, wanted: list[int]) -> _Frames:
        """Decodes the packets `start` to `end` as far as the wanted frames need.

        Args:
            start: Position of the packet to begin with.
            end: Position of the last packet of a wanted frame.
            wanted: Frames to yield, increasing, all decodable from `start`.

        Yields:
            (index, frame) of each wanted frame.

        Raises:
            VideoError: The decoder reports damage that a wanted frame may depend on.
            _TableError: Other frames came out than the packets announced.
        """
        if self._decoder.is_open:
            # Of whatever an earlier run left, or its failure.
            self._decoder.flush_buffers()
        table = self._table
        index_at = {table.positions[index]: index for index in wanted}
        end = min(end + table.lookahead, len(self._packets) - 1)
        sent = [
            position
            for position in range(start, end + 1)
            if not table.skippable[position] or position in index_at
        ]
        begin = self._packets[start].pts
        expected = (
            (table.times[position], position)
            for position in sent
            if table.times[position] is not None and table.times[position] >= begin
        )
        announced = iter(sorted(expected))
        for frame in self._send(sent, wanted):
            # Leading frames of an open GOP lack their references: none is wanted.
            if frame.pts is not None and frame.pts < begin:
                continue
            time, position = next(announced, (None, -1))
            if time is None or frame.pts != time:
                raise _TableError
            if frame.is_corrupt:
                self._refuse_damaged(position, wanted)
            if position in index_at:
                yield index_at[position], frame
        if next(announced, None):
            raise _TableError

    def _send(
        self, positions: Iterable[int], wanted: list[int]
    ) -> Iterator[av.VideoFrame]:
        """Sends packets to the decoder and yields all frames that come out."""
        decoder = self._decoder
        for position in positions:
            try:
                if self._packets[position].is_corrupt:
                    self._refuse_damaged(position, wanted)
                yield from decoder.decode(self._packets[position])
            except av.FFmpegError as error:
                self._refuse_damaged(position, wanted, error.strerror)
        try:
            yield from decoder.decode(None)  # Decoded, but held back for reordering.
        except av.FFmpegError as error:
            raise self.error(
                f"frames up to {wanted[-1]} cannot be decoded: {error.strerror}"
            ) from error

    def _refuse_damaged(
        self, damaged: int, wanted: list[int], reason: str = "damaged data"
    ) -> None:
        """Raises if a wanted frame is, or may depend on, the one at `damaged`."""
        alone = self._table.skippable[damaged]
        for index in wanted:
            position = self._table.positions[index]
            if position == damaged or position > damaged and not alone:
                raise self.error(f"frame {index} cannot be decoded: {reason}")

    def _decode_all(self, wanted: list[int]) -> _Frames:
        """Yields (index, frame) of the wanted frames of a decode from the beginning."""
        remaining = iter(wanted)
        index = next(remaining)
        for count, frame in enumerate(self._plain_decode()):
            if count == index:
                yield index, frame
                index = next(remaining, None)
                if index is None:
                    return
        raise self.error(f"frame {index} did not come out of the decoder")

    def _count_frames(self) -> int:
        """Counts by decoding; a file this irregular has to be without damage too."""
        count = 0
        for frame in self._plain_decode():
            if frame.is_corrupt:
                raise self.error(f"frame {count} cannot be decoded: damaged data")
            count += 1
        if not count:
            raise self.error("no frame can be decoded")
        return count

    def _plain_decode(self) -> Iterator[av.VideoFrame]:
        # A fresh decoder: parameters from late in a file may outlive a flush.
        count = 0
        with self._open() as container:
            try:
                for frame in container.decode(video=0):
                    yield frame
                    count += 1
            except av.FFmpegError as error:
                raise self.error(
                    f"frame {count} cannot be decoded: {error.strerror}"
                ) from error

    def _checked(self, index: int, frame: av.VideoFrame) -> av.VideoFrame:
        """Returns a frame of the size that others have had."""
        try:
            size = upright_size(frame)
        except RotationError as error:
            raise self.error(f"frame {index} {error}") from error
        self._check_size(f"frame {index}", size)
        return frame


def read_clip(
    path: str | os.PathLike | bytes,
    num_frames: int = 16,
    stride: int = 4,
    start: int = 0,
) -> np.ndarray:
    """Reads evenly spaced frames of a video.

    Args:
        path: Path of a video file, or the file's content.
        num_frames: Number of frames to read.
        stride: Distance between them, in frames of the video.
        start: The first one.

    Returns:
        uint8 [num_frames, height, width, 3], RGB: the frames `start + k * stride`.

    Raises:
        ValueError: `num_frames` or `stride` is below 1, or `start` is negative.
        VideoError: The video cannot be read or is too short.
    """
    if num_frames < 1 or stride < 1 or start < 0:
        raise ValueError(
            "a clip needs num_frames >= 1, stride >= 1 and start >= 0, not "
            f"num_frames={num_frames}, stride={stride}, start={start}"
        )
    with Video(path) as video:
        last = start + (num_frames - 1) * stride
        if last >= video.num_frames:
            raise video.error(
                f"too short: {num_frames} frames, {stride} apart, from frame {start} "
                f"on need {last + 1} frames, but the video has {video.num_frames}"
            )
        return video.read(range(start, last + 1, stride))
