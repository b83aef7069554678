"""Sub-buffers of LTTng 0.x (LTT), trace formats 2.0 to 2.6, as its relay channels deliver them.

A sub-buffer is a header, events up to the used size, and padding that is whatever was there before.
Up to 2.4 every sub-buffer has the buffer's fixed size and says how much of it is unused; from 2.5
on it says how much is used, and how much was delivered: that, rounded up to the tracer's pages.
Integers are in the tracer's byte order, which the magic tells.

Source of the layout: LTTng 0.x ``include/linux/ltt-tracer.h``, ``struct ltt_subbuffer_header``;
LTTV ``ltt/ltt-private.h`` of each minor version.  The header is ``offsetof(end)`` long, except in
2.0, where it is ``sizeof``, which 64-bit kernels round up to 64.

Rule: times leave this module in ns of the trace's own clock, floor(tsc * 10^9 * scale / frequency)
in integers (2.2 and later; before, the scale multiplies the frequency): they compare over all
streams of a trace, and no digit is lost to a float.
Invariant: nothing here raises because of what sub-buffers say, but layout_of().
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.subbuffer import ROW_DTYPE, Rows

Buffer = bytes | bytearray | memoryview
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CLOCK: Final = "ltt-tsc"
"""Name of the clock in manifests: ns that were counted in cycles."""
MAGIC: Final = 0x00D6B7ED
MAGIC_AT: Final = 16
_OLD_MAGIC_AT: Final = 40  # up to format 1.0
_CTF_MAGIC: Final = 0xC1FC1FC1
MAJOR: Final = 2
LAST_MINOR: Final = 6
VARYING_SINCE: Final = 5
"""First minor version whose sub-buffers are delivered no longer than they are used."""
LOSS_SINCE: Final = 2
"""First minor version that counts what was lost."""
LEAST_HEADER_BYTES: Final = 60
"""What the headers of all versions begin with; what stripping changes lies in it."""
PAGE_BYTES: Final = 4096
"""The smallest page of any tracer: sub-buffers begin at multiples of it."""
_NS: Final = 1_000_000_000
# What conversion carries as a remainder has room above it in a u64; no counter is so fast.
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
    order: np.dtype([(name, order + kind) for name, kind in _FIELDS]) for order in "<>"
}
_LOSS_DTYPES: Final = {
    order: np.dtype([("events_lost", f"{order}u4"), ("corrupted", f"{order}u4")]) for order in "<>"
}
HEADS: Final = {order: struct.Struct(f"{order}2QI4B3Q3I") for order in "<>"}
"""The same as header_dtype(), for one at a time."""
_MAGICS: Final = {order: struct.pack(f"{order}I", MAGIC) for order in "<>"}


def is_metadata(channel: str) -> bool:
    """Tell whether a channel, by its name, is the one that describes the others' events.

    It is never lost, and its first sub-buffer begins when the trace was made.  Up to 2.2 it lies in
    ``control/``.
    """
    return channel.rpartition("/")[2] == "metadata"


def header_dtype(order: str) -> np.dtype[np.void]:
    """Return what the headers of all versions begin with; *order* is ``<`` or ``>``."""
    return _DTYPES[order]


def header_bytes_of(minor: int, pointer_bytes: int) -> int:
    """Return where the first event of a sub-buffer of format 2.*minor* begins."""
    if minor >= LOSS_SINCE:
        return LEAST_HEADER_BYTES + 8
    return 64 if minor == 0 and pointer_bytes == 8 else LEAST_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header of any sub-buffer says of the trace that it is from."""

    order: str
    """Byte order, ``<`` or ``>``."""
    minor: int
    pointer_bytes: int
    alignment: int
    """Of events, in bytes; 0: they are packed."""
    frequency: int
    """Of the TSC, in Hz."""
    scale: int
    start_ns: int
    """Wall clock when the trace was created."""

    @property
    def header_bytes(self) -> int:
        """Where the first event begins."""
        return header_bytes_of(self.minor, self.pointer_bytes)

    @property
    def varying(self) -> bool:
        """Whether sub-buffers are delivered no longer than they are used, but for page rounding."""
        return self.minor >= VARYING_SINCE

    def ns_of(self, tsc: U64) -> U64:
        """Turn counts of cycles into ns; what would not fit is the largest that does."""
        return scaled(tsc, *_ratio(self.minor, self.frequency, self.scale))


def layout_of(data: Buffer, offset_bytes: int = 0) -> Layout:
    """Return what the header at *offset_bytes* says.

    Raises:
        ValueError: there is none, and what of it is not as it must be.
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
    """Say what begins like this, which is no sub-buffer of formats 2.x."""
    if head[_OLD_MAGIC_AT:][:4] in _MAGICS.values():
        return "a format before 2.0; known are 2.0 to 2.6"
    if head[:4] in (_CTF_MAGIC.to_bytes(4, "little"), _CTF_MAGIC.to_bytes(4, "big")):
        return "CTF, which came after format 2.6"
    (found,) = struct.unpack_from("<I", head, MAGIC_AT)
    return f"magic {found:#010x} instead of {MAGIC:#010x}"


def has_magic(head: bytes) -> bool:
    """Tell whether a file that begins with *head* begins with a sub-buffer, by its magic."""
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
    """Tell whether a header's clock can be one, and be converted."""
    return frequency > 0 and scale > 0 and _ratio(minor, frequency, scale)[1] < _MOST_FREQUENCY


