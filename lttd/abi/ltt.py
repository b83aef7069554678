"""Sub-buffers of LTTng 0.x (LTT), trace formats 2.0 to 2.6, as its relay channels deliver them.

A sub-buffer is a header, events up to the used size, and padding with old bytes.  Up to 2.4 every
sub-buffer has the buffer's fixed size and states the unused bytes.  From 2.5 on it states the used
bytes, and the delivered bytes: the used ones, rounded up to the tracer's pages.  Integers are in
the tracer's byte order, which the magic shows.

Source of the layout: LTTng 0.x ``include/linux/ltt-tracer.h``, ``struct ltt_subbuffer_header``;
LTTV ``ltt/ltt-private.h`` of each minor version.  The header is ``offsetof(end)`` long.  In 2.0 it
is ``sizeof`` long, which 64-bit kernels round up to 64.

Rule: this module returns times in ns of the trace's own clock, floor(tsc * 10^9 * scale /
frequency), computed in integers (before 2.2 the scale multiplies the frequency).  So times compare
over all streams of a trace, and no digit is lost to a float.
Invariant: only layout_of() raises because of the bytes of a sub-buffer.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Readable
from lttd.abi.gather import gather
from lttd.subbuffer import ROW_DTYPE, Rows

Buffer = bytes | bytearray | memoryview
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NAME: Final = "ltt"
"""The name of this ABI."""
CLOCK: Final = "ltt-tsc"
"""The name of the clock in manifests: a count of cycles, in ns."""
MAGIC: Final = 0x00D6B7ED
MAGIC_AT: Final = 16
_OLD_MAGIC_AT: Final = 40  # up to format 1.0
_CTF_MAGIC: Final = 0xC1FC1FC1
MAJOR: Final = 2
LAST_MINOR: Final = 6
VARYING_SINCE: Final = 5
"""First minor version whose sub-buffers are delivered without their unused pages."""
LOSS_SINCE: Final = 2
"""First minor version that counts losses."""
LEAST_HEADER_BYTES: Final = 60
"""The common first part of all versions' headers, which holds all fields that stripping changes."""
MOST_HEADER_BYTES: Final = LEAST_HEADER_BYTES + 8
"""The header with the counts of losses."""
PAGE_BYTES: Final = 4096
"""The smallest page of any tracer: sub-buffers begin at multiples of it."""
_NS: Final = 1_000_000_000
# The remainder of the conversion must have room in a u64; no counter is this fast.
_MOST_FREQUENCY: Final = 1 << 55

_FIELDS: Final = (
    ("begin", "u8"),  # TSC; of a trace's first sub-buffers: when it was created
    ("end", "u8"),  # TSC when it was closed
    ("magic", "u4"),
    ("major", "u1"),
    ("minor", "u1"),
    ("pointer_bytes", "u1"),
    ("alignment", "u1"),  # 0: events are packed
    ("start_s", "u8"),  # wall clock when the trace was created
    ("start_us", "u8"),
    ("frequency", "u8"),
    ("scale", "u4"),
    ("used", "u4"),  # up to 2.4: bytes that are *not*
    ("size", "u4"),
)
_DTYPES: Final = {
    order: np.dtype([(name, order + number) for name, number in _FIELDS]) for order in "<>"
}
_LOSS_DTYPES: Final = {
    order: np.dtype([("events_lost", f"{order}u4"), ("corrupted", f"{order}u4")]) for order in "<>"
}
HEADS: Final = {order: struct.Struct(f"{order}2QI4B3Q3I") for order in "<>"}
"""The same layout as header_dtype(), for one header."""
_MAGICS: Final = {order: struct.pack(f"{order}I", MAGIC) for order in "<>"}


CARRIED: Final = "ltt"
"""The directory, in a segment that continues another one, of metadata from before it: a file
``<channel>_<cpu>`` of sub-buffers for each stream, with ``%2F`` for a slash."""


def is_metadata(channel: str) -> bool:
    """Tell whether a channel, by its name, is the one that describes the events of all others.

    It loses nothing, and its first sub-buffer begins when the trace was made.  Up to 2.2 it is in
    ``control/``.
    """
    return channel.rpartition("/")[2] == "metadata"


