"""Decode pieces of CTF into batches.

The system of an event type is the provider in its name (``lttng_ust_statedump:start``), or the
channel.  Times are in ns of the trace's clock, events of one stream in the order of that stream.

Rule: no bytes make this module raise; each defect is one note with place and reason.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_events import Part, Walked, walk_parts
from lttd.abi.ctf_plan import Plan
from lttd.view.ctf.context import CtfContext
from lttd.view.ctf.fields import CtfRecords, pids_of
from lttd.view.formats import EventName, EventType
from lttd.view.merge import order_by_time
from lttd.view.notes import WindowNotes
from lttd.view.pieces import (
    Columns,
    Loaded,
    Member,
    Pages,
    PieceDecoder,
    joined,
    pages_of,
    within,
)
from lttd.view.window import Piece, WindowStream

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_Place: TypeAlias = tuple[int, int]
"""A stream, and the byte of its file."""


class CtfTypes:
    """The event types of a window, numbered in the order of their first events."""

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._tables: dict[int, tuple[Plan, I32]] = {}
        self._known: dict[Any, EventType] = {}

    def numbers(self, plan: Plan, number: I64, channel: str, segment: str) -> I32:
        """Return the number of each event's type."""
        if id(plan) not in self._tables:
            # Keep the plan, so that no other object gets its id().
            self._tables[id(plan)] = (plan, np.full(len(plan.events), -1, np.int32))
        table = self._tables[id(plan)][1]
        found = table.take(number)
        if len(found) and int(found.min()) < 0:
            for one in np.unique(number[found < 0]).tolist():
                table[one] = self._type(plan, one, channel, segment).number
            found = table.take(number)
        return found

    def _type(self, plan: Plan, number: int, channel: str, segment: str) -> EventType:
        event = plan.events[number]
        key = (repr((event, plan.stream.event_context, plan.header)), channel)
        if key not in self._known:
            named = _name_of(event.name, channel)
            made = EventType(len(self.all), named, event.id, segment)
            records = CtfRecords(plan, event, named)
            made.format, made.records_of = records.format, records
            self.all.append(made)
            self._known[key] = made
        return self._known[key]

    def names(self, source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        plan, channel = source.context.plan, source.stream.info.id.channel
        return [_name_of(event.name, channel) for event in plan.events] if plan else ()

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``system:name``, if any source has it."""
        for source in sources:
            plan = source.context.plan
            for number, event in enumerate(plan.events if plan else ()):
                channel = source.stream.info.id.channel
                short = event.name.partition(":")[2]
                if name in (event.name, f"{channel}:{event.name}") or (short and name == short):
                    segment = source.stream.segment.directory.name
                    at = self.numbers(plan, np.array([number]), channel, segment)
                    return self.all[int(at[0])]
        return None


def _name_of(declared: str, channel: str) -> EventName:
    system, sign, name = declared.partition(":")
    return EventName(system, name) if sign else EventName(channel, declared)


class _Found(NamedTuple):
    """Events of one member of a piece, in the order of the stream."""

    key: U64
    """The times as running maxima, so that a stream keeps its order."""
    time: U64
    at: I64
    size: I64
    type: I32
    pid: I32
    packet: I64

    def some(self, rows: slice | Mask) -> "_Found":
        """Return some of the events."""
        columns: tuple[Any, ...] = self
        return _Found(*(column[rows] for column in columns))


class CtfDecoder(PieceDecoder[CtfTypes]):
    """Makes batches from pieces; keeps the numbers of types."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, CtfTypes())
        self._parts: dict[_Place, list[Part]] = {}
        """Those of the large packets in the last piece, which may be in the next one, too."""
        self._earlier = self._parts

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, I32]:
        """See ``PieceDecoder``."""
        bits = Bits(loaded.data)
        found: list[_Found] = []
        members: list[int] = []
        floors: dict[int, np.uint64] = {}
        self._parts, self._earlier = {}, self._parts
        for member, one in self._walks(piece, bits, loaded):
            _keep_order(one.key, id(loaded.members[member].source), floors)
            found.append(one)
            members.append(member)
        every = joined(found, ("u8", "u8", "i8", "i8", "i4", "i4", "i8"))
        key, time, at, size, types, pid, packet = every
        lengths = [len(one.key) for one in found]
        member_of = np.repeat(np.array(members, np.int64), lengths)
        order = order_by_time(key)
        if order is not None:
            time, at, size, types, pid, packet, member_of = (
                column.take(order) for column in (time, at, size, types, pid, packet, member_of)
            )
        number_of = {id(source): number for number, source in enumerate(sources)}
        of_members = [each.source for each in loaded.members]
        numbers = np.array([number_of[id(source)] for source in of_members] or [0], np.int32)
        cpus = np.array([source.cpu for source in of_members] or [0], np.uint16)
        nothing = np.zeros(len(time), np.uint8)
        columns = Columns(
            time, cpus.take(member_of), types, pid, nothing, nothing, at, size.astype(np.uint32),
            packet=packet,
        )  # fmt: skip
        return columns, numbers.take(member_of)

    def _walks(self, piece: Piece, bits: Bits, loaded: Loaded) -> Iterator[tuple[int, _Found]]:
        """Yield the events of the members, by their numbers; those of a class are walked together.

        A member may come several times; its events are in the order of the stream.
        """
        alike: dict[tuple[int, str, str], list[int]] = {}
        for number, member in enumerate(loaded.members):
            source = member.source
            segment = source.stream.segment.directory.name
            key = id(source.context), source.stream.info.id.channel, segment
            alike.setdefault(key, []).append(number)
        for (_, channel, segment), numbers in alike.items():
            members = [loaded.members[number] for number in numbers]
            pages = pages_of(loaded.data, members, self.notes)
            context = members[0].source.context
            plan = context.plan
            if plan is not None:
                part = np.array(numbers, np.int32)[pages.part]
                walked = _Pages(members, pages, part, channel, segment)
                yield from self._walk(piece, bits, plan, context, walked)
            elif len(pages.offset):
                why = (
                    f"the metadata declares no stream {context.stream_id}: its events are left out"
                )
                for one in np.flatnonzero(np.bincount(pages.part)).tolist():
                    first = int(pages.offset[pages.part == one][0])
                    self.notes.add(members[one].note(first, why))

    def _walk(
        self, piece: Piece, bits: Bits, plan: Plan, context: CtfContext, of: "_Pages"
    ) -> Iterator[tuple[int, _Found]]:
        packets = context.packets(bits, of.pages.offset, plan)
        for walked in walk_parts(bits, packets, plan, self._wanted(piece, context, of)):
            if (
                walked.part is not None
                and (place := of.place(walked.first_row)) not in self._earlier
            ):
                self._parts.setdefault(place, []).append(walked.part)
            for damage in walked.damage:
                member = of.members[int(of.pages.part[damage.row])]
                reason = f"{damage.reason}; the rest of the packet is left out"
                self.notes.add(member.note(damage.offset_bytes, reason))
            rows = slice(walked.first_row, walked.first_row + len(walked.row_events))
            time = context.layout.ns_of(walked.time)
            begin = np.repeat(of.pages.begin[rows], walked.row_events)
            packet = np.repeat(packets.offset_bytes[rows], walked.row_events)
            types = self.types.numbers(plan, walked.number, of.channel, of.segment)
            pid = pids_of(plan, bits, walked, packet)
            key = np.maximum(time, begin)
            found = _Found(key, time, walked.at, _sizes(walked), types, pid, packet)
            kept = within(piece, key)
            for member_number, span in _spans(of.member[rows], walked.row_events):
                which = _which(kept, span)
                if which is not None:
                    yield member_number, found.some(which)

    def _wanted(
        self, piece: Piece, context: CtfContext, of: "_Pages"
    ) -> Mapping[int, Sequence[Part]]:
        """Return the parts that may have events in a piece, by row of the packets known before."""
        found: dict[int, Sequence[Part]] = {}
        for row in range(len(of.pages.offset)) if self._earlier else ():
            place, begin = of.place(row), int(of.pages.begin[row])
            parts = self._earlier.get(place)
            if parts is None:
                continue
            self._parts[place] = parts
            times = np.array([(each.least, each.most) for each in parts], np.uint64)
            ns = np.maximum(context.layout.ns_of(times.reshape(-1)), np.uint64(begin))
            spans = zip(parts, ns.reshape(-1, 2).tolist(), strict=True)
            found[row] = [
                part for part, (least, most) in spans if most >= piece.begin and least < piece.end
            ]
        return found


