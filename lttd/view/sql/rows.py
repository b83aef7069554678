"""Make Arrow batches of events: only the columns that a query needs.

Rule: a value that nobody knows is null: the task of an event that does not state it, a field that
this segment's kernel did not have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lttd.clock import Conversion
from lttd.view.columns import EventBatch, EventRows
from lttd.view.export.arrow import field_array, realtimes_ns
from lttd.view.library import ClockGroup
from lttd.view.notes import TakesNotes
from lttd.view.sql.columns import Column, schema_of

Array = Any  # pyarrow has no types
I64 = npt.NDArray[np.int64]

_NO_NAME: Final = b"-"
"""The name that CTF's events give a task that they do not name."""


class RowMaker:
    """Makes batches of rows of one clock group's events."""

    def __init__(self, group: ClockGroup, columns: Sequence[Column], notes: TakesNotes) -> None:
        self._columns = columns
        self.schema = schema_of(columns)
        self._has_flags = group.family is not None and group.family.states_flags
        wanted = {one.common for one in columns}
        self._names = None
        if wanted & {"comm", "tgid"} and group.family is not None:
            self._names = group.family.names(group.near(), notes)
        self._snapshots = [
            each for segment in group.segments for each in segment.manifest.clock_snapshots
        ]
        self._wall = Conversion(self._snapshots) if self._snapshots else None
        self._makers: dict[str, Callable[[EventBatch], Array]] = {
            "time": lambda batch: pa.array(batch.time.view(np.int64)),
            "realtime": self._realtime,
            "cpu": lambda batch: pa.array(batch.cpu.astype(np.int32)),
            "comm": self._comm,
            "pid": lambda batch: pa.array(batch.pid, mask=batch.pid < 0),
            "tgid": self._tgid,
            "flags": lambda batch: self._flags(batch.flags),
            "preempt_count": lambda batch: self._flags(batch.preempt),
            "event": lambda batch: _by_type(batch, [one.name for one in batch.types]),
            "system": lambda batch: _by_type(batch, [one.system for one in batch.types]),
        }

    def rows(self, batch: EventBatch) -> Array:
        """Return the rows of a batch's events, in the order of time."""
        own = [one for one in self._columns if one.common is None]
        fields = dict(zip(own, _in_order(batch, own), strict=True)) if own else {}
        arrays = [
            self._makers[one.common](batch) if one.common is not None else fields[one]
            for one in self._columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _realtime(self, batch: EventBatch) -> Array:
        if self._wall is None:
            return pa.nulls(len(batch), pa.timestamp("ns"))
        real, beyond = realtimes_ns(batch.time, self._wall, self._snapshots)
        return pa.array(real, pa.int64(), mask=beyond).cast(pa.timestamp("ns"))

    def _comm(self, batch: EventBatch) -> Array:
        if self._names is None or not len(batch):
            return pa.nulls(len(batch), pa.dictionary(pa.int32(), pa.string()))
        pairs, number = self._names.of(batch)
        names, name_of = np.unique(pairs["comm"], return_inverse=True)
        known = [None if name == _NO_NAME else name.decode(errors="replace") for name in names]
        index = name_of.reshape(-1).astype(np.int32)[number]
        return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(known, pa.string()))

    def _tgid(self, batch: EventBatch) -> Array:
        pids, which = np.unique(batch.pid, return_inverse=True)
        known = [self._names.tgid(pid) if self._names else None for pid in pids.tolist()]
        return pa.array(known, pa.int32()).take(pa.array(which.reshape(-1)))

    def _flags(self, values: npt.NDArray[np.uint8]) -> Array:
        return pa.array(values) if self._has_flags else pa.nulls(len(values), pa.uint8())


def _by_type(batch: EventBatch, words: list[str]) -> Array:
    return pa.DictionaryArray.from_arrays(pa.array(batch.type), pa.array(words, pa.string()))


def _in_order(batch: EventBatch, columns: Iterable[Column]) -> Iterator[Array]:
    """Yield fields of a batch's events, in the order of time."""
    types = list(batch.by_type())
    place = None
    if len(types) > 1:
        order = np.concatenate([one.rows for one in types])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        place = pa.array(place)
    for column in columns:
        array = pa.chunked_array([_field(rows, column) for rows in types], column.type)
        array = array.combine_chunks()
        yield array if place is None else array.take(place)


def _field(rows: EventRows, column: Column) -> Array:
    """Return a field of some events, in the type of its column."""
    if column.field in rows.names:
        array = field_array(rows, column.field)
    elif rows.event_type.format is None and column.field == "raw":
        array = pa.array(rows.raw(), pa.binary())
    else:
        array = pa.nulls(len(rows), column.type)
    if array.type == column.type:
        return array
    if column.type == pa.string() and pa.types.is_nested(array.type):
        return pa.array(map(str, array.to_pylist()), pa.string())
    return array.cast(column.type, safe=False)
