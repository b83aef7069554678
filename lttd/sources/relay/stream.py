"""One CPU of a relay channel as a stream: rows, gaps and times of its file's data.

Rule: bytes that are not a record by the framing are not written; they are a DAMAGED gap in bytes.
An incomplete record is kept, and precedes the data of the next take.
Rule: a row without times of its own has those of its capture.  It ends when it was found closed,
and begins when the sub-buffer before it was last seen open: it can hold nothing older.
Rule: every state and transition of a stream lives in TRANSITIONS below.
Invariant: bytes_read of the file = bytes of the rows + bytes of the DAMAGED gaps + kept bytes.
"""

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.framing import UNKNOWN, Framing, Scan, scan
from lttd.namespaces import kernel_monotonic_ns
from lttd.sources.base import Nothing
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.others import Others
from lttd.sources.rows import RowBook
from lttd.subbuffer import (
    NO_ROWS,
    ROW_DTYPE,
    Batch,
    BufferPool,
    Gap,
    Reason,
    Rows,
    StreamId,
    StreamInfo,
    Unit,
    losses_batch,
    make_batch,
)

# Rows of records have about this size, which is the least that a viewer reads; the index is then a
# thousandth of the data.
ROW_BYTES: Final = 64 << 10


@dataclass(slots=True)
class Shared:
    """What the streams of one source have in common."""

    pool: BufferPool
    framing: Framing | None = None
    abi: str = UNKNOWN
    overwrite: bool = False
    """Whether the ring may lap the reader; sequence numbers show it, or a mapping."""
    mapped: bool = False
    """Whether rings are mapped: then no record is overwritten while it is read."""
    count_missing: bool = True
    """Whether missing numbers are lost events; False if damage explains them already."""
    unfinished: bool = False
    """Whether to read open sub-buffers at the end, when nobody writes."""
    stopped: bool = False
    """Whether the source was stopped: this is the last drain."""
    is_offline: Callable[[int], bool] = lambda cpu: False
    """Whether nobody can write into the buffer of this CPU now."""
    now: Callable[[], int] = kernel_monotonic_ns
    look_for_others: Callable[[], None] = lambda: None
    """Learns of other readers what inotify has reported."""


class State(enum.Enum):
    """What the next take of a stream does."""

    READING = enum.auto()  # take closed sub-buffers
    EMPTIED = enum.auto()  # end the turn: sub-buffers that closed meanwhile are for the next one
    DRAINING = enum.auto()  # take only sub-buffers that were closed when the source was stopped
    LAST_READ = enum.auto()  # read again: bytes without a promise; the open one if nobody writes
    DRAINED = enum.auto()  # read nothing; the kept bytes are lost unless the file ends
    OVER = enum.auto()


class Event(enum.Enum):
    """What just happened to a stream."""

    TOOK_ALL = enum.auto()  # a take left no closed sub-buffer
    TURN_ENDED = enum.auto()
    STOPPED = enum.auto()  # the source was stopped; the producer may go on
    TOOK_PROMISED = enum.auto()  # the sub-buffers closed by then are taken, or not delivered
    READ_LAST = enum.auto()
    ENDED = enum.auto()  # nothing more will ever come


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.READING: {
        Event.TOOK_ALL: State.EMPTIED,
        Event.STOPPED: State.DRAINING,
        Event.ENDED: State.OVER,
    },
    State.EMPTIED: {
        Event.TURN_ENDED: State.READING,
        Event.STOPPED: State.DRAINING,
        Event.ENDED: State.OVER,
    },
    State.DRAINING: {
        Event.TOOK_PROMISED: State.LAST_READ,
        Event.ENDED: State.OVER,
    },
    State.LAST_READ: {Event.READ_LAST: State.DRAINED, Event.ENDED: State.OVER},
    State.DRAINED: {Event.ENDED: State.OVER},
    State.OVER: {Event.ENDED: State.OVER},
}


class RelayStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(
        self, stream: StreamId, file: RelayFile, shared: Shared, book: RowBook, born: int
    ) -> None:
        """Take *file* over.  *born* is its creation on the trace clock; its data is not older."""
        self.info = StreamInfo(stream, shared.abi, subbuffer_bytes=0, header_bytes=0)
        self.file = file
        self.path = file.path
        self.others = Others()
        """The other processes that read the file."""
        self.state = State.READING
        self._shared = shared
        self._book = book
        self._kept = b""
        self._last_sequence: int | None = None
        # Data that is not in rows yet was written after this time.
        self._floor = born
        # The last time at which all closed sub-buffers were read.
        self._looked = born
        # The bytes that were closed when the source was stopped and are not taken yet.
        self._promised_bytes = 0

    @property
    def over(self) -> bool:
        """Tell whether nothing more will ever come."""
        return self.state is State.OVER

    def _happened(self, event: Event) -> None:
        """Follow the table; a pair that it lacks is a bug in this file."""
        self.state = TRANSITIONS[self.state][event]

    def fileno(self) -> int:
        """Return the descriptor to wait on: readable once a sub-buffer was closed."""
        return self.file.fileno()

    def size_bytes(self) -> int:
        """Return the content of all sub-buffers closed so far."""
        return self.file.size_bytes()

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers, with or without *flush*; see Stream.take().

        The open sub-buffer is read only at the end, if nobody writes by then.
        """
        if self.over:
            return Nothing.EVER
        self._look_whether_stopped()
        if self.state is State.EMPTIED:
            self._happened(Event.TURN_ENDED)
            if not self.file.ended:
                return Nothing.YET
        buffer = self._shared.pool.take()
        try:
            batch = self._take(buffer)
        except BaseException:
            self._shared.pool.give(buffer)
            raise
        if batch is None:
            self._shared.pool.give(buffer)
            if self.file.ended:
                self._happened(Event.ENDED)
            return Nothing.EVER if self.over else Nothing.YET
        return batch

    def urgent(self) -> bool:
        """Return False: the kernel does not report how full the ring is."""
        return False

    def losses(self) -> Batch | None:
        """Return the bytes that stay unread, once the last drain was interrupted."""
        gaps = self._late_gaps()
        if not gaps:
            return None
        self._book.count(NO_ROWS, gaps)
        return losses_batch(self.info.id, gaps)

    def _late_gaps(self) -> list[Gap]:
        """Return losses that no batch has; a subclass may know of more."""
        return self._abandoned()

    def _gaps_before(self, rows: Rows) -> list[Gap]:
        """Return losses before *rows* that the data do not show; *rows* have their final times."""
        return []

    def _abandoned(self) -> list[Gap]:
        """Return, once, the bytes that were closed when the source stopped and are still unread."""
        if self.over or not self._shared.stopped:
            return []
        self._look_whether_stopped()
        self._happened(Event.ENDED)
        count = self._promised_bytes + len(self._kept)
        if not count:
            return []
        end = self._book.end
        now = max(self._shared.now(), end)
        return [Gap(0, Reason.ABANDONED, Unit.BYTES, count, end, now)]

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: each known loss is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return the delivered and the undelivered bytes since the file was opened last."""
        return {
            "read bytes": self.file.bytes_read,
            "never delivered bytes": self.file.lost_bytes,
            "unpromised bytes": self.file.unpromised_bytes,
            "foreign read bytes": self.others.taken_bytes,
        }

    def close(self) -> None:
        """Close the descriptor."""
        self.file.close()
        self._happened(Event.ENDED)

    def _look_whether_stopped(self) -> None:
        if self._shared.stopped and self.state in (State.READING, State.EMPTIED):
            self._promised_bytes = max(self.file.promised_bytes(), 0)
            self._happened(Event.STOPPED)

    def _take(self, buffer: memoryview) -> Batch | None:
        shared, kept = self._shared, len(self._kept)
        self.file.careful = self.others.present
        buffer[:kept] = self._kept
        before = shared.now()
        got, room = self._read(buffer, kept)
        dry = got < room
        if dry and got and self.state is State.READING:
            self._happened(Event.TOOK_ALL)
        complete = dry and (self.file.settled or self.file.ended or shared.stopped)
        rows, gaps = self._rows(buffer[: kept + got], complete=complete)
        now = shared.now()
        gaps += self._undelivered(rows, now)
        if self.file.settled:
            self.others.everything_read(self.file.size_bytes)
        if got and not self._kept:
            self._floor = self._looked
        if dry:
            self._looked = before
        if not len(rows) and not gaps:
            return None
        self._book.number(rows)
        gaps = sorted((*gaps, *self._gaps_before(rows)), key=lambda gap: gap.row)
        self._book.count(rows, gaps)
        return make_batch(self.info.id, rows, pool=shared.pool, buffer=buffer, gaps=tuple(gaps))

    def _undelivered(self, rows: Rows, now: int) -> list[Gap]:
        """Return losses that the file has noticed since the last call."""
        lost = self.file.take_lost_bytes()
        if not lost:
            return []
        why = self._why_undelivered(lost)
        return [Gap(len(rows), why, Unit.BYTES, lost, self._floor, now)]

    def _why_undelivered(self, count: int) -> Reason:
        """Return why *count* bytes of closed sub-buffers never came."""
        self._shared.look_for_others()
        if self.others.present:
            self.others.taken_bytes += count
            return Reason.FOREIGN_READ
        return Reason.OVERWRITTEN if self._shared.overwrite else Reason.REFUSED

    def _read(self, buffer: memoryview, kept: int) -> tuple[int, int]:
        """Read after the kept bytes; return the bytes read, and the room that there was."""
        shared = self._shared
        unit = shared.framing.unit_bytes if shared.framing else 1
        room = len(buffer) // unit * unit - kept
        if self.state is State.READING:
            return self.file.read(buffer[: kept + room], kept), room
        if self.state is State.DRAINING:
            promised_room = min(room, self._promised_bytes)
            got = self.file.read(buffer[: kept + promised_room], kept) if promised_room else 0
            self._promised_bytes = self._promised_bytes - got if got else 0
            if not self._promised_bytes:
                self._happened(Event.TOOK_PROMISED)
            if got:
                return got, room
        if self.state is State.DRAINED:
            return 0, room
        self._happened(Event.READ_LAST)
        everything = shared.unfinished or shared.is_offline(self.info.id.cpu)
        return self.file.read(buffer[: kept + room], kept, everything=everything), room

    def _rows(self, data: memoryview, *, complete: bool) -> tuple[Rows, list[Gap]]:
        framing, now = self._shared.framing, self._shared.now()
        self._kept = b""
        if not len(data):
            return NO_ROWS, []
        if framing is None:
            rows = rows_at(np.zeros(1, np.int64), np.array([len(data)]))
            rows["begin"], rows["end"] = self._floor, now
            return rows, []
        found = scan(
            data,
            framing,
            complete=complete,
            last_sequence=self._last_sequence,
            suspect_before_missing=self._shared.overwrite and not self._shared.mapped,
        )
        self._last_sequence = found.last_sequence
        self._kept = bytes(data[found.whole_bytes :])
        if not self._shared.overwrite:
            self.file.repeated(found.repeated_bytes)
        rows = _rows_of(found, self._floor, now)
        return rows, list(self._gaps(found, rows, now))

    def _gaps(self, found: Scan, rows: Rows, now: int) -> Iterator[Gap]:
        begins = [self._floor, *rows["end"].tolist()]
        ends = [*rows["begin"].tolist(), now]
        told: list[tuple[int, Reason, Unit, int]] = [
            (each.offset_bytes, Reason.DAMAGED, Unit.BYTES, each.size_bytes)
            for each in found.damage
        ]
        if self._shared.count_missing and found.missing:
            self._shared.look_for_others()
            why = Reason.OVERWRITTEN if self._shared.overwrite else Reason.DROPPED
            why = Reason.FOREIGN_READ if self.others.present else why
            told += [(each.offset_bytes, why, Unit.EVENTS, each.records) for each in found.missing]
        for offset, reason, unit, count in sorted(told):
            row = int(np.searchsorted(rows["offset_bytes"], offset))
            yield Gap(row, reason, unit, count, begins[row], max(begins[row], ends[row]))


