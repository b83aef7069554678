"""Events as columns: the pieces of a window, decoded, merged over CPUs by time.

Rule: the columns that every event has are decoded at once; the fields of an event type are gathered
on access.  Bytes that cannot be decoded become a note with place and reason; the rest is there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import LOC_LENGTH_SHIFT, LOC_OFFSET_MASK, Encoding, Field
from lttd.abi.gather import gather
from lttd.stats import counted
from lttd.view.formats import EventType
from lttd.view.interop import arrow_table, polars_frame
from lttd.view.losses import Loss

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[Any]

# The size of a __data_loc of an old kernel, which is an offset only.
_OFFSET_BYTES: Final = 2


def _nobody_knows(_name: str) -> None:
    return None


def _some(column: npt.NDArray[Any], rows: I64 | Mask | slice) -> Any:  # noqa: ANN401
    return column[rows] if isinstance(rows, slice) else column.take(rows)


@dataclass(frozen=True, repr=False, eq=False)
class EventBatch:
    """Events of one piece of a window, in the order of time, as columns of equal length."""

    data: memoryview
    """The sub-buffers that hold the events."""
    types: list[EventType]
    """The event types; ``type`` is an index into this list."""
    time: U64
    """Trace-clock time."""
    cpu: U16
    type: I32
    pid: I32
    flags: U8
    preempt: U8
    at: I64
    """The offset in ``data`` of the event's own bytes."""
    payload_bytes: U32
    """The number of the event's own bytes."""
    losses: Sequence[Loss] = ()
    """Known losses within the span, in the order of time."""
    notes: Sequence[str] = ()
    """Lines on data that cannot be decoded, with the reason."""
    begin: int = 0
    end: int = 0
    """The span, its end not included."""
    find: Callable[[str], EventType | None] = _nobody_knows
    """Return the type of a name that does not occur in the batch."""
    stream: I32 | None = None
    """For each event the number of its stream in the window; None if nobody needs it."""
    piece_begin: U64 | None = None
    """For each event the begin of its piece, where several are joined; None: ``begin``."""
    graph: npt.NDArray[np.void] | None = None
    """For each event what the function_graph tracer's records have in common; None: no such."""
    packet: I64 | None = None
    """For each event where its sub-buffer begins in ``data``; None: nobody needs it."""
    named: tuple[Column, I64] | None = None
    """The tasks by whose names the events were chosen, as ``Names.of()`` returns them, or None."""

    def __len__(self) -> int:
        return len(self.time)

    def __repr__(self) -> str:
        span = f", {self.time[0]} to {self.time[-1]}" if len(self) else ""
        return (
            f"<{counted(len(self), 'event')} of {counted(len(self._rows_of_types), 'type')}{span}>"
        )

    @cached_property
    def _rows_of_types(self) -> list[tuple[EventType, I64]]:
        counts = np.bincount(self.type, minlength=len(self.types))
        order = np.argsort(self.type.astype(np.uint16), kind="stable")
        behind = np.cumsum(counts)
        return [
            (one, order[behind[one.number] - counts[one.number] : behind[one.number]])
            for one in self.types
            if counts[one.number]
        ]

    def by_type(self) -> Iterator["EventRows"]:
        """Yield the events of each type that occurs."""
        for event_type, rows in self._rows_of_types:
            yield EventRows(self, event_type, rows)

    def __getitem__(self, name: str) -> "EventRows":
        """Return the events called *name*, or ``system:name``; there may be none."""
        for rows in self.by_type():
            if name in (rows.event_type.name, f"{rows.event_type.system}:{rows.event_type.name}"):
                return rows
        event_type = self.find(name)
        if event_type is None:
            raise KeyError(name)
        return EventRows(self, event_type, np.empty(0, np.int64))

    def select(self, rows: I64 | Mask | slice) -> "EventBatch":
        """Return a batch with only some of the events; those of a slice are not copied."""
        if not isinstance(rows, slice) and rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return EventBatch(
            self.data,
            self.types,
            _some(self.time, rows),
            _some(self.cpu, rows),
            _some(self.type, rows),
            _some(self.pid, rows),
            _some(self.flags, rows),
            _some(self.preempt, rows),
            _some(self.at, rows),
            _some(self.payload_bytes, rows),
            self.losses,
            self.notes,
            self.begin,
            self.end,
            self.find,
            None if self.stream is None else _some(self.stream, rows),
            None if self.piece_begin is None else _some(self.piece_begin, rows),
            None if self.graph is None else _some(self.graph, rows),
            None if self.packet is None else _some(self.packet, rows),
            None if self.named is None else (self.named[0], _some(self.named[1], rows)),
        )

    def columns(self) -> dict[str, Column]:
        """Return the columns that every event has, by name."""
        names = np.array([one.name for one in self.types], np.str_)
        return {
            "time": self.time,
            "cpu": self.cpu,
            "event": names[self.type] if len(names) else np.empty(0, "U1"),
            "pid": self.pid,
            "flags": self.flags,
            "preempt": self.preempt,
        }

    def to_arrow(self) -> Any:  # noqa: ANN401  (pyarrow is optional)
        """Return the common columns as a ``pyarrow.Table``."""
        return arrow_table(self.columns())

    def to_polars(self) -> Any:  # noqa: ANN401  (polars is optional)
        """Return the common columns as a ``polars.DataFrame``."""
        return polars_frame(self.columns())


