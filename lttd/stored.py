"""One stream of a segment on disk, and the only door to its data.

Rule: files are read on first use, and never written.
Rule: nothing else reads a data file, and only this module decides whether the data has what an
entry says.
Invariant: a packed data file has the sub-buffers of the index one after the other and nothing else;
a sparse one has each in its slot.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Buffer, Decoded, Headers
from lttd.abi.table import abi_of
from lttd.blocks import (
    BLOCK_BYTES,
    DIFFERS,
    NO_SUBBUFFER,
    NOT_IN_DATA,
    Block,
    Compared,
    Wrong,
    bytes_of,
    content_bytes_of,
    entry_at,
    moved,
    not_repeated,
    runs_of,
    wrong_of,
)
from lttd.compressed import open_stored, stored_bytes
from lttd.errors import TraceDamagedError
from lttd.index import ENTRY_DTYPE, FOREVER, Entries, RecordFile, SeekIndex, read_gaps
from lttd.manifest import Manifest, StreamRecord
from lttd.readfile import ReadFile
from lttd.stats import StreamStats, StreamSummary, summarize
from lttd.subbuffer import Gap
from lttd.tracedir import SegmentPaths, StreamPaths

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# The number of entries that are compared at a time: their arrays stay below some 20 MB.
CHUNK_ENTRIES: Final = 65536
# The bytes that are read at a time where only headers tell how far a sub-buffer reaches.
WALK_BYTES: Final = 16 << 20
# Headers that are farther apart are read one by one; none is larger than HEAD_BYTES.
FAR_BYTES: Final = 32 << 10
HEAD_BYTES: Final = 4096


class StoredStream:
    """The data, index and gaps files of one stream."""

    is_foreign = False
    """Whether another program wrote the data, whole pages with their padding."""

    def __init__(self, segment: SegmentPaths, manifest: Manifest, record: StreamRecord) -> None:
        self.segment = segment
        self.record = record
        self.info = record.info
        self.name = record.name
        self.source_name = manifest.source_name
        self.byteorder = manifest.machine.get("byteorder", "little")
        self.slot_bytes = self.info.subbuffer_bytes if manifest.layout == "sparse" else 0
        """The distance of sub-buffers in sparse data; 0: packed."""
        self.abi = abi_of(self.info, self.byteorder)
        self.own_pids = manifest.own_pids
        """The ids of lttd's own threads in the data."""
        self.hides_self = False
        """Whether viewers leave out the events of these threads."""
        self.damage: list[TraceDamagedError] = []
        """The damaged frames of compressed data that were read; their bytes are zeros."""

    def without_own_threads(self) -> "StoredStream":
        """Return the stream for viewers that leave out the events of lttd's own threads."""
        some = copy(self)
        some.hides_self = True
        return some

    @property
    def hidden_pids(self) -> frozenset[int]:
        """The ids of the threads whose events viewers leave out."""
        return self.own_pids if self.hides_self else frozenset()

    @cached_property
    def paths(self) -> StreamPaths:
        """Its files; of a trace of many segments most are never looked at."""
        return self.segment.stream(self.name)

    @cached_property
    def file(self) -> ReadFile | None:
        """The data, in the form that it has; None: there is none."""
        return open_stored(self.segment.data_places(self.name), self.damage.append)

    @property
    def data_path(self) -> Path:
        """The file that the data is read from: in the form that it has."""
        return self.file.path if self.file else self.paths.data

    @property
    def index_path(self) -> Path:
        """The same of the index, once that is in use."""
        index: SeekIndex | None = self.__dict__.get("index")
        return self.paths.index if index is None else index.path

    @property
    def data_bytes(self) -> int:
        """The length of the data when it was first looked at."""
        return self.file.size_bytes if self.file else 0

    @cached_property
    def length_bytes(self) -> int:
        """The same, without opening the data for good; 0 if it is unknown."""
        return stored_bytes(self.segment.data_places(self.name))

    def index_bytes(self) -> int:
        """Return the length of the index now; 0 if it is unknown."""
        return stored_bytes(self.segment.index_places(self.name))

    def index_file(self) -> ReadFile | None:
        """Open the index, whatever it holds; None: there is none."""
        return open_stored(self.segment.index_places(self.name))

    def read(self, begin: int = 0, end: int | None = None) -> memoryview:
        """Return bytes ``[begin:end)`` of the data: fewer where it ends, zeros for ``damage``.

        Raises:
            TraceDamagedError: the file cannot be read.
        """
        if self.file is None:
            return memoryview(b"")
        return self.file.read(begin, self.data_bytes if end is None else end)

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """Fill *buffer* with the data from *begin* on; return how many bytes there were.

        Raises:
            TraceDamagedError: the file cannot be read.
        """
        return self.file.read_into(buffer, begin) if self.file else 0

    def holds(self, offset: I64, size: I64) -> Mask:
        """Tell which of some sub-buffers the data file has all bytes of."""
        room = self.data_bytes
        return (offset >= 0) & (size >= 0) & (size <= room) & (offset <= room - size)

    @cached_property
    def index(self) -> SeekIndex:
        """The index.

        Raises:
            TraceDamagedError: it is absent, not an index, or too large for the data.
        """
        return self.opened_index()

    def ends(self) -> tuple[int, int] | None:
        """Return when the first sub-buffer begins and the last one ends; None: there is none.

        An index that is not in use is open only meanwhile, since a process has few descriptors.

        Raises:
            TraceDamagedError: see index.
        """
        index = self.__dict__.get("index") or self.opened_index()
        if not len(index):
            return None
        return int(index[0]["begin"]), int(index[-1]["end"])

    def opened_index(self) -> SeekIndex:
        """Open the index, which stays open as long as the caller has it.

        Raises:
            TraceDamagedError: see index.
        """
        file = self.index_file()
        if file is None:
            reason = "no index; lttv check --repair makes it again"
            raise TraceDamagedError(self.paths.index, 0, reason)
        index = SeekIndex(file)
        # In this order, because the data file of a live trace is ahead of its index.  If the size
        # is unknown, opening the data reports why.
        data_bytes = stored_bytes(self.segment.data_places(self.name)) or self.data_bytes
        index.refuse_more_than(data_bytes, self._least_bytes)
        return index

    @property
    def _least_bytes(self) -> int:
        """The least size of a sub-buffer in the data file."""
        return max(self.slot_bytes, self.info.header_bytes, 1)

    @cached_property
    def gaps(self) -> list[Gap]:
        """The known losses.

        Raises:
            TraceDamagedError: the file does not parse.
        """
        return read_gaps(self.segment.place(self.paths.gaps))

    def gap_records(self) -> RecordFile | None:
        """Return the losses as records that are read in parts; None: they are in the gaps file."""
        return None

    def blocks(
        self, entries: Entries | RecordFile, first: int = 0, most_bytes: int = BLOCK_BYTES
    ) -> Iterator[Block]:
        """Read the sub-buffers that *entries* name, about *most_bytes* at a time, in their order.

        Those that the data does not have as the entry says are left out; a block tells of them.
        *first*: the number of the first entry.

        Raises:
            TraceDamagedError: the file cannot be read.
        """
        for at in range(0, len(entries), CHUNK_ENTRIES):
            some = entries[at : at + CHUNK_ENTRIES]
            for block in self._blocks(some, first + at, most_bytes):
                wrong = [one._replace(row=one.row + at) for one in block.wrong]
                yield block._replace(rows=block.rows + at, wrong=wrong)

    def _blocks(self, entries: Entries, first: int, most_bytes: int) -> Iterator[Block]:
        rows, wrong = self.usable(entries, first)
        offset, size = (column[rows] for column in bytes_of(entries))
        for run in runs_of(offset, size, most_bytes):
            members = rows[run.rows]
            begin = run.begin & ~7  # what is aligned in the file is so in memory
            met = len(self.damage)
            data = self.read(begin, run.end)
            wrong += (wrong_of(one, int(members[0])) for one in self.damage[met:])
            found = self.compared(data, begin, entries[members])
            wrong += (one._replace(row=int(members[one.row])) for one in found.wrong)
            sound = np.flatnonzero(found.sound)
            rest = found.headers.some(sound), entries[members[sound]]
            yield Block(members[sound], data, begin, *rest, wrong)
            wrong = []
        if wrong:
            nothing = np.empty(0, np.int64)
            headers = Headers(nothing, nothing, nothing, nothing.astype(np.uint64))
            yield Block(nothing, memoryview(b""), 0, headers, entries[:0], wrong)

    def usable(self, entries: Entries, first: int) -> tuple[I64, list[Wrong]]:
        """Return which of *entries* name bytes that the data has, and the defects of the others.

        *first*: the number of the first entry.
        """
        offset, size = bytes_of(entries)
        most = self.slot_bytes or self.info.subbuffer_bytes
        fits = self.holds(offset, size) & ((size <= most) | (not most))
        fits &= not_repeated(offset, np.where(fits, size, 0))
        path = self.index_path  # made by each access, and all entries may be wrong
        wrong = [
            Wrong(path, entry_at(first + row), NOT_IN_DATA, row)
            for row in np.flatnonzero(~fits).tolist()
        ]
        return np.flatnonzero(fits), wrong

    def compared(self, data: memoryview, base: int, entries: Entries) -> Compared:
        """Hold *entries* against the headers in *data*, which begins at byte *base* of the file."""
        headers = self._headers_in(data, base, entries)
        _, stated = bytes_of(entries)
        indexed = content_bytes_of(entries)
        sound = (headers.payload_bytes > 0) & (headers.content_bytes <= stated)
        differ = ~sound | (headers.content_bytes != indexed)
        wrong = [
            Wrong(
                self.data_path,
                int(headers.offset_bytes[row]) + base,
                DIFFERS if sound[row] else NO_SUBBUFFER,
                row,
                left_out=not sound[row],
            )
            for row in np.flatnonzero(differ).tolist()
        ]
        return Compared(headers, sound, wrong)

    def _headers_in(self, data: memoryview, base: int, entries: Entries) -> Headers:
        """Read the headers of *entries*; their offsets are in *data*.  *base* may be negative."""
        if self.abi is None:
            raise AssertionError(f"{self.info.abi} sub-buffers do not state their size")
        here = entries.copy()
        here["offset_bytes"] = bytes_of(entries)[0] - base
        return self.abi.headers(data, here)

    def headers(self, entries: Entries) -> Headers:
        """Read the sub-buffers' own headers where *entries* say that they are, and nothing else.

        Those that are not in the data have no payload.
        """
        offset, size = bytes_of(entries)
        payload, content = np.zeros(len(offset), np.int64), content_bytes_of(entries)
        begin = np.zeros(len(offset), np.uint64)
        there = self.holds(offset, size)
        rows = np.flatnonzero(there & not_repeated(offset, np.where(there, size, 0)))
        for run in runs_of(offset[rows], size[rows], BLOCK_BYTES):
            members = rows[run.rows]
            at = run.begin & ~7
            data = self._heads(at, run.end, offset[members])
            found = self._headers_in(data, at, entries[members])
            payload[members], begin[members] = found.payload_bytes, found.begin
            content[members] = found.content_bytes
        return Headers(offset, payload, content, begin)

    def _heads(self, begin: int, end: int, offset: I64) -> memoryview:
        """Return bytes ``[begin:end)``, of which those at *offset* are headers.

        Where sub-buffers are large the rest is not read, and is zero.
        """
        if end - begin <= FAR_BYTES * len(offset):
            return self.read(begin, end)
        data = np.zeros(end - begin, np.uint8).data
        for at in (offset - begin).tolist():
            self.read_into(data[at : at + HEAD_BYTES], begin + at)
        return data

    def walk(self, start_bytes: int = 0) -> Headers:
        """Follow the sub-buffers from *start_bytes* by their headers, until one is not whole."""
        assert self.abi is not None
        found: list[Headers] = []
        at, window_bytes = start_bytes, WALK_BYTES
        while True:
            data = self.read(at, at + window_bytes)
            some = self.abi.walk(data, 0, self.slot_bytes)
            found.append(moved(some, at))
            is_end = at + len(data) >= self.data_bytes
            if len(some.begin):
                last_bytes = self.slot_bytes or int(some.payload_bytes[-1])
                at += int(some.offset_bytes[-1]) + last_bytes
            elif window_bytes > self.info.subbuffer_bytes:
                is_end = True
            else:
                window_bytes *= 2  # one sub-buffer is more than a window
            if is_end:
                return Headers(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def derived_entries(self) -> Entries:
        """Return what an index would say, as far as the data tells: for one that cannot be used."""
        headers = self.walk()
        entries = np.zeros(len(headers.begin), ENTRY_DTYPE)
        begin = np.maximum.accumulate(headers.begin)
        entries["offset_bytes"] = headers.offset_bytes
        entries["packet_bits"] = headers.payload_bytes << 3
        entries["content_bits"] = headers.content_bytes << 3
        entries["begin"] = begin
        ends = self.closed_at(headers)
        if ends is None:
            entries["end"][:-1] = begin[1:]
            entries["end"][-1:] = FOREVER
        else:
            entries["end"] = np.maximum.accumulate(np.maximum(begin, ends))
        return entries

    def closed_at(self, headers: Headers) -> U64 | None:
        """Return when each of some sub-buffers was closed; None where no header states it."""
        assert self.abi is not None
        return self._column(headers, self.abi.ends) if self.abi.states_ends else None

    def numbers(self, headers: Headers) -> U64 | None:
        """Return the tracer's numbers of some sub-buffers; None where no header states them."""
        assert self.abi is not None
        return self._column(headers, self.abi.numbers)

    def _column(
        self, headers: Headers, read: Callable[[Buffer, Headers], U64 | None]
    ) -> U64 | None:
        """Read a field of the headers of some sub-buffers; None if they do not have it."""
        values = np.zeros(len(headers.begin), np.uint64)
        for run in runs_of(headers.offset_bytes, headers.payload_bytes, BLOCK_BYTES):
            data = self.read(run.begin, run.end)
            found = read(data, moved(headers.some(run.rows), -run.begin))
            if found is None:
                return None
            values[run.rows] = found
        return values

    def decode(self, headers: Headers, row: int) -> Decoded:
        """Decode one of some sub-buffers."""
        assert self.abi is not None
        begin = int(headers.offset_bytes[row])
        data = self.read(begin, begin + int(headers.payload_bytes[row]))
        return self.abi.decode(data, moved(headers.some(slice(row, row + 1)), -begin))

    def extent(self, entries: RecordFile) -> tuple[int, int]:
        """Return where the sub-buffers of adjoining *entries* lie: (first byte, length).

        Raises:
            ValueError: the data does not have them all.
        """
        if not len(entries):
            return 0, 0
        first, last = entries[0], entries[-1]
        start = int(first["offset_bytes"])
        length = int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3) - start
        if length < 0 or start + length > self.data_bytes:
            raise ValueError(NOT_IN_DATA)
        return start, length

    def summary(self) -> StreamSummary:
        """Return the totals: those of the manifest if the segment is closed, else derived ones."""
        if self.record.summary is not None:
            return self.record.summary
        return self.derived_summary(self.index, self.gaps)

    def derived_summary(self, entries: Entries | RecordFile, gaps: list[Gap]) -> StreamSummary:
        """Return the totals by *entries* and *gaps*.

        A damaged entry cannot make them larger than the data file allows.
        """
        stats = StreamStats(self.info.id, self.source_name)
        stats.subbuffers = stats.stored_subbuffers = len(entries)
        stats.stored_bytes = self._payload_bytes(entries, gaps)
        delivered_bytes = self._delivered_bytes(entries, stats.stored_bytes)
        stats.padding_bytes = max(delivered_bytes - stats.stored_bytes, 0)
        for gap in gaps:
            stats.lost(gap)
        return summarize(stats)

    def _delivered_bytes(self, entries: Entries | RecordFile, payload_bytes: int) -> int:
        """Return the bytes that the kernel delivered for *entries*; the stored ones if unknown."""
        page_bytes = self.info.page_bytes
        if not page_bytes:
            return len(entries) * self.info.subbuffer_bytes or payload_bytes
        return sum(
            int((-(-content_bytes_of(some) // page_bytes) * page_bytes).sum())
            for some in _chunks(entries)
        )

    def _payload_bytes(self, entries: Entries | RecordFile, gaps: list[Gap]) -> int:
        if not len(entries):
            return 0
        if not self.slot_bytes:  # they adjoin, so the last one's end is the sum
            last = entries[-1]
            end = int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3)
            return min(end, self.data_bytes)
        total = sum(
            int(np.minimum(content_bytes_of(some), self.slot_bytes).sum())
            for some in _chunks(entries)
        )
        # After its content, a sub-buffer may have the count of events lost before it.
        rows = np.array(sorted({gap.row for gap in gaps if gap.row < len(entries)}), np.int64)
        for chunk in np.unique(rows // CHUNK_ENTRIES).tolist() if self.abi is not None else ():
            at = chunk * CHUNK_ENTRIES
            some = entries[at : at + CHUNK_ENTRIES]
            headers = self.headers(some[rows[rows // CHUNK_ENTRIES == chunk] - at])
            total += int(np.maximum(headers.payload_bytes - headers.content_bytes, 0).sum())
        return total


def _chunks(entries: Entries | RecordFile) -> Iterator[Entries]:
    return (entries[at : at + CHUNK_ENTRIES] for at in range(0, len(entries), CHUNK_ENTRIES))
