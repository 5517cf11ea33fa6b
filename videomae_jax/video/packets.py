"""Packet tables: which packet holds which frame, and where decoding can start.

A table is made from the packet headers of a whole file, without decoding. `PacketIndex`
stores it with a prepared video: opening the video then takes a twentieth of a
millisecond instead of several, which is a third of the cost of reading a clip.
`PacketDecoder` decodes single frames by it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import av
from av.error import FFmpegError

from videomae_jax.errors import VideoError
from videomae_jax.video.container import decode_packet, set_up_decoder
from videomae_jax.video.h264 import IDR_SLICE, PPS, SPS, PacketParser
from videomae_jax.video.rgb import copy_frame

Frame = tuple[int, av.VideoFrame]  # with its index

# Codecs of which one shown packet is one frame and decoding can start at a keyframe.
_INDEXABLE = frozenset(
    "h264 hevc vp8 vp9 av1 mpeg1video mpeg2video mpeg4 mjpeg ffv1 prores".split()
)
# Codecs that reorder frames without saying so in an easily read header.
_OPAQUE_ORDER = frozenset({"hevc", "mpeg1video", "mpeg2video"})
# Codecs whose frames are shown in the order of their packets.
_IN_ORDER = frozenset({"vp8", "vp9", "av1", "mjpeg", "ffv1", "prores"})
# No codec above holds back more frames than this before it shows one.
_MAX_REORDER = 16

_MPEG4_PICTURE = b"\0\0\1\xb6"
# A coded MPEG-4 picture is longer; a shorter one says "show nothing new".
_MPEG4_EMPTY = 12

# Decoders that may leave out parts of damaged frames without a word: these parts show
# frames decoded before into the same memory.
LEAVES_GAPS = frozenset({"ffv1", "hevc", "vp8"})

# Flags of a packet in a PacketIndex.
_START, _SKIPPABLE = 1, 2


@dataclasses.dataclass(frozen=True)
class PacketTable:
    """The packets of a video in decoding order; at least one frame is shown.

    Attributes:
        times: by packet, its presentation time.
        shown: by packet, whether its frame is shown.
        starts: by packet, whether decoding can start with it.
        skippable: by packet, whether no other packet's frame refers to it.
        lookahead: number of packets to decode after that of the last requested frame,
            because only their frames show whether the times are right.
        unsure: positions of packets whose frames may refer to a missing one.
    """

    times: list[int]
    shown: list[bool]
    starts: list[bool]
    skippable: list[bool]
    lookahead: int = 0
    unsure: frozenset[int] = frozenset()

    @functools.cached_property
    def positions(self) -> list[int]:
        """By frame, the position of its packet."""
        positions = itertools.compress(itertools.count(), self.shown)
        return sorted(positions, key=self.times.__getitem__)

    def frame_times(self) -> list[int]:
        """Returns the presentation time of each frame, increasing."""
        return [self.times[position] for position in self.positions]


def packet_table(
    stream: av.VideoStream, packets: Sequence[av.Packet]
) -> PacketTable | None:
    """Returns the table of a video; None if its packets do not determine it.

    Args:
        stream: the video stream.
        packets: all its packets that hold data, in decoding order; at least one.
    """
    # The canonical name: the decoder's own may differ, as libdav1d's from av1.
    codec = stream.codec_context.codec.canonical_name
    times = [packet.pts for packet in packets if packet.pts is not None]
    if codec not in _INDEXABLE or len(set(times)) < len(packets):
        return None
    in_order = all(a < b for a, b in zip(times, times[1:], strict=False))
    has_b = [False] * len(packets)
    shown = [not packet.is_discard for packet in packets]
    starts = [packet.is_keyframe for packet in packets]
    skippable = [False] * len(packets)
    lookahead, unsure = 0, frozenset()
    if codec == "h264":
        parser = PacketParser(stream.codec_context.extradata or b"")
        pictures = [parser.parse(packet) for packet in packets]
        unsure = frozenset(i for i, x in enumerate(pictures) if x.is_unsure)
        skippable = [picture.skippable for picture in pictures]
        # After a gap, the frame that follows a B-frame may be the one that is missing.
        has_b = [picture.has_b_slice and not picture.is_unsure for picture in pictures]
        # After a keyframe that is not an IDR picture, frames may refer to earlier ones
        # (open GOP), or become exact only later (intra refresh). And if packets carry
        # parameter sets, a start must have its own.
        sets = {SPS, PPS}
        has_sets = any(picture.units & sets for picture in pictures)
        needed = {IDR_SLICE} | (sets if has_sets else set())
        starts = [picture.units >= needed for picture in pictures]
    elif codec == "mpeg4":
        for position, packet in enumerate(packets):
            _, *pictures = bytes(packet).split(_MPEG4_PICTURE)
            if len(pictures) != 1 or len(pictures[0]) < _MPEG4_EMPTY:
                return None  # not one picture per packet
            has_b[position] = pictures[0][0] >> 6 == 2  # the coding type of B-frames
    elif codec == "vp8":
        # An invisible reference frame has its own packet and timestamp.
        shown = [
            show and bool(memoryview(packet)[0] & 0x10)
            for show, packet in zip(shown, packets, strict=True)
        ]
    elif codec in _OPAQUE_ORDER and in_order:
        # Either nothing is reordered, or these are decoding times. Only the frames
        # after a requested one tell.
        lookahead = _MAX_REORDER
    shown_times = list(itertools.compress(times, shown))
    if codec in _IN_ORDER and sorted(shown_times) != shown_times:
        return None  # damaged times
    if not starts[0]:
        return None  # what comes out before the first start depends on the decoder
    if not any(shown):
        return None  # nothing can be read
    if any(packet.has_sidedata("new_extradata") for packet in packets[1:]):
        return None  # a jump would miss the change
    latest = times[0]
    for time, start, show, b_frame in zip(times, starts, shown, has_b, strict=True):
        if start and time < latest or time < times[0] and show:
            return None  # time runs backwards, or frames precede the first keyframe
        if b_frame and time > latest:
            return None  # a decoding time: AVI has no others, damaged MP4 may lack some
        latest = max(latest, time)
    return PacketTable(times, shown, starts, skippable, lookahead, unsure)


def order_times(times: Sequence[int | None]) -> list[int] | None:
    """Returns the times of frames in the order in which they are shown.

    AVI files have those of decoding, in which a few neighbours are exchanged. Returns
    None if times are unknown, equal, or run backwards otherwise.
    """
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times):
        return None
    order = sorted(range(len(known)), key=known.__getitem__)
    if any(abs(index - rank) > _MAX_REORDER for rank, index in enumerate(order)):
        return None
    return [known[index] for index in order]


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """The packet table of an H.264 video, in the form that is stored with its file.

    Attributes:
        header: the stream's extradata, which the decoder needs first.
        packets: for each packet, in decoding order: offset and size in bytes;
            presentation time, in any unit; 1 if decoding can start there, plus 2 if no
            other frame refers to it.
    """

    header: bytes
    packets: Sequence[tuple[int, int, int, int]]

    @classmethod
    def build(
        cls,
        content: bytes,
        codec: av.VideoCodecContext,
        packets: Iterable[av.Packet],
        table: PacketTable,
    ) -> "PacketIndex":
        """Makes the index of a file from its demuxed packets.

        Raises:
            ValueError: the codec is not H.264, a packet is not shown, or the packets
                are not stored as they are decoded.
        """
        if codec.name != "h264" or not all(table.shown):
            raise ValueError("not a video of which every packet is an H.264 frame")
        rows = []
        for packet, time, start, skippable in zip(
            packets, table.times, table.starts, table.skippable, strict=True
        ):
            begin, size = packet.pos, packet.size
            if begin is None or content[begin : begin + size] != bytes(packet):
                raise ValueError("its packets are not stored as they are decoded")
            rows.append((begin, size, time, start * _START + skippable * _SKIPPABLE))
        return cls(codec.extradata or b"", tuple(rows))

    def with_times(self, times: Sequence[int]) -> "PacketIndex":
        """Returns the index with other times of its frames, which increase."""
        order = sorted(range(len(self.packets)), key=lambda i: self.packets[i][2])
        ranks = {position: rank for rank, position in enumerate(order)}
        rows = (
            (offset, size, times[ranks[position]], flags)
            for position, (offset, size, _, flags) in enumerate(self.packets)
        )
        return PacketIndex(self.header, tuple(rows))

    def table(self) -> PacketTable:
        """Returns the packet table."""
        _, _, times, flags = zip(*self.packets, strict=True)
        return PacketTable(
            times=list(times),
            shown=[True] * len(times),
            starts=[bool(flag & _START) for flag in flags],
            skippable=[bool(flag & _SKIPPABLE) for flag in flags],
        )

    def packet(self, content: bytes, position: int) -> av.Packet:
        """Returns a packet of the file."""
        offset, size, time, _ = self.packets[position]
        packet = av.Packet(content[offset : offset + size])
        packet.pts = time
        return packet

    def create_decoder(self) -> av.VideoCodecContext:
        """Returns a new decoder of the packets."""
        codec = av.VideoCodecContext.create("h264", "r")
        codec.extradata = self.header
        set_up_decoder(codec)
        return codec


def owner(codec_name: str) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Returns a function that makes a decoder's frame ours.

    Gaps show what the memory held before. That depends on the packets alone if the
    decoder gets the memory of every frame back, also of those that nobody reads.
    """
    return copy_frame if codec_name in LEAVES_GAPS else lambda frame: frame


