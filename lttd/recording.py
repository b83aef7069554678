"""Record a source into a segment, from opening to closing both."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lttd.clock import Snapshot, take_snapshot
from lttd.errors import LttdError, StorageError
from lttd.files import Disk
from lttd.lane import Lane
from lttd.manifest import OWN_THREADS
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.own_threads import threads_in
from lttd.recorder import Recorder
from lttd.roll import MOST_UNCLOSED, SegmentState
from lttd.sources.base import (
    PRESENT_STATE,
    Attachments,
    PausableStream,
    Source,
    SourceInfo,
    Stream,
    When,
)
from lttd.stats import StreamSummary, summarize
from lttd.subbuffer import StreamId, StreamInfo
from lttd.terminal import Level, say
from lttd.tracedir import (
    SegmentPaths,
)

Served = tuple[Stream, Lane]
"""A stream, and the lane for its batches."""


@dataclass(slots=True)
class Recording:
    """A source, and the segments that it is recorded into, one after the other.

    prepare() ---> reveal() ---> roll() ---> prepare() ...
                                   |
                                   +-> Ended.attach() ---> Ended.close() ---> forget()

    A prepared segment has a hidden name: it is not part of the trace before reveal().  The reading
    thread calls roll() and forget(); see lttd.helper for the others.
    """

    recorder: Recorder
    trace: Path
    source: Source
    layout: str
    disk: Disk
    now: "_Part"
    """The segment that takes what comes."""
    _next: "_Part | None" = None
    """The segment that was prepared."""
    _earlier: deque["_Part"] = field(default_factory=deque)
    """The segments before, oldest first, until they are closed."""
    _about: dict[str, Any] = field(default_factory=dict)
    """Further keys of the source's object in the manifests."""
    _admitted_next: list[Stream] = field(default_factory=list)
    """New streams whose files could not be made yet."""

    @classmethod
    def begin(cls, recorder: Recorder, trace: Path, number: int, source: Source, layout: str,
              disk: Disk) -> "Recording":  # fmt: skip
        """Open segment *number* of *trace* for *source*, with the files that decoding needs.

        Raises:
            StorageError: it cannot be written; nothing of it is left behind.
        """
        own_threads = threads_in(source.info, disk.hold(trace), recorder.own_threads)
        about = {OWN_THREADS: own_threads} if own_threads else {}
        contents = SegmentContents(
            source=_told(source.info) | about,
            layout=layout,
            streams=tuple(stream.info for stream in source.streams),
            snapshot=_snapshot(source),
            disk=disk,
            machine=source.info.machine,
        )
        segment = recorder.open_segment(trace, number, contents)
        part = _Part(segment, source.attachments(), source.info).with_files()
        return cls(recorder, trace, source, layout, disk, part, _about=about)

    @property
    def segment(self) -> OpenSegment:
        """The segment that takes what comes."""
        return self.now.segment

    @property
    def lanes(self) -> Mapping[StreamId, Lane]:
        """The streams of the run."""
        return self.now.segment.lanes

    def summaries(self) -> list[StreamSummary]:
        """Return the totals of each stream in the whole run."""
        return [summarize(lane.stats) for lane in self.lanes.values()]

    # -- a roll

    @property
    def is_prepared(self) -> bool:
        """Tell whether the segment for the next roll() is there, and has what is recorded now."""
        prepared = self._next
        if prepared is None:
            return False
        streams_are_same = _infos(prepared.segment) == _infos(self.segment)
        return streams_are_same and prepared.source == self.source.info

    def prepare(self) -> SegmentPaths:
        """Make the segment for the next roll(), with the files that decoding needs, if need be.

        Raises:
            StorageError: it cannot be written; nothing of it is left behind.
        """
        if self._next is not None and self.is_prepared:
            return self._next.segment.paths
        self.forsake()
        before, info = self.segment, self.source.info
        contents = SegmentContents(
            source=_told(info) | {**self._about, "rolled_from": before.paths.directory.name},
            layout=self.layout,
            streams=_infos(before),
            snapshot=_snapshot(self.source),
            disk=self.disk,
            baselines=before.baselines,
            lanes=before.lanes,
        )
        segment = self.recorder.prepare_segment(self.trace, contents)
        part = _Part(segment, self.source.attachments(), info)
        self._next = part.with_files(before.paths)
        return segment.paths

    def reveal(self, number: int) -> None:
        """Make the prepared segment the segment *number* of the trace.

        Raises:
            StorageError: it cannot be renamed; forsake() removes it.
        """
        assert self._next is not None
        self._next.segment.reveal(number, _snapshot(self.source))

    def forsake(self) -> None:
        """Remove the segment that was prepared, if there is one."""
        prepared, self._next = self._next, None
        if prepared is not None:
            prepared.segment.discard()

    def state(self, now: float, *, asked: bool) -> SegmentState:
        """Return the state of the open segment at *now*, in s of a clock that never goes back."""
        payload_bytes = self._taken_bytes() - self.now.taken_before_bytes
        if payload_bytes and self.now.first_taken_at is None:
            self.now.first_taken_at = now
        began = now if self.now.first_taken_at is None else self.now.first_taken_at
        return SegmentState(payload_bytes, int((now - began) * 1e9), asked)

    def _taken_bytes(self) -> int:
        """Return the bytes of headers and content taken in the whole run."""
        stats = (lane.stats for lane in self.lanes.values())
        return sum(one.delivered_bytes - one.padding_bytes for one in stats)

    @property
    def may_roll(self) -> bool:
        """Tell whether one more segment may wait to be closed."""
        return len(self._earlier) < MOST_UNCLOSED

    def roll(self, *, paused: bool = False) -> "Ended":
        """Let all batches from now on go to the prepared segment; return the present one.

        *paused*: those between the last one and the next one are left to the ring (lttd.flight).
        Called between takes.
        """
        assert self._next is not None
        before, following, self._next = self.now, self._next, None
        before.counters = following.counters_before = self._counters()
        following.taken_before_bytes = self._taken_bytes()
        segment = following.segment
        if paused:
            del segment.manifest.source["rolled_from"]
        else:
            with suppress(LttdError):  # the next take reports it
                segment.manifest.source["rolled_at"] = self.source.now()
        read_events = self.source.roll(segment.paths.directory.name)
        for stream, files in segment.files.items():
            if stream in read_events:
                info = replace(files.record.info, read_events_before=read_events[stream])
                files.record.info = info
        self._earlier.append(before)
        self.now = following  # from here on other threads change it
        self.recorder.watch(segment)
        for stream, files in segment.files.items():
            self.recorder.roll(self.lanes[stream], files)
        return Ended(self, before, following)

    def forget(self, ended: "Ended") -> None:
        """Note that the oldest segment before the present one is closed, or cannot be closed."""
        assert self._earlier[0] is ended.part
        self._earlier.popleft()
        self.mark_progress()

    def sync(self) -> None:
        """Make everything durable that was written so far.

        Raises:
            StorageError: a segment could not be synced.
        """
        for part in (*self._earlier, self.now):
            part.segment.sync()

    def streams_and_lanes(self) -> Sequence[Served]:
        """Pair each stream with where its batches go."""
        return [(stream, self.lanes[stream.info.id]) for stream in self.source.streams]

    def admit(self) -> Sequence[Served]:
        """Make files for streams that have appeared; return these streams and their lanes.

        Raises:
            StorageError: that could not be done; the next call tries again.
        """
        self._admitted_next.extend(self.source.discover())
        if not self._admitted_next:
            return ()
        self.segment.add_streams(stream.info for stream in self._admitted_next)
        admitted = [(stream, self.lanes[stream.info.id]) for stream in self._admitted_next]
        self._admitted_next.clear()
        return admitted

    def attach(self, when: When) -> None:
        """Write the files that the segment needs beside its streams."""
        self.now.attach(when)

    def mark_progress(self) -> None:
        """Note that lttd lives and how far it has read, if a kill leaves data in the kernel."""
        oldest = self._earlier[0] if self._earlier else self.now
        self.source.mark_progress(oldest.segment.paths.directory.name)

    def note_clock(self) -> None:
        """Add a clock snapshot to the manifest."""
        snapshot = _snapshot(self.source)
        if snapshot is not None:
            self.segment.note_clock(snapshot)

    def note_mode(self, mode: str) -> None:
        """Note in the manifests of this run that it records in another way than all the time.

        Raises:
            StorageError: the manifest could not be written.
        """
        self._about["mode"] = mode
        self.segment.manifest.source["mode"] = mode
        self.segment.write_manifest()

    def note_own_thread(self, number: int, name: str) -> None:
        """Note in the manifests of this run that a process of lttd's may be in the data.

        Raises:
            StorageError: the manifest could not be written.
        """
        if OWN_THREADS not in self._about:
            return
        self._about[OWN_THREADS] = {**self._about[OWN_THREADS], str(number): name}
        for part in (self._next, self.now):
            if part is not None:
                source = part.segment.manifest.source
                part.segment.manifest.source = source | {OWN_THREADS: self._about[OWN_THREADS]}
        self.segment.write_manifest()

    def note_pause_end(self) -> None:
        """Add a clock snapshot, and the kernel's ``read events`` as of the end of a pause."""
        for stream in self.source.streams:
            record = self.segment.files[stream.info.id].record
            wanted = stream.wanted_from if isinstance(stream, PausableStream) else None
            # In a segment that has data already, the pause is not before the first sub-buffer.
            if wanted is not None and wanted[0] == record.subbuffers_before:
                record.info = replace(record.info, read_events_before=wanted[1])
        self.note_clock()

    def note_reload(self, keys: Iterable[str]) -> None:
        """Note in the manifest which settings *keys* the source has from now on.

        Raises:
            StorageError: the manifest could not be written.
        """
        settings = self.source.info.settings
        names = sorted(key.replace("-", "_") for key in keys)
        told = {name: settings[name] for name in names if name in settings}
        self.segment.note_reload({"at_ns": time.time_ns(), **told})

    def close(self, *, paused: bool = False) -> None:
        """Wait for the backlog, then close the segment; the source stays open.

        *paused*: it waited for a window (lttd.flight); if there were others before, it is removed.

        Raises:
            StorageError: the stored data is whole, but the segment is not closed in order.
        """
        if paused and 0 < self._taken_bytes() == self.now.taken_before_bytes:
            self.segment.discard()
        else:
            self.now.counters = self._counters()
            try:
                self.segment.settle()
                self.now.attach(When.CLOSE)
            finally:
                self.now.close(self.source)

    def _counters(self) -> "Counters":
        found: dict[StreamId, Mapping[str, int]] = {}
        for stream in self.source.streams:
            with suppress(LttdError):  # the reader gets the same error, and reports it
                found[stream.info.id] = dict(stream.counters())
        return found


