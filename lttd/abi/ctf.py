"""The packets of a CTF stream: header and context as arrays, at places that the metadata states.

A packet is the trace's packet header, the stream's packet context, events, and padding.  Its sizes
are in bits and count from its begin: ``content_size`` up to the last event, ``packet_size`` with
the padding.  Either may be absent: then content is the whole packet, and the packet the whole file.

A ``PacketLayout`` says where the fields are.  A stream's object in the manifest has it as a text,
so that packets are walked without reading the metadata:

    stream_id 20 4 little; timestamp_begin 32 8 little; ...; header 84; clock 1000000000

Rule: times are returned in ns since the clock's origin, floor(cycles * 10^9 / frequency).
Rule: no bytes of a packet raise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import I64, U64, Buffer, Readable
from lttd.abi.ctf_classes import (
    ByteOrder,
    Enumeration,
    Integer,
    MetadataError,
    Role,
    Struct,
    Trace,
    aligned,
    alignment,
    fixed_bits,
)
from lttd.abi.gather import gather
from lttd.abi.ltt import scaled
from lttd.limits import CTF_PACKET

Mask = npt.NDArray[np.bool_]

NAME: Final = "ctf"
"""The name of this ABI."""
MAGIC: Final = 0xC1FC1FC1
_NS: Final = 1_000_000_000
_MOST_FREQUENCY: Final = 1 << 54
_MOST_HEADER_BYTES: Final = (1 << 16) - 1
UNFINISHED: Final = (1 << 64) - 1

_NAMES: Final[Mapping[Role, str]] = {
    "packet-magic-number": "magic",
    "data-stream-class-id": "stream_id",
    "data-stream-id": "stream_instance_id",
    "packet-total-length": "packet_size",
    "packet-content-length": "content_size",
    "packet-sequence-number": "packet_seq_num",
    "discarded-event-record-counter-snapshot": "events_discarded",
    "default-clock-timestamp": "timestamp_begin",
    "packet-end-default-clock-timestamp": "timestamp_end",
}
_CPU: Final = "cpu_id"
"""It has no role in CTF 2; its name is the same in both."""
FIELDS: Final = (*_NAMES.values(), _CPU)
_FIELD: Final = re.compile(rf"({'|'.join(FIELDS)}) ([0-9]{{1,5}}) ([1248]) (little|big)")
_REST: Final = re.compile(r"header ([0-9]{1,5}); clock ([0-9]{1,17})")


class PacketField(NamedTuple):
    """Where an unsigned number of a packet's header is."""

    at_bytes: int
    size_bytes: int
    byteorder: ByteOrder

    @property
    def dtype(self) -> np.dtype[np.uint64]:
        """Its type as a column."""
        order = "<" if self.byteorder == "little" else ">"
        found: np.dtype[np.uint64] = np.dtype(f"{order}u{self.size_bytes}")
        return found

    @property
    def behind_bytes(self) -> int:
        """The byte after it."""
        return self.at_bytes + self.size_bytes


