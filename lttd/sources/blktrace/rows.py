"""Make rows from blktrace records: cut between records, with the records' own times.

Rule: bytes that are not a record become a gap; the records around them are kept.
Invariant: input bytes = stored bytes of the rows + bytes of the gaps + bytes left for next time.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from lttd.abi.blktrace import (
    ACT_MASK,
    MOST_RECORD_BYTES,
    ROW_BYTES,
    Layout,
    layout_of,
    notes,
    records_at,
    rows_of,
    walk,
)
from lttd.sources.base import Attachment, Attachments, When
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, Gap, Reason, Rows, Unit

NOTES_FILE: Final = "blktrace/notes"
# A later segment begins with at most so many; fewer processes than that run on most machines.
MOST_NOTES: Final = 32768


class ProcessNotes:
    """The records that name a process or state the wall-clock time.

    The kernel writes each of them once, so a later segment of the run begins with those before it.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], bytes] = {}
        """By kind and process, the latest at the end."""
        self._due: list[deque[bytes]] = []
        """The records that the present segment lacks, and the one that is prepared."""

    def add(self, batch: Batch) -> int:
        """Keep these records of a batch; return its number of records."""
        if not len(batch.rows):
            return 0
        begin, last = int(batch.rows["offset_bytes"][0]), batch.rows[-1]
        data = batch.buffer[begin : int(last["offset_bytes"]) + int(last["payload_bytes"])]
        layout = layout_of(data) or Layout(7, "<")
        # For the whole batch, not row by row: damage may leave one record in each row.
        walked = walk(data, 0, len(data), layout)
        rows = notes(data, walked, layout)
        found = records_at(data, walked.offset_bytes[rows], layout)
        actions, pids = (found["action"] & ACT_MASK).tolist(), found["pid"].tolist()
        for row, action, pid in zip(rows.tolist(), actions, pids, strict=True):
            at, length = int(walked.offset_bytes[row]), int(walked.size_bytes[row])
            self._keep((action, pid), bytes(data[at : at + length]))
        return len(walked.offset_bytes)

    def _keep(self, key: tuple[int, int], record: bytes) -> None:
        self._latest.pop(key, None)
        self._latest[key] = record
        if len(self._latest) > MOST_NOTES:
            del self._latest[next(iter(self._latest))]
        for due in self._due:
            due.append(record)

    def attachments(self) -> Attachments:
        """Return the function that yields one segment's records: first the latest of before."""
        due: deque[bytes] = deque()
        # In this order: a record that comes meanwhile may be there twice, but is not missing.
        self._due = [*self._due[:1], due]
        due.extend(list(self._latest.values()))

        def yield_due(_: When) -> Iterator[Attachment]:
            if data := b"".join(due.popleft() for _ in range(len(due))):
                yield Attachment(NOTES_FILE, data, append=True)

        return yield_due

    def roll(self) -> None:
        """Note that the prepared segment begins: it alone gets the later records."""
        self._due = self._due[-1:]


class Taken(NamedTuple):
    """The rows and gaps of some bytes."""

    rows: Rows
    gaps: tuple[Gap, ...]
    whole_bytes: int
    """The bytes from here on are the beginning of a record."""


class RecordRows:
    """Makes the rows of one stream."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self._book = RowBook()

    @property
    def latest(self) -> int:
        """Time of the latest record."""
        return self._book.end

    def take(self, data: memoryview, *, final: bool) -> Taken:
        """Find the records in *data*; *final*: nothing follows, so a record cut short is torn."""
        self.layout = self.layout or layout_of(data)
        layout = self.layout or Layout(7, "<")
        walked = walk(data, 0, len(data), layout)
        whole = len(data)
        damage = list(walked.damage)
        if damage and damage[-1].offset_bytes + damage[-1].size_bytes == len(data) and not final:
            # The last record may only lack its end.
            last = damage[-1]
            if last.size_bytes < MOST_RECORD_BYTES and _begins(data, last.offset_bytes, layout):
                whole = last.offset_bytes
                damage.pop()
        records = records_at(data, walked.offset_bytes, layout)
        before = self.latest
        time = np.maximum.accumulate(np.maximum(records["time"].astype(np.uint64), before))
        rows = rows_of(walked, time, ROW_BYTES)
        self._book.number(rows)
        places = [one.offset_bytes for one in damage]
        behind = np.searchsorted(rows["offset_bytes"], places).tolist()
        gaps = [
            self._gap(rows, before, row, one.size_bytes, torn=final)
            for row, one in zip(behind, damage, strict=True)
        ]
        return Taken(rows, tuple(gaps), whole)

    def _gap(self, rows: Rows, before: int, row: int, size_bytes: int, *, torn: bool) -> Gap:
        """Return the gap of damage that lies before a row."""
        begin = int(rows["end"][row - 1]) if row else before
        end = int(rows["begin"][row]) if row < len(rows) else max(self.latest, begin)
        reason = Reason.TORN if torn and row == len(rows) else Reason.DAMAGED
        return Gap(row, reason, Unit.BYTES, size_bytes, begin, max(begin, end))


def _begins(data: memoryview, at: int, layout: Layout) -> bool:
    """Tell whether the bytes from *at* on may begin a record."""
    magic = layout.magic
    there = bytes(data[at : at + len(magic)])
    return magic.startswith(there)
