"""Pieces of a window -> batches: sub-buffers walked together, events put in the order of time.

Rule: nothing here raises because of what the bytes say; what cannot be shown is a note that says
where and why, given once.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ftrace_events
from lttd.abi.ftrace import PageLayout
from lttd.abi.table import FtraceAbi
from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.stored import StoredStream
from lttd.view.columns import EventBatch, gather
from lttd.view.formats import EventType, FormatFile, Formats
from lttd.view.losses import Loss
from lttd.view.merge import order_by_time
from lttd.view.notes import Once
from lttd.view.trace import Segment
from lttd.view.window import FOREVER, Piece, StreamSlice, WindowStream

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COMMON_BYTES: Final = 8
# A file of garbage must not fill the screen: after so many of a piece the rest is a number.


class FtraceContext(NamedTuple):
    """What decoding a stream needs."""

    layout: PageLayout
    formats: Formats


class FtraceContexts:
    """See ``lttd.view.families.Contexts``."""

    def __init__(self, segment: Segment) -> None:
        self._tracefs = segment.paths.tracefs
        self._formats: dict[int, Formats] = {}

    def of(self, stream: StoredStream) -> FtraceContext:
        """Return a stream's layout, and the formats that it shares with others."""
        assert isinstance(stream.abi, FtraceAbi)
        layout = stream.abi.layout
        if layout.long_bytes not in self._formats:
            self._formats[layout.long_bytes] = Formats(
                self._tracefs, layout.byteorder, layout.long_bytes
            )
        return FtraceContext(layout, self._formats[layout.long_bytes])


class Types:
    """The event types of a window, numbered as they are met; over segments by what they are."""

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._known: dict[object, EventType] = {}
        self._by_source: dict[int, I32] = {}

    def numbers(self, source: WindowStream, ids: U16) -> I32:
        """Return the number of each event's type."""
        table = self._by_source.get(id(source.context.formats))
        if table is None:
            table = self._by_source[id(source.context.formats)] = np.full(1 << 16, -1, np.int32)
        numbers = table[ids]
        if (numbers < 0).any():
            met = np.zeros(1 << 16, np.bool_)
            met[ids] = True
            for one in np.flatnonzero(met & (table < 0)).tolist():
                table[one] = self._number(source, one)
            numbers = table[ids]
        return numbers

    def _number(self, source: WindowStream, one: int) -> int:
        found = source.context.formats.get(one)
        file = source.context.formats.files.get(one)
        key = (one, found)
        if key not in self._known:
            segment = source.stream.segment.directory.name
            kind = EventType(len(self.all), file, one, segment)
            kind.format = found
            self.all.append(kind)
            self._known[key] = kind
        return self._known[key].number

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``system:name``, if any source has it."""
        for source in sources:
            for number, file in source.context.formats.files.items():
                if name in (file.name, f"{file.system}:{file.name}"):
                    return self.all[int(self.numbers(source, np.array([number], np.uint16))[0])]
        return None

    def short_of(self, kind: EventType) -> EventType:
        """Return the type of such events of *kind* as are shorter than its format says."""
        key = ("short", kind.number)
        if key not in self._known:
            file = FormatFile(kind.system, kind.name)
            short = EventType(len(self.all), file, kind.id, kind.segment)
            self.all.append(short)
            self._known[key] = short
        return self._known[key]

    def fixed_bytes(self) -> U32:
        """Return, per type, the bytes that each of its events has."""
        return np.array(
            [kind.format.fixed_bytes if kind.format else 0 for kind in self.all], np.uint32
        )


class _Found(NamedTuple):
    """Events of some parts, in stream order."""

    key: U64
    """What they are ordered by: the time, but never less than the index says the sub-buffer has."""
    time: U64
    at: I64
    size_bytes: U32
    cpu: U16
    type: I32


class Pages(NamedTuple):
    """Sub-buffers of some streams, as they lie in a piece's data."""

    offset: I64
    content_end: I64
    begin: U64
    part: I64
    """Number of the part that each belongs to."""


