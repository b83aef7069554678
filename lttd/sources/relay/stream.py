"""One CPU of a relay channel as a stream: rows, gaps and times of what its file gives.

Rule: what the framing says is no record is not written; it is a DAMAGED gap in bytes.  A record
that is not whole yet is kept back and stands before what the next take brings.
Rule: without times of its own a row has those of its capture: it ends when it was found closed,
and begins when the sub-buffer before it was still seen open, for it can hold nothing older.
Invariant: bytes_read of the file = bytes of the rows + bytes of the DAMAGED gaps + kept back.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.framing import UNKNOWN, Framing, Scan, scan
from lttd.namespaces import kernel_monotonic_ns
from lttd.sources.base import Nothing
from lttd.sources.relay.file import RelayFile
from lttd.subbuffer import (
    ROW_DTYPE,
    Batch,
    BufferPool,
    Gap,
    Reason,
    Rows,
    StreamId,
    StreamInfo,
    Unit,
    make_batch,
)

# Records are gathered in rows of about this size: what a look into the trace reads at least, and
# the index is then a thousandth of the data.
ROW_BYTES: Final = 64 << 10
_NO_ROWS: Final = np.zeros(0, ROW_DTYPE)


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


@dataclass(slots=True)
class Book:
    """What goes on when a stream of the same name appears again."""

    sequence: int = 0
    begin: int = 0
    """Of the last row."""
    end: int = 0
    discarded: int = 0

    def enter(self, rows: Rows, gaps: list[Gap]) -> None:
        """Number the rows, make their times running maxima, and count the events lost so far."""
        if not len(rows):
            self.discarded += _lost_events(gaps, 0)
            return
        # What follows may be a little older than what stands before it: then that begins earlier.
        begin = np.minimum.accumulate(rows["begin"][::-1])[::-1]
        rows["begin"] = np.maximum(begin, np.uint64(self.begin))
        end = np.maximum(rows["end"], rows["begin"])
        rows["end"] = np.maximum.accumulate(np.maximum(end, np.uint64(self.end)))
        rows["sequence"] = np.arange(self.sequence, self.sequence + len(rows), dtype=np.uint64)
        rows["discarded_total"] = self.discarded
        for gap in gaps:
            if gap.unit is Unit.EVENTS:
                rows["discarded_total"][gap.row :] += np.uint64(gap.count or 0)
        self.sequence += len(rows)
        self.begin, self.end = int(rows["begin"][-1]), int(rows["end"][-1])
        self.discarded += _lost_events(gaps, 0)


def _lost_events(gaps: list[Gap], first_row: int) -> int:
    return sum(g.count or 0 for g in gaps if g.unit is Unit.EVENTS and g.row >= first_row)


class RelayStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(
        self, stream: StreamId, file: RelayFile, shared: Shared, book: Book, born: int
    ) -> None:
        """Take *file* over.  *born*: when it came to be, trace clock; nothing in it is older."""
        self.info = StreamInfo(stream, shared.abi, subbuffer_bytes=0, header_bytes=0)
        self.file = file
        self.over = False
        """Nothing more will ever come."""
        self._shared = shared
        self._book = book
        self._kept = b""
        self._last_sequence: int | None = None
        # What is not in rows yet was written after this.
        self._floor = born
        # When nothing closed was left unread.
        self._looked = born
        # The last take left nothing: what has closed meanwhile is for the next turn.
        self._emptied = False
        # What is still to be taken once the source was stopped: the producer may go on.
        self._left_bytes: int | None = None

    def fileno(self) -> int:
        """Return the descriptor to wait on: readable once a sub-buffer was closed."""
        return self.file.fileno()

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume closed sub-buffers, whether *flush* or not; see Stream.take().

        Only at the end, the one that is being written: where nobody writes by then.
        """
        if self.over:
            return Nothing.EVER
        emptied, self._emptied = self._emptied, False
        if emptied and not self._shared.stopped and not self.file.ended:
            return Nothing.YET
        buffer = self._shared.pool.take()
        try:
            batch = self._take(buffer)
        except BaseException:
            self._shared.pool.give(buffer)
            raise
        if batch is None:
            self._shared.pool.give(buffer)
            self.over = self.file.ended
            return Nothing.EVER if self.over else Nothing.YET
        return batch

    def urgent(self) -> bool:
        """Return False: how full the ring is, the kernel does not say."""
        return False

    def losses(self) -> Batch | None:
        """Return what nobody took, once that is certain: the last drain was broken off."""
        gaps = self.abandoned()
        if not gaps:
            return None
        taken_ns = time.monotonic_ns()
        return Batch(self.info.id, memoryview(b""), _NO_ROWS, taken_ns, tuple(gaps))

    def abandoned(self) -> list[Gap]:
        """Return, once, what was closed when the source was stopped and was not taken since."""
        if self.over or not self._shared.stopped:
            return []
        self.over = True
        left = self.file.promised_bytes() if self._left_bytes is None else self._left_bytes
        count = max(left, 0) + len(self._kept)
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
        self.over = True

    def _take(self, buffer: memoryview) -> Batch | None:
        shared, kept = self._shared, len(self._kept)
        buffer[:kept] = self._kept
        before = shared.now()
        got, room = self._read(buffer, kept)
        lost = self.file.take_lost_bytes()
        dry = got < room
        self._emptied = dry and got > 0
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
        self._book.enter(rows, gaps)
        taken_ns = time.monotonic_ns()
        return make_batch(
            self.info.id, rows, taken_ns, pool=shared.pool, buffer=buffer, gaps=tuple(gaps)
        )

    def _read(self, buffer: memoryview, kept: int) -> tuple[int, int]:
        """Read behind what was kept; return the bytes read and for how many there was room."""
        shared = self._shared
        unit = shared.framing.unit_bytes if shared.framing else 1
        room = len(buffer) // unit * unit - kept
        if not shared.stopped:
            return self.file.read(buffer[: kept + room], kept), room
        if self._left_bytes is None:
            self._left_bytes = self.file.promised_bytes()
        if self._left_bytes > 0:
            got = self.file.read(buffer[: kept + min(room, self._left_bytes)], kept)
            self._left_bytes = self._left_bytes - got if got else 0
            if got:
                return got, room
        if self._left_bytes < 0:
            return 0, room
        # Once more: for what comes unpromised, and for what is open where nobody writes.
        self._left_bytes = -1
        everything = shared.unfinished or shared.is_offline(self.info.id.cpu)
        return self.file.read(buffer[: kept + room], kept, everything=everything), room

    def _rows(self, data: memoryview, *, complete: bool) -> tuple[Rows, list[Gap]]:
        framing, now = self._shared.framing, self._shared.now()
        self._kept = b""
        if not len(data):
            return _NO_ROWS.copy(), []
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
        return _NO_ROWS.copy()
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
        rows["begin"] = np.minimum.reduceat(times, starts)
        rows["end"] = np.maximum.reduceat(times, starts)
    return rows
