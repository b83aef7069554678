"""A trace on disk, opened for reading: its segments, streams, times and losses.

Rule: opening reads the manifests only; of an index, only the entries that are needed are read.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from copy import copy
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

from lttd.clock import Conversion
from lttd.empty_segment import holds_nothing
from lttd.errors import NotATraceError, TraceDamagedError
from lttd.manifest import Manifest
from lttd.stats import StreamSummary, counted
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths, deletion_note, segments


class Span(NamedTuple):
    """Begin and end, in trace-clock units and in wall-clock time."""

    begin: int
    end: int
    begin_realtime_ns: int | None
    """None if the segment has no clock snapshot."""
    end_realtime_ns: int | None


class Segment:
    """One segment: a manifest, and streams that are opened on first use."""

    def __init__(self, paths: SegmentPaths) -> None:
        """Read the manifest.

        Raises:
            TraceDamagedError: it cannot be read.
        """
        self.paths = paths
        self.manifest = Manifest.read(paths.place(paths.manifest))
        self.streams = [
            StoredStream(paths, self.manifest, record) for record in self.manifest.streams
        ]

    def only(self, abis: Set[str]) -> "Segment":
        """Return the segment without streams of other ABIs."""
        some = copy(self)
        vars(some).pop("span", None)
        some.streams = [stream for stream in self.streams if stream.info.abi in abis]
        return some

    def without_own_threads(self) -> "Segment":
        """Return the segment for viewers that leave out the events of lttd's own threads."""
        some = copy(self)
        some.streams = [stream.without_own_threads() for stream in self.streams]
        return some

    @cached_property
    def conversion(self) -> Conversion | None:
        """The conversion between trace clock and wall clock; None without clock snapshots."""
        snapshots = self.manifest.clock_snapshots
        return Conversion(snapshots) if snapshots else None

    @cached_property
    def span(self) -> Span | None:
        """From the first begin to the last end of all streams; None where there is nothing."""
        try:
            found = [ends for stream in self.streams if (ends := stream.ends()) is not None]
        except TraceDamagedError:
            if not self.paths.is_gone():
                raise
            return None
        if not found:
            return None
        begin, end = min(begin for begin, _ in found), max(end for _, end in found)
        wall = self.conversion
        if wall is None:
            return Span(begin, end, None, None)
        return Span(begin, end, wall.to_realtime_ns(begin), wall.to_realtime_ns(end))

    def summaries(self) -> list[StreamSummary]:
        """Return the totals of each stream; none if it was deleted meanwhile."""
        try:
            return [stream.summary() for stream in self.streams]
        except TraceDamagedError:
            if not self.paths.is_gone():
                raise
            return []


