"""Walk the events of LTTng 0.x sub-buffers (trace formats 2.0 to 2.6).

An event begins with a u32: a code in the top 5 bits, and 27 bits of the time below.  More fields
follow for some codes, and then the payload, whose size only its marker determines::

    code 0-28   the code is the id
    code 29     u16 id, u16 size (0xFFFF: a u32 size follows), u64 time, complete
    code 30     u16 id, u16 size (0xFFFF: a u32 size follows)
    code 31     u16 id

In an aligned trace the u32, the u64, the payload and each of its integers are aligned to their
size, but not above the trace's alignment; in 2.4 and 2.5 to their size.  Strings, and the fields
after the u32, are never aligned.

Source of the layout: LTTng 0.x include/linux/ltt-tracer.h and ltt/ltt-tracer.c; LTTV
ltt/tracefile.c, ltt_tracefile_read_update_event.

The place of an event follows from the size of the one before it, so events are found one by one,
most of them by one table look-up.  (Sub-buffers are too long and too few to be walked in lockstep.)
Ids, times and payloads are then computed for a whole batch at once.

Rule: no bytes make this module raise.  A sub-buffer is damaged from the first event on that does
not fit; the events before it count, and other sub-buffers are not affected.
Invariant: an event has at least 4 bytes, so a sub-buffer of n bytes takes at most n / 4 steps; no
byte after a sub-buffer's data is read.
"""

import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.gather import gather
from lttd.abi.ltt import Layout, header_dtype, layout_of
from lttd.abi.ltt_markers import Marker, Sizes
from lttd.abi.ltt_shape import Shape, aligned_to, rounded_up

Buffer = bytes | bytearray | memoryview
"""Tells what the events of a channel may be, by id."""
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

ID_SIZE_TSC: Final = 29
ID_SIZE: Final = 30
ID_ONLY: Final = 31
FIRST_EXTENDED: Final = ID_SIZE_TSC
SIZE_FOLLOWS: Final = 0xFFFF
UNDECLARED: Final = "no marker is known"
TIME_BITS: Final = 27
_TIME_MASK: Final = (1 << TIME_BITS) - 1
# An event header has at most 28 bytes; reading one that is cut off ends in these bytes.
_BEYOND: Final = bytes(40)
# The most data in a batch: with at least 4 bytes per event, at most some 70 MB of arrays.
BATCH_BYTES: Final = 2 << 20


class SubBuffers(NamedTuple):
    """Some sub-buffers of one stream, in a buffer."""

    offset_bytes: I64
    events_bytes: I64
    """The begin of the events, after the header."""
    end_bytes: I64
    """The end of the events; not before their begin, and within the buffer."""
    begin: U64
    """``cycle_count_begin``: full TSC."""

    def some(self, which: slice | npt.NDArray[np.bool_]) -> "SubBuffers":
        """Return some of the sub-buffers."""
        return SubBuffers(
            self.offset_bytes[which],
            self.events_bytes[which],
            self.end_bytes[which],
            self.begin[which],
        )


class Alike(NamedTuple):
    """Sub-buffers of one stream that the same tracer wrote."""

    layout: Layout
    rows: I64
    """Their numbers in the input."""
    subbuffers: SubBuffers


def alike(data: Buffer, offset_bytes: I64, end_bytes: I64) -> Iterator[Alike]:
    """Group the sub-buffers of one stream by tracer; all their headers are sound.

    There is one tracer, unless the legacy lttd's ``-a`` appended several runs to one file.
    """
    if not len(offset_bytes):
        return
    order = layout_of(data, int(offset_bytes[0])).order
    heads = gather(data, offset_bytes, header_dtype(order))
    told = heads[["minor", "pointer_bytes", "alignment", "frequency", "scale"]]
    left = np.ones(len(heads), np.bool_)
    while left.any():
        first = int(left.argmax())
        same = left & (told == told[first])
        rows = np.flatnonzero(same)
        layout = layout_of(data, int(offset_bytes[first]))
        at, begin = offset_bytes[rows], heads["begin"][rows].astype(np.uint64)
        yield Alike(layout, rows, SubBuffers(at, at + layout.header_bytes, end_bytes[rows], begin))
        left &= ~same


class Walked(NamedTuple):
    """The events of some sub-buffers in stream order, and the result for each sub-buffer."""

    first_row: int
    """The number of the first of these rows, from which ``row`` and ``damage`` count."""
    time: U64
    """Full TSC."""
    id: U16
    payload_at: I64
    """The offset in the buffer of the first field, aligned."""
    payload_bytes: I64
    row: I64
    row_events: I64
    row_end: U64
    """Per row: the TSC of its last event, or of its begin."""
    damage: list[Damage]
    undeclared: list[Damage]
    """Places from which on a sub-buffer cannot be read, because an id has no known marker."""


