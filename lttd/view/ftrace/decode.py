"""Decode pieces of a window into batches: walk sub-buffers in lockstep, order events by time.

Rule: no bytes make this module raise; each defect is one note with place and reason.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ftrace_events
from lttd.abi.ftrace import PageLayout, layout_of
from lttd.abi.gather import gather
from lttd.index import FOREVER
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.columns import Column, EventBatch, Mask
from lttd.view.formats import EventName, EventType, Formats
from lttd.view.ftrace.graph import (
    Graph,
    graph_of,
    is_graph,
    is_whole,
    keep_first_exits,
    no_graph,
    with_neighbours,
)
from lttd.view.merge import order_by_time
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, PieceDecoder, joined, pages_of
from lttd.view.window import Piece, Spans, WindowStream

U8 = npt.NDArray[np.uint8]
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
        at = ids.astype(np.int64)
        numbers = table.take(at)
        if int(numbers.min(initial=0)) < 0:
            met = np.zeros(1 << 16, np.bool_)
            met[at] = True
            for one in np.flatnonzero(met & (table < 0)).tolist():
                table[one] = self._number(source, one)
            numbers = table.take(at)
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

    def names(self, source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        formats: Formats = source.context.formats
        return formats.files.values()

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
    member: I64
    """For each event the number of its member."""


class FtraceDecoder(PieceDecoder[Types]):
    """Makes batches from pieces; keeps the numbers of types."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, Types())
        self._has_graph = False
        """Whether function_graph's records occur, of which neighbours belong together."""

    def batch(self, piece: Piece, sources: Sequence[WindowStream]) -> EventBatch:
        """See ``PieceDecoder``."""
        had_graph = self._has_graph
        found = super().batch(with_neighbours(piece) if had_graph else piece, sources)
        if had_graph or not self._has_graph:
            return found
        again = super().batch(with_neighbours(piece), sources)
        return replace(again, notes=(*found.notes, *again.notes))

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, None]:
        """See ``PieceDecoder``."""
        layouts = [each.source.context.layout for each in loaded.members]
        found: list[_Found] = []
        for layout in dict.fromkeys(layouts):
            numbers = [number for number, one in enumerate(layouts) if one == layout]
            found += self._walk(loaded, np.array(numbers), layout, piece.spans)
        key, time, at, size, member = joined(found, ("u8", "u8", "i8", "u4", "i8"))
        order = _order_within(piece, key, size)
        unordered = key, at, size, member
        time, at, size, member = (column[order] for column in (time, at, size, member))
        types, pid, flags, preempt = self._heads(loaded, at, member)
        cpus = np.array([each.source.cpu for each in loaded.members] or [0], np.uint16)
        types = self._checked(types, size)
        begin = None if piece.spans is None else piece.spans.begin[piece.spans.of(key[order])]
        cpu = cpus.take(member)
        graph = self._graph(piece, loaded, *unordered)
        if graph is not None:  # of records, take() is ten times as fast as an index
            graph = graph[order] if isinstance(order, slice) else graph.take(order)
        return Columns(time, cpu, types, pid, flags, preempt, at, size, begin, graph), None

    def _graph(
        self, piece: Piece, loaded: Loaded, key: U64, at: I64, size: U32, member: I64
    ) -> Graph | None:
        """Return the column ``graph`` of all loaded events, also of those beside the span."""
        self._has_graph = self._has_graph or any(map(is_graph, self.types.all))
        if not self._has_graph or not len(at):
            return None
        count, rows = len(at), np.flatnonzero(size >= COMMON_BYTES)
        begins = key[rows] >= np.uint64(piece.begin)
        at, size, member = at[rows], size[rows], member[rows]
        types, pid, _, _ = self._heads(loaded, at, member)
        numbers: dict[int, int] = {}
        streams = [numbers.setdefault(id(each.source), len(numbers)) for each in loaded.members]
        stream = np.array(streams, np.int64)[member]
        columns = at, size, self._checked(types, size), pid, stream
        graph = graph_of(loaded.data, self.types.all, columns, is_whole=is_whole(piece))
        if not piece.continues:
            keep_first_exits(graph, begins, stream)
        if len(rows) == count:
            return graph
        found = no_graph(count)
        found[rows] = graph
        return found

    def _walk(
        self, loaded: Loaded, numbers: I64, layout: PageLayout, spans: Spans | None
    ) -> Iterator[_Found]:
        """Yield the events of the members that have these *numbers*."""
        members = [loaded.members[number] for number in numbers]
        pages = pages_of(loaded.data, members, self.notes)
        for walked in ftrace_events.walk(loaded.data, pages.offset, pages.content_end, layout):
            for damage in walked.damage:
                member = members[int(pages.part[damage.row])]
                reason = f"{damage.reason}; the rest of it is left out"
                self.notes.add(member.note(damage.offset_bytes, reason))
            rows = slice(walked.first_row, walked.first_row + len(walked.row_events))
            key = _at_least(walked.time, pages.begin[rows], walked.row_events)
            member_of = np.repeat(numbers[pages.part[rows]], walked.row_events)
            time, at, size = walked.time, walked.payload_at, walked.payload_bytes
            if spans is not None:  # what its entry denies is in no piece
                last = spans.last[spans.of(pages.end[rows])]
                kept = key <= np.repeat(last, walked.row_events)
                key, time, at = key[kept], time[kept], at[kept]
                size, member_of = size[kept], member_of[kept]
            yield _Found(key, time, at, size, member_of)

    def _heads(self, loaded: Loaded, at: I64, member: I64) -> tuple[I32, I32, U8, U8]:
        """Return the type, pid, flags and preempt count of each event."""
        first, second = _two_words(loaded.data, at)
        types, pid = np.empty(len(at), np.int32), np.empty(len(at), np.int32)
        contexts = [each.source.context for each in loaded.members]
        alike = [(one.layout.byteorder, id(one.formats)) for one in contexts]
        for kind in dict.fromkeys(alike):
            one = alike.index(kind)
            rows: slice | Mask = slice(None)
            if len(set(alike)) > 1:
                rows = np.array([each == kind for each in alike])[member]
            order = contexts[one].layout.byteorder
            ids = first[rows].view(f"{order}u2")[::2]
            types[rows] = self.types.numbers(loaded.members[one].source, ids)
            pid[rows] = second[rows].view(f"{order}i4")
        raw = first.view(np.uint8).reshape(-1, 4)
        return types, pid, raw[:, 2].copy(), raw[:, 3].copy()

    def _checked(self, types: I32, size: U32) -> I32:
        """Give another type to events that are shorter than their format states."""
        if not len(types):
            return types
        short = size < self.types.fixed_bytes().take(types)
        if short.any():
            for number in np.unique(types[short]).tolist():
                instead = self.types.short_of(self.types.all[number])
                types[short & (types == number)] = instead.number
        return types


