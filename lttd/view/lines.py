"""Make blocks of lines from batches: each line has a prefix, and one of several forms of body.

All lines of a block are made in slots of one width; then each is copied to the place where the one
before it ends, which it overwrites from its end on.  The few bodies that are wider than nearly all
others are completed one by one, so that slots are narrow.

The form for events whose task is known, in which the fields are ``name=value``:

    <comm, 16>-<pid, 7> [<cpu, 3>] <flags> <seconds>.<microseconds>: <event>: <fields>

Source of this form: Linux kernel/trace/trace_output.c, trace_print_context and trace_print_lat_fmt.

Invariant: every event has exactly one body; the line of a loss is before the first event that is
not earlier.
Rule: names and values are escaped before they become part of a line (lttd.terminal).
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.abi.gather import each_row, everywhere
from lttd.terminal import printable, printable_bytes
from lttd.view.columns import EventBatch, EventRows
from lttd.view.family import Block
from lttd.view.formats import EventType
from lttd.view.glyphs import decimal, hexadecimal, per_distinct, printable_words
from lttd.view.losses import Loss
from lttd.view.strips import (
    MOST_TEXT_BITS,
    Column,
    Length,
    Part,
    Strip,
    joined,
    of_similar_size,
    packed,
    right_aligned,
    settled,
    strings_of,
    words_of,
)
from lttd.view.task_names import Names

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

BLOCK_ROWS: Final = 1 << 15
# This share of the lines may be wider than the matrix.
WIDE_SHARE: Final = 0.02
# The longest dynamic string determines the width of a column, so such formats use fewer rows.
_DYNAMIC_ROWS: Final = 2048
_STATIC_ROWS: Final = 1 << 17
# An event type with so many rows in a batch has bodies of its own, in which its name is constant.
_MANY_ROWS: Final = 1 << 12
# The last four digits of a time are looked up by themselves.
_SHARED: Final = 10_000
_DYNAMIC: Final = (Encoding.STRING, Encoding.DYNAMIC, Encoding.BITMASK, Encoding.TAIL)
# Linux include/linux/trace_events.h, enum trace_flag_type.
IRQS_OFF, RESCHED_LAZY, NEED_RESCHED = 0x01, 0x02, 0x04
HARDIRQ, SOFTIRQ, PREEMPT_RESCHED, NMI, BH_OFF = 0x08, 0x10, 0x20, 0x40, 0x80
_RESCHED: Final = {
    NEED_RESCHED | RESCHED_LAZY | PREEMPT_RESCHED: "B",
    NEED_RESCHED | PREEMPT_RESCHED: "N",
    RESCHED_LAZY | PREEMPT_RESCHED: "L",
    NEED_RESCHED | RESCHED_LAZY: "b",
    NEED_RESCHED: "n",
    RESCHED_LAZY: "l",
    PREEMPT_RESCHED: "p",
}


def latency_flags(flags: int) -> str:
    """Return the first three letters of the kernel's flags."""
    off = "D" if flags & IRQS_OFF and flags & BH_OFF else "d" if flags & IRQS_OFF else "."
    off = "b" if off == "." and flags & BH_OFF else off
    resched = _RESCHED.get(flags & (NEED_RESCHED | RESCHED_LAZY | PREEMPT_RESCHED), ".")
    hard, soft = bool(flags & HARDIRQ), bool(flags & SOFTIRQ)
    if flags & NMI:
        where = "Z" if hard else "z"
    else:
        where = ("H" if soft else "h") if hard else ("s" if soft else ".")
    return off + resched + where


def preempt_digits(count: int) -> str:
    """Return the last two letters: the depths of disabled preemption and migration."""
    return "".join(f"{digit:x}" if digit else "." for digit in (count & 15, count >> 4))


FLAGS: Final = np.array([latency_flags(flags) for flags in range(256)], "S3").view("V3")
_PREEMPT: Final = np.array([preempt_digits(count) + " " for count in range(256)], "S3").view("V3")


@cache
def _flags_and_preempt() -> Column:
    """Return the words for flags << 8 | preempt count; numpy copies 8 bytes faster than 6."""
    table = np.zeros((256, 256, 8), np.uint8)
    table[:, :, :3] = FLAGS.view(np.uint8).reshape(256, 1, 3)
    table[:, :, 3:6] = _PREEMPT.view(np.uint8).reshape(1, 256, 3)
    return table.view("V8").reshape(-1)


