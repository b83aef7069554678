"""Collect lines on data that cannot be shown, and limit their number.

Rule: neither memory nor the number of printed lines grows with the damage.
Rule: of a segment that was deleted meanwhile there is one note, which says so, and no other.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from lttd.tracedir import or_deletion_note

MOST_NOTES: Final = 20


class TakesNotes(Protocol):
    """A receiver of lines on data that cannot be shown, and why."""

    def add(self, *notes: str) -> None:
        """Add notes."""
        ...


class Notes:
    """The first notes, each once, and the number of others."""

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self._first: dict[str, None] = {}
        self._more = 0
        self.add(*notes)

    def add(self, *notes: str) -> None:
        """Add notes."""
        for note in map(or_deletion_note, notes):
            if note in self._first:
                continue
            if len(self._first) < MOST_NOTES:
                self._first[note] = None
            else:
                self._more += 1

    def told(self) -> list[str]:
        """Return the lines to show."""
        return [*self._first, *([f"... and {self._more} more like these"] if self._more else [])]


class WindowNotes:
    """The notes of one window; all its readers add to them, and take() returns each line once."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._fresh: list[str] = []

    def add(self, *notes: str) -> None:
        """Add notes; leave out those that were added before."""
        for note in map(or_deletion_note, notes):
            if note not in self._known:
                self._known.add(note)
                self._fresh.append(note)

    def take(self) -> list[str]:
        """Return the notes since the last call; of too many, the first ones."""
        fresh, self._fresh = self._fresh, []
        return Notes(fresh).told()
