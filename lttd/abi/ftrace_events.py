"""Walk the events of ftrace sub-buffers in lockstep: a step takes a record of every sub-buffer.

A record is a u32 of a type_len (5 bits) and a time delta (27 bits; on big-endian kernels the
type_len is on top), then words of 4 bytes:

    type_len 1-28   data, 4 * type_len bytes
    type_len 0      data; the next word is its length, that word included
    type_len 29     discarded event, length as for type_len 0; with delta 0: the rest is unused
    type_len 30     TIME_EXTEND: time += (next word << 27) + delta
    type_len 31     TIME_STAMP: time = (next word << 27) + delta; 59 bits, the top 5 are kept

Source of the layout: ``events/header_event`` of the running kernel; ``rb_event_length`` and
``rb_update_event`` in Linux kernel/trace/ring_buffer.c; libtraceevent's kbuffer-parse.c.

Rule: no bytes make this module raise.  A sub-buffer is damaged from the first record on that does
not fit; the records before it count, and other sub-buffers are not affected.
Invariant: a record is at least a word, and a sub-buffer never waits twice in succession, so a walk
takes at most content / 2 steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Damage
from lttd.abi.ftrace import PageLayout
from lttd.abi.gather import everywhere

Buffer = bytes | bytearray | memoryview
U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PADDING: Final = 29
TIME_EXTEND: Final = 30
TIME_STAMP: Final = 31
_DELTA_BITS: Final = 27
_STAMP_MASK: Final = (1 << 59) - 1
# The most content in a batch, which has room for a whole piece of lttv (9 MiB): each batch takes as
# many steps as another.  With at least 8 bytes per event, at most some 75 MB of arrays.
BATCH_BYTES: Final = 10 << 20
BATCH_ROWS: Final = 16384
# By type_len: the words of a short event; others do not fit into any content.
_NONE: Final = np.empty(0, np.int64)
_FEW: Final = 8
_SHORT_WORDS: Final = np.arange(1, 33, dtype=np.int64)
_SHORT_WORDS[[0, *range(PADDING, 32)]] = 1 << 40


class Walked(NamedTuple):
    """The events of some sub-buffers in stream order, and the result for each sub-buffer."""

    first_row: int
    """The number of the first of these rows, from which ``row`` and ``damage`` count."""
    time: U64
    payload_at: I64
    """The offset in the buffer of the event's own bytes (common_type first)."""
    payload_bytes: U32
    row_events: I64
    """Per row: the number of data records, which the kernel counts as ``read events``."""
    row_end: U64
    """Per row: the time of its last record."""
    damage: list[Damage]

    @property
    def row(self) -> I64:
        """The row of each event."""
        rows = np.arange(self.first_row, self.first_row + len(self.row_events))
        return np.repeat(rows, self.row_events)


def walk(
    buffer: Buffer, offsets_bytes: I64, content_ends_bytes: I64, layout: PageLayout
) -> Iterator[Walked]:
    """Yield the events of the sub-buffers that begin at *offsets_bytes*, a bounded batch at a time.

    *content_ends_bytes* are the ends of their content in *buffer*, after the header and within the
    buffer.
    """
    yield from _batches(buffer, offsets_bytes, content_ends_bytes, layout, keep=True)


def count(
    buffer: Buffer, offsets_bytes: I64, content_ends_bytes: I64, layout: PageLayout
) -> Iterator[Walked]:
    """Like walk(), but fill only the arrays per row."""
    yield from _batches(buffer, offsets_bytes, content_ends_bytes, layout, keep=False)


def _batches(
    buffer: Buffer, offsets: I64, ends: I64, layout: PageLayout, *, keep: bool
) -> Iterator[Walked]:
    filled = np.cumsum(ends - offsets)
    first = 0
    while first < len(offsets):
        so_far = int(filled[first - 1]) if first else 0
        behind = int(np.searchsorted(filled, so_far + BATCH_BYTES, "right"))
        behind = min(max(behind, first + 1), first + BATCH_ROWS, len(offsets))
        some = slice(first, behind)
        yield _Lockstep(buffer, offsets[some], ends[some], layout, keep=keep).result(first)
        first = behind