def header_dtype(order: str) -> np.dtype[np.void]:
    """Return the dtype of the common part of all headers; *order* is ``<`` or ``>``."""
    return _DTYPES[order]


def header_bytes_of(minor: int, pointer_bytes: int) -> int:
    """Return the offset of the first event in a sub-buffer of format 2.*minor*."""
    if minor >= LOSS_SINCE:
        return MOST_HEADER_BYTES
    return 64 if minor == 0 and pointer_bytes == 8 else LEAST_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """The properties of a trace that the header of each of its sub-buffers states."""

    order: str
    """Byte order, ``<`` or ``>``."""
    minor: int
    pointer_bytes: int
    alignment: int
    """The alignment of events, in bytes; 0: they are packed."""
    frequency: int
    """The frequency of the TSC, in Hz."""
    scale: int
    start_ns: int
    """Wall clock when the trace was created."""

    @property
    def header_bytes(self) -> int:
        """The offset of the first event."""
        return header_bytes_of(self.minor, self.pointer_bytes)

    @property
    def varying(self) -> bool:
        """Tell whether sub-buffers are delivered without their unused pages."""
        return self.minor >= VARYING_SINCE

    def ns_of(self, tsc: U64) -> U64:
        """Convert counts of cycles to ns; a result beyond u64 becomes the largest u64."""
        return scaled(tsc, *_ratio(self.minor, self.frequency, self.scale))


def layout_of(data: Readable, offset_bytes: int = 0) -> Layout:
    """Parse the header at *offset_bytes*.

    Raises:
        ValueError: there is no header; the message says which part is wrong.
    """
    head = bytes(data[offset_bytes : offset_bytes + LEAST_HEADER_BYTES])
    if len(head) < LEAST_HEADER_BYTES:
        raise ValueError(f"{len(head)} bytes are too few for a header")
    order = _order_of(head)
    if order is None:
        raise ValueError(_other_magic(head))
    _, _, _, major, minor, pointer, alignment, s, us, frequency, scale, _, _ = HEADS[order].unpack(
        head
    )
    if major != MAJOR or minor > LAST_MINOR:
        raise ValueError(f"format {major}.{minor}; known are 2.0 to 2.{LAST_MINOR}")
    if pointer not in (4, 8) or alignment not in (0, 4, 8):
        raise ValueError(f"pointers of {pointer} bytes and alignment {alignment} are impossible")
    if not is_clock(minor, frequency, scale):
        raise ValueError(f"a clock of {frequency} Hz, scale {scale}, is impossible")
    return Layout(order, minor, pointer, alignment, frequency, scale, s * _NS + us * 1000)


def _other_magic(head: bytes) -> str:
    """Name the format that begins with *head*, which is not one of 2.x."""
    if head[_OLD_MAGIC_AT:][:4] in _MAGICS.values():
        return "a format before 2.0; known are 2.0 to 2.6"
    if head[:4] in (_CTF_MAGIC.to_bytes(4, "little"), _CTF_MAGIC.to_bytes(4, "big")):
        return "CTF, which came after format 2.6"
    (found,) = struct.unpack_from("<I", head, MAGIC_AT)
    return f"magic {found:#010x} instead of {MAGIC:#010x}"


def has_magic(head: bytes) -> bool:
    """Tell by the magic whether *head* begins a sub-buffer."""
    return _order_of(head) is not None


def _order_of(head: bytes) -> str | None:
    magic = head[MAGIC_AT : MAGIC_AT + 4]
    return next((order for order, known in _MAGICS.items() if known == magic), None)


def _ratio(minor: int, frequency: int, scale: int) -> tuple[int, int]:
    """Return ns per cycle as a fraction in its lowest terms."""
    above, below = (_NS * scale, frequency) if minor >= LOSS_SINCE else (_NS, frequency * scale)
    divisor = gcd(above, below)
    return above // divisor, below // divisor


@lru_cache
def is_clock(minor: int, frequency: int, scale: int) -> bool:
    """Tell whether a header's clock is possible, and can be converted."""
    return frequency > 0 and scale > 0 and _ratio(minor, frequency, scale)[1] < _MOST_FREQUENCY


