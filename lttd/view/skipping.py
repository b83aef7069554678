"""Leave out the sub-buffers that cannot have a selected event, by the occurrence table.

Rule: the output is the same without the table, its notes included.  A sub-buffer is decoded if it
was damaged, or has an event of a type without a readable format, which is worth a note.
Rule: a table is used if length, begin and end of the index are those that it was made with, and the
chunks of each sub-buffer that is decoded.  Where one differs there is a note, and what follows in
the stream is decoded as if there were no table.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from lttd.errors import TraceDamagedError
from lttd.index import Entries, SeekIndex
from lttd.occurrences import (
    CHUNK_ENTRIES,
    DAMAGED,
    OccurrenceFile,
    Occurrences,
    of_other_index,
)
from lttd.view.filters import Filter
from lttd.view.formats import EventType, Formats
from lttd.view.notes import TakesNotes
from lttd.view.possible import can_be_wanted
from lttd.view.window import WindowStream

if TYPE_CHECKING:
    from pathlib import Path

    from lttd.abi.ftrace_format import Format
    from lttd.tracedir import SegmentPaths
    from lttd.view.family import Family

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_REMEDY: Final = "not used; lttv index makes it again"


def skipping_for(family: "Family | None", chosen: Filter, notes: TakesNotes) -> "Skipping | None":
    """Return what chooses the sub-buffers to decode for a filter; None: all are decoded."""
    if family is None or family.formats_of is None or not chosen.bounds_types:
        return None
    return Skipping(family, chosen, notes)


class Skipping:
    """The tables of a window's streams, opened on first use."""

    def __init__(self, family: "Family", chosen: Filter, notes: TakesNotes) -> None:
        self._formats_of = family.formats_of
        self._joins = family.joins
        self._filter = chosen
        self._notes = notes
        self.distrusted = 0
        """The number of tables that turned out to be of other data when they were in use."""
        self._file: OccurrenceFile | None = None
        self._streams: dict[int, _Skipped | None] = {}
        self._verdicts: dict[int, tuple[bool, Format]] = {}
        """Whether the filter can select an event of a format, which is kept for its id()."""
        self._wanted: dict[tuple[int, tuple[int, ...]], frozenset[int]] = {}

    def numbers(self, source: WindowStream) -> I64 | None:
        """Return the numbers of the entries that have to be decoded; None: all."""
        skipped = self._of(source)
        return skipped.numbers() if skipped else None

    def needed(self, source: WindowStream, first: int, entries: Entries) -> Mask | None:
        """Return which of some entries have to be decoded; None: all.  See ``Choose``."""
        skipped = self._of(source)
        if skipped is None or not len(entries):
            return None
        try:
            return skipped.needed(first, entries)
        except TraceDamagedError as error:
            self._notes.add(f"{error}; {_REMEDY}")
            self._streams[id(source)] = None
            self.distrusted += 1
            return None

    def _of(self, source: WindowStream) -> "_Skipped | None":
        key = id(source)
        if key not in self._streams:
            self._streams[key] = self._opened(source)
        return self._streams[key]

    def _opened(self, source: WindowStream) -> "_Skipped | None":
        index, segment = source.index, source.stream.segment
        if not isinstance(index, SeekIndex):
            return None
        try:
            file = self._file_of(segment)
            table = file.table(source.stream.name, len(index), source.stream.length_bytes)
            if table is None:
                return None
            groups = table.of(self._ids(source, table))
            skipped = _Skipped(source.stream.name, file.path, table.without_bits(), index, groups)
            skipped.compare_ends()
        except FileNotFoundError:
            return None
        except TraceDamagedError as error:
            self._notes.add(f"{error}; {_REMEDY}")
            return None
        return skipped

    def _file_of(self, segment: "SegmentPaths") -> OccurrenceFile:
        """Open a segment's tables; streams of a segment come one after the other."""
        if self._file is None or self._file.path != segment.occurrences:
            self._file = OccurrenceFile(segment.place(segment.occurrences))
        return self._file

    def _ids(self, source: WindowStream, table: Occurrences) -> frozenset[int]:
        """Return the ids of a table whose sub-buffers have to be decoded."""
        assert self._formats_of is not None
        formats = self._formats_of(source)
        key = (id(formats), table.ids)
        if key not in self._wanted:
            wanted = frozenset(
                one for one in table.ids if one == DAMAGED or self._is_wanted(formats, one)
            )
            all_count = any(self._is_joined(formats, one) for one in wanted)
            self._wanted[key] = frozenset(table.ids) if all_count else wanted
        return self._wanted[key]

    def _is_joined(self, formats: Formats, one: int) -> bool:
        """Tell whether the lines of a type depend on the records beside them."""
        format_ = formats.peek(one)
        if self._joins is None or format_ is None:
            return False
        event_type = EventType(0, formats.files[one], one, "")
        event_type.format = format_
        return self._joins(event_type)

    def _is_wanted(self, formats: Formats, one: int) -> bool:
        format_ = formats.peek(one)
        if format_ is None:
            return True
        key = id(format_)  # it is the same in all segments of a boot
        if key not in self._verdicts:
            event_type = EventType(0, formats.files[one], one, "")
            event_type.format = format_
            self._verdicts[key] = can_be_wanted(self._filter, event_type), format_
        return self._verdicts[key][0]


class _Skipped:
    """The table of one stream, for the ids of one window."""

    def __init__(
        self, name: str, file: "Path", table: Occurrences, index: SeekIndex, groups: U8
    ) -> None:
        self._name = name
        self._file = file
        self._table = table
        self._index = index
        self._groups = groups
        self._fits = np.zeros(len(table.checksums), np.bool_)

    def numbers(self) -> I64:
        """Return the numbers of all entries that may have a wanted event."""
        return self._table.numbers(self._groups)

    def needed(self, first: int, entries: Entries) -> Mask:
        """Return which of the *entries* from number *first* on may have a wanted event.

        Raises:
            TraceDamagedError: they are not those that the table was made with.
        """
        found = self._table.entries_of(self._groups, first, first + len(entries))
        for chunk in dict.fromkeys(((np.flatnonzero(found) + first) // CHUNK_ENTRIES).tolist()):
            self._compare(chunk)
        return found

    def compare_ends(self) -> None:
        """Compare the begin and the end of the index with what the table was made with.

        Raises:
            TraceDamagedError: they differ.
        """
        for chunk in {0, len(self._fits) - 1}:
            self._compare(chunk)

    def _compare(self, chunk: int) -> None:
        if self._fits[chunk]:
            return
        begin = chunk * CHUNK_ENTRIES
        if not self._table.fits(chunk, self._index.entries(begin, begin + CHUNK_ENTRIES)):
            raise of_other_index(self._file, self._name, begin)
        self._fits[chunk] = True
