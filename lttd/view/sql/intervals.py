"""The views of intervals: what lies between a pair of events, such as a system call.

Rule: an interval is looked for in the whole window, also if the query bounds its times: a pair
needs both of its events.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lttd.errors import UsageError
from lttd.stats import counted
from lttd.view.filters import Filter, matches
from lttd.view.formats import EventName
from lttd.view.intervals.kind import TEXT, Kind
from lttd.view.intervals.kind import Reading as IntervalReading
from lttd.view.intervals.table import KINDS
from lttd.view.library import EventWindow
from lttd.view.sql.bounds import Chosen, chosen_of
from lttd.view.sql.reading import Reading
from lttd.view.window import PIECE_BYTES

Array = Any  # pyarrow has no types
_CPU: Final = "cpu"
_NS: Final = "_ns"


class IntervalView:
    """The intervals of one kind as rows."""

    def __init__(self, reading: Reading, kind: Kind, every: Sequence[EventName]) -> None:
        """*every*: the events of the trace."""
        self._reading = reading
        self._kind = kind
        self._every = every
        self.schema = schema_of(kind)

    def batches(self, names: Sequence[str], chosen: Chosen | None) -> Iterator[Array]:
        """See ``View``.

        Raises:
            UsageError: the trace has none of the events.
        """
        self._look_for_events()
        window = EventWindow([self._reading.trace], self._reading.window, Filter(), PIECE_BYTES)
        found = IntervalReading([self._kind], window)
        for _, table in found:
            batch = self._batch(table)
            yield chosen_of(batch, names, chosen.expression if chosen else None)
        self._reading.notes.add(*found.notes.told())
        if unknown := found.counts[self._kind.name].unknown:
            why = "events were lost between their ends; they are in no row, or not complete"
            self._reading.notes.add(f"{self._kind.name}: {counted(unknown, 'interval')}: {why}")

    def _look_for_events(self) -> None:
        kind = self._kind
        if not self._has_any(kind.reads):
            raise UsageError(
                f"{kind.name}: the trace has none of its events; record {', '.join(kind.events)}"
            )

    def _has_any(self, globs: Sequence[str]) -> bool:
        return any(matches(*name, glob) for name in self._every for glob in globs)

    def _batch(self, table: dict[str, npt.NDArray[Any]]) -> Array:
        cpus = self._reading.cpus
        if cpus is not None and _CPU in table:
            kept = np.isin(table[_CPU], list(cpus))
            table = {name: column[kept] for name, column in table.items()}
        arrays = [_array(table[field.name], field.type) for field in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def view_of(reading: Reading, name: str, every: Sequence[EventName]) -> IntervalView:
    """Return the view of a kind of interval; *every*: the events of the trace."""
    return IntervalView(reading, KINDS[name], every)


def schema_of(kind: Kind) -> Any:  # noqa: ANN401
    """Return the columns of a kind's view; times are signed, so that they can be subtracted."""

    def type_of(name: str, of: str) -> Any:  # noqa: ANN401
        if of == TEXT:
            return pa.string()
        return pa.int64() if name.endswith(_NS) else pa.from_numpy_dtype(np.dtype(of))

    return pa.schema([(name, type_of(name, of)) for name, of in kind.columns])


def _array(column: npt.NDArray[Any], kind: Any) -> Array:  # noqa: ANN401
    if column.dtype.kind == "S":
        names, which = np.unique(column, return_inverse=True)
        known = pa.array([name.decode(errors="replace") for name in names.tolist()], pa.string())
        return known.take(pa.array(which.reshape(-1)))
    return pa.array(column).cast(kind, safe=False)