class _Lockstep:
    """The walk of one batch.

    Records are 4-aligned within their sub-buffer, but sub-buffers need not be aligned in the file.
    Those with the same remainder modulo 4 walk together, over words from that remainder on.
    """

    def __init__(
        self, buffer: Buffer, offsets: I64, ends: I64, layout: PageLayout, *, keep: bool
    ) -> None:
        self._buffer = buffer
        self._layout = layout
        self._keep = keep
        self._runs: list[_Run] = []
        self._kept: list[tuple[U64, I64, U32]] = []
        """The events in the order of the steps, as short records: times, words, and type_len."""
        self._others: list[tuple[int, I64, U32]] = []
        """Of events with other records: the number of the first one of a step, offsets of payloads,
        and their sizes."""
        self._shifted: list[tuple[slice, int]] = []
        """The events of each remainder, and the remainder."""
        self._events = 0
        """The number of events so far."""
        self.row_end = np.zeros(len(offsets), np.uint64)
        self.damage: list[Damage] = []
        starts = offsets + layout.header_bytes
        shifts = offsets & 3
        for shift in np.flatnonzero(np.bincount(shifts)).tolist():  # np.unique would load numpy.ma
            rows = np.flatnonzero(shifts == shift)
            self._walk(rows, starts[rows], ends[rows], shift)

    def _walk(self, rows: I64, starts: I64, ends: I64, shift: int) -> None:
        order = self._layout.byteorder
        words_there = (len(self._buffer) - shift) // 4
        words = np.frombuffer(self._buffer, f"{order}u4", words_there, shift)
        at, end = (starts - shift) >> 2, (ends - shift) >> 2
        first = self._events
        self.row_end[rows] = time = _page_times(self._buffer, starts, self._layout)
        self._note(rows, end, (ends - shift) & 3 != 0, shift, "content ends inside a word")
        going, waited = at < end, False
        while True:
            if np.count_nonzero(going) < len(going):  # twice as fast as all()
                gone = ~going
                self.row_end[rows[gone]] = time[gone]
                at, end, time, rows = at[going], end[going], time[going], rows[going]
                if not len(rows):
                    break
            head = words.take(at)
            type_len = _type_len(head, order)
            behind = at + _SHORT_WORDS.take(type_len)
            going = behind < end
            some_end = np.count_nonzero(going) < len(going)
            others = np.flatnonzero(behind > end) if some_end else _NONE
            if not len(others):
                time = time + _delta(head, order)
                self._emit(rows, time, at, type_len)
                at, waited = behind, False
                continue
            if waited or len(others) > len(rows) * _FEW:
                others = np.arange(len(rows))
            waited = len(others) < len(rows)
            step = _any_step(words, at[others], end[others], time[others], order)
            for wrong, reason in step.wrong:
                self._note(rows[others], at[others], wrong, shift, reason)
            self._emit_any(rows[others], at[others], step, shift)
            at[others] = np.where(step.moves, at[others] + step.words, end[others])
            time = time.copy()
            time[others] = step.time
            going = at < end
        self._shifted.append((slice(first, self._events), shift))

    def _note(self, rows: I64, at: I64, wrong: Mask, shift: int, reason: str) -> None:
        self.damage += [
            Damage(row, word * 4 + shift, reason)
            for row, word in zip(rows[wrong].tolist(), at[wrong].tolist(), strict=True)
        ]

    def _ran(self, rows: I64) -> None:
        if self._runs and self._runs[-1].rows is rows:
            self._runs[-1].steps += 1
        else:
            self._runs.append(_Run(rows))

    def _emit(self, rows: I64, time: U64, at: I64, type_len: U32) -> None:
        self._ran(rows)
        self._events += len(rows)
        if self._keep:
            self._kept.append((time, at, type_len))

    def _emit_any(self, rows: I64, at: I64, step: "_Step", shift: int) -> None:
        data = step.data
        if not data.any():
            return
        size = step.payload_bytes[data]
        if self._keep:
            payload = (at + step.skip_words) * 4 + shift
            self._others.append((self._events, payload[data], size))
        self._emit(rows[data], step.time[data], at[data], size)

    def _columns(self) -> tuple[U64, I64, U32]:
        """Return times, offsets of payloads and their sizes, in the order of the steps."""
        if not self._kept:
            return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint32)
        times, payloads, sizes = map(np.concatenate, zip(*self._kept, strict=True))
        self._kept.clear()
        payloads += 1
        payloads <<= 2
        for events, shift in self._shifted:
            if shift:
                payloads[events] += shift
        sizes <<= np.uint32(2)
        for first, payload, size in self._others:
            behind = first + len(size)
            payloads[first:behind], sizes[first:behind] = payload, size
        return times, payloads, sizes

    def result(self, first_row: int) -> Walked:
        """Return the events in stream order, by their rows and their numbers in the row."""
        row_events = np.zeros(len(self.row_end), np.int64)
        for run in self._runs:
            row_events[run.rows] += run.steps
        times, payloads, sizes = self._columns()
        if len(times):
            order = _stream_order(self._runs, row_events)
            times, payloads, sizes = times.take(order), payloads.take(order), sizes.take(order)
        row_end, scale = self.row_end, self._layout.scale
        if scale is not None:
            times, row_end = scale.of(times), scale.of(row_end)
        # A row may have two notes: one for its odd end, and one for damage before it.
        where = {d.row: d for d in sorted(self.damage, key=lambda d: -d.offset_bytes)}
        damage = [where[r]._replace(row=r + first_row) for r in sorted(where)]
        return Walked(first_row, times, payloads, sizes, row_events, row_end, damage)