def scaled(counts: U64, above: int, below: int) -> U64:
    """Return floor(counts * *above* / *below*), exactly; 2**64 - 1 where that is more.

    *below* is less than 2**55.  Long division: the whole part and the remainder are carried
    through the digits of *above*, the base chosen so that nothing exceeds 64 bits.
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
    """What headers at some places say: one element each."""

    sound: Mask
    """Magic, version, clock and sizes can be; the other columns mean nothing where not."""
    used_bytes: I64
    """Header and events."""
    size_bytes: I64
    """What was delivered, padding included."""
    begin: U64
    """Trace clock, ns."""
    end: U64
    """Trace clock, ns; not before begin."""
    events_lost: U64
    """Running total since the buffer was created, modulo 2**32."""
    corrupted: U64
    """The same of sub-buffers that the tracer could not close in order."""
    run: U64
    """Wall clock in us when the trace was created: where it changes, another trace begins."""


def headers_at(data: Buffer, offsets_bytes: I64) -> Headers:
    """Read headers at given places; sound also means that all of the used bytes are there."""
    room = len(data)
    inside = (offsets_bytes >= 0) & (offsets_bytes <= room - LEAST_HEADER_BYTES)
    order = order_at(data, offsets_bytes[inside])
    found = np.zeros(len(offsets_bytes), _DTYPES[order])
    found[inside] = _gathered(data, offsets_bytes[inside], _DTYPES[order])
    minor, used, size = _sizes(found)
    sound = inside & (found["magic"] == MAGIC) & (found["major"] == MAJOR) & (minor <= LAST_MINOR)
    sound &= np.isin(found["pointer_bytes"], (4, 8)) & np.isin(found["alignment"], (0, 4, 8))
    header = np.where(minor >= LOSS_SINCE, LEAST_HEADER_BYTES + 8, LEAST_HEADER_BYTES)
    header[(minor == 0) & (found["pointer_bytes"] == 8)] = 64
    sound &= (used >= header) & (used <= size) & (offsets_bytes <= room - used)
    begin, end = _times(found, minor, sound)
    lost = np.zeros(len(found), _LOSS_DTYPES[order])
    counts = sound & (minor >= LOSS_SINCE)
    at = offsets_bytes[counts] + LEAST_HEADER_BYTES
    lost[counts] = _gathered(data, at, _LOSS_DTYPES[order])
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


def order_at(data: Buffer, offsets_bytes: Iterable[int]) -> str:
    """Return the byte order of the first of these places that has a magic."""
    for at in offsets_bytes:
        magic = bytes(data[at + MAGIC_AT : at + MAGIC_AT + 4])
        for order, known in _MAGICS.items():
            if magic == known:
                return order
    return "<"


def _gathered(data: Buffer, offsets_bytes: I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Copy what lies at these places, all inside of *data*."""
    if not len(offsets_bytes):
        return np.empty(0, dtype)
    everywhere = np.ndarray((len(data) - dtype.itemsize + 1,), dtype, data, strides=(1,))
    copied: npt.NDArray[np.void] = everywhere[offsets_bytes]
    return copied


def _sizes(found: npt.NDArray[np.void]) -> tuple[I64, I64, I64]:
    """Return minor version, used and delivered bytes; negative where more is unused than there."""
    minor = found["minor"].astype(np.int64)
    size = found["size"].astype(np.int64)
    said = found["used"].astype(np.int64)
    return minor, np.where(minor >= VARYING_SINCE, said, size - said), size


def _times(found: npt.NDArray[np.void], minor: I64, sound: Mask) -> tuple[U64, U64]:
    """Return begin and end in ns; takes *sound* away where the clock cannot be."""
    begin, end = found["begin"].astype(np.uint64), found["end"].astype(np.uint64)
    todo = sound.copy()
    while todo.any():  # once, unless runs of several traces were appended to each other
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
    """Return the headers that the sub-buffers get when their padding is cut off.

    Shape (n, LEAST_HEADER_BYTES): what replaces the first bytes of each, so that it still walks:
    the size becomes what is used, and what is unused (up to 2.4) nothing.  All are sound.
    """
    return resized_heads(data, offsets_bytes, used_bytes, used_bytes)


def resized_heads(
    data: Buffer, offsets_bytes: I64, used_bytes: I64, sizes_bytes: I64
) -> npt.NDArray[np.uint8]:
    """Return the headers that the sub-buffers get when each is to take *sizes_bytes*."""
    heads = _gathered(data, offsets_bytes, _DTYPES[order_at(data, offsets_bytes)])
    varying = heads["minor"] >= VARYING_SINCE
    heads["used"] = np.where(varying, used_bytes, sizes_bytes - used_bytes)
    heads["size"] = sizes_bytes
    return heads.view(np.uint8).reshape(len(heads), LEAST_HEADER_BYTES)


class Taken(NamedTuple):
    """Sub-buffers in a buffer, as rows of a batch."""

    rows: Rows
    """The sound ones, with their own times; sequence and discarded_total are for the stream."""
    heads: npt.NDArray[np.uint8]
    """See packed_heads()."""
    headers: Headers
    """Of the same."""
    damaged: list[tuple[int, int]]
    """(row before which it stood, number among the places given) of what does not parse."""


def rows_of(data: Buffer, offsets_bytes: I64, sizes_bytes: I64) -> Taken:
    """Read the sub-buffers that begin at given places and were delivered in so many bytes.

    One that says another size than it was delivered in is damaged.
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