class Trace:
    """A directory of segments, or a single segment."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the manifests.

        Raises:
            NotATraceError: *path* holds no trace.
            TraceDamagedError: no manifest can be read.
        """
        self.path = Path(path)
        self.hides_self = False
        """Whether viewers leave out the events of lttd's own threads."""
        found = segments(self.path)
        self._left_out: set[int] = set()
        self.segments: list[Segment] = []
        self.unreadable: list[TraceDamagedError] = []
        """The errors of segments that cannot be read."""
        self.vanished: list[str] = []
        """A note for each segment that was deleted between its listing and its opening."""
        self.notes: list[str] = []
        """Lines about a foreign trace."""
        self.is_foreign = False
        """Whether another program recorded it, in a format of its own."""
        for each in found:
            self._open(each)
        if not self.segments and self.unreadable:
            raise self.unreadable[0]
        if not self.segments:
            raise NotATraceError(f"{path}: recording ended before anything was recorded")

    @classmethod
    def foreign(
        cls, path: str | os.PathLike[str], segments: Sequence[Segment], notes: Sequence[str]
    ) -> Self:
        """Return what another program recorded as a trace."""
        trace = cls.__new__(cls)
        trace.path = Path(path)
        trace.hides_self, trace.is_foreign = False, True
        trace.segments, trace.notes = list(segments), list(notes)
        trace.unreadable, trace.vanished = [], []
        vars(trace).update(_left_out=set())
        return trace

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}, {counted(len(self.segments), 'segment')}>"

    def only(self, abis: Set[str]) -> "Trace":
        """Return the trace without streams of other ABIs, and without segments of these alone."""
        some = copy(self)
        for derived in ("spans", "span"):
            vars(some).pop(derived, None)
        vars(some).update(removed=self.removed)  # what is left out here is not missing
        of_abis = (segment.only(abis) for segment in self.segments)
        some.segments = [segment for segment in of_abis if segment.streams]
        return some

    def without_own_threads(self) -> Self:
        """Return the trace for viewers that leave out the events of lttd's own threads."""
        some = copy(self)
        some.segments = [segment.without_own_threads() for segment in self.segments]
        some.hides_self = True
        return some

    def _open(self, paths: SegmentPaths) -> None:
        try:
            self.segments.append(Segment(paths))
        except TraceDamagedError as error:
            self._left_out.add(paths.number)
            if paths.is_gone():
                self.vanished.append(deletion_note(paths.directory))
            elif not holds_nothing(paths):
                self.unreadable.append(error)

    def leave_out_vanished(self) -> list[str]:
        """Forget the segments that were deleted since they were opened; return a note for each."""
        gone = [one for one in self.segments if one.paths.is_gone()]
        self._left_out |= {one.paths.number for one in gone}
        left = set(gone)  # as many as retention deletes at once
        self.segments = [one for one in self.segments if one not in left]
        for derived in ("spans", "span", "removed"):
            vars(self).pop(derived, None)
        return [deletion_note(one.paths.directory) for one in gone]

    @cached_property
    def removed(self) -> list[range]:
        """The missing numbers between segments; none in a cut, which may leave segments out.

        They are ranges, because a name may state any number.
        """
        if any("cut" in segment.manifest.source for segment in self.segments):
            return []
        there = sorted({segment.paths.number for segment in self.segments} | self._left_out)
        missing = (range(one + 1, other) for one, other in pairwise(there))
        return [numbers for numbers in missing if numbers]

    @property
    def state(self) -> str:
        """``open`` if a segment is being recorded or its recorder was killed, else ``closed``."""
        states = {segment.manifest.state for segment in self.segments}
        return "open" if "open" in states else "closed"

    @cached_property
    def spans(self) -> list[Span]:
        """The spans of segments that are not empty, in the order of the segments."""
        return [span for segment in self.segments if (span := segment.span) is not None]

    @property
    def one_clock(self) -> bool:
        """Tell whether trace-clock times of all segments can be compared: same clock, same boot."""
        clocks = {
            (segment.manifest.clock, segment.manifest.machine.get("boot_id"))
            for segment in self.segments
        }
        return len(clocks) == 1

    @cached_property
    def span(self) -> Span | None:
        """Begin and end of the trace; over several boots, ordered by the wall clock."""
        spans = self.spans
        if not spans:
            return None
        if self.one_clock:
            first, last = min(spans, key=lambda s: s.begin), max(spans, key=lambda s: s.end)
        else:
            first = min(spans, key=lambda s: s.begin_realtime_ns or 0)
            last = max(spans, key=lambda s: s.end_realtime_ns or 0)
        return Span(first.begin, last.end, first.begin_realtime_ns, last.end_realtime_ns)

    @property
    def begin(self) -> int | None:
        """The begin of the first sub-buffer, on the trace clock; None in an empty trace."""
        return self.span.begin if self.span else None

    @property
    def end(self) -> int | None:
        """The end of the last sub-buffer, on the trace clock; None in an empty trace."""
        return self.span.end if self.span else None

    def summaries(self) -> list[StreamSummary]:
        """Return the totals of each stream, over all segments."""
        return merge_summaries(one for segment in self.segments for one in segment.summaries())


def merge_summaries(summaries: Iterable[StreamSummary]) -> list[StreamSummary]:
    """Add up the totals of streams with the same name and source."""
    merged: dict[tuple[str, str], StreamSummary] = {}
    for one in summaries:
        key = one.source, one.name
        so_far = merged.get(key)
        merged[key] = one if so_far is None else _sum(so_far, one)
    return list(merged.values())


def _sum(a: StreamSummary, b: StreamSummary) -> StreamSummary:
    return StreamSummary(
        name=a.name,
        cpu=a.cpu,
        subbuffers=a.subbuffers + b.subbuffers,
        payload_bytes=a.payload_bytes + b.payload_bytes,
        padding_bytes=a.padding_bytes + b.padding_bytes,
        events_lost=a.events_lost + b.events_lost,
        lost=dict(Counter(a.lost) + Counter(b.lost)),
        gaps_unknown=a.gaps_unknown + b.gaps_unknown,
        unwanted_events=a.unwanted_events + b.unwanted_events,
        source=a.source,
    )


__all__ = ["Segment", "Span", "Trace", "TraceDamagedError", "merge_summaries"]
