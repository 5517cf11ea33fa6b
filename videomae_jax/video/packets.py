"""Which packet holds which frame, and where decoding may begin.

Both are read from packet headers without decoding.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import av

# Codecs of which one shown packet is one frame and decoding may begin at a keyframe.
_INDEXABLE = frozenset(
    "h264 hevc vp8 vp9 av1 mpeg1video mpeg2video mpeg4 mjpeg ffv1 prores".split()
)
# Codecs that reorder frames and whose packets do not say so in a place easy to read.
_OPAQUE_ORDER = frozenset({"hevc", "mpeg1video", "mpeg2video"})
# No codec here holds back more frames than this before it shows one.
_MAX_REORDER = 16

# Types of H.264 NAL units.
_SLICE, _IDR_SLICE = 1, 5
_PARAMETER_SETS = {7, 8}
_DROPPABLE = {_SLICE, 6, 9, 12}  # With messages, delimiters and filler.

_MPEG4_PICTURE = b"\0\0\1\xb6"
# A coded MPEG-4 picture is longer; a shorter one says "show nothing new".
_MPEG4_EMPTY = 12


@dataclasses.dataclass(frozen=True)
class PacketTable:
    """The frames of a video and their packets, those in decoding order.

    Attributes:
        times: By packet, the time its frame is shown; `None` if it shows nothing.
        positions: By frame, the position of its packet; there is at least one frame.
        starts: By packet, whether decoding may begin with it.
        skippable: By packet, whether no other packet's frame needs it.
        lookahead: How many packets after that of the last wanted frame to decode too,
            for their frames to show whether the times are right.
    """

    times: list[int | None]
    positions: list[int]
    starts: list[bool]
    skippable: list[bool]
    lookahead: int


def packet_table(
    stream: av.VideoStream, packets: Sequence[av.Packet]
) -> PacketTable | None:
    """Finds which packet holds which frame and where decoding may begin.

    Args:
        stream: The video stream, with its decoder.
        packets: All its packets that hold data, in decoding order; at least one.

    Returns:
        The table, or `None` if the packets do not determine it.
    """
    # The canonical name: the decoder's own may differ, as libdav1d's from av1.
    codec = stream.codec_context.codec.canonical_name
    times = [packet.pts for packet in packets]
    if codec not in _INDEXABLE or None in times or len(set(times)) < len(times):
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
        # After a keyframe that is no IDR picture, frames may refer to what came
        # before it (open GOP), or become exact only later (intra refresh). And if
        # packets carry parameter sets, a start must bring its own.
        sets = any(picture.units & _PARAMETER_SETS for picture in pictures)
        needed = {_IDR_SLICE} | (_PARAMETER_SETS if sets else set())
        starts = [picture.units >= needed for picture in pictures]
    elif codec == "mpeg4":
        for packet in packets:
            _, *pictures = bytes(packet).split(_MPEG4_PICTURE)
            if len(pictures) != 1 or len(pictures[0]) < _MPEG4_EMPTY:
                return None  # Not one picture per packet.
            reordered |= pictures[0][0] >> 6 == 2  # The coding type of B-frames.
    elif codec == "vp8":
        # An invisible reference frame has its own packet and timestamp.
        shown = [
            show and bool(memoryview(packet)[0] & 0x10)
            for show, packet in zip(shown, packets, strict=True)
        ]
    elif codec in _OPAQUE_ORDER and in_order:
        # Reordering or decoding times in place of presentation times? The frames
        # after a wanted one have to tell.
        lookahead = _MAX_REORDER
    if reordered and in_order:
        return None  # These are decoding times: AVI has no others.
    if not starts[0]:
        return None  # How much comes out before the first start is up to the decoder.
    if any(packet.has_sidedata("new_extradata") for packet in packets[1:]):
        return None  # A jump would miss the change.
    latest = times[0]
    for time, start, show in zip(times, starts, shown, strict=True):
        if start and time < latest or time < times[0] and show:
            return None  # Time runs backwards, or frames lead the first keyframe.
        latest = max(latest, time)
    positions = [position for position, show in enumerate(shown) if show]
    if not positions:
        return None
    return PacketTable(
        times=[t if show else None for t, show in zip(times, shown, strict=True)],
        positions=sorted(positions, key=times.__getitem__),
        starts=starts,
        skippable=skippable,
        lookahead=lookahead,
    )


class _H264Picture(NamedTuple):
    """What the NAL units of one packet say."""

    units: set[int]  # Their types.
    skippable: bool  # No other picture needs anything in it.
    has_b_slice: bool


def _parse_h264(packet: av.Packet, header: bytes) -> _H264Picture:
    """Reads the headers of a packet's NAL units.

    Args:
        packet: An access unit: units behind their lengths if `header` is an
            AVCDecoderConfigurationRecord, else behind start codes (Annex B).
        header: The codec's extradata.

    Returns:
        The picture; one that nothing may be assumed of if the units are malformed.
    """
    data = bytes(packet)
    if len(header) > 6 and header[0] == 1:
        width = (header[4] & 3) + 1
        offset, units = 0, []
        while offset < len(data):
            begin = offset + width
            offset = begin + int.from_bytes(data[offset:begin], "big")
            units.append(data[begin : begin + 2])
        intact = offset == len(data)
    else:
        units = data.split(b"\0\0\1")[1:]
        intact = True
    if not intact or not units or min(map(len, units)) < 2:
        return _H264Picture(set(), False, False)
    types = {unit[0] & 31 for unit in units}
    # The two bits that tell whether others refer to the unit.
    skippable = types <= _DROPPABLE and not any(unit[0] & 0x60 for unit in units)
    # A picture's first slice begins with "1" (macroblock 0) and then, for B, "010" or
    # "00111": two Exp-Golomb numbers.
    has_b_slice = any(
        unit[0] & 31 == _SLICE and (unit[1] >> 4 == 0b1010 or unit[1] >> 2 == 0b100111)
        for unit in units
    )
    return _H264Picture(types, skippable and _SLICE in types, has_b_slice)
