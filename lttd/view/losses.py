"""Find the losses of a stream among some sub-buffers, without reading all of its gaps.

Rule: gaps are in the order of their rows; a gap whose row is beyond the index comes last.  Of a
damaged file, in another order, some are not shown.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.index import (
    FOREVER,
    GAP_DTYPE,
    GAPS_HEADER,
    MOST_LOST,
    Entries,
    RecordFile,
    refuse_too_many_gaps,
)
from lttd.readfile import ReadFile
from lttd.subbuffer import Reason, StreamId, Unit
from lttd.view.notes import TakesNotes

U64 = npt.NDArray[np.uint64]
_NAMES: Final = {Unit.EVENTS: "EVENTS", Unit.SUBBUFFERS: "SUB-BUFFERS", Unit.BYTES: "BYTES"}


class Loss(NamedTuple):
    """A known loss, or another hole, at its place in a window."""

    time: int
    """The begin of the sub-buffer after it; without one the time at which it was known, but after
    all events of its stream."""
    cpu: int
    lost: int | None
    """The number of lost units; None: some."""
    unit: Unit
    reason: Reason | None
    """The reason; None if the file has an unknown one."""
    channel: str = ""

    @property
    def was_wanted(self) -> bool:
        """Tell whether it is a loss; else it is a hole between the windows of mode flight."""
        return self.reason is not Reason.UNWANTED

    def __str__(self) -> str:
        """Return the loss as the kernel prints it."""
        number = "" if self.lost is None else f"{self.lost} "
        word = "LOST" if self.was_wanted else "NOT WANTED"
        return f"CPU:{self.cpu} [{word} {number}{_NAMES[self.unit]}]"


class Losses:
    """The gaps of one stream."""

    def __init__(self, place: Place, notes: TakesNotes, records: RecordFile | None = None) -> None:
        """*records*: the gaps of a stream that has no file of them at *place*."""
        self._gaps = records or RecordFile(None, GAP_DTYPE)
        if records is not None:
            return
        try:
            file = ReadFile.if_there(place)
            found = RecordFile(file, GAP_DTYPE)
            refuse_too_many_gaps(Path(place.path), found.size_bytes)
        except TraceDamagedError as error:
            notes.add(f"{error}; its losses are not shown")
            return
        if found.size_bytes and found.header != GAPS_HEADER:
            notes.add(f"{place}: byte 0: no gaps file; its losses are not shown")
            return
        self._gaps = found

    def __len__(self) -> int:
        return len(self._gaps)

    def rows(self) -> U64:
        """Return the numbers of the sub-buffers before which something was lost."""
        return self._gaps.column("row")

    def records(self) -> Entries:
        """Return all gaps, as the file has them."""
        return self._gaps[:]

    def before(self, first: int, begins: U64, of: StreamId) -> list[Loss]:
        """Return the losses before the rows from *first* on, which begin at *begins*."""
        found = self._of_rows(first, first + len(begins), of)
        return [loss._replace(time=int(begins[row - first])) for row, _, loss in found]

    def between(
        self, row: int, earlier_end: int, later_begin: int | None, of: StreamId
    ) -> Iterator[tuple[int, Loss]]:
        """Yield the losses between two rows, each with the earliest time that it may have.

        The earlier row ends at *earlier_end*.  *row* begins at *later_begin*; None: there is no
        such row, and the losses are all those after the last one.
        """
        behind = None if later_begin is None else row + 1
        for _, begin, loss in self._of_rows(row, behind, of):
            # An event may have the time at which its row ends; the loss came after it.
            since = min(max(begin, earlier_end + 1), FOREVER)
            time = max(since, loss.time) if later_begin is None else later_begin
            yield min(since, time), loss._replace(time=time)

    def _of_rows(
        self, first: int, behind: int | None, of: StreamId
    ) -> Iterator[tuple[int, int, Loss]]:
        """Yield row, begin and loss, whose time is its end, of the gaps before some rows."""
        if not len(self._gaps):
            return
        low = self._gaps.first_at_least("row", first)
        high = len(self._gaps) if behind is None else self._gaps.first_at_least("row", behind)
        last = FOREVER if behind is None else behind - 1
        for row, begin, end, count, reason, unit in self._gaps[low:high].tolist():
            if unit in _UNITS and first <= row <= last:
                known = None if count > MOST_LOST else count
                why = _REASONS.get(reason)
                yield row, begin, Loss(end, of.cpu, known, Unit(unit), why, of.channel)


_UNITS: Final = frozenset(int(unit) for unit in Unit)
_REASONS: Final = {int(reason): reason for reason in Reason}
