"""Handlers of interrupts, softirqs and timers: from entry to exit, on one CPU.

A softirq also waits: from the first raise after it was run last to the next entry.

Rule: handlers of one number do not nest, those of others may; so pairs are by CPU and number.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.intervals.gathering import Part, gathered, numbers, of_names, strings
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table, duration_ns, merged
from lttd.view.intervals.order import hashed
from lttd.view.intervals.pairing import Events, Keep, Matcher
from lttd.view.intervals.setting import Setting

Column = npt.NDArray[Any]
# Linux include/linux/interrupt.h
SOFTIRQS: Final = (
    *("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK"),
    *("IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"),
)


class _Row(NamedTuple):
    """One kind of handler."""

    kind: bytes
    begins: tuple[str, ...]
    """Names of the event, of all tracers."""
    ends: tuple[str, ...]
    number: tuple[str, ...]
    """Names of the field that both events have."""
    named_by: tuple[str, ...] = ()
    """Names of the field that has the handler's name, or the address of its function."""
    keep: Keep = Keep.LAST


_ROWS: Final = (
    _Row(b"irq", ("irq_handler_entry",), ("irq_handler_exit",), ("irq",), ("name",)),
    _Row(
        b"softirq", ("softirq_entry", "irq_softirq_entry"), ("softirq_exit", "irq_softirq_exit"),
        ("vec",),
    ),
    _Row(
        b"softirq_wait", ("softirq_raise", "irq_softirq_raise"),
        ("softirq_entry", "irq_softirq_entry"), ("vec",), keep=Keep.FIRST,
    ),
    _Row(b"timer", ("timer_expire_entry",), ("timer_expire_exit",), ("timer",), ("function",)),
    _Row(
        b"hrtimer", ("hrtimer_expire_entry", "timer_hrtimer_expire_entry"),
        ("hrtimer_expire_exit", "timer_hrtimer_expire_exit"), ("hrtimer",), ("function",),
    ),
)  # fmt: skip


class Irqs:
    """Finds the runs of handlers."""

    def __init__(self, setting: Setting) -> None:
        self.counts = Counts()
        self._names: dict[tuple[bytes, int], bytes] = {}
        self._symbols = Symbols(setting.group.segments[-1].paths.tracefs)
        self._matchers = {
            row: Matcher(self.counts, on_one_cpu=True, keep=row.keep) for row in _ROWS
        }

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        return merged([self._of(row, batch, holes) for row in _ROWS])

    def finish(self) -> None:
        """See ``Collector``."""
        for matcher in self._matchers.values():
            matcher.finish()

    def _of(self, row: _Row, batch: EventBatch, holes: Holes) -> Table | None:
        """Return the runs of one kind of handler."""
        parts = []
        for rows in of_names(batch, (*row.begins, *row.ends)):
            number = numbers(rows, *row.number)
            if number is None:
                continue
            begins = rows.event_type.name in row.begins
            named = numbers(rows, *row.named_by)
            if named is None:
                named = number
                self._learn(row, rows, number)
            columns = {"number": number, "named": named, "begins": np.full(len(rows), begins)}
            parts.append(Part(rows.rows, columns))
        events = gathered(batch, parts, ("number", "named", "begins"))
        if events is None:
            return None
        self.counts.events += len(events["time"])
        key = hashed([events["cpu"], events["number"]])
        more = {name: events[name] for name in ("number", "named")}
        pairs = self._matchers[row].take(
            Events(events["time"], events["cpu"], key, events["begins"], more), holes
        )
        begin, end = pairs.begin["time"], pairs.end["time"]
        return {
            "begin_ns": begin,
            "end_ns": end,
            "duration_ns": duration_ns(begin, end),
            "cpu": pairs.end["cpu"],
            "kind": np.full(len(begin), row.kind),
            "number": pairs.begin["number"],
            "name": self._named(row, pairs.begin["named"]),
            "complete": pairs.complete,
        }

    def _learn(self, row: _Row, rows: EventRows, number: Column) -> None:
        """Note the names that the events state, each once."""
        known = [one for kind, one in self._names if kind == row.kind]
        fresh = np.flatnonzero(~np.isin(number, known)) if row.named_by else ()
        if not len(fresh) or not set(row.named_by) & set(rows.names):
            return
        _, first = np.unique(number[fresh], return_index=True)
        some = rows.some(fresh[first])
        for one, name in zip(number[fresh[first]], strings(some, *row.named_by), strict=True):
            self._names[row.kind, int(one)] = bytes(name)

    def _named(self, row: _Row, named: Column) -> Column:
        values, which = np.unique(named, return_inverse=True)
        texts = [self._name(row, value) for value in values.tolist()]
        return np.array(texts or [b""], np.bytes_)[which.reshape(-1)]

    def _name(self, row: _Row, value: int) -> bytes:
        if row.kind.startswith(b"softirq"):
            known = 0 <= value < len(SOFTIRQS)
            return (SOFTIRQS[value] if known else str(value)).encode()
        if "function" in row.named_by:
            return self._symbols.told(value & (1 << 64) - 1, offset=False)
        return self._names.get((row.kind, value), b"%d" % value)
