"""Decode pieces of CTF into batches.

The system of an event type is the provider in its name (``lttng_ust_statedump:start``), or the
channel.  Times are in ns of the trace's clock, events of one stream in the order of that stream.

Rule: no bytes make this module raise; each defect is one note with place and reason.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_events import Walked, walk
from lttd.abi.ctf_plan import Plan
from lttd.view.ctf.fields import CtfRecords, pids_of
from lttd.view.formats import EventName, EventType
from lttd.view.merge import order_by_time
from lttd.view.notes import WindowNotes
from lttd.view.pieces import Columns, Loaded, Member, PieceDecoder, joined, pages_of, within
from lttd.view.window import Piece, WindowStream

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


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
        found: I32 = table[number]
        for one in np.unique(number[found < 0]).tolist():
            table[one] = self._type(plan, one, channel, segment).number
        return table[number]

    def _type(self, plan: Plan, number: int, channel: str, segment: str) -> EventType:
        event = plan.events[number]
        key = (repr((event, plan.stream.event_context, plan.header)), channel)
        if key not in self._known:
            system, sign, name = event.name.partition(":")
            named = EventName(system, name) if sign else EventName(channel, event.name)
            made = EventType(len(self.all), named, event.id, segment)
            records = CtfRecords(plan, event, named)
            made.format, made.records_of = records.format, records
            self.all.append(made)
            self._known[key] = made
        return self._known[key]

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


class _Found(NamedTuple):
    """Events of some packets of one stream, in the order of the stream."""

    key: U64
    """The times as running maxima, so that a stream keeps its order."""
    time: U64
    at: I64
    size: I64
    type: I32
    pid: I32
    packet: I64
    stream: I32


class CtfDecoder(PieceDecoder[CtfTypes]):
    """Makes batches from pieces; keeps the numbers of types."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, CtfTypes())

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, I32]:
        """See ``PieceDecoder``."""
        number_of = {id(source): number for number, source in enumerate(sources)}
        bits = Bits(loaded.data)
        found: list[_Found] = []
        floors: dict[int, np.uint64] = {}
        for member in loaded.members:
            number = number_of[id(member.source)]
            for one in self._walk(piece, bits, loaded.data, member, number):
                if len(one.key):
                    one.key[0] = max(one.key[0], floors.get(number, np.uint64(0)))
                    np.maximum.accumulate(one.key, out=one.key)
                    floors[number] = one.key[-1]
                found.append(one)
        every = joined(found, ("u8", "u8", "i8", "i8", "i4", "i4", "i8", "i4"))
        key, time, at, size, types, pid, packet, stream = every
        order = order_by_time(key)
        if order is not None:
            time, at, size, types, pid, packet, stream = (
                column[order] for column in (time, at, size, types, pid, packet, stream)
            )
        cpus = np.array([source.cpu for source in sources], np.uint16)
        nothing = np.zeros(len(time), np.uint8)
        columns = Columns(
            time, cpus[stream], types, pid, nothing, nothing, at, size.astype(np.uint32),
            packet=packet,
        )  # fmt: skip
        return columns, stream

    def _walk(
        self, piece: Piece, bits: Bits, data: memoryview, member: Member, number: int
    ) -> Iterator[_Found]:
        context = member.source.context
        pages = pages_of(data, [member], self.notes)
        plan = context.plan
        if plan is None:
            if len(pages.offset):
                told = (
                    f"the metadata declares no stream {context.stream_id}: its events are left out"
                )
                self.notes.add(member.note(int(pages.offset[0]), told))
            return
        packets = context.packets(data, pages.offset)
        channel = member.source.stream.info.id.channel
        segment = member.source.stream.segment.directory.name
        for walked in walk(bits, packets, plan):
            for damage in walked.damage:
                reason = f"{damage.reason}; the rest of the packet is left out"
                self.notes.add(member.note(damage.offset_bytes, reason))
            time = context.layout.ns_of(walked.time)
            key = np.maximum(time, pages.begin[walked.row])
            size = _sizes(walked, packets.end_bits)
            pid = pids_of(plan, bits, walked, packets)
            types = self.types.numbers(plan, walked.number, channel, segment)
            packet = packets.offset_bytes[walked.row]
            kept = within(piece, key)
            columns = (key, time, walked.at, size, types, pid, packet)
            if not kept.all():
                columns = tuple(column[kept] for column in columns)  # type: ignore[assignment]
            yield _Found(*columns, np.full(len(columns[0]), number, np.int32))


def _sizes(walked: Walked, end_bits: I64) -> I64:
    """Return the distance of each event to the next one, or to the end of the content."""
    behind = (end_bits[walked.row] + 7) >> 3
    if len(behind):
        same = walked.row[1:] == walked.row[:-1]
        behind[:-1] = np.where(same, walked.at[1:], behind[:-1])
    size: I64 = behind - walked.at
    return size
