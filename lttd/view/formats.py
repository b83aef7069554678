"""Which event an id is: the ``format`` files that a segment keeps, parsed when they are needed.

Rule: of every file only the id is read until an event of that type is to be shown.
"""

import os
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Format, id_of, parse_format
from lttd.beneath import Place, close_fd
from lttd.errors import TraceDamagedError
from lttd.files import read_limited
from lttd.limits import EVENT_TYPES, FORMAT
from lttd.view.notes import TakesNotes

_HEAD_BYTES: Final = 256
_MOST_ID: Final = 0xFFFF
Key = tuple[int, str, str, int]
I64 = npt.NDArray[np.int64]
RecordsOf = Callable[[memoryview, I64, I64], npt.NDArray[np.void]]
"""Called with data, where the events begin in it, and how many bytes each has."""


class FormatFile(NamedTuple):
    """Where a type's format is."""

    system: str
    name: str
    path: str = ""
    """Empty where there is no file."""


class EventType:
    """One type of events, as one window numbers them."""

    __slots__ = ("format", "id", "name", "number", "records_of", "segment", "system")

    def __init__(self, number: int, file: FormatFile | None, of_id: int, segment: str) -> None:
        self.number = number
        self.id = of_id
        self.segment = segment
        """Name of the first segment that has it."""
        self.system = file.system if file else ""
        self.name = file.name if file else f"unknown-{of_id}"
        self.format: Format | None = None
        """None where no format file tells what it is."""
        self.records_of: RecordsOf | None = None
        """What makes records in that format of events whose fields have no fixed places; None:
        the events' own bytes are such records."""


class Formats:
    """The format files of one segment."""

    def __init__(self, tracefs: Place, byteorder: str, long_bytes: int, notes: TakesNotes) -> None:
        """*notes* gets a line for each file that cannot be read."""
        self._events = tracefs / "events"
        self._byteorder = byteorder
        self._long_bytes = long_bytes
        self._files: dict[int, FormatFile] | None = None
        self._parsed: dict[int, Format | None] = {}
        self._notes = notes

    @property
    def files(self) -> dict[int, FormatFile]:
        """Every type that the segment knows, by id."""
        if self._files is None:
            self._files = {}
            found = (
                (system, event)
                for system in _directories(self._events)
                for event in _directories(self._events / system)
            )
            for number, (system, event) in enumerate(found):
                if number == EVENT_TYPES.most:
                    self._notes.add(f"{self._events}: {EVENT_TYPES}; the others are left out")
                    break
                self._note_file(system, event)
        return self._files

    def _note_file(self, system: str, event: str) -> None:
        # Plain strings: a thousand Path objects would be a tenth of the time to the first line.
        path = f"{self._events}/{system}/{event}/format"
        assert self._files is not None
        try:
            fd = self._events.directory.open_file(path)
            try:
                number = id_of(os.read(fd, _HEAD_BYTES))
            finally:
                close_fd(fd)
        except OSError as error:
            self._notes.add(f"{path}: {error.strerror}")
            return
        if number is None or number > _MOST_ID:
            self._notes.add(f"{path}: byte 0: no ID")
        else:
            self._files[number] = FormatFile(system, event, path)

    def get(self, number: int) -> Format | None:
        """Return the format of an id; None, with a note, where none is readable."""
        if number not in self._parsed:
            self._parsed[number] = self._parse(number)
        return self._parsed[number]

    def _parse(self, number: int) -> Format | None:
        file = self.files.get(number)
        if not self.files:
            if not self._parsed:  # the first: one line for all
                self._notes.add(f"{self._events}: no format of any event: all shown as bytes")
            return None
        if file is None:
            self._notes.add(f"{self._events}: no format of event id {number}: shown as bytes")
            return None
        try:
            return parse_format(
                read_limited(self._events.directory.place(file.path), FORMAT),
                file.system,
                byteorder=self._byteorder,
                long_bytes=self._long_bytes,
            )
        except OSError as error:
            self._notes.add(f"{file.path}: {error.strerror}: {file.name} is shown as bytes")
        except (ValueError, TraceDamagedError) as error:
            where = "" if isinstance(error, TraceDamagedError) else f"{file.path}: "
            self._notes.add(f"{where}{error}: {file.name} is shown as bytes")
        return None


def _directories(parent: Place) -> list[str]:
    try:
        return parent.directory.directories(parent.path)
    except OSError:
        return []