def _at_least(time: U64, begin: U64, row_events: I64) -> U64:
    """Return the times of events, but at least the begin of their sub-buffer."""
    filled = row_events > 0
    first = (np.cumsum(row_events) - row_events)[filled]
    if (np.minimum.reduceat(time, first) >= begin[filled]).all():
        return time
    return np.maximum(time, np.repeat(begin, row_events))


def _order_within(piece: Piece, key: U64, size: U32) -> slice | I64:
    """Return the order by time of the events within a piece's span that have a head."""
    order = order_by_time(key)
    low = int(np.searchsorted(key, np.uint64(piece.begin), sorter=order))
    high = len(key)
    if piece.end <= FOREVER:
        high = int(np.searchsorted(key, np.uint64(piece.end), sorter=order))
    if int(size.min(initial=COMMON_BYTES)) >= COMMON_BYTES:
        return slice(low, high) if order is None else order[low:high]
    rows = np.arange(low, high) if order is None else order[low:high]
    return rows[size[rows] >= COMMON_BYTES]


def _two_words(data: memoryview, at: I64) -> tuple[Column, Column]:
    """Return the first 8 bytes of each event, as two words of 4 bytes."""
    if (at & 3).any():
        pairs = gather(data, at, np.dtype("V8")).view("V4").reshape(-1, 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy()
    words = np.frombuffer(data, "V4", len(data) // 4)  # aligned ones are copied five times as fast
    return words.take(at >> 2), words.take((at >> 2) + 1)
