"""What could not be shown, a line each, however much of it there is.

Rule: memory, and what a person has to read, do not grow with the damage.
"""

from collections.abc import Iterable
from typing import Final, Protocol

MOST_NOTES: Final = 20


class TakesNotes(Protocol):
    """Where a line goes that says what cannot be shown, and why."""

    def add(self, *notes: str) -> None:
        """Take in notes."""
        ...


class Notes:
    """The first notes, each once, and how many more there were."""

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self._first: dict[str, None] = {}
        self._more = 0
        self.add(*notes)

    def add(self, *notes: str) -> None:
        """Take in notes."""
        for note in notes:
            if note in self._first:
                continue
            if len(self._first) < MOST_NOTES:
                self._first[note] = None
            else:
                self._more += 1

    def told(self) -> list[str]:
        """Return what is to be shown."""
        return [*self._first, *([f"... and {self._more} more like these"] if self._more else [])]


class WindowNotes:
    """The notes of one window: all who read it add to them, and each line is handed out once."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._fresh: list[str] = []

    def add(self, *notes: str) -> None:
        """Take in notes; those that were added before are left out."""
        for note in notes:
            if note not in self._known:
                self._known.add(note)
                self._fresh.append(note)

    def take(self) -> list[str]:
        """Return what was added since the last time, of too many the first."""
        fresh, self._fresh = self._fresh, []
        return Notes(fresh).told()
