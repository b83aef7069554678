"""Decode pieces of a window into batches: walk sub-buffers in lockstep, order events by time.

Rule: no bytes make this module raise; each defect is one note with place and reason.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ftrace_events
from lttd.abi.ftrace import PageLayout, layout_of
from lttd.abi.gather import gather
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.formats import EventName, EventType, Formats
from lttd.view.merge import order_by_time
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, Member, PieceDecoder, joined, pages_of, within
from lttd.view.window import Piece, Spans, WindowStream

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

COMMON_BYTES: Final = 8
# Tables of types, of 256 KB each: a window goes through its segments one after the other.
_MOST_TABLES: Final = 64


class FtraceContext(NamedTuple):
    """The layout and formats for decoding a stream."""

    layout: PageLayout
    formats: Formats


class FtraceContexts:
    """See ``lttd.view.family.Contexts``."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        self._tracefs = paths.tracefs
        self._notes = notes
        self._formats: dict[int, Formats] = {}

    def of(self, stream: StoredStream) -> FtraceContext:
        """Return a stream's layout, and the formats that it shares with others."""
        layout = layout_of(stream.info, stream.byteorder)
        if layout.long_bytes not in self._formats:
            self._formats[layout.long_bytes] = Formats(
                self._tracefs, layout.byteorder, layout.long_bytes, self._notes
            )
        return FtraceContext(layout, self._formats[layout.long_bytes])


class Types:
    """The event types of a window, numbered in the order of their first events.

    Equal types of several segments share a number.
    """

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._known: dict[object, EventType] = {}
        self._by_source: dict[int, I32] = {}

    def numbers(self, source: WindowStream, ids: U16) -> I32:
        """Return the number of each event's type."""
        table = self._by_source.get(id(source.context.formats))
        if table is None:
            if len(self._by_source) == _MOST_TABLES:
                del self._by_source[next(iter(self._by_source))]
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
            event_type = EventType(len(self.all), file, one, segment)
            event_type.format = found
            self.all.append(event_type)
            self._known[key] = event_type
        return self._known[key].number

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``system:name``, if any source has it."""
        for source in sources:
            for number, file in source.context.formats.files.items():
                if name in (file.name, f"{file.system}:{file.name}"):
                    return self.all[int(self.numbers(source, np.array([number], np.uint16))[0])]
        return None

    def short_of(self, event_type: EventType) -> EventType:
        """Return the type for events of *kind* that are shorter than its format states."""
        key = ("short", event_type.number)
        if key not in self._known:
            file = EventName(event_type.system, event_type.name)
            short = EventType(len(self.all), file, event_type.id, event_type.segment)
            self.all.append(short)
            self._known[key] = short
        return self._known[key]

    def fixed_bytes(self) -> U32:
        """Return, per type, the size of the fixed part of its events."""
        return np.array(
            [event_type.format.fixed_bytes if event_type.format else 0 for event_type in self.all],
            np.uint32,
        )


class _Found(NamedTuple):
    """Events of some sub-buffers, in the order of their stream."""

    key: U64
    """The sort keys: the times, but at least the index's begin of the sub-buffer."""
    time: U64
    at: I64
    payload_bytes: U32
    cpu: U16
    type: I32


class FtraceDecoder(PieceDecoder[Types]):
    """Makes batches from pieces; keeps the numbers of types."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, Types())

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, None]:
        """See ``PieceDecoder``."""
        found: list[_Found] = []
        for layout in dict.fromkeys(each.source.context.layout for each in loaded.members):
            members = [each for each in loaded.members if each.source.context.layout == layout]
            found += self._walk(piece, loaded.data, members, layout)
        byteorder = piece.parts[0].source.context.layout.byteorder if piece.parts else "<"
        return self._in_order(loaded.data, found, byteorder, piece.spans), None

    def _walk(
        self, piece: Piece, data: memoryview, members: list[Member], layout: PageLayout
    ) -> Iterator[_Found]:
        pages = pages_of(data, members, self.notes)
        cpus = np.array([each.source.cpu for each in members], np.uint16)
        for walked in ftrace_events.walk(data, pages.offset, pages.content_end, layout):
            for damage in walked.damage:
                member = members[int(pages.part[damage.row])]
                reason = f"{damage.reason}; the rest of it is left out"
                self.notes.add(member.note(damage.offset_bytes, reason))
            rows = slice(walked.first_row, walked.first_row + len(walked.row_events))
            key = np.maximum(walked.time, np.repeat(pages.begin[rows], walked.row_events))
            kept = within(piece, key) & (walked.payload_bytes >= COMMON_BYTES)
            if piece.spans is not None:  # what its entry denies is in no piece
                last = piece.spans.last[piece.spans.of(pages.end[rows])]
                kept &= key <= np.repeat(last, walked.row_events)
            time, at, size = walked.time, walked.payload_at, walked.payload_bytes
            part_of = np.repeat(pages.part[rows], walked.row_events)
            if not kept.all():
                key, time, at = key[kept], time[kept], at[kept]
                size, part_of = size[kept], part_of[kept]
            ids = gather(data, at, np.dtype(f"{layout.byteorder}u2")).astype(np.uint16, copy=False)
            types = self._types_of(members, part_of, ids)
            yield _Found(key, time, at, size, cpus[part_of], types)

    def _types_of(self, members: list[Member], part_of: I64, ids: U16) -> I32:
        formats = {id(each.source.context.formats) for each in members}
        if len(formats) == 1:
            return self.types.numbers(members[0].source, ids)
        types = np.empty(len(ids), np.int32)
        for number, member in enumerate(members):
            rows = part_of == number
            types[rows] = self.types.numbers(member.source, ids[rows])
        return types

    def _in_order(
        self, data: memoryview, found: list[_Found], byteorder: str, spans: Spans | None
    ) -> Columns:
        key, time, at, size, cpu, types = joined(found, ("u8", "u8", "i8", "u4", "u2", "i4"))
        types = self._checked(types, size)
        order = order_by_time(key)
        if order is not None:
            key, time, at, size, cpu, types = (
                key[order], time[order], at[order], size[order], cpu[order], types[order],
            )  # fmt: skip
        common = np.dtype(
            [("type", "V2"), ("flags", "u1"), ("preempt", "u1"), ("pid", f"{byteorder}i4")]
        )
        head = gather(data, at, np.dtype("V8")).view(common) if len(at) else np.empty(0, common)
        pid, flags, preempt = head["pid"].astype(np.int32), head["flags"], head["preempt"]
        begin = None if spans is None else spans.begin[spans.of(key)]
        return Columns(time, cpu, types, pid, flags.copy(), preempt.copy(), at, size, begin)

    def _checked(self, types: I32, size: U32) -> I32:
        """Give another type to events that are shorter than their format states."""
        if not len(types):
            return types
        short = size < self.types.fixed_bytes()[types]
        if short.any():
            for number in np.unique(types[short]).tolist():
                instead = self.types.short_of(self.types.all[number])
                types[short & (types == number)] = instead.number
        return types
