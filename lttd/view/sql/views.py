"""The views of a trace: all events, the events of one name, the losses.

A view has an Arrow schema, and yields batches with the columns and rows that a query needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa

from lttd.view.formats import EventName, EventType
from lttd.view.pieces import losses_of
from lttd.view.sql.bounds import Chosen, chosen_of
from lttd.view.sql.columns import Column, of_all_events, of_types, schema_of
from lttd.view.sql.reading import Asked, Reading
from lttd.view.times import ALWAYS_END

Array = Any  # pyarrow has no types

_MOST_TIME: Final = (1 << 63) - 1


class View(Protocol):
    """What DuckDB can read as a table."""

    schema: Any

    def batches(self, names: Sequence[str], chosen: Chosen | None) -> Iterator[Array]:
        """Yield the columns of some names, for the rows for which the filter is true."""
        ...


class EventView:
    """Events as rows."""

    def __init__(
        self,
        reading: Reading,
        columns: Sequence[Column],
        globs: Sequence[str] | None = None,
        every: Sequence[EventName] = (),
    ) -> None:
        """*globs*: the events; None: all of them, whose names are *every*, as far as known."""
        self._reading = reading
        self._columns = columns
        self._globs = globs
        self._every = every
        self.schema = schema_of(columns)

    def batches(self, names: Sequence[str], chosen: Chosen | None) -> Iterator[Array]:
        """See ``View``."""
        wanted = set(names) | {
            one.name for one in self._columns if chosen and chosen.needs(one.name)
        }
        begin, end = self._times(chosen)
        asked = Asked(
            self._names(chosen),
            self._cpus(chosen),
            begin,
            end,
            tuple(one for one in self._columns if one.name in wanted),
            chosen.expression if chosen else None,
            tuple(names),
        )
        return self._reading.scan(asked)

    def _place(self, common: str, chosen: Chosen | None) -> str | None:
        """Return the name of a common column, if the filter looks at it."""
        name = next((one.name for one in self._columns if one.common == common), None)
        return name if chosen and name and chosen.needs(name) else None

    def _times(self, chosen: Chosen | None) -> tuple[int, int]:
        name = self._place("time", chosen)
        if chosen is None or name is None:
            return 0, ALWAYS_END
        begin, end = chosen.span(name)
        return max(begin, 0), end if end < _MOST_TIME else ALWAYS_END

    def _cpus(self, chosen: Chosen | None) -> tuple[int, ...] | None:
        name = self._place("cpu", chosen)
        if chosen is None or name is None:
            return self._reading.cpus
        cpus = self._reading.cpus or self._reading.every_cpu()
        return tuple(chosen.among(name, cpus)) or (_NO_CPU,)

    def _names(self, chosen: Chosen | None) -> tuple[str, ...] | None:
        if self._globs is not None:
            return tuple(self._globs)
        name = self._place("event", chosen)
        if chosen is None or name is None:
            return None
        every = [one.name for one in self._every]
        wanted = set(chosen.among(name, dict.fromkeys(every)))
        if len(wanted) == len(set(every)):
            return None
        # Events without a known format have names that nobody knows before.
        return (*(exactly(one) for one in every if one in wanted), _UNKNOWN_GLOB)


_NO_CPU: Final = 1 << 32
_UNKNOWN_GLOB: Final = "unknown-*"


def exactly(name: str) -> str:
    """Return a glob that matches one name only."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def all_events(reading: Reading, every: Sequence[EventName]) -> EventView:
    """Return the view of all events."""
    return EventView(reading, of_all_events(), None, every)


def one_event(reading: Reading, name: EventName, types: Sequence[EventType]) -> EventView:
    """Return the view of the events of one name."""
    return EventView(reading, of_types(types), [exactly(":".join(name))])


class LossesView:
    """The known losses as rows."""

    schema = pa.schema(
        [
            ("time", pa.int64()),
            ("cpu", pa.int32()),
            ("channel", pa.string()),
            ("lost", pa.int64()),
            ("unit", pa.string()),
            ("reason", pa.string()),
        ]
    )

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def batches(self, names: Sequence[str], chosen: Chosen | None) -> Iterator[Array]:
        """See ``View``."""
        for group in self._reading.groups():
            for piece in group.pieces():
                found = [loss for loss in losses_of(piece) if loss.was_wanted]
                if not found:
                    continue
                rows: list[Mapping[str, Any]] = [
                    {
                        "time": min(loss.time, _MOST_TIME),
                        "cpu": loss.cpu,
                        "channel": loss.channel,
                        "lost": loss.lost,
                        "unit": loss.unit.name.lower(),
                        "reason": loss.reason.name.lower() if loss.reason else None,
                    }
                    for loss in found
                ]
                batch = pa.RecordBatch.from_pylist(rows, schema=self.schema)
                yield chosen_of(batch, names, chosen.expression if chosen else None)