class FtraceDecoder:
    """Turns pieces into batches; keeps the numbers of types and what was noted already."""

    def __init__(self) -> None:
        self.types = Types()
        self._once = Once()

    def batch(self, piece: Piece, sources: Sequence[WindowStream], notes: list[str]) -> EventBatch:
        """Decode one piece; *notes* move into it."""
        parts = [part for each in piece.parts if len((part := usable(each, notes)).entries)]
        data, bases = together(parts)
        found: list[_Found] = []
        for layout in dict.fromkeys(part.source.context.layout for part in parts):
            members = [
                (part, base)
                for part, base in zip(parts, bases, strict=True)
                if part.source.context.layout == layout
            ]
            found += self._walk(piece, data, members, layout, notes)
        for source in sources:
            notes += source.context.formats.notes
            source.context.formats.notes.clear()
        batch = self._batch(piece, data, found, sources)
        batch.losses.extend(losses_of(piece, sources))
        batch.notes.extend(self._once.fresh(notes))
        return batch

    def _walk(
        self,
        piece: Piece,
        data: memoryview,
        members: list[tuple[StreamSlice, int]],
        layout: PageLayout,
        notes: list[str],
    ) -> Iterator[_Found]:
        pages = pages_of(members, notes)
        cpus = np.array([part.source.cpu for part, _ in members], np.uint16)
        for walked in ftrace_events.walk(data, pages.offset, pages.content_end, layout):
            for damage in walked.damage:
                part, base = members[int(pages.part[damage.row])]
                path, place = part.source.stream.paths.data, damage.offset_bytes + base
                notes.append(f"{path}: byte {place}: {damage.reason}; the rest of it is left out")
            rows = slice(walked.first_row, walked.first_row + len(walked.row_events))
            key = np.maximum(walked.time, np.repeat(pages.begin[rows], walked.row_events))
            kept = (key >= np.uint64(piece.begin)) & (walked.payload_bytes >= COMMON_BYTES)
            kept &= key < np.uint64(piece.end) if piece.end <= FOREVER else True
            time, at, size = walked.time, walked.payload_at, walked.payload_bytes
            part_of = np.repeat(pages.part[rows], walked.row_events)
            if not kept.all():
                key, time, at = key[kept], time[kept], at[kept]
                size, part_of = size[kept], part_of[kept]
            ids = gather(data, at, np.dtype(f"{layout.byteorder}u2")).astype(np.uint16, copy=False)
            kinds = self._kinds(members, part_of, ids)
            yield _Found(key, time, at, size, cpus[part_of], kinds)

    def _kinds(self, members: list[tuple[StreamSlice, int]], part_of: I64, ids: U16) -> I32:
        formats = {id(part.source.context.formats) for part, _ in members}
        if len(formats) == 1:
            return self.types.numbers(members[0][0].source, ids)
        kinds = np.empty(len(ids), np.int32)
        for number, (part, _) in enumerate(members):
            rows = part_of == number
            kinds[rows] = self.types.numbers(part.source, ids[rows])
        return kinds

    def _batch(
        self, piece: Piece, data: memoryview, found: list[_Found], sources: Sequence[WindowStream]
    ) -> EventBatch:
        key, time, at, size, cpu, kinds = (
            np.concatenate([one[number] for one in found]) if found else np.empty(0, dtype)
            for number, dtype in enumerate(("u8", "u8", "i8", "u4", "u2", "i4"))
        )
        kinds = self._checked(kinds, size)
        order = order_by_time(key)
        if order is not None:
            time, at, size, cpu, kinds = (
                time[order], at[order], size[order], cpu[order], kinds[order],
            )  # fmt: skip
        byteorder = piece.parts[0].source.context.layout.byteorder if piece.parts else "<"
        common = np.dtype(
            [("type", "V2"), ("flags", "u1"), ("preempt", "u1"), ("pid", f"{byteorder}i4")]
        )
        head = gather(data, at, np.dtype("V8")).view(common) if len(at) else np.empty(0, common)
        return EventBatch(
            data,
            self.types.all,
            time,
            cpu,
            kinds,
            head["pid"].astype(np.int32),
            head["flags"].copy(),
            head["preempt"].copy(),
            at,
            size,
            begin=piece.begin,
            end=piece.end,
            find=lambda name: self.types.find(name, sources),
        )

    def _checked(self, kinds: I32, size: U32) -> I32:
        """Take away their type from events that are shorter than its format says."""
        if not len(kinds):
            return kinds
        short = size < self.types.fixed_bytes()[kinds]
        if short.any():
            for number in np.unique(kinds[short]).tolist():
                instead = self.types.short_of(self.types.all[number])
                kinds[short & (kinds == number)] = instead.number
        return kinds


