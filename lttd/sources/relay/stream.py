"""One CPU of a relay channel as a stream: rows, gaps and times of what its file gives.

Rule: what the framing says is no record is not written; it is a DAMAGED gap in bytes.  A record
that is not whole yet is kept back and stands before what the next take brings.
Rule: without times of its own a row has those of its capture: it ends when it was found closed,
and begins when the sub-buffer before it was still seen open, for it can hold nothing older.
Rule: every state and transition of a stream lives in TRANSITIONS below.
Invariant: bytes_read of the file = bytes of the rows + bytes of the DAMAGED gaps + kept back.
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

# Records are gathered in rows of about this size: what a look into the trace reads at least, and
# the index is then a thousandth of the data.
ROW_BYTES: Final = 64 << 10


@dataclass(slots=True)
class Shared:
    """What the streams of one source have in common."""

    pool: BufferPool
    framing: Framing | None = None
    abi: str = UNKNOWN
    overwrite: bool = False
    """The ring may lap the reader; sequence numbers then tell."""
    count_missing: bool = True
    """What the sequence numbers miss is lost events; False where damage explains it already."""
    unfinished: bool = False
    """At the end, read the sub-buffers that are not closed, too: nobody writes by then."""
    stopped: bool = False
    """The source was stopped: this is the last drain."""
    is_offline: Callable[[int], bool] = lambda cpu: False
    """Whether nobody can write into the buffer of this CPU now."""
    now: Callable[[], int] = kernel_monotonic_ns


class State(enum.Enum):
    """What the next take of a stream does."""

    READING = enum.auto()  # take what is closed
    EMPTIED = enum.auto()  # end the turn: what has closed meanwhile is for the next one
    DRAINING = enum.auto()  # take what was closed when the source was stopped, and no more
    LAST_READ = enum.auto()  # once more: for what comes unpromised, or is open where nobody writes
    DRAINED = enum.auto()  # read nothing; what was kept back is lost unless the file ends
    OVER = enum.auto()


class Event(enum.Enum):
    """What just happened to a stream."""

    TOOK_ALL = enum.auto()  # a take left nothing that is closed
    TURN_ENDED = enum.auto()
    STOPPED = enum.auto()  # the source was; the producer may go on
    TOOK_PROMISED = enum.auto()  # what was closed then was taken, or is not given
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
        """Take *file* over.  *born*: when it came to be, trace clock; nothing in it is older."""
        self.info = StreamInfo(stream, shared.abi, subbuffer_bytes=0, header_bytes=0)
        self.file = file
        self.state = State.READING
        self._shared = shared
        self._book = book
        self._kept = b""
        self._last_sequence: int | None = None
        # What is not in rows yet was written after this.
        self._floor = born
        # When nothing closed was left unread.
        self._looked = born
        # What was closed when the source was stopped and was not taken since.
        self._promised_bytes = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will ever come."""
        return self.state is State.OVER

    def _happened(self, event: Event) -> None:
        """Follow the table; a pair that it lacks is a bug in this file."""
        self.state = TRANSITIONS[self.state][event]

    def fileno(self) -> int:
        """Return the descriptor to wait on: readable once a sub-buffer was closed."""
        return self.file.fileno()

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers, whether *flush* or not; see Stream.take().

        Only at the end, the one that is being written: where nobody writes by then.
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
        """Return False: how full the ring is, the kernel does not say."""
        return False

    def losses(self) -> Batch | None:
        """Return what nobody took, once that is certain: the last drain was broken off."""
        gaps = self._late_gaps()
        if not gaps:
            return None
        self._book.count(NO_ROWS, gaps)
        return losses_batch(self.info.id, gaps)

    def _late_gaps(self) -> list[Gap]:
        """Return losses that no batch has; a kind of relay channel may know of more."""
        return self._abandoned()

    def _gaps_before(self, rows: Rows) -> list[Gap]:
        """Return losses that the data do not tell, before *rows*, which have their final times."""
        return []

    def _abandoned(self) -> list[Gap]:
        """Return, once, what was closed when the source was stopped and was not taken since."""
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
        """Return nothing: what is known to be lost is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return what the file gave and did not give, in bytes since it was opened last."""
        return {
            "read bytes": self.file.bytes_read,
            "never delivered bytes": self.file.lost_bytes,
            "unpromised bytes": self.file.unpromised_bytes,
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
        buffer[:kept] = self._kept
        before = shared.now()
        got, room = self._read(buffer, kept)
        lost = self.file.take_lost_bytes()
        dry = got < room
        if dry and got and self.state is State.READING:
            self._happened(Event.TOOK_ALL)
        complete = dry and (self.file.settled or self.file.ended or shared.stopped)
        rows, gaps = self._rows(buffer[: kept + got], complete=complete)
        now = shared.now()
        if lost:
            why = Reason.OVERWRITTEN if shared.overwrite else Reason.REFUSED
            gaps.append(Gap(len(rows), why, Unit.BYTES, lost, self._floor, now))
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

    def _read(self, buffer: memoryview, kept: int) -> tuple[int, int]:
        """Read behind what was kept; return the bytes read and for how many there was room."""
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
            rows = _rows_at(np.zeros(1, np.int64), np.array([len(data)]))
            rows["begin"], rows["end"] = self._floor, now
            return rows, []
        found = scan(
            data,
            framing,
            complete=complete,
            last_sequence=self._last_sequence,
            suspect_before_missing=self._shared.overwrite,
        )
        self._last_sequence = found.last_sequence
        self._kept = bytes(data[found.whole_bytes :])
        rows = _rows_of(found, self._floor, now)
        return rows, list(self._gaps(found, rows, now))

    def _gaps(self, found: Scan, rows: Rows, now: int) -> Iterator[Gap]:
        begins = [self._floor, *rows["end"].tolist()]
        ends = [*rows["begin"].tolist(), now]
        told: list[tuple[int, Reason, Unit, int]] = [
            (each.offset_bytes, Reason.DAMAGED, Unit.BYTES, each.size_bytes)
            for each in found.damage
        ]
        if self._shared.count_missing:
            why = Reason.OVERWRITTEN if self._shared.overwrite else Reason.DROPPED
            told += [(each.offset_bytes, why, Unit.EVENTS, each.records) for each in found.missing]
        for offset, reason, unit, count in sorted(told):
            row = int(np.searchsorted(rows["offset_bytes"], offset))
            yield Gap(row, reason, unit, count, begins[row], max(begins[row], ends[row]))


def _rows_at(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Rows:
    rows = np.zeros(len(offsets), ROW_DTYPE)
    rows["offset_bytes"] = offsets
    rows["kernel_bytes"] = rows["payload_bytes"] = sizes
    rows["content_bits"] = rows["payload_bytes"] << np.uint64(3)
    return rows


def _rows_of(found: Scan, floor: int, now: int) -> Rows:
    """Gather records that adjoin in rows of ROW_BYTES; one begins where records are missing."""
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
    rows = _rows_at(offsets[starts], row_ends - offsets[starts])
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
