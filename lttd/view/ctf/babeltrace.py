"""Make lines of CTF batches as ``babeltrace2`` prints them by default, byte for byte:

    [<h>:<m>:<s>.<ns, 9>] (+<s>.<ns, 9>) <host>[:<process>:(<pid>)] <event>: <packet context>,
    <stream's context>, <event's context>, <fields>

A stream without a clock has no times.

Source of the form: babeltrace2 src/plugins/text/pretty/print.c.

Rule: control characters of names and strings are escaped (lttd.terminal), which babeltrace2 does
only in part.

The time since the line before is known only when that line is written, perhaps by another process
(``lttd.view.parallel``): so the first line of a batch is made last.
"""

import mmap
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import WORD_BITS, Bits
from lttd.abi.ctf_classes import PACKET_CONTEXT, PACKET_HEADER, Event, Trace
from lttd.abi.ctf_fields import Scan
from lttd.abi.ctf_heads import bodies_of
from lttd.abi.ctf_plan import Plan
from lttd.terminal import printable
from lttd.view.columns import EventBatch, EventRows
from lttd.view.ctf.fields import CtfRecords
from lttd.view.ctf.values import Printer, growth_bits, is_printed
from lttd.view.family import Block, made
from lttd.view.formats import EventType
from lttd.view.glyphs import decimal, distinct
from lttd.view.lines import BlockTexter, Body, body_of
from lttd.view.notes import TakesNotes
from lttd.view.strips import Column, Strip, joined, of_similar_size, packed, words_of
from lttd.view.window import WindowStream

I64 = npt.NDArray[np.int64]
Made = TypeVar("Made")

_SECOND_NS: Final = 1_000_000_000
_FIRST_DELTA: Final = b"+?.?????????"
# In place of the time since the line before; no time contains it.
_PLACE: Final = b"\x01" * 12
# A line takes some 500 bytes of memory; a piece that has more events than usual is cut.
_AT_ONCE: Final = 1 << 19
_LAST: Final = struct.Struct("<?q")
# A batch with fewer events than one for so many bits of bytes has few.
_FEW_BITS: Final = 8


class EventPrinter:
    """Prints the scopes of the events of one class."""

    def __init__(self, plan: Plan, event: Event) -> None:
        self.plan = plan
        self._event = event
        self._printer = Printer(plan.referred.paths)

    def strip(self, bits: Bits, at: I64, packet: I64, context: Column | None) -> Strip:
        """Return name and scopes of events; places are in bytes.

        *context*: the text of each event's packet context; None: it has none.
        """
        strip: Strip = [f"{printable(self._event.name)}: ".encode()]
        if context is not None:
            strip.append(context)
        scan, place = bodies_of(bits, at, packet, self.plan)
        for of, path in self.plan.bodies(self._event):
            node, place = scan.locate(of, place, path)
            if is_printed("", of, path, self.plan.referred.paths):
                strip.append(b", " if len(strip) > 1 else b"")
                strip += self._printer.strip(of, node, len(at), path)
        return joined([*strip, b"\n"])