@dataclass(frozen=True)
class PacketLayout:
    """Where the fields of the packets of one stream are."""

    fields: Mapping[str, PacketField]
    """By their names in CTF 1.8, those of FIELDS; some may be absent."""
    header_bytes: int
    """The least size of header and context."""
    frequency_hz: int
    """Of the clock of the times; 10^9 if there is none."""

    def __str__(self) -> str:
        """Return the text for the manifest."""
        fields = [
            f"{name} {at.at_bytes} {at.size_bytes} {at.byteorder}"
            for name, at in self.fields.items()
        ]
        return "; ".join([*fields, f"header {self.header_bytes}", f"clock {self.frequency_hz}"])

    @classmethod
    def parse(cls, text: str) -> "PacketLayout":
        """Read what str() made.

        Raises:
            ValueError: it is not valid.
        """
        parts = text.split("; ")
        rest = _REST.fullmatch("; ".join(parts[-2:]))
        fields = dict[str, PacketField]()
        for part in parts[:-2]:
            match = _FIELD.fullmatch(part)
            if match is None or match[1] in fields:
                raise ValueError(f"'{part[:40]}' is not a field of a packet")
            order: ByteOrder = "little" if match[4] == "little" else "big"
            fields[match[1]] = PacketField(int(match[2]), int(match[3]), order)
        if rest is None or not 0 < int(rest[2]) < _MOST_FREQUENCY:
            raise ValueError("the layout of packets has no valid end")
        header_bytes = int(rest[1])
        if any(at.behind_bytes > header_bytes for at in fields.values()):
            raise ValueError("a field of a packet is not in its header")
        return cls(fields, header_bytes, int(rest[2]))

    @classmethod
    def of(cls, trace: Trace, stream_id: int) -> "PacketLayout":
        """Find the fields of a stream's packets.

        Raises:
            MetadataError: the stream is not declared, or a field is not where it can be read.
        """
        stream = trace.streams.get(stream_id)
        if stream is None:
            raise MetadataError(f"the metadata declares no stream of id {stream_id}")
        found = dict[str, PacketField]()
        at: int | None = 0
        for struct in (trace.packet_header, stream.packet_context):
            if struct is not None and at is not None:
                at = _find(struct, at, found)
        behind = max([0, *(field.behind_bytes for field in found.values())])
        header_bytes = behind if at is None else -(-at // 8)
        if header_bytes > _MOST_HEADER_BYTES:
            raise MetadataError(
                f"the header of a packet has {header_bytes:,} bytes; at most"
                f" {_MOST_HEADER_BYTES:,} are possible"
            )
        clock = trace.clocks.get(stream.clock or "")
        frequency = _NS if clock is None else clock.frequency_hz
        if not 0 < frequency < _MOST_FREQUENCY:
            raise MetadataError(f"a clock of {frequency} Hz is not possible")
        return cls(found, header_bytes, frequency)

    def ns_of(self, cycles: U64) -> U64:
        """Convert times of the clock to ns; 2**64 - 1 if they are larger."""
        if self.frequency_hz == _NS:
            return cycles
        return scaled(cycles, _NS, self.frequency_hz)


def _find(struct: Struct, at: int, found: dict[str, PacketField]) -> int | None:
    """Find fields in a structure at bit *at* or later; return its end, None if data decides it."""
    at = aligned(at, struct.align_bits)
    for name, of in struct.members:
        at = aligned(at, alignment(of))
        number = of.container if isinstance(of, Enumeration) else of
        if isinstance(number, Integer) and (known := _name_of(name, number)) is not None:
            found[known] = _field(known, number, at)
        if isinstance(of, Struct):
            end = _find(of, at, found)
        else:
            size = fixed_bits(of)
            end = None if size is None else at + size
        if end is None:
            return None
        at = end
    return at


def _name_of(name: str, of: Integer) -> str | None:
    for role in of.roles:
        if role in _NAMES:
            return _NAMES[role]
    return _CPU if name == _CPU else None


def _field(name: str, of: Integer, at: int) -> PacketField:
    if at % 8 or of.size_bits not in (8, 16, 32, 64) or of.signed:
        raise MetadataError(
            f"{name} of a packet is not an unsigned integer of 1, 2, 4 or 8 whole bytes"
        )
    if at // 8 > _MOST_HEADER_BYTES:
        raise MetadataError(f"{name} of a packet is not within its first 64 KiB")
    return PacketField(at // 8, of.size_bits // 8, of.byteorder)


class PacketHeaders(NamedTuple):
    """The packets at some offsets, as columns with an element for each."""

    sound: Mask
    """True if magic, stream and sizes are possible; otherwise the other columns are invalid."""
    content_bits: U64
    packet_bits: U64
    begin: U64
    """ns; 0 if packets do not state it."""
    end: U64
    """ns; 0 if packets do not state it."""
    discarded: U64
    """Running total of lost events, modulo the size of the field."""
    sequence: U64
    instance: U64
    cpu: U64

    @property
    def content_bytes(self) -> I64:
        """Bytes of header and content; a begun byte counts."""
        whole = (self.content_bits + np.uint64(7)) >> np.uint64(3)
        return whole.astype(np.int64)

    @property
    def packet_bytes(self) -> I64:
        """Bytes with the padding."""
        return (self.packet_bits >> np.uint64(3)).astype(np.int64)

    def some(self, which: slice | Mask | npt.NDArray[np.intp]) -> "PacketHeaders":
        """Return some of the packets."""
        sound, *columns = self
        return PacketHeaders(sound[which], *(column[which] for column in columns))

    @classmethod
    def joined(cls, some: Sequence["PacketHeaders"]) -> "PacketHeaders":
        """Return the packets of several in a row; there has to be one."""
        sound, *columns = zip(*some, strict=True)
        return cls(np.concatenate(sound), *map(np.concatenate, columns))


def headers_at(
    data: Buffer, offsets_bytes: I64, layout: PacketLayout, stream_id: int, room_bytes: int = -1
) -> PacketHeaders:
    """Read packets at given offsets; ``sound`` also means that all content is there.

    The padding of a file's last packet may be missing.  *room_bytes*: the length of what *data* is
    the begin of; negative: its own.
    """
    room = len(data) if room_bytes < 0 else room_bytes
    inside = (offsets_bytes >= 0) & (offsets_bytes <= len(data) - layout.header_bytes)
    left = np.where(inside, room - offsets_bytes, 0).astype(np.uint64)

    def column(name: str, absent: U64 | int = 0) -> U64:
        values = np.zeros(len(offsets_bytes), np.uint64)
        field = layout.fields.get(name)
        if field is None:
            values[:] = absent
        else:
            values[inside] = gather(data, offsets_bytes[inside] + field.at_bytes, field.dtype)
        return values

    eight = np.uint64(3)
    packet = column("packet_size", left << eight)
    content = column("content_size", packet)
    sound = inside & (column("magic", MAGIC) == np.uint64(MAGIC))
    sound &= column("stream_id", stream_id) == np.uint64(stream_id)
    sound &= (content <= packet) & (content >> eight >= np.uint64(layout.header_bytes))
    sound &= (packet % np.uint64(8) == 0) & (content < np.uint64(1 << 62))
    whole = (content + np.uint64(7)) >> eight
    sound &= (whole <= left) & (whole > 0) & (whole <= np.uint64(CTF_PACKET.most))
    begin, end = layout.ns_of(column("timestamp_begin")), layout.ns_of(column("timestamp_end"))
    return PacketHeaders(
        sound,
        content,
        packet,
        begin,
        end,
        column("events_discarded"),
        column("packet_seq_num"),
        column("stream_instance_id"),
        column(_CPU),
    )


def packed_heads(
    data: Buffer, offsets_bytes: I64, packet_bytes: I64, layout: PacketLayout
) -> npt.NDArray[np.uint8] | None:
    """Return the first bytes of packets, with *packet_bytes* for their sizes.

    Shape (n, bytes up to the size).  None: packets do not state their sizes.
    """
    field = layout.fields.get("packet_size")
    if field is None:
        return None
    heads = gather(data, offsets_bytes, np.dtype((np.void, field.behind_bytes)))
    found = heads.view(np.uint8).reshape(len(offsets_bytes), field.behind_bytes).copy()
    sizes = (packet_bytes.astype(np.uint64) << np.uint64(3)).astype(field.dtype)
    found[:, field.at_bytes :] = sizes.view(np.uint8).reshape(-1, field.size_bytes)
    return found


def adjoining(data: Readable, start_bytes: int, layout: PacketLayout) -> Iterator[int]:
    """Yield the offsets of adjoining packets, as far as their sizes lead; the last may be cut."""
    at, room = start_bytes, len(data)
    field = layout.fields.get("packet_size")
    while at + layout.header_bytes <= room:
        yield at
        if field is None:
            return
        begin = at + field.at_bytes
        size = int.from_bytes(data[begin : begin + field.size_bytes], field.byteorder) >> 3
        if size < max(layout.header_bytes, 1) or size == UNFINISHED >> 3:
            return
        at += size