class EventRows:
    """The events of one type in a batch; its fields are columns: ``rows["prev_pid"]``."""

    def __init__(self, batch: EventBatch, event_type: EventType, rows: I64) -> None:
        self.batch = batch
        self.event_type = event_type
        self.rows = rows
        """The numbers of these events in the batch."""
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        name = f"{self.event_type.system}:{self.event_type.name}"
        return f"<{len(self):,} {name}: {', '.join(self.names)}>"

    def some(self, which: slice | I64 | Mask) -> "EventRows":
        """Return some of these events."""
        return EventRows(self.batch, self.event_type, self.rows[which])

    @property
    def time(self) -> U64:
        """Trace-clock time."""
        return self.batch.time[self.rows]

    @property
    def cpu(self) -> U16:
        """The CPU that recorded each event."""
        return self.batch.cpu[self.rows]

    @property
    def pid(self) -> I32:
        """The pid of the task that ran."""
        return self.batch.pid[self.rows]

    @cached_property
    def at(self) -> I64:
        """The offset of each event in the batch's data."""
        return self.batch.at[self.rows]

    @cached_property
    def payload_bytes(self) -> I64:
        """The number of each event's own bytes."""
        return self.batch.payload_bytes[self.rows].astype(np.int64)

    @property
    def names(self) -> list[str]:
        """The names of the event type's own fields."""
        return [one.name for one in self.event_type.format.own] if self.event_type.format else []

    @cached_property
    def records(self) -> npt.NDArray[np.void]:
        """The fixed parts of the events, as a structured array."""
        if self.event_type.format is None:
            raise KeyError(f"{self.event_type.name} has no format")
        dtype = self.event_type.format.dtype
        if not len(self.rows):
            return np.empty(0, dtype)
        if self.event_type.records_of is not None:
            return self.event_type.records_of(self)
        # Gather them as opaque bytes: six times faster than field by field.
        return gather(self.batch.data, self.at, np.dtype(f"V{dtype.itemsize}")).view(dtype)

    def field(self, name: str) -> Field:
        """Return the declaration of a field.

        Raises:
            KeyError: there is no field of that name.
        """
        if self.event_type.format is None:
            raise KeyError(name)
        return self.event_type.format.by_name[name]

    def __getitem__(self, name: str) -> Column:
        """Return a field: integers (2-D for arrays), or bytes objects for strings and the rest.

        Raises:
            KeyError: there is no field of that name.
        """
        one = self.field(name)
        if one.encoding in (Encoding.INT, Encoding.ARRAY, Encoding.REAL, Encoding.TOLD):
            return self.records[name]
        if one.encoding is Encoding.CHARS:
            return chars(self.records[name].view(f"S{one.size_bytes}"))
        pieces = self.dynamic(name)
        if one.encoding is Encoding.STRING or (
            one.encoding is Encoding.TAIL and one.type in ("char", "const char")
        ):
            pieces = [piece.partition(b"\0")[0] for piece in pieces]
        column = np.empty(len(pieces), np.object_)
        column[:] = pieces
        return column

    def column(self, name: str) -> Column:
        """Return ``rows[name]``, cached."""
        if name not in self._columns:
            self._columns[name] = self[name]
        return self._columns[name]

    def spans(self, name: str) -> tuple[I64, I64]:
        """Return begin and end of a dynamic field in the data, for each event.

        A part outside of the event is cut off.
        """
        one = self.field(name)
        size = self.payload_bytes
        if one.encoding is Encoding.SPAN:
            span = self.records[name]
            return self.at + span[:, 0], self.at + span[:, 1]
        if one.encoding in (
            Encoding.TAIL,
            Encoding.BYTES,
            Encoding.CHARS,
            Encoding.ARRAY,
            Encoding.INT,
        ):
            begin = np.full(len(size), one.offset_bytes, np.int64)
            end = size if one.encoding is Encoding.TAIL else begin + one.size_bytes
        else:
            loc = self.records[name].astype(np.int64)
            begin = loc & LOC_OFFSET_MASK
            if one.relative:
                begin = begin + one.offset_bytes + one.size_bytes
            states_length = one.size_bytes > _OFFSET_BYTES
            end = begin + (loc >> LOC_LENGTH_SHIFT) if states_length else size
        begin, end = np.minimum(begin, size), np.minimum(end, size)
        return self.at + begin, self.at + end

    def dynamic(self, name: str) -> list[bytes]:
        """Return the bytes of a dynamic field, for each event."""
        data = self.batch.data
        begin, end = self.spans(name)
        return [bytes(data[a:b]) for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

    def lists(self, name: str) -> list[list[int]]:
        """Return the elements of a dynamic field, for each event."""
        one = self.field(name)
        assert self.event_type.format is not None
        dtype = one.element_dtype(self.event_type.format.byteorder)
        size = dtype.itemsize
        pieces = self.dynamic(name)
        return [np.frombuffer(raw, dtype, len(raw) // size).tolist() for raw in pieces]

    def raw(self) -> list[bytes]:
        """Return the events' own bytes."""
        ends = self.at + self.payload_bytes
        data = self.batch.data
        return [bytes(data[a:b]) for a, b in zip(self.at.tolist(), ends.tolist(), strict=True)]

    def columns(self) -> dict[str, Column]:
        """Return time, cpu, pid and the event's own fields, by name."""
        found: dict[str, Column] = {"time": self.time, "cpu": self.cpu, "common_pid": self.pid}
        return found | {name: self[name] for name in self.names}

    def to_arrow(self) -> Any:  # noqa: ANN401  (pyarrow is optional)
        """Return the columns as a ``pyarrow.Table``."""
        return arrow_table(self.columns())

    def to_polars(self) -> Any:  # noqa: ANN401  (polars is optional)
        """Return the columns as a ``polars.DataFrame``."""
        return polars_frame(self.columns())


def no_rows(event_type: EventType) -> EventRows:
    """Return no events of a type, whose columns have the types that those of events would have."""
    batch = EventBatch(
        memoryview(b""),
        [event_type],
        time=np.empty(0, np.uint64),
        cpu=np.empty(0, np.uint16),
        type=np.empty(0, np.int32),
        pid=np.empty(0, np.int32),
        flags=np.empty(0, np.uint8),
        preempt=np.empty(0, np.uint8),
        at=np.empty(0, np.int64),
        payload_bytes=np.empty(0, np.uint32),
    )
    return EventRows(batch, event_type, np.empty(0, np.int64))


def chars(column: Column) -> Column:
    """Cut strings in fixed fields after their first NUL; later bytes are old data."""
    size = column.dtype.itemsize
    raw = np.ascontiguousarray(column).view(np.uint8).reshape(-1, size)
    if size > 1 and ((raw[:, 1:] != 0) & (raw[:, :-1] == 0)).any():
        raw = np.where(np.logical_and.accumulate(raw != 0, axis=1), raw, np.uint8(0))
    return raw.view(f"S{size}").reshape(-1)


def inside(length: I64) -> I64:
    """Return 0, 1, ... up to each length, one after the other in one array."""
    behind = np.cumsum(length)
    total = int(behind[-1]) if len(length) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(behind - length, length)


def until_nul(raw: U8, begin: I64, length: I64) -> I64:
    """Return the length of each string before its first NUL."""
    start = np.cumsum(length) - length
    zeros = np.flatnonzero(raw[np.repeat(begin, length) + inside(length)] == 0)
    if not len(zeros):
        return length
    first = zeros[np.minimum(np.searchsorted(zeros, start), len(zeros) - 1)] - start
    return np.where((first >= 0) & (first < length), first, length)
