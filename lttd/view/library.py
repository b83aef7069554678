"""Windows of the events of some traces: what ``trace.window()`` returns, and all commands read.

Rule: only iteration reads events; memory holds one piece of a window at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.table import ABIS
from lttd.malloc import keep_some_freed_memory
from lttd.stored import StoredStream
from lttd.view.asked import pieces_asked
from lttd.view.columns import EventBatch
from lttd.view.families import family_of
from lttd.view.filters import Filter
from lttd.view.losses import Loss
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.skipping import Skipping, skipping_for
from lttd.view.task_names import Names
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.view.window import Piece, WindowStream, pieces, pieces_backwards

if TYPE_CHECKING:
    from lttd.view.family import Contexts, Family
    from lttd.view.pieces import TypeTable

I64 = npt.NDArray[np.int64]


class Subbuffers(NamedTuple):
    """The sub-buffers of one stream that may hold an event of a window."""

    segment: str
    stream: str
    cpu: int
    numbers: I64
    """The numbers of their entries in the stream's index."""
    by_table: bool
    """False: no occurrence table tells which ones may, so they are all that the window touches."""


class EventWindow:
    """A window of some traces; iterate over it to get batches."""

    def __init__(
        self, traces: Sequence[Trace], window: Window, chosen: Filter, piece_bytes: int
    ) -> None:
        self.notes = WindowNotes()
        self._window = window
        self._filter = chosen
        self._piece_bytes = piece_bytes
        self._traces = traces
        self._segments = [segment for trace in traces for segment in trace.segments]

    def of_events(self, globs: Iterable[str]) -> "EventWindow":
        """Return the same span with all events of some names, whatever this window leaves out."""
        chosen = Filter(events=globs)
        found = EventWindow(self._traces, self._window, chosen, self._piece_bytes)
        found.notes = self.notes
        return found

    def families(self) -> "list[Family]":
        """Return the families of its streams."""
        abis = {one.info.abi for segment in self._segments for one in segment.streams}
        return [family for abi in sorted(abis) if (family := family_of(abi)) is not None]

    def __iter__(self) -> Iterator[EventBatch]:
        """Yield batches in the order of time; segments with another clock follow."""
        keep_some_freed_memory()
        for group in self.clocks():
            for piece in group.pieces():
                yield group.batch(piece)

    def subbuffers(self) -> Iterator[Subbuffers]:
        """Yield the sub-buffers of each stream that may hold a selected event; read no data."""
        for group in self.clocks():
            yield from map(group.subbuffers, group.touching)

    def clocks(self) -> list["ClockGroup"]:
        """Return groups of segments that can be merged: of one ABI and one clock."""
        groups: dict[tuple[str, object], list[Segment]] = {}
        for segment in self._segments:
            manifest = segment.manifest
            clock = (manifest.clock, manifest.machine.get("boot_id"))
            for abi in dict.fromkeys(stream.info.abi for stream in segment.streams):
                groups.setdefault((abi, clock), []).append(segment)
        opened = [
            ClockGroup(abi, members, self._window, self._filter, self.notes, self._piece_bytes)
            for (abi, _), members in groups.items()
        ]
        return sorted(opened, key=lambda group: group.first_realtime_ns)


