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
from lttd.view.library import ClockGroup, EventWindow

Column = npt.NDArray[Any]
Table = dict[str, Column]
"""Columns of equal length by name; strings are bytes (dtype S)."""
TEXT: Final = "str"
"""The type of a column of strings."""


@dataclass
class Counts:
    """How many intervals are in no table, and how many of those in tables are unknown."""

    cut: int = 0
    """They began before the window, or had not ended at its end."""
    unknown: int = 0
    """One of their two events may be lost, or is."""


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
    collector: Callable[[ClockGroup], Collector] = field(repr=False)

    def tables(self, window: EventWindow) -> Iterator[Table]:
        """Yield the intervals that end in a window; its filter is not used: a pair needs both."""
        for _, table in tables_of([self], window):
            yield table

    def empty(self) -> Table:
        """Return a table without rows."""
        return {name: np.empty(0, _dtype(of)) for name, of in self.columns}


def _dtype(of: str) -> str:
    return "S1" if of == TEXT else of


def tables_of(kinds: Sequence[Kind], window: EventWindow) -> Iterator[tuple[Kind, Table]]:
    """Yield the intervals of several kinds that end in a window, which is read once."""
    wanted = dict.fromkeys(glob for kind in kinds for glob in kind.reads)
    for group in window.of_events(wanted).clocks():
        if not group.sources:
            continue
        holes = Holes(group)
        collectors = [(kind, kind.collector(group)) for kind in kinds]
        for piece in group.pieces():
            batch = group.batch(piece)
            holes.reached(batch)
            for kind, collector in collectors:
                table = collector.take(batch, holes)
                if table is not None and len(table["end_ns"]):
                    yield kind, table
