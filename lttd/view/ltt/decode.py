"""Decode pieces of LTTng 0.x into batches, every channel's events by its own markers.

An event type's system is the channel, and its name is the marker's.  Times are in ns, but events
are ordered by cycles, of which several may be in one ns.

Rule: no bytes make this module raise; each defect is one note with place and reason.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ltt
from lttd.abi.ltt_events import Channel, Walked, alike, walk
from lttd.abi.ltt_markers import Marker
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.formats import EventName, EventType
from lttd.view.ltt.fields import MarkerRecords, format_of
from lttd.view.ltt.markers import SegmentMarkers, channel_of
from lttd.view.merge import order_by_time
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, Member, PieceDecoder, joined, pages_of, within
from lttd.view.window import Piece, WindowStream

U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class LttContext:
    """The markers for decoding one channel of a segment."""

    def __init__(self, markers: SegmentMarkers, channel: str, notes: TakesNotes) -> None:
        self.channel = channel
        self.markers = markers
        self._notes = notes
        self._walking: dict[tuple[ltt.Layout, int], Channel] = {}

    def refresh(self) -> None:
        """Read the metadata that was recorded since, and note what cannot be read."""
        self.markers.refresh()
        self._notes.add(*self.markers.notes)
        self.markers.notes.clear()

    def walking(self, layout: ltt.Layout) -> Channel:
        """Return the Channel for walking sub-buffers of *layout*, with the markers known now."""
        key = (layout, self.markers.version)
        if key not in self._walking:
            self._walking[key] = Channel(self.markers.of(self.channel, layout), layout)
        return self._walking[key]


class LttContexts:
    """See ``lttd.view.family.Contexts``."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        self._markers = SegmentMarkers(paths, manifest)
        self._notes = notes
        self._channels: dict[str, LttContext] = {}

    def of(self, stream: StoredStream) -> LttContext:
        """Return a channel's context, which its CPUs share."""
        channel = channel_of(stream)
        if channel not in self._channels:
            self._channels[channel] = LttContext(self._markers, channel, self._notes)
        return self._channels[channel]


class LttTypes:
    """The event types of a window, numbered in the order of their first events.

    Equal types of several segments share a number.
    """

    def __init__(self) -> None:
        self.all: list[EventType] = []
        self._known: dict[tuple[Marker, str, int], EventType] = {}
        self._tables: dict[int, tuple[Channel, I32]] = {}

    def numbers(self, channel: Channel, ids: U16, segment: str) -> I32:
        """Return the number of each event's type; *channel* knows all the ids."""
        if id(channel) not in self._tables:
            table = np.full(max(channel.markers, default=0) + 1, -1, np.int32)
            # Keep the channel, so that no other object gets its id().
            self._tables[id(channel)] = (channel, table)
        table = self._tables[id(channel)][1]
        numbers: I32 = table[ids]
        if (numbers < 0).any():
            for one in np.unique(ids[numbers < 0]).tolist():
                table[one] = self._type(channel.markers[one], channel.layout, segment).number
            numbers = table[ids]
        return numbers

    def _type(self, marker: Marker, layout: ltt.Layout, segment: str) -> EventType:
        key = (marker, layout.order, layout.minor)
        if key not in self._known:
            file = EventName(marker.channel, marker.name)
            event_type = EventType(len(self.all), file, marker.id, segment)
            event_type.format = format_of(marker, layout)
            event_type.records_of = MarkerRecords(marker, layout, event_type.format)
            self.all.append(event_type)
            self._known[key] = event_type
        return self._known[key]

    def names(self, source: WindowStream) -> Iterable[EventName]:
        """Return the names of all types that events of a stream may have."""
        source.context.refresh()
        channel = _channel_of(source)
        markers = channel.markers.values() if channel else ()
        return [EventName(marker.channel, marker.name) for marker in markers]

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        """Return the type called *name*, or ``channel:name``, if any source has it."""
        for source in sources:
            channel, segment = _channel_of(source), source.stream.segment.directory.name
            for one, marker in channel.markers.items() if channel else ():
                if channel and name in (marker.name, f"{marker.channel}:{marker.name}"):
                    return self.all[int(self.numbers(channel, np.array([one]), segment)[0])]
        return None


