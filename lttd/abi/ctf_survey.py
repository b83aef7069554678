"""All packets in a file of a CTF stream, and the bytes that hold none.

Rule: no bytes of a file raise.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from lttd.abi.base import I64, Readable, Unreadable
from lttd.abi.ctf import MAGIC, UNFINISHED, PacketHeaders, PacketLayout, adjoining, headers_at

_AT_ONCE: Final = 4096
# After damage: near it first, because each damage is searched for its end.
_FIRST_SEARCH_BYTES: Final = 4096
_SEARCH_BYTES: Final = 1 << 20


class Survey(NamedTuple):
    """The packets and the damage of a whole file."""

    offsets_bytes: I64
    headers: PacketHeaders
    damage: list[Unreadable]
    stream_id: int


def survey_of(
    data: Readable, layout: PacketLayout, stream_id: int, most_packets: int = 1 << 62
) -> Survey:
    """Follow the packets from the first byte to the last, and skip damage.

    After bytes that do not parse, it tries every place with the magic number.  It ends with more
    than *most_packets*, which the caller refuses.
    """
    offsets, found, damage = [], [], list[Unreadable]()
    at, room, number = 0, len(data), 0
    while at < room and number <= most_packets:
        behind = at
        for places, headers in _runs(data, at, layout, stream_id):
            bad = np.flatnonzero(~headers.sound)
            count = int(bad[0]) if len(bad) else len(places)
            offsets.append(places[:count])
            found.append(headers.some(slice(count)))
            number += count
            if count:
                behind = min(int(places[count - 1] + headers.packet_bytes[count - 1]), room)
            if len(bad) or number > most_packets:
                break
        at = behind
        if at < room and number <= most_packets:
            following = _next_sound(data, at, layout, stream_id)
            reason, torn = _reason(data, at, layout, stream_id)
            damage.append(
                Unreadable(number, at, following - at, torn and following == room, reason)
            )
            at = following
    if not found:
        none = np.zeros(0, np.int64)
        return Survey(none, headers_at(b"", none, layout, stream_id), damage, stream_id)
    return Survey(np.concatenate(offsets), PacketHeaders.joined(found), damage, stream_id)


def _runs(
    data: Readable, at: int, layout: PacketLayout, stream_id: int
) -> Iterator[tuple[I64, PacketHeaders]]:
    """Yield adjoining packets, some at a time, with their headers."""
    places: list[int] = []
    for place in adjoining(data, at, layout):
        places.append(place)
        if len(places) == _AT_ONCE:
            yield _read(data, places, layout, stream_id)
            places = []
    if places:
        yield _read(data, places, layout, stream_id)


def _read(
    data: Readable, places: list[int], layout: PacketLayout, stream_id: int
) -> tuple[I64, PacketHeaders]:
    """Read the headers alone, with what is left of the file after each."""
    size, room = layout.header_bytes, len(data)
    heads = b"".join(bytes(data[at : at + size]).ljust(size, b"\0") for at in places)
    offsets = np.array(places, np.int64)
    headers = headers_at(
        heads, np.arange(len(places), dtype=np.int64) * size, layout, stream_id, room
    )
    left = room - offsets
    if "packet_size" not in layout.fields:  # then it is the rest of the file
        bits = left.astype(np.uint64) << np.uint64(3)
        headers = headers._replace(packet_bits=bits)
        if "content_size" not in layout.fields:
            headers = headers._replace(content_bits=bits)
    return offsets, headers._replace(sound=headers.sound & (headers.content_bytes <= left))


def _next_sound(data: Readable, at: int, layout: PacketLayout, stream_id: int) -> int:
    """Return the offset of the next whole packet after *at*; else the end of the file."""
    room, field = len(data), layout.fields.get("magic")
    if field is None:
        return room
    magic = MAGIC.to_bytes(field.size_bytes, field.byteorder)
    start, size = at + 1, _FIRST_SEARCH_BYTES
    while start < room:
        part = bytes(data[start : start + size + field.behind_bytes])
        places = [
            start + match.start() - field.at_bytes for match in re.finditer(re.escape(magic), part)
        ]
        for first in range(0, len(places), _AT_ONCE):
            some = [place for place in places[first : first + _AT_ONCE] if place > at]
            if not some:
                continue
            offsets, headers = _read(data, some, layout, stream_id)
            if headers.sound.any():
                return int(offsets[headers.sound.argmax()])
        start += size
        size = min(2 * size, _SEARCH_BYTES)
    return room


def _reason(data: Readable, at: int, layout: PacketLayout, stream_id: int) -> tuple[str, bool]:
    """Return why no packet begins at *at*, and whether one begins whose end is not in the file."""
    room = len(data)
    if room - at < layout.header_bytes:
        return f"{room - at} bytes, which are less than a packet's header", True
    head = bytes(data[at : at + layout.header_bytes])
    if not any(head):
        return "zeros instead of a packet", False
    found = headers_at(head, np.zeros(1, np.int64), layout, stream_id, 1 << 61)
    if found.sound[0]:
        size = int(found.content_bytes[0])
        return f"a packet of {size} bytes of content, of which {room - at} are there", True
    field = layout.fields.get("magic")
    magic = head[field.at_bytes : field.behind_bytes] if field else b""
    if field and int.from_bytes(magic, field.byteorder) != MAGIC:
        return "no packet begins here", False
    if int(found.packet_bits[0]) == UNFINISHED:
        return "a packet that the tracer did not finish", True
    return "the sizes or the stream in a packet's header are impossible", False