Counters = Mapping[StreamId, Mapping[str, int]]
"""The kernel's counters of some streams."""


@dataclass(slots=True)
class _Part:
    """One segment of a recording."""

    segment: OpenSegment
    attachments: Attachments
    source: SourceInfo
    """The source when the segment was made."""
    taken_before_bytes: int = 0
    """The bytes of headers and content that earlier segments of the run took."""
    first_taken_at: float | None = None
    """When its first sub-buffer had been taken."""
    counters_before: Counters = field(default_factory=dict)
    """The kernel's counters when it began; empty in the first segment of a run."""
    counters: Counters = field(default_factory=dict)
    """The kernel's counters when the next segment began."""

    def with_files(self, before: SegmentPaths | None = None) -> Self:
        """Write the files that decoding needs; discard the segment if that fails."""
        try:
            self.attach(When.OPEN, before)
        except BaseException:
            self.segment.discard()
            raise
        return self

    def attach(self, when: When, before: SegmentPaths | None = None) -> None:
        for one in self.attachments(when):
            if one.same and before is not None:
                self.segment.share(one.name, before)
            else:
                self.segment.attach(one.name, one.data, append=one.append)

    def close(self, source: Source) -> None:
        """Close the segment, with the kernel's counters of its own time."""
        before = self.counters_before
        own = {key: _growth(before.get(key, {}), now) for key, now in self.counters.items()}
        self.segment.close(_snapshot(source), own)


