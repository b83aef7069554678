"""The spans of time in which events of a CPU are missing.

A hole reaches from the last event of its CPU before a loss to the begin of the sub-buffer after it.
Its end is known in advance, from the indexes; its begin when the events before it were read.  Until
then it is the begin of the sub-buffer before it, which is later than all that was read.

There is a hole, too, where a segment does not continue the one before: nothing was recorded between
two runs; and before a segment whose predecessor is not there.

Rule: an interval is broken if it overlaps a hole of a CPU on which its events can be.  An event at
the time of a hole's end is after the hole.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.index import FOREVER, SeekIndex
from lttd.view.columns import EventBatch
from lttd.view.library import ClockGroup
from lttd.view.window import KnownIndex, WindowStream

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]
_AT_ONCE: Final = 1 << 16
"""The number of index entries that are read in one go."""


class _OfCpu:
    """The holes of one CPU, in the order of time."""

    def __init__(self, since: U64, until: U64) -> None:
        order = np.argsort(until, kind="stable")
        self.until = until[order]
        self.since = since[order]
        """The begin of each hole; before it is known, the begin of the sub-buffer before it."""
        self._known = 0
        """The number of holes whose begin is final."""
        self._last = 0
        """The time of the last event so far."""

    def reached(self, times: U64, end: int) -> None:
        """Note the events of this CPU up to *end*, not included."""
        first = self._known
        behind = int(np.searchsorted(self.since, np.uint64(min(end, FOREVER)), "left"))
        if behind > first:
            at = np.searchsorted(times, self.until[first:behind], "left")
            before = np.append(np.uint64(self._last), times)[at]
            self.since[first:behind] = np.minimum(before, self.until[first:behind])
            # A sub-buffer that goes on after *end* has more events: its hole begins later.
            over = int(np.searchsorted(self.until, np.uint64(min(end, FOREVER)), "right"))
            self._known = max(first, min(over, behind))
        if len(times):
            self._last = int(times[-1])

    def breaks(self, begin: U64, end: U64) -> Mask:
        """Return which intervals overlap a hole."""
        at = np.searchsorted(self.until, begin, "right")
        following = np.append(self.since, np.uint64(FOREVER))[at]
        return following < end


class Holes:
    """The holes of a clock group."""

    def __init__(self, group: ClockGroup) -> None:
        found: dict[int, list[tuple[U64, U64]]] = {}
        for cpu, since, until in _holes_of(group):
            found.setdefault(cpu, []).append((since, until))
        self._of: dict[int, _OfCpu] = {}
        for cpu, parts in found.items():
            since, until = (np.concatenate(column) for column in zip(*parts, strict=True))
            self._of[cpu] = _OfCpu(since, until)
        every = [one.until for one in self._of.values()]
        until = np.concatenate([np.empty(0, np.uint64), *every])
        self._order = np.argsort(until, kind="stable")
        self._until = until[self._order]
        self._first_since = self._firsts()

    def __len__(self) -> int:
        return len(self._until)

    def reached(self, batch: EventBatch) -> None:
        """Note the events of the next batch, before intervals that end in it are asked for."""
        if not len(self):
            return
        for cpu, one in self._of.items():
            one.reached(batch.time[batch.cpu == cpu], batch.end)
        self._first_since = self._firsts()

    def _firsts(self) -> U64:
        """Return for each hole, in the order of their ends, the earliest begin from it on."""
        every = [one.since for one in self._of.values()]
        since = np.concatenate([np.empty(0, np.uint64), *every])[self._order]
        return np.minimum.accumulate(since[::-1])[::-1]

    def of_cpu(self, cpu: Column, begin: U64, end: U64) -> Mask:
        """Return which intervals overlap a hole of their own CPU."""
        broken = np.zeros(len(begin), np.bool_)
        for number, one in self._of.items():
            rows = np.flatnonzero(cpu == number)
            broken[rows] = one.breaks(begin[rows], end[rows])
        return broken

    def of_any(self, begin: U64, end: U64) -> Mask:
        """Return which intervals overlap a hole of any CPU."""
        if not len(self):
            return np.zeros(len(begin), np.bool_)
        at = np.searchsorted(self._until, begin, "right")
        first: U64 = np.append(self._first_since, np.uint64(FOREVER))[at]
        return first < end


def _holes_of(group: ClockGroup) -> Iterator[tuple[int, U64, U64]]:
    """Yield CPU, begins and ends of holes; a begin is that of the sub-buffer before."""
    names = {segment.paths.directory.name for segment in group.segments}
    manifests = {segment.paths.directory: segment.manifest for segment in group.segments}
    before: dict[tuple[str, int], int] = {}
    first: dict[str, object] = {}
    for one in group.touching:
        directory = one.stream.segment.directory
        told, source = manifests[directory].source, manifests[directory].source_name
        named = {str(told.get(key) or "") for key in ("rolled_from", "continues")} - {""}
        is_first = first.setdefault(source, directory) == directory
        begin, last = _ends(one)
        if not (named & names or (is_first and not named) or "cut" in told):
            yield one.cpu, _times(before.get((source, one.cpu), 0)), _times(begin)
        before[source, one.cpu] = last
    for one in group.sources:
        yield from _lost(one)


def _times(*times: int) -> U64:
    return np.array(times, np.uint64)


def _ends(one: WindowStream) -> tuple[int, int]:
    """Return the begins of the first and of the last sub-buffer."""
    index = one.index
    first, last = (index.entries(at, at + 1)["begin"][0] for at in (0, len(index) - 1))
    return int(first), int(last)


def _lost(one: WindowStream) -> Iterator[tuple[int, U64, U64]]:
    gaps = one.gaps()
    if not len(gaps):
        return
    index = one.glance()
    count = len(index)
    rows, ends = gaps["row"].astype(np.uint64), gaps["end"].astype(np.uint64)
    inside = rows < np.uint64(count)
    if inside.any():
        known = np.unique(rows[inside].astype(np.int64))
        yield one.cpu, *_around(index, known)
    if not inside.all() and count:
        last = index.entries(count - 1, count)
        until = max(int(ends[~inside].max()), int(last["end"][0].astype(np.uint64)))
        # The last event may have the time at which the loss was known.
        yield one.cpu, last["begin"].astype(np.uint64), _times(min(until + 1, FOREVER))


def _around(index: SeekIndex | KnownIndex, rows: I64) -> tuple[U64, U64]:
    """Return the begins of the sub-buffers before some rows, and of the rows; 0: none before."""
    before, begins = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint64)
    at = 0
    while at < len(rows):
        first = max(int(rows[at]) - 1, 0)
        behind = int(np.searchsorted(rows, first + _AT_ONCE, "left"))
        seen = index.entries(first, int(rows[behind - 1]) + 1)["begin"].astype(np.uint64)
        some = slice(at, behind)
        begins[some] = seen[rows[some] - first]
        before[some] = np.where(rows[some] > 0, seen[np.maximum(rows[some] - 1 - first, 0)], 0)
        at = behind
    return before, begins
