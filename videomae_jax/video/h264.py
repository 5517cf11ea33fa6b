"""Headers of H.264 packets: who refers to whom, and where a reference is missing.

Sections and tables are those of ITU-T H.264.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import av

# Types of NAL units, table 7-1.
SLICE, IDR_SLICE, SPS, PPS = 1, 5, 7, 8
_SETS, _SLICES = {SPS, PPS}, {SLICE, IDR_SLICE}
_DROPPABLE = {SLICE, 6, 9, 12}  # with messages, delimiters and filler data

_B, _I = 1, 2  # types of slices modulo 5, table 7-6

# Profiles whose sequence parameter sets describe the chroma, section 7.3.2.1.1.
_WITH_CHROMA = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}

# Bytes of a first slice that are read: up to 43 bits of its header, and escapes.
_HEADER_BYTES = 10


class Picture(NamedTuple):
    """The contents of a packet, by its headers.

    Attributes:
        units: the types of its NAL units; empty if they are malformed.
        skippable: whether no other picture refers to anything in the packet.
        has_b_slice: whether it has B-slices.
        is_unsure: whether it may refer to a picture that is missing. The decoder then
            makes one up, in part from what its memory held before, without an error.
    """

    units: set[int]
    skippable: bool
    has_b_slice: bool
    is_unsure: bool


class _Sequence(NamedTuple):
    """Fields of a sequence parameter set."""

    bits: int  # of colour_plane_id and frame_num, which follow each other
    numbers: int  # MaxFrameNum
    has_gaps: bool  # of frame_num where nothing is missing


class PacketParser:
    """Reads the headers of a stream's packets, in decoding order.

    Reference pictures are numbered (frame_num, section 7.4.3): a gap shows that some
    are missing. Later ones may refer to them, until the next keyframe.
    """

    def __init__(self, header: bytes):
        """Takes the codec's extradata.

        NAL units have length prefixes if it is an AVCDecoderConfigurationRecord;
        otherwise they have start codes (Annex B).
        """
        has_prefix = len(header) > 6 and header[0] == 1
        self._prefix = (header[4] & 3) + 1 if has_prefix else 0  # bytes
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # by picture parameter set
        self._last: int | None = None  # frame_num of the last reference picture
        # Frames that are shown before this time are unsure.
        self._sure_from = -math.inf
        sets = _recorded_sets(header) if has_prefix else header.split(b"\0\0\1")[1:]
        for unit in filter(None, sets):
            self._read_set(unit)

    def parse(self, packet: av.Packet) -> Picture:
        """Returns what a packet holds; assumes nothing if it is malformed."""
        units = self._split(bytes(packet))
        if not units or min(map(len, units)) < 2:
            return Picture(set(), False, False, self._is_unsure(packet))
        kinds, slices, is_reference = set(), set(), 0
        for unit in units:
            kind = unit[0] & 31
            kinds.add(kind)
            # nal_ref_idc, two bits, is 0 if no other picture refers to the unit.
            is_reference |= unit[0] & 0x60
            if kind in _SETS:
                self._read_set(unit)
            elif kind in _SLICES and unit[1] & 0x80:  # begins with macroblock 0
                slices.add(self._read_slice(unit))
        if self._sure_from == math.inf and _I in slices and packet.is_keyframe:
            # Of an open GOP: frames that are shown before it may refer across it.
            self._sure_from = -math.inf if packet.pts is None else packet.pts
        skippable = SLICE in kinds and not is_reference and kinds <= _DROPPABLE
        return Picture(kinds, skippable, _B in slices, self._is_unsure(packet))

    def _is_unsure(self, packet: av.Packet) -> bool:
        if self._sure_from == -math.inf or packet.pts is None:
            return self._sure_from == math.inf
        return packet.pts < self._sure_from

    def _split(self, data: bytes) -> list[bytes]:
        """Returns the NAL units of a packet."""
        if not self._prefix:
            return data.split(b"\0\0\1")[1:]
        offset, units = 0, []
        while offset < len(data):
            begin = offset + self._prefix
            offset = begin + int.from_bytes(data[offset:begin], "big")
            units.append(data[begin:offset])
        return units if offset == len(data) else []  # the last one is cut off

    def _read_set(self, unit: bytes) -> None:
        """Reads a unit if it is a parameter set."""
        bits, kind = _Bits(unit[1:]), unit[0] & 31
        try:
            if kind == PPS:
                identifier = bits.golomb()
                self._sequence_of[identifier] = bits.golomb()
            elif kind == SPS:
                identifier, sequence = _parse_sequence(bits)
                self._sequences[identifier] = sequence
        except ValueError:
            pass  # cut off: the decoder reports it

    def _read_slice(self, unit: bytes) -> int | None:
        """Reads the first slice of a picture; returns its type, None if cut off."""
        # As `_Bits` does it, in half the time: there is one in every packet.
        data = unit[1:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0")
        left = 8 * len(data) - 1
        value, slice_type = int.from_bytes(data, "big") ^ 1 << left, None
        try:
            left = 2 * value.bit_length() - left - 1
            code = value >> left
            value ^= code << left
            slice_type = (code - 1) % 5
            left = 2 * value.bit_length() - left - 1
            code = value >> left
            sequence = self._sequences[self._sequence_of[code - 1]]
            left -= sequence.bits
            self._follow(unit, (value >> left) % sequence.numbers, sequence)
        except (ValueError, KeyError):
            pass  # cut off, or without parameters: the decoder reports it
        return slice_type

    def _follow(self, unit: bytes, number: int, sequence: _Sequence) -> None:
        """Notes the frame_num of a picture that begins with `unit`."""
        if unit[0] & 31 == IDR_SLICE:
            self._sure_from = -math.inf
        elif self._last is not None and not sequence.has_gaps:
            if number not in (self._last, (self._last + 1) % sequence.numbers):
                self._sure_from = math.inf
        if unit[0] & 0x60:
            self._last = number


def _recorded_sets(record: bytes) -> Iterator[bytes]:
    """Yields the parameter sets of an AVCDecoderConfigurationRecord."""
    offset = 5
    for mask in (31, 255):  # sequence, then picture parameter sets
        count = int.from_bytes(record[offset : offset + 1], "big") & mask
        offset += 1
        for _ in range(count):
            begin = offset + 2
            offset = begin + int.from_bytes(record[offset:begin], "big")
            yield record[begin:offset]


def _parse_sequence(bits: "_Bits") -> tuple[int, _Sequence]:
    """Returns the number and the fields of a sequence parameter set, 7.3.2.1.1."""
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    identifier, plane_bits = bits.golomb(), 0
    if profile in _WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            plane_bits = 2 * bits.take(1)
        for _ in range(2):
            bits.golomb()  # bits per value
        bits.take(1)  # lossless
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    bits.skip_scaling_list(16 if index < 6 else 64)
    number_bits = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        for _ in range(2):
            bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # number of references
    has_gaps = bool(bits.take(1))
    if number_bits > 16:
        raise ValueError("damaged")
    return identifier, _Sequence(plane_bits + number_bits, 1 << number_bits, has_gaps)


class _Bits:
    """Reads the bits of a NAL unit; raises ValueError at its end."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention, section 7.4.1
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """Returns an unsigned number."""
        self._left -= count
        number = self._value >> self._left
        self._value -= number << self._left
        return number

    def golomb(self) -> int:
        """Returns an unsigned Exp-Golomb number, section 9.1."""
        zeros = self._left - self._value.bit_length()
        return self.take(2 * zeros + 1) - 1

    def skip_scaling_list(self, size: int) -> None:
        """Reads a list of signed differences, section 7.3.2.1.1.1."""
        scale = 8
        for _ in range(size):
            code = self.golomb()
            scale = (scale + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
            if not scale:
                return
