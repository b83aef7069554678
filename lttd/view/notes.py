"""What could not be shown, a line each, however much of it there is.

Rule: memory, and what a person has to read, do not grow with the damage.
"""

from collections.abc import Iterable
from typing import Final

MOST_NOTES: Final = 20


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


class Once:
    """Notes that were given already."""

    def __init__(self) -> None:
        self._noted: set[str] = set()

    def fresh(self, notes: list[str]) -> list[str]:
        """Take *notes* away; return those that are new, of too many the first."""
        fresh = [note for note in dict.fromkeys(notes) if note not in self._noted]
        notes.clear()
        self._noted.update(fresh)
        return Notes(fresh).told()
