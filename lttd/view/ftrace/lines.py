"""Make lines of ftrace batches, in the form that the kernel prints and importers read:

    <comm, 16>-<pid, 7> [<cpu, 3>] <flags> <seconds>.<microseconds>: <event>: <fields>

Source of the form: Linux kernel/trace/trace_output.c, trace_print_context and trace_print_lat_fmt.

Rule: event types with the same print fmt (sys_exit_*, sched_wak*) are printed together.
Rule: values and names are escaped before they become part of a line (lttd.terminal).
Invariant: there is a line per event and per loss, and a further one per function of a stack.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.terminal import printable, printable_bytes
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.formats import EventType
from lttd.view.ftrace.render import Renderer
from lttd.view.glyphs import Column, Strip, decimal, right_aligned, words_of
from lttd.view.lines import BlockTexter, Body, body_of
from lttd.view.task_names import Names

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


class Texter(BlockTexter):
    """Makes the lines of one clock group's batches."""

    def __init__(
        self,
        names: Names,
        symbols: Symbols,
        *,
        nanoseconds: bool = False,
        counting: bool = False,
        fields: Sequence[str] | None = None,
    ) -> None:
        self._names = names
        self._symbols = symbols
        self._nanoseconds = nanoseconds
        self._counting = counting
        self._fields = fields
        self._renderers: dict[object, Renderer] = {}

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: the fields of all events."""
        for rows in self._alike(batch):
            yield from self._bodies(batch, *rows)

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes: task, CPU, flags and time."""
        table, pair = self._names.of(batch)
        who = words_of(np.array([self._who(*each) for each in table.tolist()], np.bytes_))[pair]
        cpus = [b"[%03d] " % cpu for cpu in range(int(batch.cpu.max()) + 1)]
        where = words_of(np.array(cpus, np.bytes_))[batch.cpu]
        return [who, where, *self._flags(batch), *self._time(batch), b": "]

    def _who(self, pid: int, comm: bytes) -> bytes:
        return b"%16s-%-7d " % (printable_bytes(comm), pid)

    def _flags(self, batch: EventBatch) -> Strip:
        return [FLAGS[batch.flags], _PREEMPT[batch.preempt]]

    def _time(self, batch: EventBatch) -> Strip:
        if self._counting:
            return right_aligned(decimal(batch.time), len(batch), 12)
        if self._nanoseconds:
            unit, digits, time = 1_000_000_000, 9, batch.time
        else:
            # Round to the nearest microsecond, as ns2usecs() in kernel/trace/trace.c.
            unit, digits, time = 1_000_000, 6, _to_us(batch.time)
        seconds = time // np.uint64(unit)
        rest = (time - seconds * np.uint64(unit)).astype(np.uint32)
        low, high = int(seconds.min()), int(seconds.max())
        if high - low < 1 << 16:
            told = np.array([b"%5d." % second for second in range(low, high + 1)], np.bytes_)
            whole: Strip = [words_of(told)[(seconds - np.uint64(low)).astype(np.int64)]]
        else:
            whole = [*right_aligned(decimal(seconds), len(batch), 5), b"."]
        return [*whole, *decimal(rest, digits)]

    def _alike(self, batch: EventBatch) -> Iterator[tuple[list[EventType], EventRows, Renderer]]:
        """Yield events grouped by their print fmt, whatever their names."""
        found: dict[int, tuple[Renderer, list[EventRows]]] = {}
        for rows in batch.by_type():
            renderer = self._renderer(rows.event_type)
            found.setdefault(id(renderer), (renderer, []))[1].append(rows)
        for renderer, members in found.values():
            types = [rows.event_type for rows in members]
            together = members[0].rows
            if len(members) > 1:
                together = np.sort(np.concatenate([rows.rows for rows in members]))
            yield types, EventRows(batch, types[0], together), renderer

    def _renderer(self, event_type: EventType) -> Renderer:
        format_ = event_type.format
        # Of ftrace's own the print fmt does not tell all: see ftrace_own.
        own = format_.name if format_ and format_.system == OWN_SYSTEM else None
        key = (own, format_.print_fmt, format_.fields) if format_ else None
        renderer = self._renderers.get(key)
        if renderer is None:
            renderer = self._renderers[key] = self._new_renderer(event_type)
        return renderer

    def _new_renderer(self, event_type: EventType) -> Renderer:
        return Renderer(event_type.format, self._symbols, self._fields)

    def _name_of(self, event_type: EventType) -> bytes:
        return f"{printable(event_type.name)}: ".encode()

    def _bodies(
        self, batch: EventBatch, types: list[EventType], rows: EventRows, renderer: Renderer
    ) -> Iterator[Body]:
        heads = {event_type.number: self._name_of(event_type) for event_type in types}
        names: bytes | Column = heads[types[0].number]
        if len(types) > 1:
            table = np.zeros(len(batch.types), f"S{max(map(len, heads.values()))}")
            for number, told in heads.items():
                table[number] = told
            names = words_of(table)
        for at in range(0, len(rows), renderer.rows_at_once):
            some = rows.some(slice(at, at + renderer.rows_at_once)) if at else rows
            if len(some) > renderer.rows_at_once:
                some = rows.some(slice(0, renderer.rows_at_once))
            head = names if isinstance(names, bytes) else names[batch.type[some.rows]]
            yield body_of(some.rows, [head, *renderer.strip(some), b"\n"])


def _to_us(time_ns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Round to the nearest microsecond, without an overflow near 2^64 - 1."""
    half = np.uint64(500)
    if not len(time_ns) or time_ns.max() <= np.uint64((1 << 64) - 1) - half:
        return (time_ns + half) // np.uint64(1000)
    us = time_ns // np.uint64(1000)
    return us + (time_ns - us * np.uint64(1000) >= half)