@dataclass(slots=True, eq=False)
class Ended:
    """A segment that takes no more batches, on its way to be closed."""

    recording: Recording
    part: _Part
    following: _Part
    error: StorageError | None = None
    """The first failure on that way."""

    @property
    def paths(self) -> SegmentPaths:
        """The files of the segment."""
        return self.part.segment.paths

    def attach(self) -> None:
        """Write the last files beside the streams, once all of its batches are written: those of
        the segment, and what the segment that follows lacks of its begin.

        Raises:
            StorageError: they could not be written.
        """
        try:
            self.following.attach(When.ROLLED)
            self.following.segment.write_manifest()  # the counts before it are known by now
        finally:
            self.part.segment.free_reserve()
            self.part.attach(When.CLOSE)

    def close(self) -> None:
        """Sync and close the segment.

        Raises:
            StorageError: its data is whole, but it is not closed in order.
        """
        self.part.close(self.recording.source)


def _growth(before: Mapping[str, int], now: Mapping[str, int]) -> Mapping[str, int]:
    """Return counters that count from *before* on; those of a present state stay as they are."""
    return {
        name: value if name in PRESENT_STATE else max(value - before.get(name, 0), 0)
        for name, value in now.items()
    }


def _infos(segment: OpenSegment) -> tuple[StreamInfo, ...]:
    return tuple(files.record.info for files in segment.files.values())


def close_source(source: Source) -> None:
    """Close a source, and print lines on settings that could not be restored or removed."""
    source.close()
    tell_notes(source)


def tell_notes(source: Source) -> None:
    """Report what the kernel changed or refused since the last call."""
    for note in source.notes():
        say(f"{source.info.spec}: {note}", Level.WARNING)


def _told(info: SourceInfo) -> dict[str, Any]:
    """Return the source's object in the manifest; its snapshots and machine stand elsewhere."""
    told = asdict(info)
    del told["snapshot"], told["machine"]
    return told


def _snapshot(source: Source) -> Snapshot | None:
    if source.info.snapshot is not None:
        return source.info.snapshot
    return take_snapshot(source.now) if source.info.live else None
