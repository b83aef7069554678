"""Read the events that a view is asked for: a piece of the window at a time, where it pays in
several processes.

Job k of n takes every n-th piece.  This process is job 0; it finds all pieces, puts the rows of
the jobs in order, and makes what a job that failed owes: so it also meets the error.

Rule: of the window only pieces within the bounds of the query's filter are read.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lttd.view.filters import Filter
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.losses import Loss
from lttd.view.notes import Notes
from lttd.view.sql.bounds import chosen_of
from lttd.view.sql.columns import Column
from lttd.view.sql.rows import RowMaker
from lttd.view.sql.workers import Workers
from lttd.view.times import Window
from lttd.view.trace import Trace
from lttd.view.window import PIECE_BYTES, Piece
from lttd.view.worth import jobs_worth

Array = Any  # pyarrow has no types


class StoppedError(Exception):
    """The caller of a query wants no more rows."""


class Asked(NamedTuple):
    """The events that a scan reads, and the columns that it makes of them."""

    globs: tuple[str, ...] | None
    """Of the events' names; None: all events."""
    cpus: tuple[int, ...] | None
    begin: int
    end: int
    """The times between which the events are, both included: of each clock."""
    columns: tuple[Column, ...]
    """Those that the query asks for, and those that its filter looks at."""
    expression: Any
    """The query's filter; None: all rows."""
    names: tuple[str, ...]
    """The columns that the query asks for."""


class Made(NamedTuple):
    """The rows of one piece."""

    rows: Array
    losses: Sequence[Loss]
    notes: Sequence[str]


class Reading:
    """The events of a window of a trace, read for any number of scans."""

    def __init__(self, trace: Trace, window: Window, cpus: Sequence[int] | None, jobs: int) -> None:
        """*jobs*: the number of processes that may decode at once."""
        self.trace = trace
        self.window = window
        self.cpus = tuple(cpus) if cpus else None
        self.notes = Notes()
        self.losses: dict[Loss, None] = {}
        """The losses among the events that were read."""
        self.is_stopped = False
        self.error: BaseException | None = None
        """The first error while events were read, which DuckDB reports in words of its own."""
        self._workers = Workers(self._job, jobs) if jobs > 1 else None

    def close(self) -> None:
        """End the processes that decode."""
        if self._workers is not None:
            self._workers.close()

    def groups(
        self, globs: Sequence[str] | None = None, cpus: Sequence[int] | None = None
    ) -> list[ClockGroup]:
        """Return the segments that can be merged, for some of the events."""
        found = EventWindow(
            [self.trace], self.window, Filter(cpus or self.cpus, globs), PIECE_BYTES
        )
        groups = found.clocks()
        self.notes.add(*found.notes.take())
        return groups

    def every_cpu(self) -> list[int]:
        """Return the CPUs of the trace."""
        streams = (stream for segment in self.trace.segments for stream in segment.streams)
        return sorted({stream.info.id.cpu for stream in streams})

    def guarded(self, some: Iterator[Array]) -> Iterator[Array]:
        """Yield what *some* yields; keep its error, and end it when nobody wants more."""
        try:
            for each in some:
                self._go_on()
                yield each
        except BaseException as error:
            self.error = self.error or error
            raise

    def _go_on(self) -> None:
        """Raise StoppedError if nobody wants more rows."""
        if self.is_stopped:
            raise StoppedError

    def scan(self, asked: Asked) -> Iterator[Array]:
        """Yield the rows of some events."""
        for made in self._in_order(asked):
            self.notes.add(*made.notes)
            self.losses |= dict.fromkeys(one for one in made.losses if one.was_wanted)
            yield made.rows

    def _in_order(self, asked: Asked) -> Iterator[Made]:
        groups = self._within(asked)
        owed = None
        if self._workers is not None:
            owed = self._workers.owed(asked, min(map(jobs_worth, groups), default=1))
        try:
            number = 0
            for group in groups:
                make = self._maker(group, asked)
                for piece in group.pieces():
                    self._go_on()
                    made: Made | None = owed.next(number) if owed else None
                    yield made or make(piece)
                    number += 1
        finally:
            if owed is not None:
                owed.close()

    def _job(self, asked: Asked, number: int, count: int) -> Iterator[Made]:
        """Yield the rows of every *count*-th piece, from *number* on; in a process of its own."""
        at = 0
        for group in self._within(asked):
            make = self._maker(group, asked)
            for piece in group.pieces():
                if at % count == number:
                    yield make(piece)
                at += 1

    def _within(self, asked: Asked) -> list[ClockGroup]:
        groups = [group for group in self.groups(asked.globs, asked.cpus) if group.sources]
        for group in groups:
            group.begin, group.end = max(group.begin, asked.begin), min(group.end, asked.end)
        return [group for group in groups if group.begin <= group.end]

    def _maker(self, group: ClockGroup, asked: Asked) -> Callable[[Piece], Made]:
        maker = RowMaker(group, asked.columns, self.notes)

        def make(piece: Piece) -> Made:
            batch = group.batch(piece)
            rows = chosen_of(maker.rows(batch), asked.names, asked.expression)
            return Made(rows, batch.losses, batch.notes)

        return make