class Channel:
    """The tables for walking the sub-buffers of one channel."""

    def __init__(self, markers: Mapping[int, Marker], layout: Layout) -> None:
        self.layout: Final = layout
        self.markers: Final = markers
        made: dict[tuple[str, Sizes], Shape] = {}
        self.shapes: Final[dict[int, Shape]] = {}
        for one, marker in markers.items():
            layout_key = marker.format, marker.sizes
            if layout_key not in made:
                made[layout_key] = Shape(marker, layout)
            self.shapes[one] = made[layout_key]
        self.header_alignment: Final = aligned_to(layout, 4, layout.alignment)
        self.time_alignment: Final = aligned_to(layout, 8, layout.alignment)
        self._id_byte: Final = 3 if layout.order == "<" else 0
        self._u16: Final = struct.Struct(f"{layout.order}H")
        self._u32: Final = struct.Struct(f"{layout.order}I")
        short = self._lengths(4, FIRST_EXTENDED)
        self._short: Final = [short.get(at, 0) for at in range(256)]
        self._extended: Final = self._lengths(6, 1 << 16)
        self.alignment_of: Final = np.ones(1 << 16, np.int64)
        """The alignment of the payload, by id."""
        for one, shape in self.shapes.items():
            self.alignment_of[one] = shape.alignment

    def _lengths(self, header_bytes: int, behind: int) -> dict[int, int]:
        """Return the size of events without strings, by id << 3 | place modulo 8."""
        return {
            one << 3 | place: rounded_up(place + header_bytes, shape.alignment) + size - place
            for one, shape in self.shapes.items()
            if one < behind and (size := shape.fixed_bytes) is not None
            for place in range(8)
        }

    def ends(self, data: bytes, at: int, end: int) -> "tuple[array[int], str]":
        """Return the ends of the events of a sub-buffer, and the defect of the next one.

        *data* is a whole sub-buffer and _BEYOND; events are in ``[at:end)``.  The defect is empty
        if they fill that.
        """
        found = array("q")
        append = found.append
        short, id_byte = self._short, self._id_byte
        over = self.header_alignment - 1
        while at < end:
            head = at + over & ~over
            length = short[data[head + id_byte] & 0xF8 | head & 7]
            if length:
                at = head + length
            else:
                at, wrong = self._any(data, head, end)
                if wrong:
                    return found, wrong
            if at > end:
                return found, "event runs past the data"
            append(at)
        return found, ""

    def _any(self, data: bytes, head: int, end: int) -> tuple[int, str]:
        """Return the end of an event, or -1 and its defect."""
        code = data[head + self._id_byte] >> 3
        if code == ID_ONLY:
            (one,) = self._u16.unpack_from(data, head + 4)
            length = self._extended.get(one << 3 | head & 7)
            if length is not None:
                return head + length, ""
        one, at, stated = self._header(data, head, code)
        if at > end:
            return -1, "event is cut off"
        shape = self.shapes.get(one)
        if shape is None:
            return -1, f"{UNDECLARED} for event id {one}"
        begin = rounded_up(at, shape.alignment)
        behind = shape.behind(data, begin, end)
        if behind < 0:
            return -1, f"a string of {self.markers[one].name} does not end"
        if stated >= 0 and behind - begin != stated:
            name = self.markers[one].name
            return -1, f"{name} has {behind - begin} bytes, its header says {stated}"
        return behind, ""

    def _header(self, data: bytes, head: int, code: int) -> tuple[int, int, int]:
        """Return id, end of the header, and the stated size of the payload; -1: none is stated."""
        at = head + 4
        if code < FIRST_EXTENDED:
            return code, at, -1
        (one,) = self._u16.unpack_from(data, at)
        at += 2
        if code == ID_ONLY:
            return one, at, -1
        (stated,) = self._u16.unpack_from(data, at)
        at += 2
        if stated == SIZE_FOLLOWS:
            (stated,) = self._u32.unpack_from(data, at)
            at += 4
        if code == ID_SIZE_TSC:
            at = rounded_up(at, self.time_alignment) + 8
        return one, at, stated


def walk(buffer: Buffer, rows: SubBuffers, channel: Channel) -> Iterator[Walked]:
    """Yield the events of sub-buffers of one channel, a bounded batch at a time."""
    filled = np.cumsum(rows.end_bytes - rows.offset_bytes)
    first = 0
    while first < len(filled):
        so_far = int(filled[first - 1]) if first else 0
        behind = max(int(np.searchsorted(filled, so_far + BATCH_BYTES, "right")), first + 1)
        some = rows.some(slice(first, behind))
        yield _walked(buffer, some, first, channel)
        first = behind


