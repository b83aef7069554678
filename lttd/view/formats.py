"""Find the event type of an id in the ``format`` files that a segment keeps.

Rule: only the id of a file is read, until an event of that type is needed.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.formats_file import Key
from lttd.abi.ftrace_format import Format, id_of, parse_format
from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.view.format_files import FormatFiles
from lttd.view.notes import TakesNotes

# Segments of one boot have the same formats; each parses in 0.2 ms.
_parsed = lru_cache(maxsize=512)(parse_format)
_HEAD_BYTES: Final = 256
_MOST_ID: Final = 0xFFFF
I64 = npt.NDArray[np.int64]
RecordsOf = Callable[[Any], npt.NDArray[np.void]]
"""Called with an EventRows of the type."""


class EventName(NamedTuple):
    """The name of an event type."""

    system: str
    name: str


class EventType:
    """One event type of a window."""

    __slots__ = ("format", "id", "name", "number", "records_of", "segment", "system")

    def __init__(self, number: int, name: EventName | None, of_id: int, segment: str) -> None:
        self.number = number
        self.id = of_id
        self.segment = segment
        """The name of the first segment that has it."""
        self.system = name.system if name else ""
        self.name = name.name if name else f"unknown-{of_id}"
        self.format: Format | None = None
        """None if there is no format file for it."""
        self.records_of: RecordsOf | None = None
        """The function that copies fields without fixed places to records of that format; None: the
        events' own bytes are such records."""


class _UnreadableError(Exception):
    """The note on an id without a readable format."""


class Formats:
    """The format files of one segment."""

    def __init__(self, tracefs: Place, byteorder: str, long_bytes: int, notes: TakesNotes) -> None:
        """*notes* gets a line for each file that cannot be read."""
        self._saved = FormatFiles(tracefs, notes)
        self._byteorder = byteorder
        self._long_bytes = long_bytes
        self._files: dict[int, EventName] | None = None
        self._earlier: dict[int, bytes] = {}
        """The formats of ids that no event has any more."""
        self._reused: dict[int, list[EventName]] = {}
        """The events of an id that several formats state: nothing tells which one was when."""
        self._parsed: dict[int, Format | None] = {}
        self._why_not: dict[int, str] = {}
        self._notes = notes

    @property
    def files(self) -> dict[int, EventName]:
        """The names of all types in the segment, by id."""
        if self._files is None:
            self._files = {}
            for key in self._saved:
                self._note_file(key)
            for key, text in self._saved.earlier:
                number = id_of(text[:_HEAD_BYTES])
                if number is not None and number <= _MOST_ID and self._is_new(number, key):
                    self._earlier[number] = text
            for number in self._reused:
                self._files.pop(number, None)
        return self._files

    def _note_file(self, key: Key) -> None:
        assert self._files is not None
        try:
            number = id_of(self._saved.head(key, _HEAD_BYTES))
        except OSError as error:
            self._notes.add(f"{self._saved.path(key)}: {error.strerror}")
            return
        if number is None or number > _MOST_ID:
            self._notes.add(f"{self._saved.path(key)}: byte 0: no ID")
        else:
            self._is_new(number, key)

    def _is_new(self, number: int, key: Key) -> bool:
        """Note the event of an id; return whether the id had none."""
        assert self._files is not None
        if number not in self._files:
            self._files[number] = EventName(*key)
            return True
        events = self._reused.setdefault(number, [self._files[number]])
        if EventName(*key) not in events:
            events.append(EventName(*key))
        return False

    def get(self, number: int) -> Format | None:
        """Return the format of an id; None, with a note, if there is no readable one."""
        found = self.peek(number)
        if why := self._why_not.pop(number, ""):
            self._notes.add(why)
        return found

    def peek(self, number: int) -> Format | None:
        """Return what get() does, without a note."""
        if number not in self._parsed:
            self._parsed[number] = self._parse(number)
        return self._parsed[number]

    def _parse(self, number: int) -> Format | None:
        try:
            return self._read(number)
        except _UnreadableError as error:
            self._why_not[number] = str(error)
            return None

    def _read(self, number: int) -> Format:
        name = self.files.get(number)
        if not self.files:  # no format at all: one line for all ids
            raise _UnreadableError(f"{self._saved}: no format of any event: all shown as bytes")
        if number in self._reused:
            events = " and ".join(f"{each.system}:{each.name}" for each in self._reused[number])
            what = f"event id {number} had several formats, of {events}"
            raise _UnreadableError(
                f"{self._saved}: {what}: a probe was removed, and another one made; shown as bytes"
            )
        if name is None:
            raise _UnreadableError(f"{self._saved}: no format of event id {number}: shown as bytes")
        path = self._saved.path(name)
        try:
            return _parsed(
                self._earlier.get(number) or self._saved.text(name),
                name.system,
                byteorder=self._byteorder,
                long_bytes=self._long_bytes,
            )
        except OSError as error:
            why = f"{path}: {error.strerror}"
        except TraceDamagedError as error:
            why = str(error)
        except ValueError as error:
            why = f"{path}: {error}"
        raise _UnreadableError(f"{why}: {name.name} is shown as bytes")