class PacketContexts:
    """The texts of the contexts of a batch's packets, which many events share."""

    def __init__(self, bits: Bits, batch: EventBatch, plans: Sequence[Plan | None]) -> None:
        """*plans*: the stream class of each stream."""
        assert batch.packet is not None
        assert batch.stream is not None
        self._bits = bits
        self._begin, self._number = _distinct(batch.packet, len(batch.data))
        stream = np.zeros(len(self._begin), np.int64)
        stream[self._number] = batch.stream
        self._plan_of = {id(plan): plan for plan in plans if plan is not None}
        self._plans = np.array([id(plan) for plan in plans] or [0]).take(stream)
        self._tables: dict[int, Column | None] = {}

    def divide(self, rows: EventRows) -> Iterator[tuple[Plan, EventRows]]:
        """Yield events by the stream class of their packets; each segment has its own."""
        plans = self._plans.take(self._number.take(rows.rows))
        distinct = np.unique(plans).tolist()
        for one in distinct:
            some = rows if len(distinct) == 1 else rows.some(plans == one)
            yield self._plan_of[one], some

    def of(self, plan: Plan, rows: I64) -> Column | None:
        """Return the text of some events of a stream class; None: there is nothing to print."""
        if id(plan) not in self._tables:
            self._tables[id(plan)] = self._made(plan)
        table = self._tables[id(plan)]
        return None if table is None else table.take(self._number.take(rows))

    def _made(self, plan: Plan) -> Column | None:
        of = plan.stream.packet_context
        if of is None or not is_printed("", of, PACKET_CONTEXT, plan.referred.paths):
            return None
        packets = np.flatnonzero(self._plans == id(plan))
        base = self._begin[packets] << 3
        end = np.full(len(base), len(self._bits.buffer) << 3)
        scan = Scan(self._bits, base, end, plan.referred)
        place = base
        if plan.trace.packet_header is not None:
            place = scan.measure(plan.trace.packet_header, place, PACKET_HEADER)
        node, _ = scan.locate(of, place, PACKET_CONTEXT)
        strip = Printer(plan.referred.paths).strip(of, node, len(base), PACKET_CONTEXT)
        words, _ = packed(strip, len(base))
        table = np.zeros(len(self._begin), words.dtype)
        table[packets] = words
        return table


def _distinct(packet: I64, data_bytes: int) -> tuple[I64, I64]:
    """Return where packets begin, and for each event the number of its packet."""
    if len(packet) < data_bytes >> _FEW_BITS:
        return np.unique(packet, return_inverse=True)
    place = packet >> 3
    occurs = np.zeros((data_bytes >> 3) + 1, np.bool_)
    occurs[place] = True
    found = np.flatnonzero(occurs)
    number_of = np.empty(len(occurs), np.int64)  # of packets that occur; the rest is never read
    number_of[found] = np.arange(len(found))
    number = number_of.take(place)
    begin = np.zeros(len(found), np.int64)
    begin[number] = packet
    if (begin.take(number) == packet).all():
        return begin, number
    return np.unique(packet, return_inverse=True)  # two begin within 8 bytes


def origin_of(trace: Trace) -> str:
    """Return the host and the process of a trace; empty if it states neither."""
    told = [
        str(trace.environment[one]) for one in ("hostname", "procname") if one in trace.environment
    ]
    if "vpid" in trace.environment:
        told.append(f"({trace.environment['vpid']})")
    return f"{printable(':'.join(told))} " if told else ""


def _origin(source: WindowStream) -> bytes:
    plan = _plan(source)
    return origin_of(plan.trace).encode() if plan else b""


def _is_timeless(source: WindowStream) -> bool:
    plan = _plan(source)
    return plan is not None and plan.stream.clock is None


def _plan(source: WindowStream) -> Plan | None:
    found: Plan | None = source.context.plan
    return found


def _offset_ns(source: WindowStream) -> int:
    found: int = source.context.offset_ns
    return found


def clock_times(ns: npt.NDArray[np.int64]) -> Strip:
    """Return times of day, in the local time zone."""
    seconds = ns // _SECOND_NS
    values, number = distinct(seconds)
    table = [
        time.strftime("[%H:%M:%S.", time.localtime(value)).encode() for value in values.tolist()
    ]
    words = words_of(np.array(table, np.bytes_))[number]
    return [words, *decimal((ns - seconds * _SECOND_NS).astype(np.uint32), 9)]


def differences(ns: npt.NDArray[np.int64]) -> Strip:
    """Return the times since the event before, of all but the first one."""
    delta = np.diff(ns).astype(np.uint64)
    seconds = delta // np.uint64(_SECOND_NS)
    rest = (delta - seconds * np.uint64(_SECOND_NS)).astype(np.uint32)
    return [b"+", *decimal(seconds), b".", *decimal(rest, 9)]