class ClockGroup:
    """Segments of one ABI whose trace-clock times can be compared."""

    def __init__(
        self,
        abi: str,
        segments: Sequence[Segment],
        window: Window,
        chosen: Filter,
        notes: WindowNotes,
        piece_bytes: int,
    ) -> None:
        self.abi = abi
        """The ABI of their sub-buffers."""
        self.segments = segments
        self._filter = chosen
        self._notes = notes
        self._piece_bytes = piece_bytes
        self.family = family_of(abi)
        """Decodes, prints and names the events; None: lttv cannot decode them."""
        self._decoder = self.family.decoder(notes) if self.family else None
        self._context_of: dict[str, Contexts] = {}
        self.sources: list[WindowStream] = []
        self._opened: list[Segment] = []
        bounds = [window.bounds(segment) for segment in segments]
        self.begin = min((begin for begin, _ in bounds), default=0)
        self.end = max((end for _, end in bounds), default=0)
        for segment in segments:
            self._add(segment)

    def join(self, segment: Segment) -> None:
        """Add a segment."""
        self.segments = [*self.segments, segment]
        self._add(segment)

    def _add(self, segment: Segment) -> None:
        if self.family:
            contexts = self.family.contexts(segment.paths, segment.manifest, self._notes)
            self._context_of[str(segment.paths.directory)] = contexts
        for stream in segment.streams:
            self.add(stream)

    def add(self, stream: StoredStream) -> bool:
        """Add a stream of one of the segments, if it is selected and can be decoded.

        Return whether it was added.
        """
        if stream.info.abi != self.abi or not self._filter.wants_cpu(stream.info.id.cpu):
            return False
        contexts = self._context_of.get(str(stream.segment.directory))
        if contexts is None or (stream.abi is None and self.abi in ABIS):
            self._note_undecoded(stream, known=contexts is not None)
            return False
        self.sources.append(WindowStream(stream, contexts.of(stream), self._notes))
        return True

    def _note_undecoded(self, stream: StoredStream, *, known: bool) -> None:
        if known:
            what = f"{self.abi} events cannot be decoded as the manifest describes them; skipped"
            note = f"{stream.paths.data}: {what}"
        else:
            what = f"{self.abi} events cannot be decoded: their format is unknown; skipped."
            note = f"{stream.segment.directory}: {what} lttv info counts the bytes, by stream"
        self._notes.add(note)

    @property
    def types(self) -> "TypeTable":
        """The types of its events, which are known as far as they were met."""
        assert self._decoder is not None  # else there are no sources, and no events
        return self._decoder.types

    @property
    def first_realtime_ns(self) -> int:
        """The wall-clock time of the group's first clock snapshot, which orders groups."""
        snapshots = self.segments[0].manifest.clock_snapshots
        return min((s.realtime_ns for s in snapshots), default=0)

    @cached_property
    def touching(self) -> list[WindowStream]:
        """The streams that have sub-buffers in the window."""
        return [source for source in self.sources if source.touches(self.begin, self.end)]

    def near(self) -> list[Segment]:
        """Return the segments with sub-buffers in the window, and of each source one on each side.

        A segment begins with the names that the one before knew, and the next one has those that
        became known late: the other segments say nothing more about the window.
        """
        touched = {source.stream.segment.directory for source in self.touching}
        found: set[int] = set()
        for name in {segment.manifest.source_name for segment in self.segments}:
            own = [at for at, one in enumerate(self.segments) if one.manifest.source_name == name]
            for place, at in enumerate(own):
                if self.segments[at].paths.directory in touched:
                    found.update(own[max(place - 1, 0) : place + 2])
        return [self.segments[at] for at in sorted(found)]

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the window, without decoding them.

        Leave out pieces in which there is neither anything to decode nor a loss.
        """
        if not self.sources:
            return
        touching, rest = self.touching, self._rest()
        span = self.begin, self.end, self._piece_bytes
        if self._skipping is None:
            yield from pieces(touching, rest, *span)
        else:
            yield from pieces_asked(touching, rest, *span, self._skipping)

    def pieces_backwards(self) -> Iterator[Piece]:
        """Yield the pieces of the window, the last one first."""
        if self.sources:
            choose = self._skipping.needed if self._skipping else None
            span = self.begin, self.end, self._piece_bytes
            yield from pieces_backwards(self.touching, self._rest(), *span, choose)

    def _rest(self) -> list[Loss]:
        """Return the losses that no sub-buffer of the window follows, in the order of time."""
        _ = self.touching  # first: what they have open is kept
        behind = [one.losses_after_rows(self.begin, self.end) for one in self.sources]
        return sorted(chain(*behind), key=lambda loss: loss.time)

    @cached_property
    def _skipping(self) -> Skipping | None:
        return skipping_for(self.family, self._filter, self._notes)

    def needed_share(self, source: WindowStream) -> float:
        """Return which share of a stream's sub-buffers has to be decoded, by its table."""
        numbers = self._skipping.numbers(source) if self._skipping else None
        return 1.0 if numbers is None else len(numbers) / max(len(source.index), 1)

    def subbuffers(self, source: WindowStream) -> Subbuffers:
        """Return the sub-buffers of a stream that may hold a selected event of the window."""
        first = source.index.first_at_or_after(self.begin)
        behind = source.index.first_beginning_after(self.end)
        known = self._skipping.numbers(source) if self._skipping else None
        if known is None:
            numbers = np.arange(first, behind)
        else:
            numbers = known[(known >= first) & (known < behind)]
        stream = source.stream
        segment = stream.segment.directory.name
        return Subbuffers(segment, stream.name, source.cpu, numbers, known is not None)

    def batch(self, piece: Piece) -> EventBatch:
        """Decode a piece, and keep the selected events."""
        assert self._decoder is not None  # else there are no sources, and no pieces
        batch = self._decoder.batch(piece, self.sources)
        return self._filter.of(batch, self.names if self._filter.comms else None)

    @cached_property
    def names(self) -> Names | None:
        """The names of tasks near the window; None: events do not state their task."""
        return self.names_from(self.near(), self._notes)

    def names_from(self, segments: Sequence[Segment], notes: TakesNotes) -> Names | None:
        """Return the names of tasks in *segments*, and choose by them from now on."""
        self.names = self.family.names(segments, notes) if self.family else None
        if self.names is None and self._filter.comms:
            notes.add(f"{self.abi} events do not state their task, so --comm leaves them out")
        return self.names
