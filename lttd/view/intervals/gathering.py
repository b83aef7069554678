"""Gather the events that a collector uses into columns in the order of time."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventBatch, EventRows
from lttd.view.intervals.kind import Table

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]


def numbers(rows: EventRows, *names: str) -> I64 | None:
    """Return the first of some fields that the events have, if it is a number; else None."""
    for name in names:
        if name in rows.names:
            found = rows.column(name)
            if found.ndim == 1 and found.dtype.kind in "iu":
                return found.astype(np.int64)
            return None
    return None


def strings(rows: EventRows, *names: str) -> Column:
    """Return the first of some fields that the events have as strings (dtype S); else empty."""
    for name in names:
        if name in rows.names:
            found = rows.column(name)
            if found.dtype.kind == "S" and found.ndim == 1:
                return found
            if found.dtype.kind == "O":
                return found.astype(np.bytes_) if len(found) else np.empty(0, "S1")
            break
    return np.zeros(len(rows), "S1")


class Part(NamedTuple):
    """Some events of one type, with the columns that a collector wants of them."""

    rows: I64
    """Their numbers in the batch."""
    columns: Mapping[str, Column]


def gathered(batch: EventBatch, parts: Iterable[Part], names: Iterable[str]) -> Table | None:
    """Return columns of all parts in the order of time, with ``time`` and ``cpu``.

    What a part lacks is 0 or empty.  None: there are no events.
    """
    some = [part for part in parts if len(part.rows)]
    if not some:
        return None
    rows = np.concatenate([part.rows for part in some])
    order = np.argsort(rows, kind="stable") if len(some) > 1 else None
    found: Table = {}
    for name in names:
        columns = [_filled(part.columns.get(name), some, name, len(part.rows)) for part in some]
        column = np.concatenate(columns)
        found[name] = column if order is None else column[order]
    rows = rows if order is None else rows[order]
    return {"time": batch.time[rows], "cpu": batch.cpu[rows], "row": rows, **found}


def _filled(column: Column | None, parts: Iterable[Part], name: str, count: int) -> Column:
    if column is not None:
        return column
    dtypes = [part.columns[name].dtype for part in parts if name in part.columns]
    return np.zeros(count, dtypes[0] if dtypes else np.int64)


def of_names(batch: EventBatch, names: Iterable[str]) -> Iterator[EventRows]:
    """Yield the events of some names, one type after the other."""
    wanted = frozenset(names)
    for rows in batch.by_type():
        if rows.event_type.name in wanted:
            yield rows