def _channel_of(source: WindowStream) -> Channel | None:
    """Return what a stream's sub-buffers are walked with; None: it has none to tell."""
    try:
        layout = ltt.layout_of(source.stream.read(0, ltt.LEAST_HEADER_BYTES))
    except ValueError:
        return None
    channel: Channel = source.context.walking(layout)
    return channel


class _Found(NamedTuple):
    """Events of some sub-buffers of one stream, in the order of the stream."""

    key: U64
    """The times in ns as running maxima, so that a stream keeps its order."""
    time: U64
    """The times in ns."""
    tsc: U64
    at: I64
    payload_bytes: I64
    type: I32
    stream: I32


class LttDecoder(PieceDecoder[LttTypes]):
    """Makes batches from pieces; keeps the numbers of types."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, LttTypes())

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, I32]:
        """See ``PieceDecoder``."""
        for markers in dict.fromkeys(source.context.markers for source in sources):
            markers.refresh()
            self.notes.add(*markers.notes)
            markers.notes.clear()
        number_of = {id(source): number for number, source in enumerate(sources)}
        found: list[_Found] = []
        clocks = set()
        for member in loaded.members:
            number = number_of[id(member.source)]
            for layout, one in self._walk(piece, loaded.data, member, number):
                found.append(one)
                clocks.add((layout.frequency, layout.scale, layout.minor < ltt.LOSS_SINCE))
        return _in_order(found, sources, one_clock=len(clocks) == 1)

    def _walk(
        self, piece: Piece, data: memoryview, member: Member, number: int
    ) -> Iterator[tuple[ltt.Layout, _Found]]:
        context: LttContext = member.source.context
        segment = member.source.stream.segment.directory.name
        pages = pages_of(data, [member], self.notes)
        floor = np.uint64(0)
        for layout, rows, subbuffers in alike(data, pages.offset, pages.content_end):
            channel = context.walking(layout)
            begin = pages.begin[rows]
            for walked in walk(data, subbuffers, channel):
                for damage in walked.damage + walked.undeclared:
                    reason = f"{damage.reason}; the rest of it is left out"
                    self.notes.add(member.note(damage.offset_bytes, reason))
                time = layout.ns_of(walked.time)
                key = np.maximum(time, begin[walked.row])
                types = self.types.numbers(channel, walked.id, segment)
                found = _kept(piece, key, time, walked, types, number)
                if len(found.key):
                    found.key[0] = max(found.key[0], floor)
                    np.maximum.accumulate(found.key, out=found.key)
                    floor = found.key[-1]
                yield layout, found


def _in_order(
    found: list[_Found], sources: Sequence[WindowStream], *, one_clock: bool
) -> tuple[Columns, I32]:
    """Merge the streams: by cycles if all have the same clock, else by time."""
    dtypes = ("u8", "u8", "u8", "i8", "i8", "i4", "i4")
    key, time, tsc, at, size, types, stream = joined(found, dtypes)
    cycles = one_clock and bool((key == time).all())
    order = order_by_time(tsc if cycles else key)
    if order is not None:
        time, at, size, types, stream = (
            column[order] for column in (time, at, size, types, stream)
        )
    cpus = np.array([source.cpu for source in sources], np.uint16)
    nobody = np.full(len(time), -1, np.int32)
    nothing = np.zeros(len(time), np.uint8)
    columns = Columns(
        time, cpus[stream], types, nobody, nothing, nothing, at, size.astype(np.uint32)
    )
    return columns, stream


def _kept(piece: Piece, key: U64, time: U64, walked: Walked, types: I32, number: int) -> _Found:
    """Keep the events within the piece's span."""
    kept = within(piece, key)
    columns = (key, time, walked.time, walked.payload_at, walked.payload_bytes, types)
    if not kept.all():
        columns = tuple(column[kept] for column in columns)  # type: ignore[assignment]
    return _Found(*columns, np.full(len(columns[0]), number, np.int32))
