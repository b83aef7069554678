"""The API of ``lttd.open``: a trace, windows of its events, and answers in SQL.

trace = lttd.open("TRACE")
for batch in trace.window(begin="+1s", end="+1.1s", events=["sched:*"]):
    switches = batch["sched_switch"]
    print(switches.time, switches["prev_pid"])
for event in trace.events(end="+10ms", where="prev_pid == 42"):
    print(event.time, event.name, event["prev_comm"])
trace.sql("SELECT prev_comm, count(*) FROM sched_switch GROUP BY 1").fetchall()
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lttd.view.columns import EventRows
from lttd.view.filters import Filter
from lttd.view.library import EventWindow
from lttd.view.opening import open_any
from lttd.view.sql.asking import ask
from lttd.view.times import Moment, Window, parse_moment
from lttd.view.trace import Trace
from lttd.view.window import PIECE_BYTES

if TYPE_CHECKING:
    from lttd.view.sql.result import SqlResult

When = int | str | Moment | None
"""A time in trace-clock units, or text in the form of ``--begin`` and ``--end``."""


class Event:
    """One event, for small traces: ``event.time``, ``event["prev_comm"]``."""

    __slots__ = ("_number", "_rows", "cpu", "name", "pid", "time")

    def __init__(self, rows: EventRows, number: int) -> None:
        at = rows.rows[number]
        self.time = int(rows.batch.time[at])
        self.cpu = int(rows.batch.cpu[at])
        self.pid = int(rows.batch.pid[at])
        self.name = rows.event_type.name
        self._rows = rows
        self._number = number

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  (an integer, bytes or a list)
        """Return the value of one field: an integer, bytes or a list.

        Raises:
            KeyError: the event has no such field.
        """
        value = self._rows.column(name)[self._number]
        return value.tolist() if hasattr(value, "tolist") else value

    @property
    def fields(self) -> dict[str, Any]:
        """The event's own fields, by name."""
        return {name: self[name] for name in self._rows.names}

    def __repr__(self) -> str:
        return f"<{self.time} cpu {self.cpu} pid {self.pid} {self.name} {self.fields}>"


class OpenedTrace(Trace):
    """A trace whose events can be read."""

    def window(  # noqa: PLR0913  (as lttv text has them)
        self,
        begin: When = None,
        end: When = None,
        *,
        cpus: Iterable[int] | None = None,
        events: Iterable[str] | None = None,
        where: str | None = None,
        comms: Iterable[str] | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> EventWindow:
        """Return a window with both ends included; None means the begin or end of the trace.

        *events* are globs over ``name`` or ``system:name``, *comms* over names of tasks.  *where*
        is an expression over fields (see filters.py).  A batch holds the events of about
        *piece_bytes* of sub-buffers.

        Raises:
            UsageError: a time or an expression is not valid.
        """
        window = Window(_moment(begin, self), _moment(end, self))
        return EventWindow([self], window, Filter(cpus, events, where, comms), piece_bytes)

    def events(
        self,
        begin: When = None,
        end: When = None,
        *,
        cpus: Iterable[int] | None = None,
        events: Iterable[str] | None = None,
        where: str | None = None,
        comms: Iterable[str] | None = None,
    ) -> Iterator[Event]:
        """Yield single events, which is convenient but slow.  Arguments as for window()."""
        for batch in self.window(begin, end, cpus=cpus, events=events, where=where, comms=comms):
            place: list[tuple[EventRows, int] | None] = [None] * len(batch)
            for rows in batch.by_type():
                for number, at in enumerate(rows.rows.tolist()):
                    place[at] = (rows, number)
            for found in place:
                assert found is not None
                yield Event(*found)

    def sql(
        self,
        query: str,
        begin: When = None,
        end: When = None,
        *,
        cpus: Iterable[int] | None = None,
    ) -> "SqlResult":
        """Run a SELECT over views of the window's events, such as ``sched_switch``, by DuckDB.

        Raises:
            UsageError: duckdb or pyarrow is missing; the query or a time is not valid.
        """
        window = Window(_moment(begin, self), _moment(end, self))
        return ask(self, window, list(cpus) if cpus is not None else None, query)


def _moment(when: When, trace: Trace) -> Moment | None:
    if isinstance(when, str):
        return parse_moment(when, trace)
    return Moment(when, wall=False) if isinstance(when, int) else when


def open_trace(path: str | os.PathLike[str], *, hide_self: bool = False) -> OpenedTrace:
    """Open the trace at *path*; this is ``lttd.open``.

    *hide_self* leaves out the events of lttd's own threads.

    Raises:
        NotATraceError: *path* holds no trace.
        TraceDamagedError: a manifest cannot be read.
    """
    trace = open_any(path, OpenedTrace)
    return trace.without_own_threads() if hide_self else trace