def usable(part: StreamSlice, notes: list[str]) -> StreamSlice:
    """Return a part without entries that point out of the file, or far from all the others."""
    stream, entries = part.source.stream, part.entries
    room = len(stream.data)
    offset = entries["offset_bytes"].astype(np.uint64)
    size = entries["packet_bits"].astype(np.uint64) >> np.uint64(3)
    usable = (offset <= room) & (size <= (stream.slot_bytes or stream.info.subbuffer_bytes or room))
    usable &= offset + size <= room
    if usable.any():
        middle = float(np.median(offset[usable]))
        reach = 2.0 * float(size[usable].sum()) + (1 << 20)
        usable &= np.abs(offset.astype(np.float64) - middle) <= reach
    if usable.all():
        return part
    for row in np.flatnonzero(~usable).tolist():
        at = len(INDEX_HEADER) + (part.first + row) * ENTRY_BYTES
        notes.append(f"{stream.paths.index}: byte {at}: the sub-buffer is not in the data file")
    return part._replace(entries=entries[usable])


def together(parts: Sequence[StreamSlice]) -> tuple[memoryview, list[int]]:
    """Return the parts' bytes in one buffer, and what leads from a stream's offset to there."""
    extents = [extent(part) for part in parts]
    if len(parts) == 1 and extents[0][0] % 8 == 0:
        begin, end = extents[0]
        return parts[0].source.stream.data[begin:end], [begin]
    bases: list[int] = []
    filled = 0
    for begin, end in extents:
        filled += (begin - filled) % 8  # what is aligned in its file is so in the buffer
        bases.append(begin - filled)
        filled += end - begin
    buffer = np.empty(filled, np.uint8).data  # unlike a bytearray not cleared first
    for part, base, (begin, end) in zip(parts, bases, extents, strict=True):
        buffer[begin - base : end - base] = part.source.stream.data[begin:end]
    return buffer, bases


def extent(part: StreamSlice) -> tuple[int, int]:
    """Return which bytes of a stream hold the sub-buffers."""
    offset = part.entries["offset_bytes"].astype(np.int64)
    size = (part.entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
    return (int(offset.min()), int((offset + size).max())) if len(offset) else (0, 0)


def pages_of(members: list[tuple[StreamSlice, int]], notes: list[str]) -> Pages:
    """Say where the content of each sub-buffer lies: what its header and the index agree on."""
    found = []
    for number, (part, base) in enumerate(members):
        stream, entries = part.source.stream, part.entries
        headers = stream.headers(entries)
        stated = (entries["packet_bits"].astype(np.uint64) >> np.uint64(3)).astype(np.int64)
        indexed = (entries["content_bits"].astype(np.uint64) >> np.uint64(3)).astype(np.int64)
        sound = (headers.payload_bytes > 0) & (headers.content_bytes <= stated)
        differ = ~sound | (headers.content_bytes != indexed)
        for row in np.flatnonzero(differ).tolist():
            what = "header differs from the index" if sound[row] else "no sub-buffer begins here"
            notes.append(f"{stream.paths.data}: byte {int(headers.offset_bytes[row])}: {what}")
        offset = headers.offset_bytes[sound] - base
        begin = entries["begin"][sound].astype(np.uint64)
        part_of = np.full(len(offset), number, np.int64)
        found.append(Pages(offset, offset + headers.content_bytes[sound], begin, part_of))
    return Pages(*(np.concatenate(column) for column in zip(*found, strict=True)))


def losses_of(piece: Piece, sources: Sequence[WindowStream]) -> list[Loss]:
    """Return what is known to be lost within a piece."""
    rows = {id(part.source): part for part in piece.parts}
    found: list[Loss] = []
    for source in sources:
        part = rows.get(id(source))
        begins: list[int] = part.entries["begin"].tolist() if part else []
        first = part.first if part else len(source.index)
        at_end = piece.last and first + len(begins) == len(source.index)
        if part is None and not at_end:
            continue
        last = source.index.entries(max(first + len(begins) - 1, 0), first + len(begins))
        floor = max([piece.begin, *last["end"].tolist()]) if at_end else None
        losses = source.losses.before(first, begins, source.stream.info.id, floor)
        found += [loss for loss in losses if piece.begin <= loss.time < piece.end]
    return sorted(found, key=lambda loss: loss.time)
