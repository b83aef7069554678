"""Pair begins with the ends that follow them, by key.

A pair is a begin and the next event of the same key, if that is an end.  Of two begins in a row,
the earlier has no end; for ``Keep.FIRST`` (a softirq that is raised again) the later is ignored.

Rule: between batches only the open begins are kept; one per key.
"""

import enum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table, some_of
from lttd.view.intervals.order import firsts_of, lasts_of, stable_order

Column = npt.NDArray[Any]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
MOST_OPEN: Final = 1 << 20
"""The most begins that wait for their ends; beyond it the oldest are given up and counted."""


class Keep(enum.Enum):
    """The begin that counts, of several in a row."""

    LAST = enum.auto()
    FIRST = enum.auto()


class Events(NamedTuple):
    """Begins and ends in the order of time."""

    time: U64
    cpu: Column
    key: I64
    begins: Mask
    more: Table
    """Further columns, of which a pair gets those of its begin and of its end."""


class Pairs(NamedTuple):
    """Pairs in the order of their ends."""

    begin: Table
    """The columns of the begins, and ``time`` and ``cpu``."""
    end: Table
    complete: Mask


class Matcher:
    """Pairs the events of batches."""

    def __init__(
        self, counts: Counts, *, on_one_cpu: bool, keep: Keep = Keep.LAST, alone: bool = False
    ) -> None:
        """*on_one_cpu*: both events of a pair have the same CPU, and their key contains it.

        *alone*: after a begin without an end the next pair of that key is not complete.
        """
        self._counts = counts
        self._on_one_cpu = on_one_cpu
        self._keep = keep
        self._alone = alone
        self._open: Table = {}

    def take(self, events: Events, holes: Holes) -> Pairs:
        """Return the pairs that end among *events*."""
        columns = self._joined(events)
        order = stable_order(columns["key"])
        key, begins = columns["key"][order], columns["begins"][order]
        first = firsts_of(key)
        before = np.append(False, begins[:-1]) & ~first  # the event before is a begin of this key
        if self._keep is Keep.FIRST:
            kept = ~(begins & before)
            order, key, begins = order[kept], key[kept], begins[kept]
            first = firsts_of(key)
            before = np.append(False, begins[:-1]) & ~first
        last = lasts_of(key)
        self._count(columns, order, holes, begins, before, first)
        ends = np.flatnonzero(before & ~begins)
        by_time = np.argsort(order[ends], kind="stable")
        ends = ends[by_time]
        begin = some_of(columns, order[ends - 1])
        end = some_of(columns, order[ends])
        complete = ~self._broken(begin, end, holes)
        if self._alone:
            crowded = columns["crowded"][order] | (begins & before)
            columns["crowded"][order] = crowded
            complete &= ~crowded[ends - 1]
        self._counts.unknown += int(np.count_nonzero(~complete))
        self._keep_open(columns, order[last & begins])
        return Pairs(begin, end, complete)

    def finish(self) -> None:
        """Count what is open."""
        self._counts.cut += len(self._open.get("time", ()))
        self._open = {}

    def _joined(self, events: Events) -> Table:
        """Return the open begins, and *events* after them."""
        new = {
            "time": events.time, "cpu": events.cpu, "key": events.key, "begins": events.begins,
            "crowded": np.zeros(len(events.time), np.bool_), **events.more,
        }  # fmt: skip
        if not self._open:
            return new
        return {name: np.concatenate((self._open[name], column)) for name, column in new.items()}

    def _count(
        self, columns: Table, order: I64, holes: Holes, begins: Mask, before: Mask, first: Mask
    ) -> None:
        """Count begins without an end, and ends without a begin."""
        self._counts.unknown += int(np.count_nonzero(begins & before))
        stray = np.flatnonzero(~begins & ~before)
        if not len(stray):
            return
        time = columns["time"][order]
        since = np.where(first[stray], np.uint64(0), time[np.maximum(stray - 1, 0)])
        cpu = columns["cpu"][order[stray]]
        lost = self._lost(cpu, since, time[stray], holes)
        self._counts.unknown += int(np.count_nonzero(lost))
        self._counts.cut += int(np.count_nonzero(~lost))

    def _broken(self, begin: Table, end: Table, holes: Holes) -> Mask:
        return self._lost(end["cpu"], begin["time"], end["time"], holes)

    def _lost(self, cpu: Column, begin: U64, end: U64, holes: Holes) -> Mask:
        return holes.of_cpu(cpu, begin, end) if self._on_one_cpu else holes.of_any(begin, end)

    def _keep_open(self, columns: Table, rows: I64) -> None:
        rows = np.sort(rows)  # the oldest first
        if len(rows) > MOST_OPEN:
            self._counts.unknown += len(rows) - MOST_OPEN
            rows = rows[-MOST_OPEN:]
        self._open = some_of(columns, rows)
