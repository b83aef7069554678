"""Find the losses of a stream among some sub-buffers, without reading all of its gaps.

Rule: gaps are in the order of their rows; a gap whose row is beyond the index comes last.
"""

from pathlib import Path
from typing import Final, NamedTuple

from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.index import GAP_DTYPE, GAPS_HEADER, MOST_LOST, RecordFile, refuse_too_many_gaps
from lttd.readfile import ReadFile
from lttd.subbuffer import Reason, StreamId, Unit
from lttd.view.notes import TakesNotes

_NAMES: Final = {Unit.EVENTS: "EVENTS", Unit.SUBBUFFERS: "SUB-BUFFERS", Unit.BYTES: "BYTES"}


class Loss(NamedTuple):
    """A known loss at its place in a window."""

    time: int
    """The begin of the sub-buffer after it, or the time at which it was known."""
    cpu: int
    lost: int | None
    """The number of lost units; None: some."""
    unit: Unit
    reason: Reason | None
    """The reason; None if the file has an unknown one."""
    channel: str = ""

    def __str__(self) -> str:
        """Return the loss as the kernel prints it."""
        number = "" if self.lost is None else f"{self.lost} "
        return f"CPU:{self.cpu} [LOST {number}{_NAMES[self.unit]}]"


class Losses:
    """The gaps of one stream."""

    def __init__(self, place: Place, notes: TakesNotes) -> None:
        self._gaps = RecordFile(None, GAP_DTYPE)
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

    def before(self, first: int, begins: list[int], of: StreamId, floor: int | None) -> list[Loss]:
        """Return the losses before the rows from *first* on, which begin at *begins*.

        If *floor* is a time, also return the losses after all rows, at *floor* or later.
        """
        if not len(self._gaps):
            return []
        low = self._gaps.first_at_least("row", first)
        behind = first + len(begins)
        high = len(self._gaps) if floor is not None else self._gaps.first_at_least("row", behind)
        found = []
        for row, begin, end, count, reason, unit in self._gaps[low:high].tolist():
            time = begins[row - first] if row < behind else max(begin, end, floor or 0)
            known = None if count > MOST_LOST else count
            if unit in _UNITS:
                why = _REASONS.get(reason)
                found.append(Loss(time, of.cpu, known, Unit(unit), why, of.channel))
        return found


_UNITS: Final = frozenset(int(unit) for unit in Unit)
_REASONS: Final = {int(reason): reason for reason in Reason}