class Body(NamedTuple):
    """The bodies of some events."""

    rows: I64
    words: Column
    length: Length

    @property
    def width(self) -> int:
        """The size of a word."""
        return self.words.dtype.itemsize


class BlockTexter:
    """Makes the lines of a batch, a block at a time; a family defines prefix and bodies."""

    backwards = False
    """Whether the last event comes first; the lines of one event keep their order."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """Yield the lines of *batch*, a block at a time; stop after at least *most* lines.

        The names of tasks come from all events of the batch, also from those without a line.
        """
        if not len(batch):
            yield b"".join(map(self._loss_line, batch.losses[:: -1 if self.backwards else 1]))
            return
        prefix = packed(self.prefix(batch), len(batch))
        if most is not None and most < len(batch) and not self.backwards:
            batch = batch.select(np.arange(most))
        bodies = list(self.bodies(batch))
        places = np.searchsorted(
            batch.time, np.array([loss.time for loss in batch.losses], np.uint64), "left"
        ).tolist()
        cuts = sorted({*range(0, len(batch), BLOCK_ROWS), *places, len(batch)})
        usual = usual_width(bodies, len(batch))
        if self.backwards:
            yield from self._backwards(batch.losses, places, cuts, (prefix, bodies, usual))
            return
        told = 0
        for low, high in zip(cuts, [*cuts[1:], None], strict=True):
            while told < len(places) and places[told] == low:
                yield self._loss_line(batch.losses[told])
                told += 1
            if high is not None:
                yield block_of(prefix, bodies, low, high, usual)

    def _backwards(
        self, losses: Sequence[Loss], places: Sequence[int], cuts: Sequence[int], made: "_Made"
    ) -> Iterator[Block]:
        """Yield the blocks between *cuts*, and the losses at *places*, the last one first."""
        prefix, bodies, usual = made
        left = len(losses)
        for low, high in zip(reversed(cuts), [None, *reversed(cuts[1:])], strict=True):
            if high is not None:
                yield block_of(prefix, bodies, low, high, usual, backwards=True)
            while left and places[left - 1] == low:
                left -= 1
                yield self._loss_line(losses[left])

    def _loss_line(self, loss: Loss) -> bytes:
        return f"{printable(self.lost(loss))}\n".encode()

    def lost(self, loss: Loss) -> str:
        """Return the line of a loss."""
        return str(loss)

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes of all events of a batch."""
        raise NotImplementedError

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies of a batch; every event is in exactly one of them."""
        raise NotImplementedError


class FieldPrinter:
    """Prints the fields of one event type as ``name=value``; all bytes, if it has no format."""

    def __init__(self, format_: Format | None, only: Sequence[str] | None = None) -> None:
        """*only*: the names of the fields to print."""
        self._format = format_
        self._only = only
        fields = format_.fields if format_ else ()
        self._is_told = any(one.encoding is Encoding.TOLD for one in fields)
        dynamic = format_ is None or any(one.encoding in _DYNAMIC for one in fields)
        self._rows_at_once = _DYNAMIC_ROWS if dynamic else _STATIC_ROWS

    def parts(self, rows: EventRows) -> Iterator[EventRows]:
        """Yield the rows in parts whose texts memory can hold at once."""
        if self._is_told:
            for which in of_similar_size(rows.payload_bytes, MOST_TEXT_BITS):
                yield rows.some(which)
        elif len(rows) <= self._rows_at_once:
            yield rows
        else:
            for at in range(0, len(rows), self._rows_at_once):
                yield rows.some(slice(at, at + self._rows_at_once))

    def strip(self, rows: EventRows) -> Strip:
        """Return the text of all rows as one strip."""
        if self._format is None:
            return [b"bytes=", words_of(strings_of([raw.hex().encode() for raw in rows.raw()]))]
        strip: Strip = []
        for field in self._format.own:
            if self._only is not None and field.name not in self._only:
                continue
            strip.append(f"{' ' if strip else ''}{printable(field.name)}=".encode())
            strip += settled(self._value_of(field, rows), len(rows))
        return joined(strip)

    def _value_of(self, field: Field, rows: EventRows) -> Strip:
        return value_of(field, rows)


def value_of(field: Field, rows: EventRows) -> Strip:
    """Print a field by its type: addresses in hex, the rest in decimal."""
    if field.encoding is Encoding.INT:
        column = rows.records[field.name]
        column = column.astype(column.dtype.newbyteorder("="), copy=False)
        return [b"0x", *hexadecimal(column)] if "*" in field.type else decimal(column)
    value = rows.column(field.name)
    if field.encoding is Encoding.REAL:
        return [words_of(per_distinct(value, lambda number: b"%g" % number))]
    if field.encoding is Encoding.CHARS:
        return [printable_words(value)]
    if field.encoding is Encoding.ARRAY:
        told = [",".join(str(one) for one in row).encode() for row in value.tolist()]
        return [b"{", words_of(strings_of(told)), b"}"]
    if field.encoding in (Encoding.DYNAMIC, Encoding.TAIL) and field.element_bytes > 1:
        lists = [",".join(str(one) for one in row).encode() for row in rows.lists(field.name)]
        return [b"{", words_of(strings_of(lists)), b"}"]
    text = field.encoding in (Encoding.STRING, Encoding.SPAN, Encoding.TOLD) or (
        field.encoding is Encoding.TAIL and "char" in field.type
    )
    pieces = [piece.rstrip(b"\n") if text else piece.hex().encode() for piece in value.tolist()]
    return [printable_words(strings_of(pieces))]


class FieldTexter(BlockTexter):
    """Makes the lines of one clock group's batches, with the fields as ``name=value``."""

    def __init__(
        self,
        names: Names,
        *,
        nanoseconds: bool = False,
        counting: bool = False,
        fields: Sequence[str] | None = None,
    ) -> None:
        """*fields*: the names of the fields to print."""
        self._names = names
        self._nanoseconds = nanoseconds
        self._counting = counting
        self._fields = fields
        self._printers: dict[object, FieldPrinter] = {}

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: the fields of all events."""
        for rows in self._alike(batch):
            yield from self._bodies(batch, *rows)

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes: task, CPU, flags and time."""
        table, pair = self._names.of(batch)
        who = words_of(np.array([self._who(*each) for each in table.tolist()], np.bytes_))
        cpus = [b"[%03d] " % cpu for cpu in range(int(batch.cpu.max()) + 1)]
        where = words_of(np.array(cpus, "S8"))
        time = self._time(batch)
        return [who.take(pair), where.take(batch.cpu), *self._flags(batch), *time, b": "]

    def _who(self, pid: int, comm: bytes) -> bytes:
        return b"%16s-%-7d " % (printable_bytes(comm), pid)

    def _flags(self, batch: EventBatch) -> Strip:
        return [_flags_and_preempt().take(batch.flags.astype(np.int64) << 8 | batch.preempt)]

    def _time(self, batch: EventBatch) -> Strip:
        if self._counting:
            return right_aligned(decimal(batch.time), len(batch), 12)
        if self._nanoseconds:
            digits, time = 9, batch.time
        else:
            # Round to the nearest microsecond, as ns2usecs() in kernel/trace/trace.c.
            digits, time = 6, _to_us(batch.time)
        # Many events share all but the last four digits.
        high = time // np.uint64(_SHARED)
        low = (time - high * np.uint64(_SHARED)).astype(np.int64)
        least, most = int(high.min()), int(high.max())
        if most - least < len(batch):
            table = np.arange(least, most + 1, dtype=np.uint64)
            shared = _seconds(table, digits - 4).take((high - np.uint64(least)).astype(np.int64))
        else:
            shared = _seconds(high, digits - 4)
        return [shared, *decimal(low, 4)]

    def _alike(
        self, batch: EventBatch
    ) -> Iterator[tuple[list[EventType], EventRows, FieldPrinter]]:
        """Yield the events that one printer prints together.

        Those of types with few rows share a body, whatever their names.
        """
        found: dict[tuple[int, int | None], tuple[FieldPrinter, list[EventRows]]] = {}
        for rows in batch.by_type():
            printer = self._printer(rows.event_type)
            alone = rows.event_type.number if len(rows) >= _MANY_ROWS else None
            found.setdefault((id(printer), alone), (printer, []))[1].append(rows)
        for printer, members in found.values():
            types = [rows.event_type for rows in members]
            together = members[0].rows
            if len(members) > 1:
                together = np.sort(np.concatenate([rows.rows for rows in members]))
            yield types, EventRows(batch, types[0], together), printer

    def _printer(self, event_type: EventType) -> FieldPrinter:
        key = self._alike_key(event_type.format) if event_type.format else None
        printer = self._printers.get(key)
        if printer is None:
            printer = self._printers[key] = self._new_printer(event_type)
        return printer

    def _alike_key(self, format_: Format) -> object:
        """Return an object that is equal for formats whose events one printer can print."""
        return format_.fields, format_.byteorder

    def _new_printer(self, event_type: EventType) -> FieldPrinter:
        return FieldPrinter(event_type.format, self._fields)

    def _name_of(self, event_type: EventType) -> bytes:
        return f"{printable(event_type.name)}: ".encode()

    def _bodies(
        self, batch: EventBatch, types: list[EventType], rows: EventRows, printer: FieldPrinter
    ) -> Iterator[Body]:
        heads = {event_type.number: self._name_of(event_type) for event_type in types}
        names: bytes | Column = heads[types[0].number]
        if len(types) > 1:
            table = np.zeros(len(batch.types), f"S{max(map(len, heads.values()))}")
            for number, told in heads.items():
                table[number] = told
            names = words_of(table)
        for some in printer.parts(rows):
            head = names if isinstance(names, bytes) else names[batch.type[some.rows]]
            yield body_of(some.rows, [head, *printer.strip(some), b"\n"])