class _Pages(NamedTuple):
    """The packets of some members of one class."""

    members: Sequence[Member]
    pages: Pages
    member: I32
    """For each packet the number of its member in the piece."""
    channel: str
    segment: str

    def place(self, row: int) -> _Place:
        """Return the place of a packet, which is the same in each piece that has it."""
        member = self.members[int(self.pages.part[row])]
        return id(member.source), int(self.pages.offset[row]) + member.base


def _spans(members: I32, row_events: I64) -> Iterator[tuple[int, slice]]:
    """Yield the members of some packets, and the events of each."""
    firsts = np.flatnonzero(np.append(True, members[1:] != members[:-1])[: len(members)])
    counts = np.add.reduceat(row_events, firsts) if len(firsts) else row_events
    begin = 0
    for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
        yield int(members[first]), slice(begin, begin + count)
        begin += count


def _which(kept: Mask, span: slice) -> slice | Mask | None:
    """Return which events to keep within a span of them; a slice needs no copy; None: none."""
    some = kept[span]
    count = int(np.count_nonzero(some))
    if not count:
        return None
    first = int(some.argmax())
    if some[first : first + count].all():
        return slice(span.start + first, span.start + first + count)
    found = np.zeros(len(kept), np.bool_)
    found[span] = some
    return found


def _keep_order(key: U64, stream: int, floors: dict[int, np.uint64]) -> None:
    """Make keys running maxima in a stream; *floors* are those of all streams so far."""
    key[0] = max(key[0], floors.get(stream, np.uint64(0)))
    np.maximum.accumulate(key, out=key)
    floors[stream] = key[-1]


def _sizes(walked: Walked) -> I64:
    """Return the distance of each event to the next one, or to the end of the content."""
    size = np.empty(len(walked.at), np.int64)
    size[:-1] = walked.at[1:] - walked.at[:-1]
    filled = walked.row_events > 0
    last = np.cumsum(walked.row_events)[filled] - 1
    size[last] = walked.row_behind[filled] - walked.at[last]
    return size