class BabeltraceTexter(BlockTexter):
    """Makes the lines of one clock group's batches."""

    def __init__(self, sources: Sequence[WindowStream], notes: TakesNotes) -> None:
        self._sources = sources
        self._notes = notes
        self._printers: dict[int, EventPrinter] = {}
        self._last = _Last()
        self._before: np.int64 | None = None
        self._counted: tuple[EventBatch, list[int]] | None = None
        """The last batch, and how many events of each stream it has."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """See ``BlockTexter``: the first block is made when it is written."""
        # babeltrace2 prints losses on stderr, in other words.
        self._notes.add(*(f"{loss} ({loss.channel}_{loss.cpu})" for loss in batch.losses))
        batch = replace(batch, losses=())
        if not len(batch):
            return
        times = self._ns(batch)
        self._before = None
        first = b"".join(map(bytes, map(made, super().lines(batch.select(slice(0, 1))))))
        shown = len(batch) if most is None else min(most, len(batch))
        yield lambda: self._last.told(first, int(times[0]), int(times[shown - 1]))
        for first_row in range(1, shown, _AT_ONCE):
            self._before = times[first_row - 1]
            rows = slice(first_row, min(first_row + _AT_ONCE, shown))
            yield from super().lines(batch.select(rows))

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes: times and origin."""
        assert batch.stream is not None
        times = self._ns(batch)
        if self._before is None:
            delta: Strip = [_PLACE]
        else:
            delta = differences(np.concatenate((np.array([self._before]), times)))
        origin = words_of(np.array(self._each(batch, _origin, b""), np.bytes_)).take(batch.stream)
        stamp: Strip = [*clock_times(times), b"] (", *delta, b") "]
        timeless = np.array(self._each(batch, _is_timeless, nothing=False))
        if timeless.any():
            words = packed(stamp, len(batch))[0].copy()
            words[timeless.take(batch.stream)] = b""
            stamp = [words]
        return [*stamp, origin]

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: names and fields."""
        assert batch.packet is not None
        bits = Bits(batch.data)
        contexts = PacketContexts(bits, batch, self._each(batch, _plan, None))
        for every in batch.by_type():
            printer = self._printer(every.event_type)
            for similar in of_one_size(every):
                for plan, rows in contexts.divide(similar):
                    packet = batch.packet.take(rows.rows)
                    context = contexts.of(plan, rows.rows)
                    yield body_of(rows.rows, printer.strip(bits, rows.at, packet, context))

    def _printer(self, event_type: EventType) -> EventPrinter:
        if event_type.number not in self._printers:
            records = event_type.records_of
            assert isinstance(records, CtfRecords)
            self._printers[event_type.number] = EventPrinter(records.plan, records.event)
        return self._printers[event_type.number]

    def _ns(self, batch: EventBatch) -> I64:
        """Return the times since 1970 of events, in ns."""
        assert batch.stream is not None
        offsets = np.array(self._each(batch, _offset_ns, 0), np.int64)
        found: I64 = batch.time.astype(np.int64) + offsets.take(batch.stream)
        return found

    def _each(
        self, batch: EventBatch, of: Callable[[WindowStream], Made], nothing: Made
    ) -> list[Made]:
        """Return something of each stream that occurs in a batch, and *nothing* of the others."""
        if self._counted is None or self._counted[0] is not batch:
            assert batch.stream is not None
            counts = np.bincount(batch.stream, minlength=len(self._sources)).tolist()
            self._counted = batch, counts
        sources = zip(self._sources, self._counted[1], strict=True)
        return [of(one) if count else nothing for one, count in sources]


class _Last:
    """The time of the last line that was written, by any of the processes that write in turn."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, _LAST.size)

    def told(self, line: bytes, first_ns: int, last_ns: int) -> bytes:
        """Return the first line of a batch with the time since the line before."""
        known, before = _LAST.unpack_from(self._shared)
        _LAST.pack_into(self._shared, 0, True, last_ns)
        delta = _FIRST_DELTA
        if known:
            passed = (first_ns - before) % (1 << WORD_BITS)
            delta = b"+%d.%09d" % divmod(passed, _SECOND_NS)
        return line.replace(_PLACE, delta, 1)


def of_one_size(rows: EventRows) -> Iterator[EventRows]:
    """Yield rows in groups of similar size, so that the matrix of a group is not much larger."""
    records = rows.event_type.records_of
    assert isinstance(records, CtfRecords)
    bits = growth_bits(body for body, _ in records.plan.bodies(records.event))
    for which in of_similar_size(rows.payload_bytes, bits):
        yield rows.some(which)
