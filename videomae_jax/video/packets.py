"""Packet tables: which packet holds which frame, and where decoding can start.

A table is made from the packet headers of a whole file, without decoding. `PacketIndex`
stores it with a prepared video: opening the video then takes a twentieth of a
millisecond instead of several, which is a third of the cost of reading a clip.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import av

from videomae_jax.video.container import set_up_decoder

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

# Types of H.264 NAL units.
_SLICE, _IDR_SLICE = 1, 5
_PARAMETER_SETS = {7, 8}
_DROPPABLE = {_SLICE, 6, 9, 12}  # with messages, delimiters and filler data

_MPEG4_PICTURE = b"\0\0\1\xb6"
# A coded MPEG-4 picture is longer; a shorter one says "show nothing new".
_MPEG4_EMPTY = 12

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
    """

    times: list[int]
    shown: list[bool]
    starts: list[bool]
    skippable: list[bool]
    lookahead: int = 0

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
    reordered = False
    shown = [not packet.is_discard for packet in packets]
    starts = [packet.is_keyframe for packet in packets]
    skippable = [False] * len(packets)
    lookahead = 0
    if codec == "h264":
        header = stream.codec_context.extradata or b""
        pictures = [_parse_h264(packet, header) for packet in packets]
        skippable = [picture.skippable for picture in pictures]
        reordered = any(picture.has_b_slice for picture in pictures)
        # After a keyframe that is not an IDR picture, frames may refer to earlier ones
        # (open GOP), or become exact only later (intra refresh). And if packets carry
        # parameter sets, a start must have its own.
        sets = any(picture.units & _PARAMETER_SETS for picture in pictures)
        needed = {_IDR_SLICE} | (_PARAMETER_SETS if sets else set())
        starts = [picture.units >= needed for picture in pictures]
    elif codec == "mpeg4":
        for packet in packets:
            _, *pictures = bytes(packet).split(_MPEG4_PICTURE)
            if len(pictures) != 1 or len(pictures[0]) < _MPEG4_EMPTY:
                return None  # not one picture per packet
            reordered |= pictures[0][0] >> 6 == 2  # the coding type of B-frames
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
    if reordered and in_order:
        return None  # these are decoding times: AVI has no others
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
    for time, start, show in zip(times, starts, shown, strict=True):
        if start and time < latest or time < times[0] and show:
            return None  # time runs backwards, or frames precede the first keyframe
        latest = max(latest, time)
    return PacketTable(times, shown, starts, skippable, lookahead)


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


class _H264Picture(NamedTuple):
    units: set[int]  # the types of the packet's NAL units
    skippable: bool  # no other picture refers to anything in the packet
    has_b_slice: bool


def _parse_h264(packet: av.Packet, header: bytes) -> _H264Picture:
    """Reads the headers of a packet's NAL units; assumes nothing if one is malformed.

    The units have length prefixes if `header`, the codec's extradata, is an
    AVCDecoderConfigurationRecord; otherwise they have start codes (Annex B).
    """
    data = bytes(packet)
    if len(header) > 6 and header[0] == 1:
        width = (header[4] & 3) + 1
        offset, units = 0, []
        while offset < len(data):
            begin = offset + width
            offset = begin + int.from_bytes(data[offset:begin], "big")
            units.append(data[begin : begin + 2])
        if offset > len(data):
            units = []  # the last one is cut off
    else:
        units = data.split(b"\0\0\1")[1:]
    if not units or min(map(len, units)) < 2:
        return _H264Picture(set(), False, False)
    types = {unit[0] & 31 for unit in units}
    # nal_ref_idc, two bits, is 0 if no other picture refers to the unit.
    skippable = types <= _DROPPABLE and not any(unit[0] & 0x60 for unit in units)
    # A picture's first slice begins with "1" (macroblock 0) and then, for B, "010" or
    # "00111": two Exp-Golomb numbers.
    has_b_slice = any(
        unit[0] & 31 == _SLICE and (unit[1] >> 4 == 0b1010 or unit[1] >> 2 == 0b100111)
        for unit in units
    )
    return _H264Picture(types, skippable and _SLICE in types, has_b_slice)


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
