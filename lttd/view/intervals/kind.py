"""A kind of interval: the events that bound it, its columns, and the code that finds it.

    for table in KINDS["syscalls"].tables(trace.window(begin="+1s")):
        table["name"], table["duration_ns"], table["complete"]

Rule: intervals come in the order in which they end, a table for each piece of the window; between
pieces only the open ones are kept.
Rule: an interval in which something may have been lost that would have ended it has ``complete``
False.  An interval that is cut by an end of the window is in no table; it is counted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventBatch
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.setting import Setting
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.notes import Notes
from lttd.view.progress import pieces_of

Column = npt.NDArray[Any]
Table = dict[str, Column]
"""Columns of equal length by name; strings are bytes (dtype S)."""
TELLS_TASKS: Final = "sched_switch"
TEXT: Final = "str"
"""The type of a column of strings."""


@dataclass
class Counts:
    """What a collector met."""

    events: int = 0
    """How many events were there that can bound one."""
    cut: int = 0
    """Intervals that began before the window, or had not ended at its end; they are in no table."""
    unknown: int = 0
    """Intervals of which an event is lost, or may be; in no table, or not complete."""

    def add(self, other: "Counts") -> None:
        """Add those of another clock group."""
        self.events += other.events
        self.cut += other.cut
        self.unknown += other.unknown


class Collector(Protocol):
    """Finds the intervals of a kind in the batches of one clock group."""

    counts: Counts

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """Return the intervals that end in a batch; batches come in the order of time."""
        ...

    def finish(self) -> None:
        """Count the intervals that are open."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of interval."""

    name: str
    help: str
    """One line."""
    events: tuple[str, ...]
    """The events to record for it."""
    reads: tuple[str, ...]
    """Globs of the events that it uses if the trace has them, of all tracers."""
    columns: tuple[tuple[str, str], ...]
    """Names and types: a dtype of numpy, or TEXT."""
    collector: Callable[[Setting], Collector] = field(repr=False)

    def tables(self, window: EventWindow) -> Iterator[Table]:
        """Yield the intervals that end in a window; its filter is not used: a pair needs both."""
        for _, table in Reading([self], window):
            yield table

    def empty(self) -> Table:
        """Return a table without rows."""
        return {name: np.empty(0, _dtype(of)) for name, of in self.columns}


def _dtype(of: str) -> str:
    return "S1" if of == TEXT else of


class Reading:
    """Finds the intervals of several kinds in a window, which is read once."""

    def __init__(self, kinds: Sequence[Kind], window: EventWindow) -> None:
        self._kinds = kinds
        self._window = window
        self.counts = {kind.name: Counts() for kind in kinds}
        """Complete when all tables were taken."""
        self.notes = Notes()
        """Lines on data that cannot be read."""
        self.group: ClockGroup | None = None
        """The clock group of the last table."""

    def __iter__(self) -> Iterator[tuple[Kind, Table]]:
        """Yield tables in the order of time."""
        for group in self._window.of_events(self._globs()).clocks():
            if group.sources:
                self.group = group
                yield from self._of_group(group)
        self.notes.add(*self._window.notes.take())

    def _globs(self) -> list[str]:
        globs = [glob for kind in self._kinds for glob in kind.reads]
        if any(family.formats_of is None for family in self._window.families()):
            globs.append(TELLS_TASKS)  # events without saved formats may not state their task
        return list(dict.fromkeys(globs))

    def _of_group(self, group: ClockGroup) -> Iterator[tuple[Kind, Table]]:
        holes, setting = Holes(group), Setting(group)
        collectors = [(kind, kind.collector(setting)) for kind in self._kinds]
        for piece in pieces_of(group):
            batch = setting.told(group.batch(piece))
            holes.reached(batch)
            self.notes.add(*batch.notes)
            for kind, collector in collectors:
                table = collector.take(batch, holes)
                if table is not None and len(table["end_ns"]):
                    yield kind, table
        for kind, collector in collectors:
            collector.finish()
            self.counts[kind.name].add(collector.counts)


def some_of(table: Table, rows: Column) -> Table:
    """Return some rows of a table, by number or mask."""
    return {name: column[rows] for name, column in table.items()}


def merged(tables: Sequence[Table | None]) -> Table | None:
    """Return the rows of some tables in the order in which they end; None: there are none."""
    some = [table for table in tables if table is not None and len(table["end_ns"])]
    if len(some) < 2:
        return some[0] if some else None
    order = np.argsort(np.concatenate([table["end_ns"] for table in some]), kind="stable")
    return {name: np.concatenate([table[name] for table in some])[order] for name in some[0]}


def duration_ns(begin: npt.NDArray[np.uint64], end: npt.NDArray[np.uint64]) -> Column:
    """Return the times from begins to ends."""
    return end.view(np.int64) - begin.view(np.int64)