@dataclass(slots=True)
class _Run:
    """Consecutive steps in which the same rows had an event."""

    rows: I64
    steps: int = 1


def _stream_order(runs: Sequence[_Run], row_events: I64) -> I64:
    """Return for each event, in stream order, its number in the order of the steps."""
    order = np.empty(int(row_events.sum()), np.int64)
    to = np.cumsum(row_events) - row_events
    done = 0
    for rows, steps in ((run.rows, run.steps) for run in runs):
        first = np.arange(done, done + len(rows))
        numbers = first[:, np.newaxis] + np.arange(steps) * len(rows)
        # The numbers of a row adjoin: copy them as one record.
        record = np.dtype(f"V{steps * order.itemsize}")
        everywhere(order, record)[to[rows] * order.itemsize] = numbers.view(record)[:, 0]
        to[rows] += steps
        done += numbers.size
    return order


class _Step(NamedTuple):
    """The current record of each row."""

    time: U64
    words: I64
    """The distance to the next record."""
    skip_words: I64
    """The distance from the record to its payload."""
    payload_bytes: U32
    data: Mask
    """The rows whose record is an event."""
    moves: Mask
    """The rows that continue unless their content ends."""
    wrong: list[tuple[Mask, str]]


def _type_len(head: U32, order: str) -> U32:
    return head & np.uint32(31) if order == "<" else head >> np.uint32(_DELTA_BITS)


def _delta(head: U32, order: str) -> U32:
    return head >> np.uint32(5) if order == "<" else head & np.uint32((1 << _DELTA_BITS) - 1)


def _any_step(words: U32, at: I64, end: I64, time: U64, order: str) -> _Step:
    head = words[at]
    type_len, delta = _type_len(head, order), _delta(head, order).astype(np.uint64)
    fits_second = at + 2 <= end
    second = words[np.where(fits_second, at + 1, at)].astype(np.uint64)
    unused = (type_len == PADDING) & (delta == 0)
    states_length = ((type_len == 0) | (type_len == PADDING)) & ~unused
    stamp, extend = type_len == TIME_STAMP, type_len == TIME_EXTEND
    size = type_len.astype(np.int64) + 1
    size[stamp | extend] = 2
    size[states_length] = ((second[states_length] + np.uint64(3)) >> np.uint64(2)).astype(
        np.int64
    ) + 1
    cut = (states_length | stamp | extend) & ~fits_second
    no_length = states_length & ~cut & (second < 4)
    too_long = ~unused & ~cut & ~no_length & (at + size > end)
    moves = ~(unused | cut | no_length | too_long)
    later = time + delta
    high = second << np.uint64(_DELTA_BITS)
    later[extend] += high[extend]
    absolute = ((high + delta) & np.uint64(_STAMP_MASK)) | (time & ~np.uint64(_STAMP_MASK))
    later[stamp] = absolute[stamp]
    length = np.where(
        type_len == 0, second - np.uint64(4), type_len.astype(np.uint64) << np.uint64(2)
    )
    return _Step(
        np.where(moves, later, time),
        size,
        np.where(type_len == 0, 2, 1),
        length.astype(np.uint32),
        moves & (type_len < PADDING),
        moves,
        [
            (cut, "record is cut off"),
            (no_length, "record states no length"),
            (too_long, "record runs past the content"),
        ],
    )


def _page_times(buffer: Buffer, starts: I64, layout: PageLayout) -> U64:
    """Read the time stamps of the sub-buffers whose content begins at *starts*."""
    raw = np.frombuffer(buffer, np.uint8)
    at = (starts - layout.header_bytes)[:, np.newaxis] + np.arange(8)
    times: U64 = raw[at].view(f"{layout.byteorder}u8").astype(np.uint64).reshape(-1)
    return times