def rows_at(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Rows:
    """Make rows of places in a batch's buffer; they have no times yet."""
    rows = np.zeros(len(offsets), ROW_DTYPE)
    rows["offset_bytes"] = offsets
    rows["kernel_bytes"] = rows["payload_bytes"] = sizes
    rows["content_bits"] = rows["payload_bytes"] << np.uint64(3)
    return rows


def _rows_of(found: Scan, floor: int, now: int) -> Rows:
    """Gather adjoining records in rows of ROW_BYTES; a new row begins where records are missing."""
    if not len(found.offset_bytes):
        return NO_ROWS
    offsets, ends = found.offset_bytes, found.offset_bytes + found.size_bytes
    begins_row = np.ones(len(offsets), np.bool_)
    begins_row[1:] = offsets[1:] != ends[:-1]
    begins_row |= np.isin(offsets, [each.offset_bytes for each in found.missing])
    run_starts = np.flatnonzero(begins_row)
    run_of = np.cumsum(begins_row) - 1
    part = (offsets - offsets[run_starts][run_of]) // ROW_BYTES
    begins_row[1:] |= part[1:] != part[:-1]
    starts = np.flatnonzero(begins_row)
    last_of_row = np.append(starts[1:], len(offsets)) - 1
    row_ends = ends[last_of_row]
    rows = rows_at(offsets[starts], row_ends - offsets[starts])
    if found.time is None:
        rows["begin"], rows["end"] = floor, now
    else:
        times = np.minimum(found.time, np.uint64(now))
        # A later record may be a little older: then the rows before it end where they do, and it
        # lies in a row that begins early enough.
        begins = np.minimum.reduceat(times, starts)
        rows["begin"] = np.minimum.accumulate(begins[::-1])[::-1]
        rows["end"] = np.maximum.reduceat(times, starts)
    return rows