def _seconds(time: npt.NDArray[np.uint64], decimals: int) -> Column:
    """Return times in units of 10^-*decimals* s as words, in the kernel's form."""
    unit = np.uint64(10**decimals)
    seconds = time // unit
    whole = right_aligned(decimal(seconds), len(time), 5)
    return packed([*whole, b".", *decimal(time - seconds * unit, decimals)], len(time))[0]


def _to_us(time_ns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Round to the nearest microsecond, without an overflow near 2^64 - 1."""
    half = np.uint64(500)
    if not len(time_ns) or time_ns.max() <= np.uint64((1 << 64) - 1) - half:
        return (time_ns + half) // np.uint64(1000)
    us = time_ns // np.uint64(1000)
    return us + (time_ns - us * np.uint64(1000) >= half)


def body_of(rows: I64, strip: Sequence[Part]) -> Body:
    """Make the body of some events of a batch from a strip."""
    return Body(rows, *packed(strip, len(rows)))


def usual_width(bodies: Sequence[Body], count: int) -> int:
    """Return the width of the bodies in slots: enough for nearly all lines."""
    wider = 0
    for body in sorted(bodies, key=lambda body: -body.width):
        wider += len(body.rows)
        if wider > WIDE_SHARE * count:
            return body.width
    return max((body.width for body in bodies), default=0)


_Made = tuple[tuple[Column, Length], Sequence[Body], int]
"""Prefixes and bodies of a batch, and the width of bodies in slots."""


def block_of(
    prefix: tuple[Column, Length],
    bodies: Sequence[Body],
    low: int,
    high: int,
    usual: int,
    *,
    backwards: bool = False,
) -> memoryview:
    """Return the lines of events ``[low:high)``; *usual* is the width of bodies in slots.

    A line is a prefix and a body, whatever their bytes are.
    """
    count = high - low
    step = -1 if backwards else 1
    before = _some(prefix[1], low, high)
    before = before if isinstance(before, int) else before[::step]
    width = prefix[0].dtype.itemsize + usual
    slots = np.empty(count * width, np.uint8)
    each_row(slots, prefix[0].dtype, 0, width)[:] = prefix[0][low:high][::step]
    place = np.arange(0, count * width, width) + before
    length = np.empty(count, np.int64)
    wide: list[tuple[I64, Column]] = []
    for body in bodies:
        first, behind = np.searchsorted(body.rows, (low, high)).tolist()
        if first == behind:
            continue
        rows, words = body.rows[first:behind] - low, body.words[first:behind]
        rows = count - 1 - rows if backwards else rows
        length[rows] = _some(body.length, first, behind)
        if body.width > usual:
            wide.append((rows, words))
            words = each_row(words, f"V{usual}", 0, body.width)
        everywhere(slots, words.dtype)[place[rows]] = words
    end = np.cumsum(length + before)
    lines = np.empty(int(end[-1]) + width, np.uint8)
    everywhere(lines, f"V{width}")[end - length - before] = slots.view(f"V{width}")
    for rows, words in wide:
        _complete(lines, end[rows], words, length[rows], usual)
    return lines[: end[-1]].data


def _some(length: Length, low: int, high: int) -> Length:
    return length if isinstance(length, int) else length[low:high]


def _complete(lines: U8, end: I64, words: Column, length: I64, usual: int) -> None:
    """Write the rest of the bodies that are longer than slots; each ends at *end*."""
    for row in np.flatnonzero(length > usual).tolist():
        rest = words[row].tobytes()[usual : length[row]]
        lines[end[row] - len(rest) : end[row]] = np.frombuffer(rest, np.uint8)