def _walked(buffer: Buffer, rows: SubBuffers, first_row: int, channel: Channel) -> Walked:
    view = memoryview(buffer)
    found = []
    damage: list[Damage] = []
    undeclared: list[Damage] = []
    places = zip(*(column.tolist() for column in rows[:3]), strict=True)
    for number, (offset, begin, end) in enumerate(places):
        data = bytes(view[offset:end]) + _BEYOND
        ends, wrong = channel.ends(data, begin - offset, end - offset)
        found.append(np.frombuffer(ends, np.int64) + offset)
        if wrong:
            last = int(found[-1][-1]) if len(ends) else begin
            told = undeclared if wrong.startswith(UNDECLARED) else damage
            told.append(Damage(number + first_row, last, wrong))
    counts = np.array([len(each) for each in found], np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    ends_at = np.concatenate(found)
    starts = np.empty_like(ends_at)
    starts[1:] = ends_at[:-1]
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    starts[firsts] = rows.events_bytes[counts > 0]
    base = rows.offset_bytes[row]
    head = _aligned(starts, base, channel.header_alignment)
    events = _Headers(buffer, head, base, channel)
    time = _times(events, firsts, rows.begin[counts > 0])
    row_end = rows.begin.copy()
    row_end[counts > 0] = time[firsts + counts[counts > 0] - 1]
    payload = _aligned(events.behind, base, channel.alignment_of[events.id])
    return Walked(
        first_row,
        time,
        events.id,
        payload,
        ends_at - payload,
        row + first_row,
        counts,
        row_end,
        damage,
        undeclared,
    )


class _Headers:
    """The headers of some events, as columns."""

    def __init__(self, buffer: Buffer, head: I64, base: I64, channel: Channel) -> None:
        self._buffer = buffer
        self._order = order = channel.layout.order
        word: U32 = self._read(head, f"{order}u4").astype(np.uint32)
        code = word >> np.uint32(TIME_BITS)
        self.low = word & np.uint32(_TIME_MASK)
        """The low 27 bits of the time."""
        self.id = code.astype(np.uint16)
        self.behind = head + 4
        """The ends of the headers."""
        self.whole = np.flatnonzero(code == ID_SIZE_TSC)
        """The numbers of the events with a complete time."""
        extended = np.flatnonzero(code >= FIRST_EXTENDED)
        self.id[extended] = self._read(head[extended] + 4, f"{order}u2")
        self.behind[extended] += 2
        sized = extended[code[extended] != ID_ONLY]
        size = self._read(head[sized] + 6, f"{order}u2")
        self.behind[sized] += np.where(size == SIZE_FOLLOWS, 6, 2)
        at = _aligned(self.behind[self.whole], base[self.whole], channel.time_alignment)
        self.tsc: U64 = self._read(at, f"{order}u8").astype(np.uint64)
        """The complete times of these events."""
        self.behind[self.whole] = at + 8

    def _read(self, at: I64, dtype: str) -> npt.NDArray[np.generic]:
        return gather(self._buffer, at, dtype)


def _aligned(at: I64, base: I64, alignment: int | I64) -> I64:
    """Round offsets up to their alignment within the sub-buffer."""
    if isinstance(alignment, int) and alignment == 1:
        return at
    moved: I64 = at + ((base - at) & (alignment - 1))
    return moved


def _times(events: _Headers, firsts: I64, begin: U64) -> U64:
    """Return complete TSCs: if the 27 bits decrease, they have wrapped once.

    They count from the begin of the sub-buffer, or from the last event with a complete time.
    """
    low = events.low.copy()
    low[events.whole] = (events.tsc & np.uint64(_TIME_MASK)).astype(np.uint32)
    before = np.empty_like(low)
    before[1:] = low[:-1]
    before[firsts] = (begin & np.uint64(_TIME_MASK)).astype(np.uint32)
    wraps = low < before
    wraps[events.whole] = False
    passed = np.cumsum(wraps)
    told = np.zeros(len(low), np.uint64)
    told[firsts] = begin
    told[events.whole] = events.tsc
    known = np.zeros(len(low), np.bool_)
    known[firsts] = known[events.whole] = True
    last = np.cumsum(known) - 1
    since: I64 = passed - (passed - wraps)[known][last]
    high = told[known][last] & ~np.uint64(_TIME_MASK)
    times: U64 = high + (since.astype(np.uint64) << np.uint64(TIME_BITS)) + low
    return times
