"""Streams of whole, padded ftrace pages of another program, with the index that they lack.

A page of ``trace_pipe_raw`` states when it begins, how much it holds, and whether events were lost
before it.  So an entry of the index is made of the headers of two pages when somebody asks for it,
and a bisection reads as many headers as it has steps: opening reads none.

Rule: the pages of a stream are in the order of their times, as the kernel delivers them.
Rule: a page that does not parse begins when the next sound one does; without such, when the last
one ends.  It is in the index, and whoever reads it reports it.
Invariant: an entry does not depend on what else is read.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace import COMMIT_MASK, MISSED_EVENTS, MISSED_STORED, last_event_time, layout_of
from lttd.errors import TraceDamagedError
from lttd.index import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    GAP_DTYPE,
    GAPS_HEADER,
    HEADER,
    INDEX_HEADER,
    MOST_LOST,
    UNKNOWN,
    Entries,
    RecordFile,
    SeekIndex,
    parse_gaps,
)
from lttd.limits import GAPS
from lttd.manifest import Manifest, StreamRecord
from lttd.readfile import ReadFile
from lttd.stored import CHUNK_ENTRIES, StoredStream
from lttd.subbuffer import Gap, Reason, Unit
from lttd.tracedir import SegmentPaths
from lttd.view.foreign.parts import ChunkedFile

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Headers are looked for so many at a time beyond pages that do not parse.
_SCAN_PAGES: Final = 1024
# Pages are read whole, so many bytes at a time, where their headers cannot be read alone.
_BLOCK_BYTES: Final = 4 << 20
_MOST_TIME: Final = (1 << 64) - 1


class Heads(NamedTuple):
    """The headers of some pages."""

    begin: U64
    word: U64
    """The commit word, with its flags."""
    sound: Mask

    @property
    def content_bytes(self) -> U64:
        """The length of the events of each."""
        return self.word & np.uint64(COMMIT_MASK)


class PageStream(StoredStream):
    """A stream whose data are pages in their slots, and whose index is made of their headers."""

    is_foreign = True

    def __init__(
        self, segment: SegmentPaths, manifest: Manifest, record: StreamRecord, data: ReadFile
    ) -> None:
        super().__init__(segment, manifest, record)
        self.file = data
        self.layout = layout_of(record.info, self.byteorder)
        self.pages = data.size_bytes // self.slot_bytes
        """A last page that is not whole does not count."""
        if isinstance(data, ChunkedFile):
            data.on_damage = self.damage.append
        self.length_bytes = self.pages * self.slot_bytes

    @property
    def data_bytes(self) -> int:
        """The length of the whole pages."""
        return self.length_bytes

    def index_bytes(self) -> int:
        """Return the length that the index would have."""
        return HEADER.size + self.pages * ENTRY_BYTES

    def index_file(self) -> ReadFile:
        """Return the index, which is made while it is read."""
        return PageIndex(self)

    def opened_index(self) -> SeekIndex:
        """Open the index."""
        return SeekIndex(PageIndex(self))

    def gap_records(self) -> "PageGaps":
        """Return the losses that pages state."""
        return PageGaps(self)

    @cached_property
    def gaps(self) -> list[Gap]:
        """The known losses; to find them, all headers are read.

        Raises:
            TraceDamagedError: they cannot be read, or are too many.
        """
        found: list[Gap] = []
        records = self.gap_records()
        for at in range(0, self.pages, CHUNK_ENTRIES):
            found += parse_gaps(
                GAPS_HEADER + records[at : at + CHUNK_ENTRIES].tobytes(), self.data_path
            )
            if len(found) > GAPS.most:
                raise TraceDamagedError(self.data_path, 0, f"{len(found):,} gaps; {GAPS}")
        return found

    def heads(self, first: int, behind: int) -> Heads:
        """Read the headers of pages ``[first:behind)``.

        Raises:
            TraceDamagedError: the file cannot be read.
        """
        layout, size = self.layout, self.slot_bytes
        count, head = max(behind - first, 0), layout.header_bytes
        raw = np.zeros(count, layout.header_dtype)
        assert self.file is not None
        if self.file.reads_any_part:
            view = raw.view(np.uint8).reshape(-1).data
            for number in range(count):
                self.read_into(view[number * head : (number + 1) * head], (first + number) * size)
        else:
            step = max(_BLOCK_BYTES // size, 1)
            for at in range(0, count, step):
                some = min(step, count - at)
                data = self.read((first + at) * size, (first + at + some) * size)
                there = len(data) // size
                raw[at : at + there] = np.ndarray((there,), raw.dtype, data, strides=(size,))
        begin, word = raw["begin"].astype(np.uint64), raw["commit"].astype(np.uint64)
        counted = np.where(word & np.uint64(MISSED_STORED), np.uint64(layout.long_bytes), 0)
        stored = (word & np.uint64(COMMIT_MASK)) + counted.astype(np.uint64) + np.uint64(head)
        sound = (stored <= size) & ((word != 0) | (begin != 0))
        return Heads(begin if layout.scale is None else layout.scale.of(begin), word, sound)

    def begins(self, first: int, behind: int) -> tuple[U64, Heads]:
        """Return when pages ``[first:behind]`` begin, with the one *behind*, and the headers.

        Behind all pages, that is when the last one ends.
        """
        heads = self.heads(first, min(behind + 1, self.pages))
        begin = np.empty(behind + 1 - first, np.uint64)
        begin[: len(heads.begin)] = heads.begin
        sound = np.zeros(len(begin), np.bool_)
        sound[: len(heads.sound)] = heads.sound
        if not sound[-1]:
            begin[-1] = self._sound_from(behind)
            sound[-1] = True
        if not sound.all():
            there = np.flatnonzero(sound)
            begin = begin[there[np.searchsorted(there, np.arange(len(begin)))]]
        rest = slice(0, behind - first)
        return np.maximum.accumulate(begin), Heads(
            heads.begin[rest], heads.word[rest], heads.sound[rest]
        )

    def _sound_from(self, number: int) -> int:
        """Return when the first sound page from *number* on begins; without one the end of all."""
        for at in range(number, self.pages, _SCAN_PAGES):
            heads = self.heads(at, min(at + _SCAN_PAGES, self.pages))
            if heads.sound.any():
                return int(heads.begin[int(np.argmax(heads.sound))])
        return self.end

    @cached_property
    def end(self) -> int:
        """The time of the last event of the last sound page; 0 without one."""
        behind = self.pages
        while behind:
            first = max(behind - _SCAN_PAGES, 0)
            sound = np.flatnonzero(self.heads(first, behind).sound)
            if len(sound):
                at = (first + int(sound[-1])) * self.slot_bytes
                last = min(
                    last_event_time(self.read(at, at + self.slot_bytes), self.layout), _MOST_TIME
                )
                return last if self.layout.scale is None else self.layout.scale.of_one(last)
            behind = first
        return 0


class PageIndex(ReadFile):
    """The bytes that the index file of a stream would have, made while they are read."""

    def __init__(self, stream: PageStream) -> None:
        self._fd = -1
        self._stream = stream
        self.name = str(stream.data_path)
        self.size_bytes = stream.index_bytes()

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """See ReadFile."""
        end = min(begin + len(buffer), self.size_bytes)
        if end <= begin:
            return 0
        first = max(begin - HEADER.size, 0) // ENTRY_BYTES
        behind = max(-(-(end - HEADER.size) // ENTRY_BYTES), first)
        at = HEADER.size + first * ENTRY_BYTES if first else 0
        raw = (b"" if first else INDEX_HEADER) + _entries(self._stream, first, behind).tobytes()
        buffer[: end - begin] = raw[begin - at : end - at]
        return end - begin


def _entries(stream: PageStream, first: int, behind: int) -> Entries:
    """Make entries ``[first:behind)``."""
    entries = np.zeros(behind - first, ENTRY_DTYPE)
    if not len(entries):
        return entries
    begin, heads = stream.begins(first, behind)
    numbers = np.arange(first, behind, dtype=np.uint64)
    content = heads.content_bytes + np.uint64(stream.info.header_bytes)
    entries["offset_bytes"] = numbers * np.uint64(stream.slot_bytes)
    entries["packet_bits"] = stream.slot_bytes << 3
    entries["content_bits"] = np.where(heads.sound, content, 0) << np.uint64(3)
    entries["begin"], entries["end"] = begin[:-1], begin[1:]
    entries["instance_id"] = stream.info.id.cpu
    entries["sequence"] = numbers
    return entries


class PageGaps(RecordFile):
    """The losses that the headers of a stream's pages state, as records of a gaps file.

    As a sequence it has a place for each page, of which most have no record: a slice has fewer
    records than its length.
    """

    def __init__(self, stream: PageStream) -> None:
        super().__init__(None, GAP_DTYPE, range(stream.pages))
        self._stream = stream

    @overload
    def __getitem__(self, key: int) -> np.void: ...
    @overload
    def __getitem__(self, key: slice) -> Entries: ...
    def __getitem__(self, key: int | slice) -> np.void | Entries:
        """Return the records before some pages."""
        if not isinstance(key, slice):
            raise TypeError("most pages have no record")
        rows = self._rows[key]
        return self._of_pages(rows.start, max(rows.stop, rows.start))

    def column(self, name: str) -> U64:
        """Return a field of all records."""
        some = (self[at : at + CHUNK_ENTRIES][name] for at in range(0, len(self), CHUNK_ENTRIES))
        return np.concatenate([np.empty(0, np.uint64), *(one.astype(np.uint64) for one in some)])

    def first_at_least(self, name: str, least: int) -> int:
        """Return the place of the first page from number *least* on; *name* is ``row``."""
        return min(least, len(self))

    def _of_pages(self, first: int, behind: int) -> Entries:
        if first == behind:
            return np.empty(0, GAP_DTYPE)
        begin, heads = self._stream.begins(first, behind)
        flags = np.uint64(MISSED_EVENTS | MISSED_STORED)
        rows = np.flatnonzero(heads.sound & ((heads.word & flags) != 0))
        records = np.zeros(len(rows), GAP_DTYPE)
        earlier, _ = self._stream.begins(max(first - 1, 0), behind)
        records["row"] = rows + first
        records["begin"] = earlier[np.maximum(rows - (1 if not first else 0), 0)]
        records["end"] = begin[rows]
        records["count"] = list(self._counts(rows + first, heads.word[rows]))
        records["reason"], records["unit"] = Reason.OVERWRITTEN, Unit.EVENTS
        return records

    def _counts(self, pages: I64, words: U64) -> Iterator[int]:
        """Yield how many events were lost before some pages."""
        stream = self._stream
        size, head = stream.layout.long_bytes, stream.layout.header_bytes
        order: Literal["little", "big"] = "little" if stream.layout.byteorder == "<" else "big"
        for page, word in zip(pages.tolist(), words.tolist(), strict=True):
            at = page * stream.slot_bytes + head + (word & COMMIT_MASK)
            count = int.from_bytes(stream.read(at, at + size), order) if word & MISSED_STORED else 0
            yield count if 0 < count <= MOST_LOST else UNKNOWN


def named(file: Path, cpu: int, instance: str) -> str:
    """Return the name of a stream's part of a file, for messages."""
    return f"{file}: CPU {cpu}{f' of {instance}' if instance else ''}"
