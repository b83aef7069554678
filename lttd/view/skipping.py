"""Leave out the sub-buffers that cannot have a selected event, by the occurrence table.

Rule: the output is the same without the table, its notes included.  A sub-buffer is decoded if it
was damaged, or has an event of a type without a readable format, which is worth a note.
Rule: a table is used as far as the index is the one that it was made with, chunk by chunk; where it
differs there is a note, and the rest of the stream is decoded as if there were no table.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from lttd.errors import TraceDamagedError
from lttd.index import Entries, SeekIndex
from lttd.occurrences import CHUNK_ENTRIES, DAMAGED, OccurrenceFile, Occurrences
from lttd.view.filters import Filter
from lttd.view.formats import EventName, EventType, Formats
from lttd.view.notes import TakesNotes
from lttd.view.possible import can_be_wanted
from lttd.view.window import Choose, WindowStream

if TYPE_CHECKING:
    from lttd.view.family import Family

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_REMEDY: Final = "not used; lttv index makes it again"


def chooser(family: "Family | None", chosen: Filter, notes: TakesNotes) -> Choose | None:
    """Return what chooses the sub-buffers to decode for a filter; None: all are decoded."""
    if family is None or family.formats_of is None or not chosen.bounds_types:
        return None
    return Skipping(family, chosen, notes).needed


class Skipping:
    """The tables of a window's streams, opened on first use."""

    def __init__(self, family: "Family", chosen: Filter, notes: TakesNotes) -> None:
        self._formats_of = family.formats_of
        self._filter = chosen
        self._notes = notes
        self._streams: dict[int, _Skipped | None] = {}
        self._wanted: dict[tuple[int, tuple[int, ...]], frozenset[int]] = {}

    def needed(self, source: WindowStream, first: int, entries: Entries) -> Mask | None:
        """Return which of some entries have to be decoded; None: all.  See ``Choose``."""
        key = id(source)
        if key not in self._streams:
            self._streams[key] = self._opened(source)
        skipped = self._streams[key]
        if skipped is None or not len(entries):
            return None
        try:
            return skipped.needed(first, entries)
        except TraceDamagedError as error:
            self._notes.add(f"{error}; {_REMEDY}")
            self._streams[key] = None
            return None

    def _opened(self, source: WindowStream) -> "_Skipped | None":
        index, segment = source.index, source.stream.segment
        if not isinstance(index, SeekIndex):
            return None
        try:
            file = OccurrenceFile(segment.place(segment.occurrences))
            table = file.table(source.stream.name, len(index), source.stream.data_bytes)
        except FileNotFoundError:
            return None
        except TraceDamagedError as error:
            self._notes.add(f"{error}; {_REMEDY}")
            return None
        if table is None:
            return None
        return _Skipped(source.stream.name, file, table, index, table.of(self._ids(source, table)))

    def _ids(self, source: WindowStream, table: Occurrences) -> frozenset[int]:
        """Return the ids of a table whose sub-buffers have to be decoded."""
        assert self._formats_of is not None
        formats = self._formats_of(source)
        key = (id(formats), table.ids)
        if key not in self._wanted:
            self._wanted[key] = frozenset(_wanted(formats, self._filter, table.ids))
        return self._wanted[key]


def _wanted(formats: Formats, chosen: Filter, ids: tuple[int, ...]) -> Iterator[int]:
    for one in ids:
        name: EventName | None = formats.files.get(one)
        event_type = EventType(0, name, one, "")
        event_type.format = formats.peek(one) if one != DAMAGED else None
        if event_type.format is None or can_be_wanted(chosen, event_type):
            yield one


class _Skipped:
    """The table of one stream, for the ids of one window."""

    def __init__(
        self, name: str, file: OccurrenceFile, table: Occurrences, index: SeekIndex, groups: U8
    ) -> None:
        self._name = name
        self._file = file
        self._table = table
        self._index = index
        self._groups = groups
        self._fits = np.zeros(len(table.checksums), np.bool_)

    def needed(self, first: int, entries: Entries) -> Mask:
        """Return which of the *entries* from number *first* on may have a wanted event.

        Raises:
            TraceDamagedError: they are not those that the table was made with.
        """
        behind = first + len(entries)
        chunks = range(first // CHUNK_ENTRIES, -(-behind // CHUNK_ENTRIES))
        for chunk in chunks:
            if not self._fits[chunk]:
                self._compare(chunk, first, entries)
        return self._table.entries_of(self._groups, first, behind)

    def _compare(self, chunk: int, first: int, entries: Entries) -> None:
        begin = chunk * CHUNK_ENTRIES
        behind = min(begin + CHUNK_ENTRIES, len(self._index))
        if first <= begin and behind <= first + len(entries):
            some = entries[begin - first : behind - first]
        else:
            some = self._index.entries(begin, behind)
        if not self._table.fits(chunk, some):
            raise self._file.of_other_index(self._name, begin)
        self._fits[chunk] = True