def scaled(counts: U64, above: int, below: int) -> U64:
    """Return floor(counts * *above* / *below*), exactly; 2**64 - 1 if the result is larger.

    *below* is less than 2**55.  This is a long division: it carries whole part and remainder
    through the digits of *above*, in a base that keeps every value within 64 bits.
    """
    limit = (1 << 64) * below // above - 1
    beyond = counts > np.uint64(min(limit, (1 << 64) - 1)) if limit < 1 << 64 else None
    divisor = np.uint64(below)
    whole, part = np.divmod(counts, divisor)
    bits = 63 - below.bit_length()
    quotient, rest = np.zeros_like(counts), np.zeros_like(counts)
    for shift in range((above.bit_length() - 1) // bits * bits, -1, -bits):
        digit = np.uint64((above >> shift) & ((1 << bits) - 1))
        carried, rest = np.divmod((rest << np.uint64(bits)) + part * digit, divisor)
        quotient = (quotient << np.uint64(bits)) + carried
    quotient += whole * np.uint64(above & ((1 << 64) - 1))
    if beyond is not None:
        quotient[beyond] = (1 << 64) - 1
    return quotient


class Headers(NamedTuple):
    """The headers at some offsets, as columns with an element for each."""

    sound: Mask
    """Whether magic, version, clock and sizes are possible; else the other columns are invalid."""
    used_bytes: I64
    """Bytes of header and events."""
    size_bytes: I64
    """Delivered bytes, padding included."""
    begin: U64
    """Trace clock, ns."""
    end: U64
    """Trace clock, ns; not before begin."""
    events_lost: U64
    """Running total since the buffer was created, modulo 2**32."""
    corrupted: U64
    """Running total of sub-buffers that the tracer could not close in order, modulo 2**32."""
    run: U64
    """Wall clock in us when the trace was created; another value is another trace."""


def headers_at(data: Buffer, offsets_bytes: I64, room_bytes: int | None = None) -> Headers:
    """Read headers at given offsets; ``sound`` also means that all used bytes are there.

    *room_bytes*: the length of what *data* is the begin of; None: its own.
    """
    room = len(data) if room_bytes is None else room_bytes
    inside = (offsets_bytes >= 0) & (offsets_bytes <= len(data) - LEAST_HEADER_BYTES)
    order = order_at(data, offsets_bytes[inside])
    found = np.zeros(len(offsets_bytes), _DTYPES[order])
    found[inside] = gather(data, offsets_bytes[inside], _DTYPES[order])
    minor, used, size = _sizes(found)
    sound = inside & (found["magic"] == MAGIC) & (found["major"] == MAJOR) & (minor <= LAST_MINOR)
    sound &= np.isin(found["pointer_bytes"], (4, 8)) & np.isin(found["alignment"], (0, 4, 8))
    header = np.where(minor >= LOSS_SINCE, MOST_HEADER_BYTES, LEAST_HEADER_BYTES)
    header[(minor == 0) & (found["pointer_bytes"] == 8)] = 64
    sound &= (used >= header) & (used <= size) & (offsets_bytes <= room - used)
    begin, end = _times(found, minor, sound)
    lost = np.zeros(len(found), _LOSS_DTYPES[order])
    counts = sound & (minor >= LOSS_SINCE) & (offsets_bytes <= len(data) - MOST_HEADER_BYTES)
    at = offsets_bytes[counts] + LEAST_HEADER_BYTES
    lost[counts] = gather(data, at, _LOSS_DTYPES[order])
    return Headers(
        sound,
        used,
        size,
        begin,
        np.maximum(begin, end),
        lost["events_lost"].astype(np.uint64),
        lost["corrupted"].astype(np.uint64),
        found["start_s"].astype(np.uint64) * np.uint64(1_000_000)
        + found["start_us"].astype(np.uint64),
    )


def order_at(data: Readable, offsets_bytes: Iterable[int]) -> str:
    """Return the byte order of the first of these offsets at which there is a magic."""
    for at in offsets_bytes:
        magic = bytes(data[at + MAGIC_AT : at + MAGIC_AT + 4])
        for order, known in _MAGICS.items():
            if magic == known:
                return order
    return "<"


def _sizes(found: npt.NDArray[np.void]) -> tuple[I64, I64, I64]:
    """Return minor version, used and delivered bytes; used is negative if the header is wrong."""
    minor = found["minor"].astype(np.int64)
    size = found["size"].astype(np.int64)
    said = found["used"].astype(np.int64)
    return minor, np.where(minor >= VARYING_SINCE, said, size - said), size


def _times(found: npt.NDArray[np.void], minor: I64, sound: Mask) -> tuple[U64, U64]:
    """Return begin and end in ns; clear *sound* where the clock is impossible."""
    begin, end = found["begin"].astype(np.uint64), found["end"].astype(np.uint64)
    todo = sound.copy()
    while todo.any():  # once, unless several traces were appended to one file
        first = int(todo.argmax())
        clock = int(minor[first]), int(found["frequency"][first]), int(found["scale"][first])
        same = todo & (found["frequency"] == clock[1]) & (found["scale"] == clock[2])
        same &= (minor >= LOSS_SINCE) == (clock[0] >= LOSS_SINCE)
        if is_clock(*clock):
            ratio = _ratio(*clock)
            begin[same], end[same] = scaled(begin[same], *ratio), scaled(end[same], *ratio)
        else:
            sound &= ~same
        todo &= ~same
    return begin, end


def packed_heads(data: Buffer, offsets_bytes: I64, used_bytes: I64) -> npt.NDArray[np.uint8]:
    """Return the headers of sub-buffers whose padding is cut off.

    Shape (n, LEAST_HEADER_BYTES): these bytes replace the first ones of each sub-buffer, so that a
    reader can still walk it.  The size becomes the used size, and the unused bytes (up to 2.4)
    become 0.  All sub-buffers must be sound.
    """
    return resized_heads(data, offsets_bytes, used_bytes, used_bytes)


def resized_heads(
    data: Buffer, offsets_bytes: I64, used_bytes: I64, sizes_bytes: I64
) -> npt.NDArray[np.uint8]:
    """Return the headers of sub-buffers that are to take *sizes_bytes* each."""
    heads = gather(data, offsets_bytes, _DTYPES[order_at(data, offsets_bytes)])
    varying = heads["minor"] >= VARYING_SINCE
    heads["used"] = np.where(varying, used_bytes, sizes_bytes - used_bytes)
    heads["size"] = sizes_bytes
    return heads.view(np.uint8).reshape(len(heads), LEAST_HEADER_BYTES)


class Taken(NamedTuple):
    """Sub-buffers in a buffer, as rows of a batch."""

    rows: Rows
    """The sound sub-buffers, with their own times; the stream sets sequence and discarded_total."""
    heads: npt.NDArray[np.uint8]
    """See packed_heads()."""
    headers: Headers
    """The headers of the sound sub-buffers."""
    damaged: list[tuple[int, int]]
    """For each that does not parse: (number of the row after it, its number in the input)."""


def rows_of(data: Buffer, offsets_bytes: I64, sizes_bytes: I64) -> Taken:
    """Read the sub-buffers at given offsets, each with its delivered size.

    A sub-buffer whose header states another size is damaged.
    """
    found = headers_at(data, offsets_bytes)
    sound = found.sound & (found.size_bytes == sizes_bytes)
    before = np.cumsum(sound) - sound
    damaged = [(int(before[number]), number) for number in np.flatnonzero(~sound).tolist()]
    headers = Headers(*(column[sound] for column in found))
    offsets = offsets_bytes[sound]
    rows = np.zeros(len(offsets), ROW_DTYPE)
    rows["offset_bytes"] = offsets
    rows["kernel_bytes"] = headers.size_bytes
    rows["payload_bytes"] = headers.used_bytes
    rows["content_bits"] = headers.used_bytes << 3
    rows["begin"], rows["end"] = headers.begin, headers.end
    heads = packed_heads(data, offsets, headers.used_bytes)
    return Taken(rows, heads, headers, damaged)