class TableError(Exception):
    """The decoder's frames are not those that the packets announced."""


class PacketDecoder:
    """Decodes frames by their packet table, from as few packets as possible."""

    def __init__(
        self,
        codec: av.VideoCodecContext,
        new_codec: Callable[[], av.VideoCodecContext],
        get_packet: Callable[[int], av.Packet],
        table: PacketTable,
        name: str,
    ):
        """Takes over a new decoder.

        `new_codec` returns another like it, `get_packet` the packet at a position.
        """
        self.codec, self._new_codec, self.get_packet = codec, new_codec, get_packet
        self.table, self._name = table, name
        self._leaves_gaps = codec.name in LEAVES_GAPS
        # Whether a flush leaves something of what was decoded, which frames may show.
        self._is_stale = self._has_damage = False

    def decode(self, indices: list[int]) -> Iterator[Frame]:
        """Yields the frames of indices that increase.

        Raises:
            VideoError: a frame may depend on damage that the decoder reports, or on a
                frame that is missing.
            TableError: other frames came out than the packets announced.
        """
        # Frames that are decoded in one run from `start` to `end`.
        run: list[int] = []
        run_start = run_end = -1
        for index in indices:
            position = self.table.positions[index]
            if position in self.table.unsure:
                raise self._damage(f"frame {index}")
            start = self._start_of(position)
            # Gaps depend on where decoding has started.
            if run and (start > run_end or self._leaves_gaps and start != run_start):
                yield from self._try_run(run_start, run_end, run)
                run = []
            if not run:
                run_start = start
            run.append(index)
            run_end = max(run_end, position)
        yield from self._try_run(run_start, run_end, run)

    def _start_of(self, position: int) -> int:
        """Returns the last position from which decoding gives an exact frame."""
        start, times = position, self.table.times
        # Frames shown before a keyframe but coded after it refer to what precedes it.
        while not self.table.starts[start] or times[start] > times[position]:
            start -= 1
        return start

    def _try_run(self, start: int, end: int, indices: list[int]) -> Iterator[Frame]:
        """Decodes a run; only a decoder that has not decoded anything may refuse it."""
        frames = self._decode_run(start, end, indices)
        if self.codec.is_open and not self._is_stale:
            try:
                frames = list(frames)
            except VideoError:
                frames = self._decode_run(start, end, indices)
        yield from frames

    def _decode_run(self, start: int, end: int, indices: list[int]) -> Iterator[Frame]:
        """Yields frames whose packets are at `start` to `end`, decoded from `start`."""
        if self._is_stale:
            self.codec = self._new_codec()
        elif self.codec.is_open:
            self.codec.flush_buffers()
        self._is_stale, self._has_damage = True, False
        table, own = self.table, owner(self.codec.name)
        index_at = {table.positions[index]: index for index in indices}
        end = min(end + table.lookahead, len(table.times) - 1)
        sent = [
            position
            for position in range(start, end + 1)
            if not table.skippable[position] or position in index_at
        ]
        begin = table.times[start]
        announced = iter(
            sorted(
                (table.times[position], position)
                for position in sent
                if table.shown[position] and table.times[position] >= begin
            )
        )
        for frame in self._send(sent, indices):
            # Leading frames of an open GOP lack their references; none is requested.
            if frame.pts is not None and frame.pts < begin:
                continue
            time, position = next(announced, (None, -1))
            if time is None or frame.pts != time:
                raise TableError
            if frame.is_corrupt:
                self._refuse_damage(position, indices)
            if position in index_at:
                yield index_at[position], own(frame)
        if next(announced, None):
            raise TableError
        self._is_stale = self._leaves_gaps or self._has_damage

    def _send(
        self, positions: Iterable[int], indices: list[int]
    ) -> Iterator[av.VideoFrame]:
        """Sends packets to the decoder and yields all frames that it returns."""
        for position in positions:
            packet = self.get_packet(position)
            try:
                frames, is_damaged = decode_packet(self.codec, packet)
            except FFmpegError:
                frames, is_damaged = [], True
            if is_damaged or packet.is_corrupt:
                self._refuse_damage(position, indices)
            yield from frames
        try:
            # Frames held back for reordering.
            frames, is_damaged = decode_packet(self.codec, None)
        except FFmpegError:
            frames, is_damaged = [], True
        if is_damaged:
            raise self._damage(f"frames up to {indices[-1]}")
        yield from frames

    def _refuse_damage(self, damaged: int, indices: list[int]) -> None:
        """Raises if a requested frame is, or may depend on, the one at `damaged`."""
        self._has_damage = True
        isolated = self.table.skippable[damaged]
        for index in indices:
            position = self.table.positions[index]
            if position == damaged or position > damaged and not isolated:
                raise self._damage(f"frame {index}")

    def _damage(self, frames: str) -> VideoError:
        return VideoError(f"{self._name}: {frames} cannot be decoded: damaged data")
